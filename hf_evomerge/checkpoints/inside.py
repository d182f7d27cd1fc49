"""Refuse what is no file of a model folder's own: links that lead out of it, pipes, and files
without end.

A folder that came from somebody else could otherwise hand any file of this machine to whoever gets
the merge. No torch.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import SourceError, told

_MOST = 16 << 20
_MOST_TOKENS = 128 << 20  # bytes of a config or a template; of a tokenizer, or an index of weights
TEMPLATES = "additional_chat_templates"  # the one subfolder that is read


def check_inside(folder: Path, file: Path) -> None:
    """Raise `SourceError` where a file of a folder is, once all links are followed, somewhere else.

    In the Hub's cache the files of ``models--NAME/snapshots/COMMIT`` are links to ``blobs`` beside
    ``snapshots``, or to the ``blobs`` beside ``models--NAME``, which all repositories share; those
    are its own.
    """
    home = Path(os.path.realpath(folder))
    target = Path(os.path.realpath(file))
    places = [home]
    repository = home.parent.parent
    if home.parent.name == "snapshots":
        places.append(repository / "blobs")
        places += [repository.parent / "blobs"] if repository.name.startswith("models--") else []
    if not any(target.is_relative_to(place) for place in places):
        raise SourceError(
            f"{file}: a link to {target}, which is not in {folder}; put the file itself there"
        )


def held_instead(folder: Path) -> str:
    """Say what a folder without safetensors holds in their place."""
    pickles = sorted(
        file.name
        for ending in ("bin", "pt", "pth", "ckpt", "pkl")
        for file in folder.glob(f"*.{ending}")
    )
    return f"only {pickles[0]}, a pickle, which can run code when read" if pickles else "no weights"


def inner_adapter(folder: Path) -> str:
    """Hint at an adapter in a subfolder, where peft saves those that have names; empty where there
    is none."""
    found = sorted(folder.glob("*/adapter_config.json"))
    return f"an adapter is in {found[0].parent}: give that folder" if found else ""


def check_size(file: Path) -> None:
    """Raise `SourceError` where a config, a template, a tokenizer or an index is larger than any
    model's; `OSError` too."""
    if (
        file.suffix not in (".json", ".jinja", ".txt", ".model", ".tiktoken")
        or file.name == "trainer_state.json"
    ):  # never read
        return
    most = _MOST if file.name.endswith(("config.json", ".jinja")) else _MOST_TOKENS
    if (size := file.stat().st_size) > most:
        raise SourceError(
            f"{file}: {size:,} bytes, where no model has more than {most:,}; download it again"
        )


def check_folder(folder: Path, home: Path | None = None) -> None:
    """Raise `SourceError` where what may be read from a model folder is a link that leads out of
    it, no file, or too large.

    Args:
        folder: The folder.
        home: Folder that links may not lead out of, where the first is inside of it.
    """
    with told(SourceError, OSError, f"{folder}: cannot be read: "):
        for place in (folder, folder / TEMPLATES):
            if place == folder or place.is_dir():
                for item in os.scandir(place):
                    if item.is_symlink() and (item.name == TEMPLATES or not item.is_dir()):
                        check_inside(home or folder, Path(item.path))
                    if not item.is_dir() and not item.is_file() and os.path.exists(item.path):
                        raise SourceError(
                            f"{item.path}: a pipe or a device, and no file; reading it could "
                            "wait for ever"
                        )
                    if item.is_file():
                        check_size(Path(item.path))
