"""Whether the files of a model folder are its own: links that lead out of it are refused, in reading and in copying.

A folder that came from somebody else could otherwise hand any file of this machine to whoever gets the merge. No torch.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import SourceError

TEMPLATES = "additional_chat_templates"  # the one subfolder that is read


def check_inside(folder: Path, file: Path) -> None:
    """Raise `SourceError` where a file of a folder is, once all links are followed, somewhere else.

    In the Hub's cache the files of ``models--NAME/snapshots/COMMIT`` are links to ``blobs`` beside ``snapshots``, or to the
    ``blobs`` beside ``models--NAME``, which all repositories share; those are its own.
    """
    home, target = Path(os.path.realpath(folder)), Path(os.path.realpath(file))
    places, repository = [home], home.parent.parent
    if home.parent.name == "snapshots":
        places.append(repository / "blobs")
        places += [repository.parent / "blobs"] if repository.name.startswith("models--") else []
    if not any(target.is_relative_to(place) for place in places):
        raise SourceError(f"{file}: a link to {target}, which is not in {folder}; put the file itself there")


def check_folder(folder: Path, home: Path | None = None) -> None:
    """Raise `SourceError` where what may be read from a model folder is a link that leads out of it, or no file.

    Args:
        folder: The folder.
        home: What links may not lead out of, where the folder is one inside of it.
    """
    try:
        for place in (folder, folder / TEMPLATES):
            if place == folder or place.is_dir():
                for item in os.scandir(place):
                    if item.is_symlink() and (item.name == TEMPLATES or not item.is_dir()):
                        check_inside(home or folder, Path(item.path))
                    if not item.is_dir() and not item.is_file() and os.path.exists(item.path):
                        raise SourceError(f"{item.path}: a pipe or a device, and no file; reading it could wait for ever")
    except OSError as cause:
        raise SourceError(f"{folder}: cannot be read: {cause}") from cause
