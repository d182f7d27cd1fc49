"""Writes safetensors files as a stream: sizes are known beforehand, so no tensor need be held whole, and no shard at all.

Tensors are computed by several threads and written at their places, in any order: the bytes of the files do not depend on it. A
file has its name when it is whole. With it stand checksums until `remove_checksums`, so that an interrupted build goes on.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

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


def shard_names(count: int, stem: str = "model") -> list[str]:
    """The file names that transformers looks for, and with another stem diffusers."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


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


def write_index(folder: Path, shards: Mapping[str, Sequence[Entry]], stem: str = "model") -> None:
    """Write ``model.safetensors.index.json``, which says in which shard a tensor is."""
    total = sum(entry.size for entries in shards.values() for entry in entries)
    where = {entry.name: file for file, entries in shards.items() for entry in entries}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2)
    (folder / f"{stem}.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


Write = Callable[[bytes | memoryview], None]
Produce = Callable[[Entry, Write], None]


def write_shards(
    folder: Path,
    entries: Sequence[Entry],
    produce: Produce,
    *,
    max_size: int,
    stem: str = "model",
    threads: int = 1,
    done: Callable[[int], object] = lambda size: None,
) -> None:
    """Write tensors into one or more safetensors files, and an index where there are several.

    Args:
        folder: Where. Files that an interrupted call left there, of the same tensors, are checked and kept.
        entries: The tensors in their order.
        produce: Computes one tensor and hands its bytes to the function that it is given, from the first to the last. Called
            from several threads at a time, and not for tensors of files that are kept.
        max_size: Bytes of the largest file; a larger tensor has a file of its own.
        stem: What the names of the files begin with.
        threads: How many tensors are computed at a time.
        done: Called with the size of each piece that is written or kept, from several threads.
    """
    shards = plan_shards(entries, max_size)
    files = dict(zip(shard_names(len(shards), stem), shards, strict=True))
    with _pool(threads) as pool:
        for name, shard in files.items():
            if _is_kept(folder / name, shard):
                done(sum(entry.size for entry in shard))
            else:
                _write_file(folder / name, shard, produce, pool=pool, done=done)
    if len(files) > 1:
        write_index(folder, files, stem)


def remove_checksums(folder: Path) -> None:
    """Remove what `write_shards` left for a build that would go on: the folder is about to be put in place."""
    for file in folder.rglob(".*.sums"):
        file.unlink()


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that compute one tensor each; what is still waiting is dropped where one of them fails."""
    pool = ThreadPoolExecutor(threads, "merge")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_file(
    file: Path, shard: Sequence[Entry], produce: Produce, *, pool: ThreadPoolExecutor, done: Callable[[int], object]
) -> None:
    unfinished = file.with_name(f"{file.name}.part")
    first = header(shard)
    tasks: list[Future[int]] = []
    descriptor = os.open(unfinished, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    try:
        os.truncate(descriptor, len(first) + sum(entry.size for entry in shard))
        _write_at(descriptor, memoryview(first), 0)
        offset = len(first)
        for entry in shard:
            tasks.append(pool.submit(_write_tensor, descriptor, entry, offset, produce, done))
            offset += entry.size
        wait(tasks, return_when=FIRST_EXCEPTION)
        failed = [task for task in tasks if task.done() and task.exception() is not None]
        sums = [task.result() for task in failed or tasks]
    finally:
        for task in tasks:
            task.cancel()
        wait(tasks)  # no thread may write to a file that is closed
        os.close(descriptor)
    _sums_of(file).write_text(json.dumps(sums), encoding="utf-8")
    os.replace(unfinished, file)


def _write_tensor(descriptor: int, entry: Entry, offset: int, produce: Produce, done: Callable[[int], object]) -> int:
    """Write one tensor at its place; returns its checksum."""
    place, checksum = offset, 0

    def write(data: bytes | memoryview) -> None:
        nonlocal place, checksum
        piece = memoryview(data).cast("B")
        _write_at(descriptor, piece, place)
        checksum = crc32(piece, checksum)
        place += len(piece)
        done(len(piece))

    produce(entry, write)
    if place != offset + entry.size:
        raise EvoMergeError(f"{entry.name}: {place - offset} bytes were made, {entry.size} were announced")
    return checksum


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all bytes at a place; one call of the system may write fewer."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _sums_of(file: Path) -> Path:
    return file.with_name(f".{file.name}.sums")


def _is_kept(file: Path, shard: Sequence[Entry]) -> bool:
    """Whether a file of an interrupted build is whole and holds these tensors."""
    try:
        sums = json.loads(_sums_of(file).read_text(encoding="utf-8"))
        with file.open("rb") as stream:
            first = header(shard)
            if stream.read(len(first)) != first or len(sums) != len(shard):
                return False
            found = [_checksum(stream, entry.size) for entry in shard]
            return found == sums and not stream.read(1)
    except (OSError, ValueError, TypeError):
        return False


def _checksum(stream: BinaryIO, size: int) -> int:
    checksum = 0
    while size > 0 and (piece := stream.read(min(size, 1 << 22))):
        checksum, size = crc32(piece, checksum), size - len(piece)
    return checksum
