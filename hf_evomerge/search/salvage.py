"""Looks through a study for rows that are not as they were written, and saves the others into a new one."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import EvoMergeError, SearchError
from .config import SearchConfig
from .folder import SEARCH_FILE
from .places import settings_of
from .study import STUDY_FILE, TABLES, Study, Values, row_name

_NAMED = 5


@dataclass
class Condition:
    """What is left of a study.

    Attributes:
        file: The study's file.
        whole: The rows that are as they were written, by table.
        damaged: What is not, by name; whole stretches where the file itself cannot be read.
    """

    file: Path
    whole: dict[str, list[Values]] = field(default_factory=lambda: {table: [] for table in TABLES})
    damaged: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """The condition in one line."""
        trials = Counter(str(row[0]) for row in self.whole["trials"])
        found = ", ".join(f"{count} {stage} trials" for stage, count in sorted(trials.items())) or "no trials"
        if not self.damaged:
            return f"{self.file}: whole: {found}"
        more = f" and {len(self.damaged) - _NAMED} more" if len(self.damaged) > _NAMED else ""
        return (
            f"{self.file}: damaged: {', '.join(self.damaged[:_NAMED])}{more}; {found} are whole, and --salvage keeps them; "
            "`hf-evomerge resume` evaluates the others again"
        )


def check_study(folder: str | os.PathLike[str]) -> Condition:
    """Look through the study of a folder.

    Args:
        folder: The folder of the search.

    Raises:
        SearchError: There is no study, or it is one of another version, or nothing of it can be read.

    Example:
        >>> check_study("my-search").damaged
        []
    """
    study = Study.open(folder)
    condition = Condition(study.folder / STUDY_FILE)
    try:
        for table in TABLES:
            try:
                for row, whole in study.rows(table):
                    if whole:
                        condition.whole[table].append(row)
                    else:
                        condition.damaged.append(row_name(table, row))
            except sqlite3.DatabaseError:
                condition.damaged.append(f"the {table} after the first {len(condition.whole[table])}")
        if not any(row[0] == "settings" for row in condition.whole["meta"]) and "settings" not in condition.damaged:
            condition.damaged.append("settings")
        elif "settings" not in condition.damaged:
            settings_of(study)
    finally:
        study.close()
    return condition


def salvage_study(folder: str | os.PathLike[str]) -> Condition:
    """Put a study of all whole rows in the place of a damaged one, which is kept as ``study.db.damaged``.

    Settings that are damaged are taken from the folder's ``search.yaml``. Trials that are lost are evaluated again, to the same
    scores, when the search goes on.

    Args:
        folder: The folder of the search.

    Returns:
        What was found, and so what was kept.

    Raises:
        SearchError: Another process runs the study, its settings are lost, or an earlier damaged study is in the way.
    """
    folder = Path(folder)
    study = Study.open(folder)
    try:
        with study.exclusive():
            condition = check_study(folder)
            if condition.damaged:
                _replace(study, condition)
    finally:
        study.close()
    return condition


def _replace(study: Study, condition: Condition) -> None:
    kept = study.folder / f"{STUDY_FILE}.damaged"
    if kept.exists():
        raise SearchError(f"{kept}: is there already; move it away")
    meta = {str(key): json.loads(value) for key, value in condition.whole["meta"]}
    if "settings" not in meta:
        try:
            settings = SearchConfig.load(study.folder / SEARCH_FILE).model_dump(mode="json")
        except EvoMergeError as cause:
            raise SearchError(f"{condition.file}: its settings are lost, and so is {SEARCH_FILE} ({cause})") from cause
    else:
        settings = meta["settings"]
    fresh = study.folder / ".salvaged"
    for leftover in fresh.glob("*"):
        leftover.unlink()
    made = Study.create(fresh, settings)
    for table, rows in condition.whole.items():
        for row in rows:
            if table != "meta" or row[0] not in ("settings", "schema_version"):
                made.write(table, row)
    made.close()
    study.close()
    for end in ("", "-wal", "-shm"):
        if (file := study.folder / f"{STUDY_FILE}{end}").exists():
            file.rename(study.folder / f"{STUDY_FILE}.damaged{end}")
    (fresh / STUDY_FILE).rename(study.folder / STUDY_FILE)
    fresh.rmdir()
