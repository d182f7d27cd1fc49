"""Commits files to a repository on the Hub: all of them or none, once or not at all.

Each commit names its parent, so the Hub refuses it when the branch has moved: by somebody else, or
by the same commit whose answer was lost. After an error the branch tells which it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.client import ask, repo_info
from ..checkpoints.hashes import file_sha256
from ..errors import HubError

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.hf_api import RepoSibling

Content = Path | bytes


@dataclass(frozen=True)
class Commit:
    """A commit that was made: its repository, and its page.

    `sha` is the branch's head, and `changed` false, if there was nothing to commit.
    """

    repo_id: str
    sha: str
    url: str
    changed: bool = True


@dataclass(frozen=True)
class Target:
    """Target of a commit: a branch, which must exist, of a repository of type ``model``,
    ``dataset`` or ``space``."""

    repo_id: str
    repo_type: str = "model"
    revision: str = "main"


def make_repo(api: HfApi, target: Target, *, private: bool = False, **how: Any) -> None:
    """Create the repository of a target where it is missing."""
    make = partial(api.create_repo, target.repo_id, repo_type=target.repo_type, **how)
    ask(
        f"{target.repo_id}: no answer says that it was created",
        lambda: make(private=private or None, exist_ok=True),
    )


# Exactly once, over a network that may lose an answer. A commit names its parent h, the head that
# was read before. The Hub takes it only while the branch is at h. So sending it twice can do no
# harm: if the first was taken, the branch has moved, and the second is refused. After an error the
# head says what happened:
#   head = h                     nothing was committed; push again
#   head != h, with our files    ours was taken, and only the answer was lost
#   head != h, without them      somebody else has committed; nothing of theirs is overwritten
# Large files go first, outside of any commit, and are addressed by their
# sha256: a push that is tried again does not send them again.
def commit_files(
    api: HfApi,
    target: Target,
    files: Mapping[str, Content],
    *,
    message: str,
    remove: Callable[[str], bool] = lambda _: False,
) -> Commit:
    """Make a repository hold these files, in one commit with this first line; `remove` says which
    of its other files go.

    Raises:
        HubError: It did not work, or somebody else changed the repository meanwhile. Says what is
            there and what is not.
    """
    from huggingface_hub import CommitOperationDelete

    look = partial(repo_info, api, target.repo_id, target.revision, repo_type=target.repo_type)
    before = look()
    if _holds(before, files, remove):
        return Commit(target.repo_id, str(before.sha), _url(api, target), changed=False)
    head = str(before.sha)
    additions = _upload(api, target, files, head)
    names = [file.rfilename for file in before.siblings or []]
    deletions = [
        CommitOperationDelete(path_in_repo=name)
        for name in names
        if name not in files and remove(name)
    ]
    operations = [*additions, *deletions]
    where: dict[str, Any] = {
        "repo_type": target.repo_type,
        "revision": target.revision,
        "parent_commit": head,
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*commit a data file.*"
            )  # the record belongs there
            send = partial(
                api.create_commit, target.repo_id, operations, commit_message=message, **where
            )
            made = ask(f"{target.repo_id}: the Hub did not take the commit", send)
    except HubError as cause:
        now = look(
            complaint="cannot be read, so it is not known whether the commit was taken; push again"
        )
        sha = str(now.sha)
        if sha == head:
            left = (
                "all files are uploaded, but nothing is committed and the branch is still at "
                f"{head[:12]}"
            )
            raise HubError(f"{cause}; {left}; push again later") from cause
        if not _holds(now, files, remove):
            meanwhile = f"somebody else has committed ({sha[:12]}) while this was being pushed"
            raise HubError(f"{target.repo_id}: {meanwhile}; push again") from cause
        return Commit(target.repo_id, sha, _url(api, target))
    return Commit(target.repo_id, made.oid, _url(api, target))


def _holds(info: Any, files: Mapping[str, Content], remove: Callable[[str], bool]) -> bool:
    """Tell whether a commit has every file with this content, and no file that goes."""
    stored = {file.rfilename: file for file in info.siblings or []}
    return not any(remove(name) for name in stored.keys() - files.keys()) and all(
        name in stored and _is_same(stored[name], content) for name, content in files.items()
    )


def _upload(
    api: HfApi, target: Target, files: Mapping[str, Content], head: str
) -> list[CommitOperationAdd]:
    """Upload the large files, one after the other; files that the Hub has already are not sent."""
    from huggingface_hub import CommitOperationAdd

    additions = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in files.items()
    ]
    where: dict[str, Any] = {
        "repo_type": target.repo_type,
        "revision": target.revision,
        "num_threads": 1,
    }
    for done, addition in enumerate(additions):
        left = (
            f"nothing is committed, and the branch is still at {head[:12]}; {done} of "
            f"{len(additions)} files are uploaded"
        )
        what = (
            f"{target.repo_id}: {addition.path_in_repo} cannot be uploaded ({left}; push again "
            "to go on)"
        )
        ask(what, partial(api.preupload_lfs_files, target.repo_id, [addition], **where))
    return additions


# The Hub keeps large files in LFS, by the sha256 of their content, and small ones as git blobs,
# whose id is the sha1 of a header and the content. Sizes are compared first, since hashing reads
# the file.
def _is_same(stored: RepoSibling, content: Content) -> bool:
    from huggingface_hub.utils.sha import git_hash

    if stored.size != size_of(content):
        return False
    if stored.lfs is not None:
        return stored.lfs.sha256 == (
            sha256(content).hexdigest() if isinstance(content, bytes) else file_sha256(content)
        )
    return stored.blob_id == git_hash(
        content if isinstance(content, bytes) else content.read_bytes()
    )


def size_of(content: Content) -> int:
    """Bytes of a file to send."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _url(api: HfApi, target: Target) -> str:
    kind = "" if target.repo_type == "model" else f"{target.repo_type}s/"
    base = f"{api.endpoint}/{kind}{target.repo_id}"
    return base if target.revision == "main" else f"{base}/tree/{target.revision}"
