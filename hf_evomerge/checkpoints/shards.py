"""Writes safetensors files as a stream: sizes are known beforehand, so no tensor need be held
whole, and no shard at all.

Tensors are computed by several threads and written at their places, in any order: the bytes of the
files do not depend on it. A file has its name when it is whole, so that an interrupted build goes
on with those that have.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import EvoMergeError
from .headers import TensorInfo


def split(tensors: Mapping[str, TensorInfo], max_size: str | int, stem: str = "model") -> Any:
    """Divide tensors among files, as `save_pretrained` does; raises `EvoMergeError` where the
    largest size of one cannot be read."""
    from huggingface_hub import split_state_dict_into_shards_factory

    try:
        return split_state_dict_into_shards_factory(
            dict(tensors),
            get_storage_size=lambda info: info.bytes,
            filename_pattern=f"{stem}{{suffix}}.safetensors",
            max_shard_size=max_size,
        )
    except ValueError as cause:
        raise EvoMergeError(
            f"max_shard_size: cannot read {max_size!r}; write 4GB or 500MB"
        ) from cause


def header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None) -> bytes:
    """Make the header of one file: its length and a JSON text, padded to a multiple of 8 bytes."""
    fields: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, info in tensors.items():
        fields[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [end, end + info.bytes],
        }
        end += info.bytes
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


Write = Callable[[bytes | memoryview], None]
Produce = Callable[[str, Write], None]


def write_shards(
    folder: Path,
    tensors: Mapping[str, TensorInfo],
    produce: Produce,
    *,
    max_size: str | int,
    stem: str = "model",
    threads: int = 1,
    metadata: Mapping[str, str] | None = None,
    done: Callable[[int], object] = lambda size: None,
) -> None:
    """Write tensors into one or more safetensors files, and an index where there are several.

    Args:
        folder: Folder. Files that an interrupted call left there, of the same tensors, are checked
            and kept.
        tensors: Dtype and shape of the tensors by their names, in their order.
        produce: Computes the tensor of a name and hands its bytes to the function that it is given,
            from the first to the last. Called from several threads at a time, and not for tensors
            of files that are kept.
        max_size: Size of the largest file, such as ``"4GB"``, or its bytes; a larger tensor has a
            file of its own.
        stem: Start of the names of the files.
        threads: How many tensors are computed at a time.
        metadata: Texts for the headers.
        done: Called with the size of each piece that is written or kept, from several threads.
    """
    # Sizes follow from the headers, so the split, the names of the files and every offset are known
    # before a tensor is computed. Threads then write at their places in any order, and the bytes
    # are the same.
    parts = split(tensors, max_size, stem)
    with ThreadPoolExecutor(threads, "merge") as pool:
        for file, names in parts.filename_to_tensors.items():
            # the wide dtypes come first, so that every tensor is aligned
            shard = {
                name: tensors[name] for name in sorted(names, key=lambda name: -tensors[name].bits)
            }
            first = header(shard, metadata)
            if _is_kept(folder / file, first, shard):
                done(sum(info.bytes for info in shard.values()))
            else:
                write = partial(_write_tensor, produce, done)
                _write_file(folder / file, first, shard, write, pool)
    if parts.is_sharded:
        text = json.dumps(
            {"metadata": parts.metadata, "weight_map": parts.tensor_to_filename}, indent=2
        )
        (folder / f"{stem}.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def _write_file(
    file: Path,
    first: bytes,
    shard: Mapping[str, TensorInfo],
    write: Callable[[int, str, TensorInfo, int], None],
    pool: ThreadPoolExecutor,
) -> None:
    # Resuming rests on one rule: a file under its own name is whole. It is written as `.part` and
    # flushed to the disk, and the rename comes last. A kill, or a loss of power, before the rename
    # leaves a `.part` that nobody reads.
    unfinished = file.with_name(f"{file.name}.part")
    tasks: list[Future[None]] = []
    descriptor = os.open(unfinished, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    try:
        os.truncate(descriptor, len(first) + sum(info.bytes for info in shard.values()))
        _write_at(descriptor, memoryview(first), 0)
        offset = len(first)
        for name, info in shard.items():
            tasks.append(pool.submit(write, descriptor, name, info, offset))
            offset += info.bytes
        for task in tasks:
            task.result()
        os.fsync(descriptor)
    finally:
        for task in tasks:
            task.cancel()
        wait(tasks)  # no thread may write to a file that is closed
        os.close(descriptor)
    os.replace(unfinished, file)


def _write_tensor(
    produce: Produce,
    done: Callable[[int], object],
    descriptor: int,
    name: str,
    info: TensorInfo,
    offset: int,
) -> None:
    """Write one tensor at its place."""
    place = offset

    def write(data: bytes | memoryview) -> None:
        nonlocal place
        piece = memoryview(data).cast("B")
        _write_at(descriptor, piece, place)
        place += len(piece)
        done(len(piece))

    produce(name, write)
    if place != offset + info.bytes:
        raise EvoMergeError(
            f"{name}: {place - offset} bytes were made, {info.bytes} were announced"
        )


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all bytes at a place; one call of the system may write fewer."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data = data[written:]
        offset = offset + written


def _is_kept(file: Path, first: bytes, shard: Mapping[str, TensorInfo]) -> bool:
    """Tell whether a file of an interrupted build is whole and holds these tensors."""
    # The header says names, dtypes, shapes and places; the build's key, in the name of the scratch
    # folder, says that recipe and sources are the same.
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        whole = len(first) + sum(info.bytes for info in shard.values())
        return stream.read(len(first)) == first and file.stat().st_size == whole
