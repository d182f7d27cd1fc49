"""One repository: its commits, its refs and its settings, in a folder. A commit is a file; moving a
ref rewrites another."""

import hashlib
import json
import re
import secrets
import threading
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from .wire import Refusal

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
STATE = "repository.json"


def git_id(data):
    """The name that git gives to a content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def pointer(sha256, size):
    """The text that git keeps in place of an LFS file."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


@dataclass(frozen=True)
class Entry:
    """A file of a commit.

    Attributes:
        sha256: Its content, in `Store`.
        size: Bytes of the content.
        oid: git's name: of the content, or of the pointer where `lfs`.
        lfs: Whether it is kept out of git.
    """

    sha256: str
    size: int
    oid: str
    lfs: bool = False

    @property
    def etag(self):
        """What the client compares to know whether it has the file: SHA-256 for large files, git's
        name for others."""
        return self.sha256 if self.lfs else self.oid

    def lfs_facts(self, name):
        """What the API says of a large file, the SHA-256 under this name; nothing of a regular
        file."""
        if not self.lfs:
            return {}
        pointer_size = len(pointer(self.sha256, self.size))
        return {"lfs": {name: self.sha256, "size": self.size, "pointerSize": pointer_size}}


@dataclass(frozen=True)
class Commit:
    """A state of all files. `tree` maps path to entry."""

    id: str
    parent: str | None
    title: str
    message: str
    date: str
    author: str
    tree: dict[str, Entry]

    @classmethod
    def make(cls, tree, parent, *, title, message="", author):
        """Make a commit."""
        date = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        tree = dict(sorted(tree.items()))
        return cls(secrets.token_hex(20), parent, title, message, date, author, tree)

    @classmethod
    def from_json(cls, data):
        """Read the content of a commit's file."""
        value = json.loads(data)
        tree = {path: Entry(**entry) for path, entry in value.pop("tree").items()}
        return cls(**value, tree=tree)


@dataclass
class State:
    """What of a repository changes without a commit. Kept in one file.

    Attributes:
        kind: `models`, `datasets` or `spaces`.
        id: `owner/name`.
        private: Whether it is hidden from everybody but its owner.
        sdk: A Space's SDK.
        branches, tags: Commit ids by name.
    """

    kind: str
    id: str
    private: bool = False
    sdk: str | None = None
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Repository:
    """A repository on disk.

    Args:
        folder: Its folder.
        state: Where it is new; otherwise it is read from the folder.

    Attributes:
        state: Settings and refs; call `save` after a change.
        lock: Hold it over reading a ref and moving it.
    """

    def __init__(self, folder, state=None):
        self.folder = folder
        self.lock = threading.RLock()
        self.state = state or State(**json.loads((folder / STATE).read_bytes()))
        self._commits = {}

    @property
    def id(self):
        """`owner/name`."""
        return self.state.id

    @property
    def owner(self):
        """The namespace it is in."""
        return self.state.id.split("/")[0]

    def save(self):
        """Write the state."""
        self._write(self.folder / STATE, self.state)

    def commit(self, oid):
        """Read a commit by its full id."""
        if oid not in self._commits:
            self._commits[oid] = Commit.from_json(self._file(oid).read_bytes())
        return self._commits[oid]

    def add(self, commit):
        """Keep a commit. No ref points to it yet."""
        self._write(self._file(commit.id), commit)
        self._commits[commit.id] = commit
        return commit

    def resolve(self, revision):
        """The commit id of a branch, a tag, or the beginning of an id (seven digits); raises
        `Refusal`."""
        names = ((self.state.branches, "refs/heads/"), (self.state.tags, "refs/tags/"))
        for refs, prefix in names:
            if (oid := refs.get(revision.removeprefix(prefix))) is not None:
                return oid
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            commits = [file.stem for file in (self.folder / "commits").glob(f"{revision}*.json")]
            if len(commits) == 1:
                return commits[0]
        raise Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")

    def at(self, revision):
        """Read the commit of a revision; see `resolve`."""
        return self.commit(self.resolve(revision))

    def log(self, oid):
        """A commit and those before it, the newest first."""
        parent = oid
        while parent is not None:
            commit = self.commit(parent)
            yield commit
            parent = commit.parent

    def _file(self, oid):
        return self.folder / "commits" / f"{oid}.json"

    def _write(self, path, value):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(value)), encoding="utf-8")
