"""The file of a study: tables whose rows have checksums, in SQLite, that survives ``kill -9``. Knows not what a trial is.

Each row is written in a transaction of its own with a checksum of what stands in it, and is refused where that is another one:
a score that a disk has changed would otherwise decide the search. The file that holds the rows is checked whenever a study is
opened.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ...errors import FitnessError, SearchError, one_line
from .pages import PAGE

if TYPE_CHECKING:
    from typing import Self

STUDY_FILE = "study.db"
SCHEMA_VERSION = 3

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS recipes (key TEXT PRIMARY KEY, yaml TEXT NOT NULL, checksum TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS trials (
    stage TEXT NOT NULL, number INTEGER NOT NULL, generation INTEGER NOT NULL, state TEXT NOT NULL,
    genome BLOB NOT NULL, recipe TEXT REFERENCES recipes (key), duplicate_of INTEGER,
    fitness REAL, scores BLOB, correct BLOB, seconds REAL NOT NULL, error TEXT, cost REAL NOT NULL, gradient BLOB,
    checksum TEXT NOT NULL,
    PRIMARY KEY (stage, number));
CREATE TABLE IF NOT EXISTS evaluations (
    label TEXT NOT NULL, split TEXT NOT NULL, fitness REAL, scores BLOB, correct BLOB, seconds REAL NOT NULL, error TEXT,
    checksum TEXT NOT NULL,
    PRIMARY KEY (label, split));
CREATE TABLE IF NOT EXISTS answers (
    owner TEXT NOT NULL, split TEXT NOT NULL, outputs TEXT NOT NULL, truncated BLOB, checksum TEXT NOT NULL,
    PRIMARY KEY (owner, split));
"""
_OBJECTIVES = """
CREATE TABLE IF NOT EXISTS objectives (
    owner TEXT NOT NULL, split TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL, scores BLOB NOT NULL, correct BLOB,
    checksum TEXT NOT NULL,
    PRIMARY KEY (owner, split, name));
"""
TABLES = {"meta": 1, "recipes": 1, "trials": 2, "evaluations": 2, "answers": 2, "objectives": 3}
"""The tables, and how many columns name a row."""
Values = tuple[Any, ...]


class DamagedStudyError(SearchError):
    """A study is not as it was written.

    Attributes:
        what: What of it.
    """

    def __init__(self, folder: Path, what: str, perhaps: str = "") -> None:
        self.what = one_line(what)
        advice = f"`hf-evomerge check {folder}` says what can be saved"
        super().__init__(f"{folder / STUDY_FILE}: {perhaps}{self.what} is damaged; {advice}")


