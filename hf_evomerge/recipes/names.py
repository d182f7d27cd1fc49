"""Names of models as they are written: of a folder, or of a repository on the Hub."""

from __future__ import annotations

import os
from pathlib import Path


def named_folder(name: str) -> Path:
    """The folder that a name may mean, be it there or not; unlike `Path.expanduser` no error where ``~`` names nobody."""
    return Path(os.path.expanduser(name))


def is_folder(name: str) -> bool:
    """Tell whether a name is that of a folder and not of a repository, be the folder still there or not."""
    return os.path.isdir(named_folder(name)) or name.startswith(("/", "~", ".")) or name.endswith("/") or name.count("/") > 1


def hidden(name: str) -> str:
    """A name as strangers may see it: a folder of this machine by its last part only, a repository as it is."""
    folder = named_folder(name)
    return (folder.name or folder.resolve().name) if is_folder(name) else name
