"""Commits files to a repository on the Hub: all of them or none.

Each commit names its parent, so that the Hub refuses it where the branch has moved. Large files go
first, by their sha256, and files that the Hub has are not sent: a push that is run again goes on
where it was, and commits nothing twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.client import ask, repo_info

if TYPE_CHECKING:
    from huggingface_hub import HfApi

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
        HubError: It did not work, or somebody else changed the repository meanwhile.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    before = repo_info(api, target.repo_id, target.revision, repo_type=target.repo_type)
    names = [file.rfilename for file in before.siblings or []]
    additions = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in files.items()
    ]
    deletions = [
        CommitOperationDelete(path_in_repo=name)
        for name in names
        if name not in files and remove(name)
    ]
    send = partial(
        api.create_commit,
        target.repo_id,
        [*additions, *deletions],
        commit_message=message,
        repo_type=target.repo_type,
        revision=target.revision,
        parent_commit=before.sha,
        num_threads=1,
    )
    with warnings.catch_warnings():
        # the record belongs there
        warnings.filterwarnings("ignore", message=".*commit a data file.*")
        what = "no answer says that the commit was made; push again to go on"
        made = ask(f"{target.repo_id}: {what}", send)
    return Commit(target.repo_id, made.oid, _url(api, target), changed=made.oid != before.sha)


def size_of(content: Content) -> int:
    """Bytes of a file to send."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _url(api: HfApi, target: Target) -> str:
    kind = "" if target.repo_type == "model" else f"{target.repo_type}s/"
    base = f"{api.endpoint}/{kind}{target.repo_id}"
    return base if target.revision == "main" else f"{base}/tree/{target.revision}"
