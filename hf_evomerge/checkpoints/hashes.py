"""The sha256 of files, which is what the Hub knows large files by."""

from __future__ import annotations

from functools import lru_cache
from hashlib import file_digest
from pathlib import Path


def file_sha256(file: Path) -> str:
    """The sha256 of a file, read in pieces. A file that has not changed since is not read again."""
    facts = file.stat()
    return _read(file, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=4096)
def _read(file: Path, size: int, modified: int) -> str:
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()
