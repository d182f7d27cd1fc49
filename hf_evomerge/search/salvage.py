"""Looks through a search's folder for what is not as it was written, and saves the whole rows of a study into a new one."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..errors import EvoMergeError, SearchError
from .evaluation.provenance import pin, records
from .file.config import SearchConfig
from .folder import changed_files
from .study.database import (
    SCHEMA_VERSION,
    STUDY_FILE,
    TABLES,
    DamagedStudyError,
    Values,
    check_version,
    exclusive,
    is_whole,
    row_name,
    study_columns,
)
from .study.files import SEARCH_FILE, WRITTEN
from .study.pages import rows_of_pages
from .study.paths import rooted, settings_from
from .study.study import Study

_NAMED = 5
_RECIPE = re.compile("[0-9a-f]{16}")  # the key of one; nothing else that a study keeps by a name has such a name


@dataclass
class Condition:
    """What is left of a study.

    Attributes:
        file: The study's file.
        whole: The rows that are as they were written, by table.
        damaged: What is not, by name.
        settings: The search that was begun; that of the folder's search file where the study's own settings are lost, and None
            where that is lost too.
        lost: The records of what the scores stand on that are not there any more, by name.
        changed: What else of the folder is not what the search left, a line each.
    """

    file: Path
    whole: dict[str, list[Values]] = field(default_factory=lambda: {table: [] for table in TABLES})
    damaged: list[str] = field(default_factory=list)
    settings: SearchConfig | None = None
    lost: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    @property
    def meta(self) -> dict[str, Any]:
        """The whole values that are stored beside the trials."""
        return {str(key): json.loads(value) for key, value in self.whole["meta"]}

    @property
    def trials(self) -> str:
        """How many whole trials of each stage there are, in words."""
        trials = Counter(str(row[0]) for row in self.whole["trials"])
        return ", ".join(f"{count} {stage} trials" for stage, count in sorted(trials.items())) or "no trials"

    def __str__(self) -> str:
        """The condition, a line for everything that is wrong."""
        check, lines = f"`hf-evomerge check {self.file.parent} --salvage", []
        if self.damaged:
            more = f" and {len(self.damaged) - _NAMED} more" if len(self.damaged) > _NAMED else ""
            lines.append(
                f"{self.file}: damaged: {', '.join(self.damaged[:_NAMED])}{more}; {self.trials} are whole, and {check}` keeps "
                "them; `resume` then evaluates the others again"
            )
        if self.lost:
            lines.append(
                f"{self.file}: lost: {', '.join(self.lost)}, which say what the scores stand on; so it can be shown but does "
                "not go on; if you know that sources, examples and task are those that it was begun on, "
                f"{check} --same-sources` takes them down anew"
            )
        return "\n".join([*lines, *self.changed]) or f"{self.file}: whole: {self.trials}"


def check_study(folder: str | os.PathLike[str]) -> Condition:
    """Look through the study of a folder, and through what the search wrote beside it.

    Args:
        folder: The folder of the search.

    Raises:
        SearchError: There is no study, or it is one of another version, or nothing of it can be read.

    Example:
        >>> check_study("my-search").damaged
        []
    """
    condition = _look_through(Path(folder))
    condition.changed = changed_files(Path(folder), condition.meta.get(WRITTEN) or {})
    return condition


def check_whole(folder: Path) -> None:
    """Raise `SearchError` where a study is not whole, so that a search must not go on with it."""
    condition = _look_through(folder)
    if condition.damaged or condition.lost:
        raise SearchError(str(condition).splitlines()[0])


def salvage_study(folder: str | os.PathLike[str], *, same_sources: bool = False) -> Condition:
    """Put a study of all whole rows in the place of a damaged one, which is kept as ``study.db.damaged``.

    Settings that are damaged are taken from the folder's ``search.yaml``. Trials that are lost are evaluated again, to the same
    scores, when the search goes on. It does not where it is lost what the scores stand on.

    Args:
        folder: The folder of the search.
        same_sources: The user's word that sources, examples and task are those that the study was begun on; what is lost of
            them is taken down anew when the search goes on.

    Returns:
        What was found, and so what was kept.

    Raises:
        SearchError: Another process runs the study, its settings are lost, or an earlier damaged study is in the way.
    """
    folder = Path(folder)
    condition = _look_through(folder)
    if not condition.damaged and not (condition.lost and same_sources):
        return condition
    with exclusive(folder):
        condition = _look_through(folder)  # nobody writes to it now
        if condition.damaged:
            _replace(condition)
        if same_sources:
            with closing(Study.open(folder)) as study:
                for key in condition.lost:
                    study.set_meta(key, None)
    return condition


def _look_through(folder: Path) -> Condition:
    condition = Condition(folder / STUDY_FILE)
    try:
        study = Study.open(folder)
    except DamagedStudyError as error:
        condition.damaged.append(error.what)
        rows = _rows_of_pages(condition.file)
        if not any(whole for *_, whole in rows):
            raise SearchError(f"{condition.file}: not a study, or nothing of one can be read: {error.what}") from error
    else:
        with closing(study):
            rows = [(table, *row) for table in TABLES for row in study.rows(table)]
    for table, row, whole in rows:
        if whole and (table != "meta" or _is_json(row[1])):
            condition.whole[table].append(row)
        else:
            condition.damaged.append(row_name(table, row))
    check_version(folder, condition.meta.get("schema_version", SCHEMA_VERSION))
    _complete(condition)
    condition.damaged = list(dict.fromkeys(condition.damaged))
    return condition


def _is_json(value: object) -> bool:
    try:
        json.loads(str(value))
    except (ValueError, RecursionError):
        return False
    return True


def _complete(condition: Condition) -> None:
    """Find out what is not there of what must be."""
    folder, meta = condition.file.parent, condition.meta
    if "settings" in meta:
        condition.settings = settings_from(folder, meta["settings"])
    else:
        condition.damaged.append("settings")
        with suppress(EvoMergeError):
            condition.settings = _written_settings(condition)
    if condition.whole["trials"] or condition.whole["evaluations"]:
        condition.lost = [key for key in records(condition.settings) if key not in meta]


def _written_settings(condition: Condition) -> SearchConfig:
    """The search of the folder's search file, as it was begun; raises an `EvoMergeError` where that cannot be had."""
    written = rooted(SearchConfig.load(condition.file.parent / SEARCH_FILE))
    return pin(written, dict(condition.meta.get("pins") or {}))


