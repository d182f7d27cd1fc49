"""The headers of safetensors files: what tensors there are, without reading one. No torch."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SourceError

if TYPE_CHECKING:
    import torch

STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
"""safetensors' names of the plain floating-point numbers, by torch's names."""
_MAX_HEADER = 100_000_000  # bytes; the safetensors format's own limit


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of one tensor.

    Attributes:
        dtype: The safetensors name: ``F32``, ``BF16``, ``I64``, ...
        shape: Its shape.
        file: The file that holds it.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def is_float(self) -> bool:
        """Whether the tensor holds plain floating-point numbers, which can be merged."""
        return self.dtype in STORED.values()

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def torch_dtype(stored: str) -> torch.dtype | None:
    """torch's dtype for safetensors' name of one, such as ``BF16``; None where it is no plain floating-point number."""
    import torch

    names = {theirs: name for name, theirs in STORED.items()}
    return getattr(torch, names[stored]) if stored in names else None


def read_header(file: Path, owner: str = "") -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by reading its header only; raises `SourceError` where the file is damaged."""
    where = f"{owner}: {file.name}" if owner else str(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            first = stream.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else _MAX_HEADER + 1
            if length > min(_MAX_HEADER, size - 8):
                raise SourceError(f"{where}: not a safetensors file, or cut short ({size} bytes); download it again")
            header = json.loads(stream.read(length))
        tensors = parse_header(header, file)
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as cause:
        raise SourceError(f"{where}: the safetensors header cannot be read ({one_line(cause)}); download it again") from cause
    if end != size - 8 - length:
        raise SourceError(f"{where}: holds {size - 8 - length} bytes of tensors, the header says {end}; download it again")
    return tensors


def parse_header(header: dict[str, Any], file: Path) -> dict[str, TensorInfo]:
    """The tensors that a header names; takes the notes that are no tensor out of it."""
    header.pop("__metadata__", None)
    entries: Mapping[str, Any] = header
    return {
        name: TensorInfo(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), file) for name, entry in entries.items()
    }


def one_line(cause: BaseException) -> str:
    """An error's text, short enough for a message of one line."""
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text if len(text) <= 300 else text[:300] + "..."


def tensor_order(name: str) -> list[tuple[int, int | str]]:
    """Sort key of tensor names: layer 2 before layer 10. The same everywhere, whatever the order in a checkpoint."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]
