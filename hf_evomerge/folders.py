"""Model folders: how one comes to be under its name only when it is whole, and which files go with the weights. No torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from .errors import EvoMergeError

COMPANIONS = (
    "generation_config.json",
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.tiktoken"),
    *("tokenizer.model", "spiece.model", "sentencepiece*.model", "chat_template*", "additional_chat_templates/*.jinja"),
)


@contextmanager
def new_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder beside `out` that is renamed to it at the end, and removed if anything goes wrong.

    Everything in it becomes readable by others: safetensors writes files that only their owner can read.

    Raises:
        EvoMergeError: There is something under this name already.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EvoMergeError(f"{out}: is there already; choose another folder, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{uuid4().hex[:8]}.partial")
    temporary.mkdir()
    try:
        yield temporary
        for item in [temporary, *temporary.rglob("*")]:
            item.chmod(0o755 if item.is_dir() else 0o644)
        os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the generation settings, the tokenizer and its chat templates, except what `folder` has already."""
    for pattern in COMPANIONS:
        for file in sorted(source.glob(pattern)):
            target = folder / file.relative_to(source)
            if file.is_file() and not target.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)
