"""All repositories of a hub, on disk: created, found again after a restart, deleted."""

from __future__ import annotations

import os
import re
import shutil
import threading
import uuid
from pathlib import Path

from hf_evomerge.errors import HubError

from .objects import Objects
from .repository import SINGULAR, STATE, Commit, Entry, Repository, State, git_id, pointer
from .wire import Refusal

_LARGE = """
7z arrow bin bz2 ckpt ftz gguf gz h5 joblib mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth rar safetensors
tar tflite tgz wasm xz zip zst
"""  # noqa: E501
LARGE_ENDINGS = tuple(_LARGE.split())
ATTRIBUTES = "".join(
    f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE_ENDINGS
).encode()
LONGEST_PATH = 1024
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")


def is_name(name: str) -> bool:
    """Whether this can be the name of a namespace or a repository."""
    return bool(NAME.fullmatch(name)) and not (
        ".." in name or "--" in name or name.endswith(".git")
    )


def check_name(name: str) -> str:
    """Return a name, if it is one; raises `Refusal`."""
    if not is_name(name):
        raise Refusal(400, f"Invalid name: {name[:100]!r}")
    return name


def check_path(path: object) -> str:
    """Return a file's path, if it stays inside of a repository wherever it is written; raises
    `Refusal`."""
    if not isinstance(path, str) or not path or len(path) > LONGEST_PATH:
        raise Refusal(400, f"Invalid path: {str(path)[:100]!r}")
    outside = any(part in ("", ".", "..") or part.lower() == ".git" for part in path.split("/"))
    drive = re.match("[A-Za-z]:", path)
    if outside or drive or "\\" in path or not path.isprintable():
        raise Refusal(400, f"Invalid path: {path[:100]!r}")
    return path


def check_ref(name: str) -> str:
    """Return a branch's or tag's name, if git would take it; raises `Refusal`."""
    bad = re.search(r"\.\.|//|@\{|[\s~^:?*\[\\]|/\.|\.lock(/|$)", name) or name.startswith(
        ("/", "-", ".", "refs/")
    )
    if (
        not name
        or bad
        or name.endswith(("/", "."))
        or not name.isprintable()
        or re.fullmatch("[0-9a-f]{40}", name)
    ):
        raise Refusal(400, f"Invalid reference name: {name[:100]!r}")
    return name


class Store:
    """The repositories in a folder.

    Args:
        root: The folder; made if it is not there.

    Raises:
        HubError: Where a repository's state cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.objects = Objects(root)
        self._folder = root / "repositories"
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._lock = threading.Lock()
        for state in sorted(self._folder.glob(f"*/*/*/{STATE}")):
            try:
                repository = Repository(state.parent, self.objects.temporary)
            except (ValueError, TypeError) as error:
                raise HubError(
                    f"{state}: no repository of this hub ({error}); move its folder away"
                ) from error
            self._repositories[repository.state.kind, repository.id] = repository

    def get(self, kind: str, repo_id: str) -> Repository | None:
        """The repository, if it is there."""
        return self._repositories.get((kind, repo_id))

    def create(self, state: State, *, author: str) -> Repository:
        """Make a repository with its first commit, as the Hub does; raises `Refusal` (409) where it
        is there already."""
        with self._lock:
            if (state.kind, state.id) in self._repositories:
                raise Refusal(
                    409, f"You already created this {SINGULAR[state.kind]} repo: {state.id}"
                )
            folder = self._folder / state.kind / state.id
            shutil.rmtree(
                folder, ignore_errors=True
            )  # without a state file, it was killed before it was whole
            repository = Repository(folder, self.objects.temporary, state)
            tree = {".gitattributes": self.regular(ATTRIBUTES)}
            commit = repository.add(Commit.make(tree, None, title="initial commit", author=author))
            state.branches["main"] = commit.id
            repository.save()
            self._repositories[state.kind, state.id] = repository
            return repository

    def delete(self, repository: Repository) -> None:
        """Remove a repository. Contents stay: others may have the same."""
        with self._lock:
            self._repositories.pop((repository.state.kind, repository.id), None)
            gone = self.objects.temporary / uuid.uuid4().hex
            os.replace(repository.folder, gone)
            shutil.rmtree(gone, ignore_errors=True)

    def regular(self, data: bytes) -> Entry:
        """Keep a content, and give the entry of a file that has it."""
        return Entry(self.objects.add(data), len(data), git_id(data))

    def large(self, sha256: str) -> Entry | None:
        """The entry of a large file that was uploaded before; None where it was not."""
        size = self.objects.size(sha256)
        return (
            None if size is None else Entry(sha256, size, git_id(pointer(sha256, size)), lfs=True)
        )
