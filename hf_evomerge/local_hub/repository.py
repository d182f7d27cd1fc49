"""One repository: its commits, its refs and its settings, in a folder. A commit is a file; moving a ref replaces one file."""

from __future__ import annotations

import hashlib
import heapq
import json
import re
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from .objects import write_whole
from .wire import Refusal

Kind = Literal["models", "datasets", "spaces"]
SINGULAR: dict[str, str] = {"models": "model", "datasets": "dataset", "spaces": "space"}
STATE = "repository.json"


def now() -> str:
    """The time, as the Hub writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def git_id(data: bytes) -> str:
    """The name that git gives to a content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps in place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass(frozen=True)
class Entry:
    """A file of a commit.

    Attributes:
        sha256: Its content, in `Objects`.
        size: Bytes of the content.
        oid: git's name: of the content, or of the pointer where `lfs`.
        lfs: Whether it is kept out of git, as LFS or Xet.
        xet: Its Xet hash, where a Xet client uploaded it.
    """

    sha256: str
    size: int
    oid: str
    lfs: bool = False
    xet: str | None = None

    @classmethod
    def regular(cls, sha256: str, data: bytes) -> Entry:
        """The entry of a file that git itself keeps."""
        return cls(sha256, len(data), git_id(data))

    @classmethod
    def large(cls, sha256: str, size: int, xet: str | None = None) -> Entry:
        """The entry of an LFS or Xet file."""
        return cls(sha256, size, git_id(pointer(sha256, size)), True, xet)

    @property
    def etag(self) -> str:
        """What the client compares to know whether it has the file: SHA-256 for large files, git's name for others."""
        return self.sha256 if self.lfs else self.oid

    def lfs_facts(self) -> dict[str, Any]:
        """Size and pointer size of a large file, as the API shows them."""
        return {"size": self.size, "pointerSize": len(pointer(self.sha256, self.size))}


Tree = dict[str, Entry]


@dataclass(frozen=True)
class Commit:
    """A state of all files. `tree` maps path to entry."""

    id: str
    parents: tuple[str, ...]
    title: str
    message: str
    date: str
    author: str
    tree: Tree

    @classmethod
    def make(cls, tree: Tree, parents: tuple[str, ...], *, title: str, message: str, author: str) -> Commit:
        """A new commit, named by what is in it."""
        rest: dict[str, Any] = {"parents": parents, "title": title, "message": message, "date": now(), "author": author}
        files = sorted((path, entry.oid) for path, entry in tree.items())
        name = hashlib.sha1(json.dumps([files, rest]).encode(), usedforsecurity=False).hexdigest()
        return cls(name, tree=dict(sorted(tree.items())), **rest)

    def to_json(self) -> bytes:
        """The content of the commit's file."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Commit:
        """The reverse of `to_json`."""
        value = json.loads(data)
        tree = {path: Entry(**entry) for path, entry in value.pop("tree").items()}
        return cls(**{**value, "parents": tuple(value["parents"])}, tree=tree)


@dataclass
class State:
    """What of a repository changes without a commit. Kept in one file, which is replaced whole."""

    kind: Kind
    id: str
    number: str = field(default_factory=lambda: uuid.uuid4().hex[:24])
    created: str = field(default_factory=now)
    private: bool = False
    gated: str | bool = False
    sdk: str | None = None
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, str] = field(default_factory=dict)
    discussions: list[dict[str, Any]] = field(default_factory=list)
    access: dict[str, dict[str, Any]] = field(default_factory=dict)
    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)
    variables: dict[str, dict[str, Any]] = field(default_factory=dict)
    hardware: str = "cpu-basic"
    sleep_seconds: int | None = None
    paused: bool = False


class Repository:
    """A repository on disk.

    Args:
        folder: Its folder.
        temporary: A folder on the same file system for files that are not whole yet.
        state: Where it is new; otherwise it is read from the folder.

    Attributes:
        state: Settings and refs; call `save` after a change.
        lock: Hold it over reading a ref and moving it.
    """

    def __init__(self, folder: Path, temporary: Path, state: State | None = None) -> None:
        self.folder, self._temporary = folder, temporary
        self.lock = threading.RLock()
        self.state = state or State(**json.loads((folder / STATE).read_bytes()))
        self._commits: dict[str, Commit] = {}

    @property
    def id(self) -> str:
        """`owner/name`."""
        return self.state.id

    @property
    def owner(self) -> str:
        """The user or organisation it belongs to."""
        return self.state.id.split("/")[0]

    def save(self) -> None:
        """Write the state; after this call it survives a kill."""
        write_whole(self.folder / STATE, json.dumps(asdict(self.state)).encode(), self._temporary)

    def commit(self, oid: str) -> Commit:
        """A commit by its full id."""
        if oid not in self._commits:
            self._commits[oid] = Commit.from_json(self._file(oid).read_bytes())
        return self._commits[oid]

    def add(self, commit: Commit) -> Commit:
        """Keep a commit. No ref points to it yet."""
        write_whole(self._file(commit.id), commit.to_json(), self._temporary)
        self._commits[commit.id] = commit
        return commit

    def resolve(self, revision: str) -> str:
        """The full commit id of a branch, a tag, a pull request's ref, or the beginning of an id (seven digits or more).

        Raises:
            Refusal: 404 with `RevisionNotFound`.
        """
        for refs, prefix in (
            (self.state.branches, "refs/heads/"),
            (self.state.tags, "refs/tags/"),
            (self.state.pulls, ""),
        ):
            if (oid := refs.get(revision.removeprefix(prefix))) is not None:
                return oid
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            found = [file.stem for file in (self.folder / "commits").glob(f"{revision}*.json")]
            if len(found) == 1:
                return found[0]
        raise Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")

    def at(self, revision: str) -> Commit:
        """The commit of a revision; see `resolve`."""
        return self.commit(self.resolve(revision))

    def log(self, oid: str) -> Iterator[Commit]:
        """A commit and those before it, children before their parents and otherwise the newest first."""
        order: dict[str, int] = {}  # a commit's generation: how long the longest way to a root is
        stack = [oid]
        while stack:
            parents = self.commit(stack[-1]).parents
            if missing := [parent for parent in parents if parent not in order]:
                stack += missing
            else:
                order[stack.pop()] = 1 + max((order[parent] for parent in parents), default=0)
        queue, seen = [(-order[oid], oid)], {oid}
        while queue:
            commit = self.commit(heapq.heappop(queue)[1])
            yield commit
            for parent in commit.parents:
                if parent not in seen:
                    seen.add(parent)
                    heapq.heappush(queue, (-order[parent], parent))

    def last_changes(self, oid: str, paths: list[str]) -> Mapping[str, Commit]:
        """For files and folders of a commit, the newest commit that changed each."""
        wanted, found = set(paths), {}
        for commit in self.log(oid):
            before = self.commit(commit.parents[0]).tree if commit.parents else {}
            changed = {path for path in commit.tree.keys() | before.keys() if commit.tree.get(path) != before.get(path)}
            for path in list(wanted):
                if path in changed or any(other.startswith(f"{path}/") for other in changed):
                    found[path] = commit
                    wanted.discard(path)
            if not wanted:
                break
        return found

    def _file(self, oid: str) -> Path:
        return self.folder / "commits" / f"{oid}.json"
