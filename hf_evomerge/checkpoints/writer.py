"""The one writer of checkpoints: whatever can be read as one becomes a model folder that is whole
or not there.

Tensors are read by as many threads as torch may use, and written at their places in the shards; the
bits depend on neither.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from ..errors import EvoMergeError
from .checkpoint import Checkpoint
from .headers import tensor_order
from .ledger import Ledger
from .mapped import release_pages
from .model_folder import (
    REPLACED,
    check_place,
    make_readable,
    remove_leftovers,
    scratch_folder,
    write_chat_template,
)
from .shards import Write, split, write_shards

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

# pieces after which the pages of the files are let go: what is resident does not grow with models
_HELD = 8


def write_checkpoint(
    checkpoint: Checkpoint,
    out: str | Path,
    *,
    files: Mapping[str, str] | None = None,
    max_shard_size: str | int = "4GB",
    overwrite: bool = False,
    finish: Callable[[Path], object] | None = None,
) -> Path:
    """Write a checkpoint into a folder that `from_pretrained` loads.

    The folder appears under its name only when it is whole. What an interrupted write had finished
    stays in a hidden folder beside it, and the next write of the same checkpoint keeps its files,
    where there are several. What is doubtful about the sources is logged first; then what was
    noticed on the way: sources that are hardly related, numbers that are not finite, how many
    tensors became what.

    Args:
        checkpoint: What to write.
        out: The folder to make.
        files: Further text files, by their names.
        max_shard_size: The largest file of weights, such as ``"4GB"``; a larger tensor has a file
            of its own.
        overwrite: Whether to replace a model that is there.
        finish: Called with the folder when everything else is in it, and before it appears under
            its name.

    Returns:
        The folder.

    Raises:
        SourceError: A source cannot be read.
        EvoMergeError: There is something under the folder's name that may not be replaced, an
            argument is wrong, another process is building this folder, or a number of the result is
            too large for its dtype.
    """
    out = Path(out)
    split({}, max_shard_size)
    files = files or {}
    keep = [folder for source in checkpoint.sources for folder in source.folders]
    remove_leftovers(out)
    check_target(out, overwrite=overwrite, keep=keep)
    for line in checkpoint.warnings:
        logger.warning("%s", line)
    key = sha256(
        "\0".join([checkpoint.fingerprint(), str(max_shard_size), *files.values()]).encode()
    ).hexdigest()[:16]
    try:
        with scratch_folder(out, key) as scratch:
            checkpoint.download()
            folder = scratch / "model"
            folder.mkdir(exist_ok=True)
            _write_weights(checkpoint, folder, max_shard_size)
            doubts = checkpoint.doubts()
            checkpoint.write_companions(folder)
            if checkpoint.chat_template is not None:
                write_chat_template(folder, checkpoint.chat_template)
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")
            if finish is not None:
                finish(folder)
            check_target(out, overwrite=overwrite, keep=keep)  # again: a build takes minutes
            _replace(out, folder, scratch / REPLACED)
    finally:
        checkpoint.close()
    for line in filter(None, (checkpoint.remark(), str(Ledger.of(checkpoint)))):
        logger.info("%s", line)
    for line in doubts:
        logger.warning("%s", line)
    return out


def check_target(out: Path, *, overwrite: bool, keep: Iterable[Path] = ()) -> None:
    """Raise `EvoMergeError` where there is something under a folder's name that may not be
    replaced, or none can be made.

    Args:
        out: The folder to make; a missing or an empty one is free.
        overwrite: Whether a model that is there may be replaced.
        keep: Models that are needed, and not replaced.
    """
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return check_place(out)
    if not overwrite:
        raise EvoMergeError(f"{out}: exists already; choose another folder, or pass --overwrite")
    if not any(
        (out / name).is_file()
        for name in ("config.json", "model_index.json", "adapter_config.json")
    ):
        raise EvoMergeError(
            f"{out}: exists and is no model; choose another folder, or remove it yourself"
        )
    if inside := [folder for folder in keep if folder.resolve().is_relative_to(out.resolve())]:
        what = "is" if inside[0].resolve() == out.resolve() else f"holds {inside[0]},"
        raise EvoMergeError(f"{out}: {what} one of the recipe's own sources; choose another folder")


def _replace(out: Path, whole: Path, aside: Path) -> None:
    """Put the finished folder in the place of the old one, or leave the old one there.

    Between the two renames a killed process leaves neither; `remove_leftovers` of the next one puts
    the old model back.
    """
    make_readable(whole)
    if out.exists():
        out.rename(aside)
    try:
        os.replace(whole, out)
    except BaseException:
        if aside.exists():
            aside.rename(out)
        raise


def _write_weights(checkpoint: Checkpoint, folder: Path, limit: str | int) -> None:
    """Read all tensors and write them; names those whose numbers are not all finite."""
    import torch

    placed: dict[tuple[str, str], dict[str, str]] = {}
    for name in checkpoint.tensors:
        place, stem, own = checkpoint.place(name)
        placed.setdefault((place, stem), {})[own] = name
    suspicious: set[str] = set()

    def produce(names: Mapping[str, str], own: str, write: Write) -> None:
        name = names[own]
        with torch.inference_mode():  # a setting of the thread
            for number, streamed in enumerate(checkpoint.stream(name)):
                if number % _HELD == 0:
                    release_pages()
                piece = streamed.contiguous()
                if name not in suspicious and not _is_finite(piece):
                    inputs = checkpoint.origin(name).inputs
                    if all(_is_finite(source.read(there)) for source, there in inputs):
                        raise EvoMergeError(
                            f"{name}: its numbers become too large for "
                            f"{checkpoint.tensors[name].dtype}, those of the sources are not; name "
                            "another dtype"
                        )
                    suspicious.add(name)
                write(piece.view(torch.uint8).numpy().data)

    # As many tensors at a time as torch may use threads, each with one: a slice of 256 KB is too
    # small to be divided further.
    total = sum(info.bytes for info in checkpoint.tensors.values())
    with _bar(total) as done, _single_threaded() as threads:
        for (place, stem), names in placed.items():
            (folder / place).mkdir(exist_ok=True)
            make = partial(produce, names)
            infos = {own: checkpoint.tensors[name] for own, name in names.items()}
            # sentence-transformers reads one file of a module
            size = sys.maxsize if place[:1].isdigit() else limit
            write_shards(
                folder / place,
                infos,
                make,
                max_size=size,
                stem=stem,
                threads=threads,
                metadata=checkpoint.metadata,
                done=done,
            )
    if suspicious:
        named = sorted(suspicious, key=tensor_order)
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        logger.warning(
            (
                "not all numbers are finite in %s%s: a source has NaN or infinite ones "
                "(hf-evomerge diff names them)"
            ),
            ", ".join(named[:3]),
            more,
        )


def _is_finite(piece: Tensor) -> bool:
    """Say whether all numbers are finite; much quicker than `isfinite`."""
    if piece.numel() == 0 or not piece.is_floating_point():
        return True
    ends = (
        piece.float() if piece.element_size() == 1 else piece
    ).aminmax()  # NaN where one of them is
    return math.isfinite(ends.min) and math.isfinite(ends.max)


@contextmanager
def _single_threaded() -> Iterator[int]:
    """Give torch one thread, as each tensor has its own; yields how many threads torch is
    allowed."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar in bytes that may be moved from several threads; on a terminal, unless the
    Hub's own bars are switched off."""
    from huggingface_hub.utils import tqdm

    lock = Lock()
    with tqdm(total=total, unit="B", unit_scale=True, desc="writing", disable=None) as bar:

        def done(size: int) -> None:
            with lock:
                bar.update(size)

        yield done
