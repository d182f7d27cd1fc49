"""All repositories of a hub on disk, which are found again after a restart, and the contents that
they refer to, by their SHA-256."""

import hashlib
import shutil
import threading
import uuid

from .repository import STATE, Commit, Entry, Repository, git_id, pointer
from .wire import Refusal

_LARGE = """
7z arrow bin bz2 ckpt ftz gguf gz h5 joblib mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth rar safetensors
tar tflite tgz wasm xz zip zst
"""  # noqa: E501
LARGE_ENDINGS = tuple(_LARGE.split())
ATTRIBUTES = "".join(
    f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE_ENDINGS
).encode()


class Store:
    """The repositories in a folder.

    Args:
        root: The folder; made if it is not there.
    """

    def __init__(self, root):
        self._contents = root / "objects"
        self._contents.mkdir(parents=True, exist_ok=True)
        self._folder = root / "repositories"
        self._repositories = {}
        self._lock = threading.Lock()
        for state in sorted(self._folder.glob(f"*/*/*/{STATE}")):
            repository = Repository(state.parent)
            self._repositories[repository.state.kind, repository.id] = repository

    def get(self, kind, repo_id):
        """The repository, if it is there."""
        return self._repositories.get((kind, repo_id))

    def create(self, state, *, author):
        """Make a repository with its first commit, as the Hub does; gives None where it is there
        already."""
        with self._lock:
            if (state.kind, state.id) in self._repositories:
                return None
            repository = Repository(self._folder / state.kind / state.id, state)
            tree = {".gitattributes": self.regular(ATTRIBUTES)}
            commit = repository.add(Commit.make(tree, None, title="initial commit", author=author))
            state.branches["main"] = commit.id
            repository.save()
            self._repositories[state.kind, state.id] = repository
            return repository

    def delete(self, repository):
        """Remove a repository. Contents stay: others may have the same."""
        with self._lock:
            self._repositories.pop((repository.state.kind, repository.id), None)
            shutil.rmtree(repository.folder)

    def regular(self, data):
        """Keep a content, and give the entry of a file that has it."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.receive(sha256, [data])
        return Entry(sha256, len(data), git_id(data))

    def large(self, sha256):
        """The entry of a large file that was uploaded before; None where it was not."""
        if not self.content(sha256).exists():
            return None
        size = self.content(sha256).stat().st_size
        return Entry(sha256, size, git_id(pointer(sha256, size)), lfs=True)

    def content(self, sha256):
        """Where a content is, or would be."""
        return self._contents / sha256

    def receive(self, sha256, pieces):
        """Keep a content that arrives in pieces; raises `Refusal` where it is not the one that was
        announced."""
        digest = hashlib.sha256()
        unfinished = self._contents / uuid.uuid4().hex
        try:
            with unfinished.open("wb") as file:
                for piece in pieces:
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != sha256:
                raise Refusal(400, "the content does not match the SHA-256 that was announced")
            unfinished.replace(self.content(sha256))
        finally:
            unfinished.unlink(missing_ok=True)
