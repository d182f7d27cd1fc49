"""A model as a GGUF file, for llama.cpp, ollama and the like: folded where it has a path, and written by llama.cpp's converter.

The converter is a program by itself, `convert_hf_to_gguf.py`; this file finds it, and gives it a folder without anybody's code.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.model_folder import check_place, remove_leftovers, scratch_folder
from ..checkpoints.open import open_source
from ..checkpoints.writer import write_checkpoint
from ..errors import EvoMergeError, one_line
from .folded import Folded

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint

TYPES = ("auto", "f32", "f16", "bf16", "q8_0")
LLAMA_CPP = "LLAMA_CPP"
_PROGRAMS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")


def write_gguf(
    model: str | Path, file: str | Path, *, kind: str = "auto", overwrite: bool = False, progress: bool = True
) -> Path:
    """Write a model as a GGUF file. One with a path is folded first: see `Folded`.

    llama.cpp's converter does it: ``convert_hf_to_gguf.py`` of the folder that the environment variable ``LLAMA_CPP`` names, or
    on the ``PATH``, where a command ``convert-hf-to-gguf`` does as well. It needs room for the plain model beside the file.

    Args:
        model: A model's folder, its repository on the Hub, or a GGUF file.
        file: The file to write. It appears when it is whole.
        kind: What matrices are stored as: ``f32``, ``f16``, ``bf16`` or ``q8_0``; ``auto``: the 16 bits that lose least.
        overwrite: Whether to replace a file that is there.
        progress: Whether to show a progress bar.

    Returns:
        The file.

    Raises:
        PathError: The path or its scales have no plain equal.
        SourceError: The model cannot be read, its architecture cannot be folded, or it brings Python code.
        EvoMergeError: An argument is wrong, the converter is not there, or it does not know the model or its tokenizer.

    Example:
        >>> write_gguf("my-search/model", "my-model.gguf", kind="q8_0")  # doctest: +SKIP
        PosixPath('my-model.gguf')
    """
    file = Path(file)
    if kind not in TYPES:
        raise EvoMergeError(f"type: {kind!r} is unknown; there are {', '.join(TYPES)}")
    if file.suffix != ".gguf":
        raise EvoMergeError(f"{file}: the name of a GGUF file ends in .gguf")
    if os.path.lexists(file) and not (overwrite and file.is_file()):
        raise EvoMergeError(f"{file}: exists already; choose another name" + (", or pass --overwrite" * file.is_file()))
    if not os.path.lexists(file):
        check_place(file)
    converter = find_converter()
    checkpoint = _plain(str(model))
    remove_leftovers(file)
    key = sha256(f"{checkpoint.fingerprint()}\0{kind}".encode()).hexdigest()[:16]
    with scratch_folder(file, key) as scratch:
        plain = scratch / "model"
        if not plain.is_dir():
            write_checkpoint(checkpoint, plain, progress=progress)
        _check_codeless(plain, str(model))
        _convert(converter, plain, scratch / file.name, kind)
        os.replace(scratch / file.name, file)
    return file


def find_converter() -> list[str]:
    """The command that runs llama.cpp's converter.

    Raises:
        EvoMergeError: It is not there; the message says what to do.
    """
    if folder := os.environ.get(LLAMA_CPP):
        script = Path(folder).expanduser() / _PROGRAMS[0]
        if not script.is_file():
            raise EvoMergeError(f"{LLAMA_CPP}: no {_PROGRAMS[0]} in {folder}; name the folder of llama.cpp's source")
        return [sys.executable, str(script)]
    if found := next(filter(None, map(shutil.which, _PROGRAMS)), None):
        return [found]
    raise EvoMergeError(
        f"GGUF files are written by llama.cpp's {_PROGRAMS[0]}, which is not there; git clone "
        f"https://github.com/ggml-org/llama.cpp, install its requirements, and set {LLAMA_CPP} to its folder"
    )


def _plain(model: str) -> Checkpoint:
    """A checkpoint that runs without custom code."""
    source = open_source(model)
    return Folded(source) if source.config.model_type == "evo_merged" else source


def _check_codeless(folder: Path, model: str) -> None:
    """Raise `EvoMergeError` where a model names Python code, which the converter would fetch and run."""
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and "auto_map" in json.loads((folder / name).read_text(encoding="utf-8")):
            raise EvoMergeError(
                f"{model}: {name} names Python code (auto_map), which llama.cpp's converter would run; take it out"
            )


def _convert(converter: list[str], folder: Path, file: Path, kind: str) -> None:
    """Run the converter, offline; raises `EvoMergeError` with its last line where it fails."""
    named = ["--outfile", str(file), "--outtype", kind, "--model-name", file.stem]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*converter, str(folder), *named], env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode != 0 or not file.is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"status {done.returncode}"]
        raise EvoMergeError(f"{file.name}: llama.cpp's converter does not write it: {one_line(lines[-1])}")
