"""One commit to a repository on the Hub, which lands whole or not at all, once or not at all.

The client goes on with large files where they broke off, but does not send a commit again whose answer got lost: it may be
there already. Here it is sent on top of a known parent, and looked for before it is sent again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..checkpoints.hashes import file_sha256
from ..errors import HubError
from .client import Patience, ask, bounded, is_passing, root_of

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

_UNKNOWN = "cannot be read, so it is not known whether the commit was taken; push again"
Content = Path | bytes


@dataclass(frozen=True)
class Commit:
    """Where a commit landed.

    Attributes:
        repo_id: The repository.
        sha: The commit; the branch's head where there was nothing to change.
        url: Its page, or the pull request's.
        changed: Whether there was anything to commit.
        doubt: What could not be checked of it, for a warning.
    """

    repo_id: str
    sha: str
    url: str
    changed: bool = True
    doubt: str | None = None


@dataclass(frozen=True)
class Target:
    """Where a commit goes.

    Attributes:
        repo_id, repo_type: The repository: ``model`` or ``space``.
        revision: The branch; made where there is none. A pull request's is ``refs/pr/N``.
    """

    repo_id: str
    repo_type: str = "model"
    revision: str = "main"


def commit_files(
    api: HfApi,
    target: Target,
    files: Mapping[str, Content],
    *,
    message: str,
    remove: Callable[[str], bool] = lambda _: False,
    progress: bool = False,
) -> Commit:
    """Make the repository hold these files, in one commit.

    Args:
        api: The client.
        target: A repository and branch that exist.
        files: What each file in the repository is to hold.
        message: The commit's first line.
        remove: Which of the files that are there, and not among `files`, go.
        progress: Whether to show a bar while large files are uploaded.

    Raises:
        HubError: It did not work, or somebody else changed the repository meanwhile. Says what is there and what is not.
    """
    from huggingface_hub import CommitOperationDelete

    head, there = _state(api, target)
    gone = [name for name in there if name not in files and remove(name)]
    if not gone and _landed(api, target, head, files):
        return Commit(target.repo_id, head, _url(api, target), changed=False)
    additions = _upload(api, target, files, head, progress)
    deletions = [CommitOperationDelete(path_in_repo=name) for name in gone]
    sha = _send(api, target, [*additions, *deletions], head, files, message)
    try:
        landed, doubt = _landed(api, target, sha, files), None
    except HubError as cause:
        landed, doubt = True, f"{target.repo_id}: the Hub has taken the commit, but what it holds was not compared: {cause}"
    if not landed:
        raise HubError(f"{target.repo_id}: commit {sha[:12]} does not hold what was sent; push again")
    return Commit(target.repo_id, sha, _url(api, target), doubt=doubt)


def unchanged(api: HfApi, target: Target, files: Mapping[str, Content], *, remove: Callable[[str], bool]) -> Commit | None:
    """The branch's head where `commit_files` would have nothing to change; None otherwise."""
    head, there = _state(api, target)
    if any(remove(name) for name in there if name not in files) or not _landed(api, target, head, files):
        return None
    return Commit(target.repo_id, head, _url(api, target), changed=False)


def _state(api: HfApi, target: Target) -> tuple[str, list[str]]:
    """The head of the branch, and the files in it."""
    head = _head(api, target, "cannot be read")
    what = f"{target.repo_id}: cannot be read"
    return head, ask(what, lambda: api.list_repo_files(target.repo_id, repo_type=target.repo_type, revision=head))


def _upload(api: HfApi, target: Target, files: Mapping[str, Content], head: str, progress: bool) -> list[CommitOperationAdd]:
    """Upload the large files, one after the other; those that the Hub has already are not sent."""
    from huggingface_hub import CommitOperationAdd

    additions = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    total = sum(addition.upload_info.size for addition in additions)
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"uploading to {target.repo_id}", disable=not progress) as bar:
        for done, addition in enumerate(additions):
            left = (
                f"nothing is committed, and the branch is still at {head[:12]}; {done} of {len(additions)} files are uploaded"
            )
            what = f"{target.repo_id}: {addition.path_in_repo} cannot be uploaded ({left}; push again to go on)"
            where: dict[str, Any] = {"repo_type": target.repo_type, "revision": target.revision, "num_threads": 1}
            ask(what, partial(api.preupload_lfs_files, target.repo_id, [addition], **where))
            bar.update(addition.upload_info.size)
    return additions


def _send(
    api: HfApi,
    target: Target,
    operations: Sequence[CommitOperationAdd | CommitOperationDelete],
    head: str,
    files: Mapping[str, Content],
    message: str,
) -> str:
    """Send the commit until it has landed; returns its sha. Where it fails, the branch says whether it has."""
    patience = Patience(f"{target.repo_id}: the Hub did not take the commit")
    where: dict[str, Any] = {"repo_type": target.repo_type, "revision": target.revision, "parent_commit": head}
    while True:
        try:
            with bounded(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*commit a data file.*")  # the record belongs there
                return str(api.create_commit(target.repo_id, operations, commit_message=message, **where).oid)
        except Exception as error:  # also an answer that cannot be read
            now = _head(api, target, _UNKNOWN)
            if now != head:
                if _landed(api, target, now, files, _UNKNOWN):
                    return now  # only its answer was lost
                raise HubError(
                    f"{target.repo_id}: somebody else has committed ({now[:12]}) while this was being pushed; push again"
                ) from error
            if not patience.wait(error):
                left = f"all files are uploaded, but nothing is committed and the branch is still at {head[:12]}"
                later = " later" if is_passing(error) else ""
                raise HubError(f"{patience.error(error)}; {left}; push again{later}") from root_of(error)


def _head(api: HfApi, target: Target, complaint: str) -> str:
    what = f"{target.repo_id}: {complaint}"
    return ask(what, lambda: str(api.repo_info(target.repo_id, repo_type=target.repo_type, revision=target.revision).sha))


def _landed(api: HfApi, target: Target, sha: str, files: Mapping[str, Content], complaint: str = "cannot be read") -> bool:
    """Whether a commit holds exactly these contents under these names."""
    where: dict[str, Any] = {"repo_type": target.repo_type, "revision": sha}
    infos = ask(f"{target.repo_id}: {complaint}", lambda: api.get_paths_info(target.repo_id, list(files), **where))
    stored = {info.path: info for info in infos}
    return files.keys() <= stored.keys() and all(_is_same(stored[name], content) for name, content in files.items())


def _is_same(stored: Any, content: Content) -> bool:
    from huggingface_hub.utils.sha import git_hash

    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if stored.size != size:
        return False
    if stored.lfs is not None:
        sha = sha256(content).hexdigest() if isinstance(content, bytes) else file_sha256(content)
        return str(stored.lfs.sha256) == sha
    return str(stored.blob_id) == git_hash(content if isinstance(content, bytes) else content.read_bytes())


def _url(api: HfApi, target: Target) -> str:
    kind = "" if target.repo_type == "model" else f"{target.repo_type}s/"
    base = f"{api.endpoint}/{kind}{target.repo_id}"
    if target.revision.startswith("refs/pr/"):
        return f"{base}/discussions/{target.revision.rsplit('/', 1)[-1]}"
    return base if target.revision == "main" else f"{base}/tree/{target.revision}"
