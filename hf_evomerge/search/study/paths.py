"""Where a search finds its folders and files: by absolute names, and at their new places once its study was moved or copied.

A study knows the folder that it was begun in. What lies in the same place seen from its folder now is meant, such as data
beside it; where nothing lies there, what is still where it was. ``evaluation/provenance.py`` decides by content whether it is
the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ...checkpoints.model_folder import named_folder
from ...errors import SearchError
from ...fitness import DataSpec
from ...recipes.recipe import Recipe, SourceRef
from ...recipes.strict_yaml import validate
from ..file.config import SearchConfig
from .database import STUDY_FILE, DamagedStudyError
from .study import Study

NOTE = "folder"  # the study's note of where it is
Named = TypeVar("Named", SearchConfig, Recipe)
Rename = Callable[[str], str]
_FOLDERS, _FILES = ("model", "adapter", "dataset"), ("jsonl", "lm_eval", "data_files")  # keys that may name one


def rooted(config: SearchConfig) -> SearchConfig:
    """The search with folders and files by their absolute names, so that its study goes on from wherever it is resumed."""

    def folder(name: str) -> str:
        found = str(named_folder(name))
        return os.path.abspath(found) if os.path.isdir(found) else name  # on the Hub, or not there, of which others complain

    def file(name: str) -> str:
        found = str(named_folder(name))
        return os.path.abspath(found) if os.path.isfile(found) else name

    return renamed(config, folder, file)


def settings_of(study: Study) -> SearchConfig:
    """The search that a study was begun with, by the places of today; raises `SearchError` where it cannot be read."""
    config = settings_from(study.folder, study.meta("settings"))
    return renamed(config, new_places(study, config))


def settings_in(folder: str | os.PathLike[str]) -> SearchConfig:
    """As `settings_of` the study of a folder; raises `SearchError` where there is none."""
    study = Study.open(folder)
    try:
        return settings_of(study)
    finally:
        study.close()


def settings_from(folder: Path, settings: Any) -> SearchConfig:
    """The search that a study's settings are, as they are stored; raises `SearchError` where they are none."""
    if settings is None:
        raise DamagedStudyError(folder, "settings (lost)")
    try:
        return validate(SearchConfig, settings, SearchError)
    except SearchError as error:
        raise SearchError(f"{folder / STUDY_FILE}: settings: {error}") from error


def new_places(study: Study, config: SearchConfig) -> Rename:
    """What turns a name in a study into that of today.

    Args:
        study: The study.
        config: Its settings, as they are stored.
    """
    before, now = study.meta(NOTE), os.path.abspath(study.folder)
    found = {}
    if before is not None and before != now:
        for name in filter(os.path.isabs, _names(config)):
            place = os.path.normpath(os.path.join(now, os.path.relpath(name, before)))
            found[name] = place if os.path.exists(place) else name
    return lambda name: found.get(name, name)


def replaced(text: str, config: SearchConfig, place: Rename) -> str:
    """A text that names sources, such as `str` of one, with their new places."""
    for name in _names(config):
        text = text.replace(name, place(name)) if os.path.isabs(name) else text
    return text


def _names(config: SearchConfig) -> Iterator[str]:
    """Every name of a model, an adapter or data in a search, longer ones before those that they begin with."""
    found: list[str] = []

    def note(name: str) -> str:
        found.append(name)
        return name

    renamed(config, note)
    yield from sorted(dict.fromkeys(found), key=len, reverse=True)


def renamed(named: Named, place: Rename, file: Rename | None = None) -> Named:
    """A search or a recipe with other names of models, adapters and data.

    Args:
        named: The search or the recipe.
        place: Gives another name.
        file: Gives that of a file, where it is not `place`.
    """

    def moved(part: SourceRef | DataSpec) -> SourceRef | DataSpec:
        changes: dict[str, Any] = {}
        for keys, rename in ((_FOLDERS, place), (_FILES, file or place)):
            for key in keys:
                value = getattr(part, key, None)
                if value is not None:
                    changes[key] = rename(value) if isinstance(value, str) else [rename(each) for each in value]
        return part.model_copy(update=changes)

    changes: dict[str, Any] = {"sources": [moved(ref) for ref in named.sources], "base": named.base and moved(named.base)}
    if isinstance(named, SearchConfig):
        for key in ("data", "retain"):
            changes[key] = {split: moved(spec) for split, spec in getattr(named, key).items()}
        changes["objectives"] = tuple(
            each
            if isinstance(each, str)
            else each.model_copy(update={"data": {k: moved(spec) for k, spec in each.data.items()}})
            for each in named.objectives
        )
    return named.model_copy(update=changes)