def _rows_of_pages(file: Path) -> list[tuple[str, Values, bool]]:
    """The rows of a file that SQLite does not read: table, values, and whether they are whole; of a name the last that is."""
    columns = study_columns()
    tables = {len(columns[table]): table for table in reversed(columns)}  # of meta and recipes, meta
    found: dict[tuple[str, Values], tuple[bool, int, Values]] = {}
    for rowid, values in rows_of_pages(file):
        table = tables.get(len(values))
        if table is None or not isinstance(values[0], str):
            continue
        if table == "meta" and _RECIPE.fullmatch(values[0]):
            table = "recipes"
        row = tuple(  # a float without a fraction is stored as an integer
            float(value) if kind == "REAL" and isinstance(value, int) else value
            for value, (_, kind) in zip(values, columns[table], strict=True)
        )
        name, new = (table, row[: TABLES[table]]), (is_whole(row), rowid, row[:-1])
        if name not in found or found[name][:2] < new[:2]:
            found[name] = new
    rows = sorted(((rowid, table, row, whole) for (table, _), (whole, rowid, row) in found.items()), key=itemgetter(0))
    return [(table, row, whole) for _, table, row, whole in rows]


def _replace(condition: Condition) -> None:
    folder, file = condition.file.parent, condition.file
    kept = folder / f"{STUDY_FILE}.damaged"
    if kept.exists():
        raise SearchError(f"{kept}: is there already; move it away")
    settings = condition.meta.get("settings")
    if settings is None:
        try:
            settings = _written_settings(condition).model_dump(mode="json")
        except EvoMergeError as cause:
            raise SearchError(f"{file}: its settings are lost, and so is {SEARCH_FILE} ({cause})") from cause
    fresh = folder / ".salvaged"
    for leftover in fresh.glob("*"):
        leftover.unlink()
    with closing(Study.create(fresh, settings)) as made:
        for table, rows in condition.whole.items():
            for row in rows:
                if table != "meta" or row[0] not in ("settings", "schema_version"):
                    made.write(table, row)
    for end in ("", "-wal", "-shm"):
        if (part := folder / f"{STUDY_FILE}{end}").exists():
            part.rename(folder / f"{STUDY_FILE}.damaged{end}")
    (fresh / STUDY_FILE).rename(file)
    fresh.rmdir()
