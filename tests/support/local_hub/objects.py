"""File contents on disk, by their SHA-256. A content is there whole or not at all, whenever the
program is killed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from .wire import Refusal


def write_whole(path: Path, pieces: Iterable[bytes], temporary: Path) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    Args:
        path: The file.
        pieces: Its new content; where they end with an error, the file stays as it was.
        temporary: A folder on the same file system for the time until it is whole.
    """
    name = temporary / uuid.uuid4().hex
    try:
        with name.open("wb") as file:
            file.writelines(pieces)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(name, path)
    finally:
        name.unlink(missing_ok=True)


class Objects:
    """The contents that repositories refer to.

    Args:
        root: The folder of the hub: `objects/` holds the contents, `tmp/` what is not whole.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "objects"
        self.temporary = root / "tmp"
        shutil.rmtree(self.temporary, ignore_errors=True)  # left by a run that was killed
        for folder in (self.folder, self.temporary):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where a content is, or would be; raises `Refusal` where this is no SHA-256."""
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise Refusal(400, f"not a SHA-256: {sha256[:80]}")
        return self.folder / sha256[:2] / sha256

    def size(self, sha256: str) -> int | None:
        """The size of a content in bytes; None where it is not here."""
        path = self.path(sha256)
        return path.stat().st_size if path.exists() else None

    def read(self, sha256: str) -> bytes:
        """Read a small content."""
        return self.path(sha256).read_bytes()

    def add(self, data: bytes) -> str:
        """Keep a small content, and return its SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.path(sha256).exists():
            write_whole(self.path(sha256), [data], self.temporary)
        return sha256

    def receive(self, sha256: str, pieces: Iterable[bytes]) -> None:
        """Keep a content that arrives in pieces; raises `Refusal` where it is not the one that was
        announced."""
        write_whole(self.path(sha256), _checked(pieces, sha256), self.temporary)


def _checked(pieces: Iterable[bytes], sha256: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.hexdigest() != sha256:
        raise Refusal(400, "the content does not match the SHA-256 that was announced")
