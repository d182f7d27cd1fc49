"""Model folders: how one comes to be under its name only when it is whole, and which files go with
the weights. No torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import EvoMergeError
from .inside import check_inside

INDEX = "model_index.json"  # what components a model has, each in its folder
PROCESSOR = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)
MODULES = (
    "[0-9]_*/config.json",
    "[0-9]_*/model.safetensors",
)  # what sentence-transformers does after the model
SENTENCE = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    *MODULES,
)
COMPANIONS = (
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece*.model",
    *PROCESSOR,
    *SENTENCE,
)
CODE = ("*.py",)
REPLACED = (
    "replaced"  # the old model, in the hidden folder of the build whose model takes its place
)


def check_place(out: Path) -> None:
    """Raise `EvoMergeError` where no folder of this name can be made or written to. Nothing is
    left there."""
    there = next(place for place in (out, *out.absolute().parents) if os.path.lexists(place))
    if not os.path.isdir(there):
        raise EvoMergeError(
            f"{out}: {'it' if there == out else there} is a file, not a folder; choose "
            "another folder"
        )
    try:  # rights alone do not tell: root may write everywhere, and /proc takes no folder
        os.rmdir(tempfile.mkdtemp(prefix=".evomerge-", dir=there))
    except OSError as cause:
        raise EvoMergeError(
            f"{out}: {there} may not be written to ({cause.strerror}); choose another folder, or "
            "see whose it is"
        ) from cause


def make_readable(folder: Path) -> None:
    """Let others read everything in a finished folder; some programs write files that only their
    owner can read."""
    for item in [folder, *folder.rglob("*")]:
        item.chmod(0o755 if item.is_dir() else 0o644)


@contextmanager
def scratch_folder(out: Path, key: str) -> Iterator[Path]:
    """A hidden folder beside `out`, ``.NAME.KEY.partial``, in which an interrupted build leaves the
    files that it finished.

    The next build of the same key finds them. It is removed when the build succeeds, and when it
    fails before a file of weights was finished; folders that builds of other keys left behind for
    the same `out` are removed at the start.

    Args:
        out: The folder to be made.
        key: Sixteen hexadecimal digits that stand for everything the build depends on.

    Raises:
        EvoMergeError: Another process is building it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{key}.partial")
    for other in _scratch_folders(out):
        if other != folder:
            _clean(other, out)
    lock = FileLock(_lock_of(folder))
    try:
        lock.acquire(timeout=0)
    except Timeout as cause:
        raise EvoMergeError(
            f"{out}: another process is building it; wait for it, or choose another folder"
        ) from cause
    try:
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        if folder.exists() and not any(folder.rglob("*.safetensors")):
            shutil.rmtree(folder, ignore_errors=True)
        _lock_of(folder).unlink(missing_ok=True)
        lock.release()


def remove_leftovers(out: Path) -> None:
    """Clean up after builds of this folder that were killed while they put it in place, or had
    finished nothing.

    An old model that was moved away, and has no successor yet, is put back. What a build can go on
    from stays.
    """
    for folder in _scratch_folders(out):
        _clean(folder, out, keep=any(folder.glob("model/**/*.safetensors")))


def _scratch_folders(out: Path) -> list[Path]:
    """The hidden folders of builds of this folder, and those of which only the lock is left."""
    name = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{16}}\.(?:partial|lock)")
    try:
        return sorted(
            {
                item.with_suffix(".partial")
                for item in out.absolute().parent.iterdir()
                if name.fullmatch(item.name)
            }
        )
    except (FileNotFoundError, NotADirectoryError):
        return []


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _clean(folder: Path, out: Path, *, keep: bool = False) -> None:
    """Remove what an interrupted build left, or but its lock, unless a process is at work in it."""
    lock = FileLock(_lock_of(folder))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return
    if (folder / REPLACED).exists() and not out.exists():
        (folder / REPLACED).rename(out)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    _lock_of(folder).unlink(missing_ok=True)
    lock.release()


def copy_files(source: Path, folder: Path, patterns: Iterable[str] = COMPANIONS) -> None:
    """Copy what goes with the weights, or the files of some patterns, except what `folder` has
    already."""
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            target = folder / file.relative_to(source)
            if file.is_file() and not target.exists():
                check_inside(source, file)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)


def write_json(file: Path, data: Mapping[str, object]) -> None:
    """Write a JSON file as people read it."""
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_chat_template(folder: Path, template: str) -> None:
    """Give a model folder this chat template, in place of whatever it had."""
    for old in folder.glob("chat_template*"):
        old.unlink()
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    file = folder / "tokenizer_config.json"
    if file.is_file():
        settings = json.loads(file.read_text(encoding="utf-8"))
        if settings.pop("chat_template", None) is not None:
            write_json(file, settings)
