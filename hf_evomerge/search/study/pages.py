"""Reads rows from the pages of a SQLite file that SQLite itself does not read any more. Knows the format, not the rows.

Every row lies in a leaf of some table, and a leaf can be read without anything above it: without the schema, the indexes and
the other pages of its table (https://www.sqlite.org/fileformat2.html). What comes out must be checked: pages that are free now
still hold rows of earlier.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

PAGE = 4096  # bytes; SQLite's own choice since 2016
_LEAF = 13  # the first byte of a leaf of a table
_WAL_HEADER, _FRAME_HEADER = 32, 24
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # bytes, by serial type

Value = None | int | float | str | bytes


def rows_of_pages(file: Path) -> Iterator[tuple[int, tuple[Value, ...]]]:
    """Every row of every table that can be read, with its rowid; of a row that was replaced also the one before.

    Args:
        file: The database. What stands in its write-ahead log counts.
    """
    pages = _pages(file)
    for number, page in pages.items():
        if number == 1 or page[0] != _LEAF:  # the schema is on the first
            continue
        (cells,) = struct.unpack_from(">H", page, 3)
        for cell in range(min(cells, (PAGE - 8) // 2)):
            try:
                (at,) = struct.unpack_from(">H", page, 8 + 2 * cell)
                size, at = _varint(page, at)
                rowid, at = _varint(page, at)
                yield rowid, _record(_payload(pages, page, at, size))
            except (IndexError, KeyError, ValueError, struct.error):
                continue  # it is no row


def _pages(file: Path) -> dict[int, bytes]:
    """The pages by number, the newest of each; a last one that was cut off is filled with zeros."""
    data = file.read_bytes()
    pages = {i // PAGE + 1: data[i : i + PAGE].ljust(PAGE, b"\0") for i in range(0, len(data), PAGE)}
    log = file.with_name(f"{file.name}-wal")
    frames = log.read_bytes() if log.exists() else b""
    salts, transaction = frames[16:24], dict[int, bytes]()
    for at in range(_WAL_HEADER, len(frames) - _FRAME_HEADER - PAGE + 1, _FRAME_HEADER + PAGE):
        number, committed = struct.unpack_from(">II", frames, at)
        if frames[at + 8 : at + 16] != salts:  # left over from before the log was begun again
            break
        transaction[number] = frames[at + _FRAME_HEADER : at + _FRAME_HEADER + PAGE]
        if committed:
            pages |= transaction
            transaction = {}
    return pages


def _payload(pages: dict[int, bytes], page: bytes, at: int, size: int) -> bytes:
    """What a cell holds: its bytes in the leaf, and those in the pages that it runs over into."""
    most = PAGE - 35
    if size <= most:
        return page[at : at + size]
    least = (PAGE - 12) * 32 // 255 - 23
    here = least + (size - least) % (PAGE - 4)
    here = here if here <= most else least
    parts, left = [page[at : at + here]], size - here
    (following,) = struct.unpack_from(">I", page, at + here)
    for _ in range(len(pages)):
        if left <= 0:
            break
        over = pages[following]
        parts.append(over[4 : 4 + left])
        left -= PAGE - 4
        (following,) = struct.unpack_from(">I", over)
    return b"".join(parts)


def _record(payload: bytes) -> tuple[Value, ...]:
    """The values of a record; raises `ValueError` where it is none."""
    end, at = _varint(payload, 0)
    kinds = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[Value] = []
    for kind in kinds:
        size = _INTEGERS.get(kind, 8 if kind == 7 else (kind - 12) // 2 if kind >= 12 else 0)
        data = payload[at : at + size]
        if len(data) != size or kind in (10, 11):
            raise ValueError("cut off")
        at += size
        if kind == 0:
            values.append(None)
        elif kind in _INTEGERS:
            values.append(int.from_bytes(data, "big", signed=True))
        elif kind == 7:
            values.append(float(struct.unpack(">d", data)[0]))
        elif kind in (8, 9):
            values.append(kind - 8)
        else:
            values.append(data if kind % 2 == 0 else data.decode())
    return tuple(values)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where it ends."""
    value = 0
    for more in range(9):
        byte = data[at + more]
        if more == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            break
    return value, at + more + 1
