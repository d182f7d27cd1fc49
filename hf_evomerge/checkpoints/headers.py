"""The headers of safetensors files: what tensors there are, without reading one. No torch."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SourceError, one_line

if TYPE_CHECKING:
    import torch

STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
"""safetensors' names of the plain floating-point numbers, by torch's names."""
_MAX_HEADER = 100_000_000  # bytes; the safetensors format's own limit
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}


@dataclass(frozen=True)
class TensorInfo:
    """Dtype and shape of one tensor.

    Attributes:
        dtype: The safetensors name: ``F32``, ``BF16``, ``I64``, ...
        shape: Its shape.
    """

    dtype: str
    shape: tuple[int, ...]

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

    def converted(self, dtype: str | None) -> TensorInfo:
        """The tensor in another dtype, such as ``bfloat16``, where it holds floating-point numbers and one is given."""
        return TensorInfo(STORED[dtype] if dtype is not None and self.is_float else self.dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class StoredTensor(TensorInfo):
    """What a safetensors header says of one tensor.

    Attributes:
        file: The file that holds it.
    """

    file: Path

    __str__ = TensorInfo.__str__


def torch_dtype(stored: str) -> torch.dtype | None:
    """torch's dtype for safetensors' name of one, such as ``BF16``; None where it is no plain floating-point number."""
    import torch

    names = {theirs: name for name, theirs in STORED.items()}
    return getattr(torch, names[stored]) if stored in names else None


def is_of_one_part(folder: str) -> bool:
    """Whether a folder holds a model without parts such as towers, which config and headers alone can describe."""
    file = Path(folder, "config.json")
    if not file.is_file():
        return False
    config = read_mapping(file, folder)
    parts = any(key.endswith("_config") and isinstance(value, dict) and "model_type" in value for key, value in config.items())
    return config.get("model_type") == "evo_merged" or not (parts or config.get("is_encoder_decoder"))


def read_mapping(file: Path, where: str) -> dict[str, Any]:
    """A JSON file that came with a model; raises `SourceError`, naming `where`, unless it is there and holds a mapping."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as cause:
        raise SourceError(f"{where} cannot be read: {one_line(cause)}") from cause
    if not isinstance(data, dict):
        raise SourceError(f"{where} holds {type(data).__name__}, not a mapping of keys to values")
    return data


def read_header(file: Path, owner: str = "") -> dict[str, StoredTensor]:
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
        header.pop("__metadata__", None)
        entries = [(name, entry["dtype"], entry["shape"], entry["data_offsets"]) for name, entry in header.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        raise SourceError(f"{where}: the safetensors header cannot be read ({one_line(cause)}); download it again") from cause
    return check_header(entries, file, where, size - 8 - length)


def check_header(
    entries: Iterable[tuple[str, Any, Any, Any]], file: Path, where: str, size: int | None = None
) -> dict[str, StoredTensor]:
    """The tensors that a header names, once it is known that they fill the file: one after the other, each with its own bytes.

    Args:
        entries: Name, dtype, shape and offsets of each tensor, as they were found.
        file: The file that holds the tensors.
        where: What the file is called in messages.
        size: Bytes of all tensors, where it is known.

    Raises:
        SourceError: The entries are no such thing, overlap, leave a gap, or are larger or smaller than dtype and shape say.
    """
    found: dict[str, StoredTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, dtype, shape, offsets in entries:
        if not (isinstance(dtype, str) and _are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
            raise SourceError(f"{where}: the safetensors header cannot be read (entry {one_line(name)!r}); download it again")
        found[name] = info = StoredTensor(dtype, tuple(shape), file)
        spans.append((*offsets, name))
        if (bits := _BITS.get(dtype)) is not None and info.numel * bits != (offsets[1] - offsets[0]) * 8:
            given = f"{offsets[1] - offsets[0]} bytes for {info.numel} numbers of {dtype}"
            raise SourceError(f"{where}: {one_line(name)} has {given}; download it again")
    end, before = 0, "the header"
    for first, last, name in sorted(spans):
        if first != end or last < first:
            raise SourceError(
                f"{where}: {one_line(name)} begins at byte {first}, but {one_line(before)} ends at {end}; download it again"
            )
        end, before = last, name
    if size is not None and end != size:
        raise SourceError(f"{where}: holds {size} bytes of tensors, the header says {end}; download it again")
    return found


def _are_sizes(values: Any) -> bool:
    """Whether this is a list of whole numbers from 0."""
    return isinstance(values, (list, tuple)) and all(type(n) is int and 0 <= n < 1 << 63 for n in values)


def tensor_order(name: str) -> list[tuple[int, int | str]]:
    """Sort key of tensor names: layer 2 before layer 10. The same everywhere, whatever the order in a checkpoint."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]
