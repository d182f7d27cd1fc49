"""Writes safetensors files as a stream: sizes are known beforehand, so no tensor need be held whole, and no shard at all."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import EvoMergeError

ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "U8": 1, "I8": 1, "BOOL": 1}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "B": 1}


@dataclass(frozen=True)
class Entry:
    """One tensor to be written.

    Attributes:
        name: Its name.
        dtype: Safetensors' name of its dtype.
        shape: Its shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        size = ITEM_BYTES[self.dtype]
        for length in self.shape:
            size *= length
        return size


def parse_size(text: str | int) -> int:
    """Bytes from ``"4GB"``, ``"500MB"``, ``"1GiB"`` or a number."""
    match = re.match(r"^\s*(\d+(?:\.\d+)?)\s*([KMG]?i?B)\s*$", str(text), re.IGNORECASE)
    size = text if isinstance(text, int) else int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise EvoMergeError(f"max_shard_size: cannot read {text!r}; write 4GB or 500MB")
    return size


def plan_shards(entries: Sequence[Entry], max_size: int) -> list[list[Entry]]:
    """Cut the tensors, in their order, into shards of at most `max_size` bytes; a larger tensor has a shard of its own."""
    shards: list[list[Entry]] = [[]]
    room = max_size
    for entry in entries:
        if entry.size > room and shards[-1]:
            shards.append([])
            room = max_size
        shards[-1].append(entry)
        room -= entry.size
    # within a shard the wide dtypes come first, so that every tensor is aligned
    return [sorted(shard, key=lambda entry: -ITEM_BYTES[entry.dtype]) for shard in shards]


def shard_names(count: int) -> list[str]:
    """The file names that transformers looks for."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def header(entries: Sequence[Entry]) -> bytes:
    """What stands before the tensors of one file: its length and a JSON text, padded to a multiple of 8 bytes."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        fields[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [end, end + entry.size]}
        end += entry.size
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_index(folder: Path, shards: Mapping[str, Sequence[Entry]]) -> None:
    """Write ``model.safetensors.index.json``, which says in which shard a tensor is."""
    total = sum(entry.size for entries in shards.values() for entry in entries)
    where = {entry.name: file for file, entries in shards.items() for entry in entries}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")
