"""All repositories of a hub, on disk: created, found again after a restart, deleted."""

import shutil
import threading

from .objects import Objects
from .repository import STATE, Commit, Entry, Repository, git_id, pointer

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
        self.objects = Objects(root)
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
        return Entry(self.objects.add(data), len(data), git_id(data))

    def large(self, sha256):
        """The entry of a large file that was uploaded before; None where it was not."""
        size = self.objects.size(sha256)
        return (
            None if size is None else Entry(sha256, size, git_id(pointer(sha256, size)), lfs=True)
        )
