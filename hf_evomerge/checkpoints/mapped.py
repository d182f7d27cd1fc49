"""Safetensors files in memory: each is mapped once, whoever reads it, and the pages that were read
can be let go.

A page of a mapped file counts as the process's resident memory from its first use until the file is
unmapped, once for every mapping. A base that is read as the base and beneath two adapters would be
resident three times.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from .headers import read_header, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor


class MappedFile:
    """Safetensors file whose tensors are views of one mapping, which lives as long as they do.

    Args:
        file: The file. Raises `SourceError` where it is damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._header = read_header(file)
        with file.open("rb") as stream:
            # private, not read-only: torch makes tensors of memory that could be written to
            self._mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        self._data = 8 + int.from_bytes(self._mapping[:8], "little")
        self._fields: dict[str, Any] = json.loads(self._mapping[8 : self._data])

    def get_tensor(self, name: str) -> Tensor:
        """Return one tensor as a view of the file. Do not write to it."""
        import torch
        from safetensors import safe_open

        info = self._header[name]
        dtype = torch_dtype(info.dtype)
        if dtype is None or info.numel == 0:  # masks and the like: small, and of many dtypes
            with safe_open(str(self.file), framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
                return tensor
        offset = self._data + self._fields[name]["data_offsets"][0]
        return torch.frombuffer(self._mapping, dtype=dtype, count=info.numel, offset=offset).view(
            info.shape
        )

    def metadata(self) -> dict[str, str] | None:
        """Return the texts that stand in the header."""
        return self._fields.get("__metadata__")

    def release(self) -> None:
        """Let the pages go that were read; a tensor that is used again gets them from the system's
        cache."""
        # MADV_DONTNEED on a private mapping that nobody has written to drops the pages from the
        # process alone: they stay in the system's cache, and are the same when they are read again.
        if hasattr(mmap, "MADV_DONTNEED"):  # Windows trims working sets by itself
            self._mapping.madvise(mmap.MADV_DONTNEED)


# One mapping for each file, found by device, inode, size and time: names may be links to one file,
# and a file that was replaced is another. The values are weak, and tensors hold on to the mapping
# that they are views of, so a file is unmapped with its last tensor.
_MAPPED: WeakValueDictionary[tuple[int, ...], MappedFile] = WeakValueDictionary()


def map_file(file: Path) -> MappedFile:
    """Map a safetensors file, or return its mapping where somebody reads it already.

    Raises:
        OSError: The file is not there.
        SourceError: It is damaged.
    """
    status = file.stat()
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return _MAPPED.get(key) or _MAPPED.setdefault(key, MappedFile(file))


def release_pages() -> None:
    """Let the pages of all mapped files go; those that another thread is reading come back from the
    system's cache."""
    for reference in _MAPPED.valuerefs():
        if (mapped := reference()) is not None:
            mapped.release()
