"""File contents on disk, by their SHA-256."""

import hashlib
import uuid

from .wire import Refusal


class Objects:
    """The contents that repositories refer to.

    Args:
        root: The folder of the hub, whose `objects/` holds the contents.
    """

    def __init__(self, root):
        self.folder = root / "objects"
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256):
        """Where a content is, or would be."""
        return self.folder / sha256

    def size(self, sha256):
        """The size of a content in bytes; None where it is not here."""
        path = self.path(sha256)
        return path.stat().st_size if path.exists() else None

    def read(self, sha256):
        """Read a small content."""
        return self.path(sha256).read_bytes()

    def add(self, data):
        """Keep a small content, and return its SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.receive(sha256, [data])
        return sha256

    def receive(self, sha256, pieces):
        """Keep a content that arrives in pieces; raises `Refusal` where it is not the one that was
        announced."""
        digest = hashlib.sha256()
        unfinished = self.folder / uuid.uuid4().hex
        try:
            with unfinished.open("wb") as file:
                for piece in pieces:
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != sha256:
                raise Refusal(400, "the content does not match the SHA-256 that was announced")
            unfinished.replace(self.path(sha256))
        finally:
            unfinished.unlink(missing_ok=True)
