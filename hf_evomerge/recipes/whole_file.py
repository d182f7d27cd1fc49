"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_file(file: str | Path) -> Iterator[Path]:
    """The name of a hidden file to write, which becomes `file` at the end; after an error, as of a
    full disk, none is left."""
    unfinished = Path(file).with_name(f".{Path(file).name}.new")
    try:
        yield unfinished
        os.replace(unfinished, file)
    except OSError as error:
        if error.filename == str(unfinished):
            error.filename = str(file)  # which the user knows
        raise
    finally:
        with suppress(OSError):  # where there is no such folder either
            unfinished.unlink(missing_ok=True)


def write_whole(file: str | Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; a character that UTF-8 has not is escaped."""
    with whole_file(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