class StudyFile:
    """The rows of a study, in ``DIR/study.db``."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder, self._connection = folder, connection

    @classmethod
    def create(cls, folder: str | os.PathLike[str], settings: dict[str, Any]) -> Self:
        """Start a study in a folder that has none; raises `SearchError` where there is one."""
        folder = Path(folder)
        if (folder / STUDY_FILE).exists():
            raise SearchError(f"{folder}: there is a study here already; continue it with `hf-evomerge resume {folder}`")
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{STUDY_FILE}.new"
        for leftover in folder.glob(f"{unfinished.name}*"):
            leftover.unlink()
        study = cls(folder, _connect(unfinished))
        study._connection.executescript(f"PRAGMA page_size = {PAGE}; PRAGMA journal_mode = WAL; {_SCHEMA} {_OBJECTIVES}")
        study.set_meta("settings", settings)
        study.set_meta("schema_version", SCHEMA_VERSION)
        study.close()
        unfinished.rename(folder / STUDY_FILE)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Open the study of a folder, to read alone where this user may not write.

        Raises:
            SearchError: There is none, or it is one of another schema.
            DamagedStudyError: The file, its tables or its version are not as they were written.
        """
        folder = Path(folder)
        if not (folder / STUDY_FILE).is_file():
            raise SearchError(f"{folder}: no {STUDY_FILE} here; start a search with `hf-evomerge search FILE --out {folder}`")
        try:
            study = cls(folder, _connect(folder / STUDY_FILE))
        except sqlite3.DatabaseError as cause:
            raise _broken(folder, f"the file ({cause})") from cause
        try:
            study._check()
        except SearchError:
            study.close()
            raise
        return study

    def _check(self) -> None:
        """Raise a `SearchError` where SQLite finds fault with the file, or it has other tables than a study."""
        try:
            (found,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise _broken(self.folder, f"the file ({found.removeprefix('*** in database main ***').strip()})")
            for table, columns in study_columns().items():
                if table == "objectives" and not _columns(self._connection, table):
                    self._add_objectives()
                if _columns(self._connection, table) != columns:
                    raise _broken(self.folder, f"the table {table} (lost, or of other columns)")
        except sqlite3.DatabaseError as cause:
            raise _broken(self.folder, f"the file ({cause})") from cause
        if (version := self.meta("schema_version")) is None:
            raise DamagedStudyError(self.folder, "schema_version (lost)")
        check_version(self.folder, version)

    def _add_objectives(self) -> None:
        """Add the table that a study begun before there were objectives lacks; for this reader alone where it may not write."""
        try:
            self._connection.executescript(_OBJECTIVES)
        except sqlite3.OperationalError:
            self._connection.executescript(_OBJECTIVES.replace("CREATE TABLE", "CREATE TEMP TABLE"))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold the study while a search writes to it; raises `SearchError` where another process does."""
        return exclusive(self.folder)

    def meta(self, key: str) -> Any:
        """A value stored beside the trials, or None."""
        for name, value in self._whole("meta", "key = ?", key):
            try:
                return json.loads(value)
            except (TypeError, ValueError, RecursionError) as cause:
                raise self._damage("meta", (name,)) from cause
        return None

    def set_meta(self, key: str, value: Any) -> None:
        """Store a value beside the trials."""
        self.write("meta", (key, json.dumps(value)), replace=True)

    def write(self, table: str, values: Values, *, replace: bool = False) -> None:
        """Write one row with its checksum, in a transaction of its own; raises `sqlite3.DatabaseError`."""
        with self._connection:
            self._put(table, values, replace=replace)

    def _put(self, table: str, values: Values, *, replace: bool) -> None:
        marks = ", ".join("?" * (len(values) + 1))
        verb = "INSERT OR REPLACE" if replace else "INSERT"
        self._connection.execute(f"{verb} INTO {table} VALUES ({marks})", (*values, checksum_of(values)))

    def rows(self, table: str, where: str = "1", *arguments: Any) -> Iterator[tuple[Values, bool]]:
        """Rows of a table without their checksums, and whether each is as it was written; raises `sqlite3.DatabaseError`."""
        for row in self._connection.execute(f"SELECT * FROM {table} WHERE {where}", arguments):
            yield row[:-1], is_whole(row)

    def _whole(self, table: str, where: str, *arguments: Any) -> Iterator[Values]:
        """The rows of a table; raises `SearchError` at one that is not as it was written."""
        try:
            for row, whole in self.rows(table, where, *arguments):
                if not whole:
                    raise self._damage(table, row)
                yield row
        except sqlite3.DatabaseError as cause:
            raise _broken(self.folder, f"the file ({cause})") from cause

    @contextmanager
    def _readable(self, table: str, row: Values) -> Iterator[None]:
        """Refuse a row whose checksum is right and whose content is none: it was not this program that wrote it."""
        try:
            yield
        except (FitnessError, TypeError, ValueError) as cause:
            raise self._damage(table, row) from cause

    def _damage(self, table: str, row: Values) -> DamagedStudyError:
        return DamagedStudyError(self.folder, row_name(table, row))


def _broken(folder: Path, what: str) -> DamagedStudyError:
    return DamagedStudyError(folder, what, "not a study, or ")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the study of a folder, damaged or not; raises `SearchError` where another process does."""
    lock = FileLock(folder / f"{STUDY_FILE}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as cause:
        raise SearchError(f"{folder}: another process is running this study") from cause
    try:
        yield
    finally:
        lock.release()


def check_version(folder: Path, version: object) -> None:
    """Raise `SearchError` for a study that another version of this program wrote."""
    if version != SCHEMA_VERSION:
        found = one_line(json.dumps(version))
        raise SearchError(f"{folder / STUDY_FILE}: schema version {found}, this program reads {SCHEMA_VERSION}")


def is_whole(row: Values) -> bool:
    """Whether a row, its checksum at the end, is as it was written."""
    return bool(row) and row[-1] == checksum_of(row[:-1])


def row_name(table: str, row: Values) -> str:
    """What a row is called in messages."""
    return f"{table.removesuffix('s')} {' '.join(map(one_line, row[: TABLES[table]]))}".removeprefix("meta ")


def _connect(file: Path) -> sqlite3.Connection:
    if os.access(file.parent, os.W_OK) and (not file.exists() or os.access(file, os.W_OK)):
        connection = sqlite3.connect(file)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection
    log = file.with_name(f"{file.name}-wal")  # where there is none, none can be made, and nobody is writing
    return sqlite3.connect(f"{file.absolute().as_uri()}?{'mode=ro' if log.exists() else 'immutable=1'}", uri=True)


def _columns(connection: sqlite3.Connection, table: str) -> list[tuple[str, str]]:
    """Name and type of a table's columns."""
    return [(name, kind) for _, name, kind, *_ in connection.execute(f"PRAGMA table_info({table})")]


@cache
def study_columns() -> dict[str, list[tuple[str, str]]]:
    """Name and type of every column of a study, by table."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_SCHEMA + _OBJECTIVES)
        return {table: _columns(connection, table) for table in TABLES}


def checksum_of(values: Values) -> str:
    """Sixteen hexadecimal digits that stand for what is in a row, to the last bit."""
    digest = sha256()
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode("utf-8", "backslashreplace")
        digest.update(f"{type(value).__name__} {len(data)} ".encode() + data)
    return digest.hexdigest()[:16]
