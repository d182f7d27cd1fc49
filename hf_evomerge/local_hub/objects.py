"""File contents on disk, by their SHA-256. A content is there whole or not at all, whenever the program is killed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .wire import CHUNK, Refusal
from .xet import XetFile, XetStore


def write_whole(path: Path, data: bytes, temporary: Path) -> None:
    """Write a small file so that a reader sees the old content or the new one, never a part.

    Args:
        path: The file.
        data: Its new content.
        temporary: A folder on the same file system for the time until it is whole.
    """
    name = temporary / uuid.uuid4().hex
    name.write_bytes(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(name, path)


class Objects:
    """The contents that repositories refer to.

    Args:
        root: The folder of the hub. `objects/` holds what came over HTTP, `xet/` what Xet clients stored there, `tmp/` what is
            not whole.
    """

    def __init__(self, root: Path) -> None:
        self.folder, self.temporary = root / "objects", root / "tmp"
        self.xet = XetStore(root / "xet")
        shutil.rmtree(self.temporary, ignore_errors=True)  # left by a run that was killed
        for folder in (self.folder, self.temporary, self.xet.folder):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where a content is, or would be."""
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise Refusal(400, f"not a SHA-256: {sha256[:80]}")
        return self.folder / sha256[:2] / sha256

    def size(self, sha256: str) -> int | None:
        """The size of a content in bytes; None where it is not here."""
        path = self.path(sha256)
        if path.exists():
            return path.stat().st_size
        found = self.xet.find(sha256)
        return found.size if found else None

    def add(self, data: bytes) -> str:
        """Keep a small content, and return its SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.path(sha256).exists():
            write_whole(self.path(sha256), data, self.temporary)
        return sha256

    def receive(self, sha256: str, pieces: Iterable[bytes]) -> None:
        """Keep a content that arrives in pieces, if it is the one that was announced.

        Raises:
            Refusal: 400, where the content is another.
        """
        with self._incoming() as temporary:
            seen = hashlib.sha256()
            with open(temporary, "wb") as file:
                for piece in pieces:
                    seen.update(piece)
                    file.write(piece)
            if seen.hexdigest() != sha256:
                raise Refusal(400, "the content does not match the SHA-256 that was announced")
            self._settle(temporary, sha256)

    def receive_part(self, sha256: str, number: int, pieces: Iterable[bytes]) -> str:
        """Keep one part of a content for `join`, and return its MD5, which is its ETag."""
        with self._incoming() as temporary:
            seen = hashlib.md5(usedforsecurity=False)
            with open(temporary, "wb") as file:
                for piece in pieces:
                    seen.update(piece)
                    file.write(piece)
            os.replace(temporary, self._part(sha256, number))
        return seen.hexdigest()

    def join(self, sha256: str, etags: list[str]) -> None:
        """Make a content of its parts, which are numbered from 1.

        Raises:
            Refusal: 400, where a part is missing or differs from what was sent, or the whole is not what was announced.
        """
        parts = [self._part(sha256, number + 1) for number in range(len(etags))]
        for number, (part, etag) in enumerate(zip(parts, etags, strict=True), start=1):
            if not part.exists() or _md5(part) != etag:
                raise Refusal(400, f"part {number} is missing or differs from what was sent")
        self.receive(sha256, (piece for part in parts for piece in _pieces(part)))
        for part in parts:
            part.unlink(missing_ok=True)

    def open_file(self, sha256: str, xet: XetFile | None) -> Path:
        """The file that holds a content; one that only the Xet store has is written out first.

        Raises:
            Refusal: 404, where the content is nowhere.
        """
        path = self.path(sha256)
        if path.exists():
            return path
        if xet is None:
            raise Refusal(404, "the content of this file is gone from the hub's folder")
        with self._incoming() as temporary:
            self.xet.fetch(xet, temporary)
            self._settle(temporary, sha256)
        return path

    def _part(self, sha256: str, number: int) -> Path:
        return self.temporary / f"{self.path(sha256).name}.{int(number)}"

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        path = self.temporary / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _settle(self, temporary: Path, sha256: str) -> None:
        path = self.path(sha256)
        path.parent.mkdir(exist_ok=True)
        os.replace(temporary, path)


def _pieces(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(CHUNK):
            yield piece


def _md5(path: Path) -> str:
    seen = hashlib.md5(usedforsecurity=False)
    for piece in _pieces(path):
        seen.update(piece)
    return seen.hexdigest()
