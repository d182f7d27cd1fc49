"""Xet on a shared disk: the client's own `hf_xet` writes and reads a folder, this reads which file is which.

Where the server answers a request for an upload token with a `local://` address, the client itself chunks, de-duplicates and
stores the file there. A commit then names the file only by its SHA-256, so the server has to find the Xet hash that goes with
it: it is in the shards (`*.mdb`) that `hf_xet` leaves beside the data.
"""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import NamedTuple

from .wire import Refusal

HEADER = 48  # bytes before the first file of a shard: magic, version, size of the footer
RECORD = 48  # every record of a shard has this size
END = b"\xff" * 32  # in place of a hash: no more files
HAS_VERIFICATION, HAS_SHA256 = 0x80000000, 0x40000000  # flags of a file: which records follow its segments


class XetFile(NamedTuple):
    """A file in the store: its Xet hash, as the client prints it, and its size in bytes."""

    hash: str
    size: int


def _print_hash(raw: bytes) -> str:
    """A hash as text: four little-endian numbers, which is not the order of the bytes."""
    return "".join(f"{part:016x}" for part in struct.unpack("<4Q", raw))


def read_shard(data: bytes) -> dict[str, XetFile]:
    """The files of a shard, by SHA-256. A shard that ends early gives the files before its end.

    Args:
        data: The shard's bytes.
    """
    files: dict[str, XetFile] = {}
    at = HEADER
    while at + RECORD <= len(data) and data[at : at + 32] != END:
        name = data[at : at + 32]
        flags, segments = struct.unpack_from("<II", data, at + 32)
        at += RECORD
        after = at + RECORD * segments * (2 if flags & HAS_VERIFICATION else 1)
        if after > len(data):
            break
        size = sum(struct.unpack_from("<I", data, at + RECORD * segment + 36)[0] for segment in range(segments))
        at = after
        if flags & HAS_SHA256:
            if at + RECORD > len(data):
                break
            files[_print_hash(data[at : at + 32])] = XetFile(_print_hash(name), size)
            at += RECORD
    return files


class XetStore:
    """The folder that clients upload to.

    Args:
        folder: Where it is; made by the client's first upload.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, XetFile] = {}
        self._read: dict[Path, int] = {}
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        """What the client is told as the address of the store."""
        return f"local://{self.folder}"

    def find(self, sha256: str) -> XetFile | None:
        """The file with this content, if a client has uploaded it."""
        with self._lock:
            if sha256 not in self._files:
                for shard in self.folder.rglob("shards/*.mdb"):
                    size = shard.stat().st_size
                    if self._read.get(shard) != size:  # once, and again if it was seen while it was being written
                        self._files.update(read_shard(shard.read_bytes()))
                        self._read[shard] = size
            return self._files.get(sha256)

    def fetch(self, file: XetFile, target: Path) -> None:
        """Write a file's content, for a client that asks for it over HTTP.

        Raises:
            Refusal: 501, where `hf_xet` is not installed here.
        """
        try:
            import hf_xet
        except ImportError:
            raise Refusal(501, "this file is stored as Xet; install hf_xet where the hub runs to serve it over HTTP") from None
        with hf_xet.XetSession().new_file_download_group(endpoint=self.address) as group:
            group.start_download_file(hf_xet.XetFileInfo(file.hash, file.size), str(target))
