"""Names of models as they are written: of a folder, or of a repository on the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

FOLDERS = ("model", "adapter", "dataset")
FILES = ("jsonl", "lm_eval", "data_files", "code")
"""The keys of a search file that may name a folder, and those that may name files."""
_missed: dict[str, list[str]] = {}  # folders beside the current one, by the names they lack


def named_folder(name: str) -> Path:
    """The folder that a name may mean, be it there or not; unlike `Path.expanduser` no error where
    ``~`` names nobody."""
    return Path(os.path.expanduser(name))


def beside(data: Any, folder: str, key: str = "") -> Any:
    """Find what a file names in the folder of the file: plain data in which such names lead there.

    Other names stay, for the current directory or the Hub.
    """
    if isinstance(data, dict):
        return {name: beside(each, folder, name) for name, each in data.items()}
    if isinstance(data, list):
        return [beside(each, folder, key) for each in data]
    if key == "functions" and isinstance(data, str):  # FILE.py:NAME
        code, mark, name = data.rpartition(":")
        return f"{beside(code, folder, 'code')}{mark}{name}"
    if not isinstance(data, str) or not data or key not in (*FOLDERS, *FILES, "run"):
        return data
    place = os.path.join(folder, data)
    if os.path.isfile(place) or (os.path.isdir(place) and key not in FILES):
        return place
    _missed.setdefault(data, []).append(os.path.abspath(folder))
    return data


def looked_in(name: str) -> str:
    """The folders in which a relative name was looked for, as in " in /a or /b"."""
    if os.path.isabs(named_folder(name)):
        return ""
    return " in " + " or ".join(dict.fromkeys([*_missed.get(name, ()), os.getcwd()]))


def is_folder(name: str) -> bool:
    """Tell whether a name is that of a folder and not of a repository, be the folder still there or
    not."""
    return (
        os.path.isdir(named_folder(name))
        or name.startswith(("/", "~", "."))
        or name.endswith("/")
        or name.count("/") > 1
    )


def hidden(name: str) -> str:
    """A name as strangers may see it: a folder of this machine by its last part only, a repository
    as it is."""
    folder = named_folder(name)
    return (folder.name or folder.resolve().name) if is_folder(name) else name
