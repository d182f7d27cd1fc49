"""Paths of the folders and files of a search, also after its study was moved or copied.

A study keeps absolute names and the folder that it was begun in, and nothing of it is rewritten.
Whoever reads it looks for a name first at the same place seen from the study's folder today, such
as data beside it, then at the place of then. ``evaluation/provenance.py`` decides by content
whether it is the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ...errors import SearchError
from ...recipes.names import FILES, FOLDERS, named_folder
from ...recipes.strict_yaml import StrictModel, validate
from ..file.config import SearchConfig
from .database import STUDY_FILE, DamagedStudyError, StudyFile

NOTE = "folder"  # the study's note of where it was begun
Named = TypeVar("Named", bound=StrictModel)


def rooted(config: SearchConfig) -> SearchConfig:
    """The search with absolute names of folders and files, so that its study goes on from any
    current directory."""

    def place(key: str, name: str) -> str:
        path = str(named_folder(name))
        is_there = os.path.isdir(path) if key in FOLDERS else os.path.isfile(path)
        # on the Hub, or missing, which others complain of
        return os.path.abspath(path) if is_there else name

    return renamed(config, place)


def followed(named: Named, study: StudyFile) -> Named:
    """The search of a study, or one of its sources, with the names of today for what has moved with
    the study."""
    begun = study.meta(NOTE)
    here = os.path.abspath(study.folder)

    def place(key: str, name: str) -> str:
        moved = (
            os.path.normpath(os.path.join(here, os.path.relpath(name, begun)))
            if os.path.isabs(name)
            else name
        )
        return moved if os.path.exists(moved) else name

    return renamed(named, place) if begun not in (None, here) else named


def settings_of(study: StudyFile) -> SearchConfig:
    """The search that a study was begun with, by the names of today; raises `SearchError` where it
    cannot be read."""
    if (settings := study.meta("settings")) is None:
        raise DamagedStudyError(study.folder, "settings (lost)")
    try:
        config = validate(SearchConfig, settings, SearchError)
    except SearchError as error:
        raise SearchError(f"{study.folder / STUDY_FILE}: settings: {error}") from error
    return followed(config, study)


def settings_in(folder: str | Path) -> SearchConfig:
    """Read the settings of a folder's study; raises `SearchError` where there is none."""
    with StudyFile.open(folder) as study:
        return settings_of(study)


def renamed(value: Any, place: Callable[[str, str], str], key: str = "") -> Any:
    """Settings in which each name of a folder or file is what `place` gives for its key and the
    name."""
    if isinstance(value, StrictModel):
        fields = {name: renamed(each, place, name) for name, each in value}
        return value.model_copy(
            update={name: each for name, each in fields.items() if each != getattr(value, name)}
        )
    if isinstance(value, dict):
        return {name: renamed(each, place) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(renamed(each, place, key) for each in value)
    return place(key, value) if isinstance(value, str) and key in (*FOLDERS, *FILES) else value
