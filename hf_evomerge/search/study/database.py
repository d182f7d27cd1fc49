"""The file of a study: SQLite tables that survive ``kill -9``. Does not know what a trial is.

Each row is written in a transaction of its own. SQLite checks the file (``integrity_check``)
whenever a study is opened.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ...errors import EvoMergeError, FitnessError, MachineError, SearchError, one_line

if TYPE_CHECKING:
    from typing import Self

STUDY_FILE = "study.db"
SCHEMA_VERSION = 5

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE recipes (key TEXT PRIMARY KEY, yaml TEXT NOT NULL);
CREATE TABLE trials (
    stage TEXT NOT NULL, number INTEGER NOT NULL, generation INTEGER NOT NULL, state TEXT NOT NULL,
    genome BLOB NOT NULL, recipe TEXT REFERENCES recipes (key), duplicate_of INTEGER,
    fitness REAL, scores BLOB, correct BLOB, seconds REAL NOT NULL, error TEXT,
    cost REAL NOT NULL, gradient BLOB,
    PRIMARY KEY (stage, number));
CREATE TABLE evaluations (
    label TEXT NOT NULL, split TEXT NOT NULL,
    fitness REAL, scores BLOB, correct BLOB, seconds REAL NOT NULL, error TEXT,
    PRIMARY KEY (label, split));
CREATE TABLE answers (
    owner TEXT NOT NULL, split TEXT NOT NULL, outputs TEXT NOT NULL, truncated BLOB,
    PRIMARY KEY (owner, split));
CREATE TABLE objectives (
    owner TEXT NOT NULL, split TEXT NOT NULL, name TEXT NOT NULL,
    value REAL NOT NULL, scores BLOB NOT NULL, correct BLOB,
    PRIMARY KEY (owner, split, name));
"""
OTHERS = "objectives"  # scores beside those of the fitness
_KEYS = {
    "meta": 1,
    "recipes": 1,
    "trials": 2,
    "evaluations": 2,
    "answers": 2,
    OTHERS: 3,
}  # columns that name a row
Values = tuple[Any, ...]


class DamagedStudyError(SearchError):
    """A study is not as it was written. The message says what is damaged, and what to do."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(
            f"{folder / STUDY_FILE}: {one_line(what)} is damaged; put a copy in its place, or "
            "search again in another folder, where the same seed gives the same trials"
        )


# What must survive, and by what means. A killed process: each row is a transaction in SQLite's
# write-ahead log. A power cut: with `synchronous = NORMAL` the last transactions may be lost, never
# the order of those before; a lost trial is evaluated again and is the same. A crash while a study
# is made: it is written under another name, and renamed when its tables are there. Two processes: a
# file lock while a search writes. A broken disk: `integrity_check` when a study is opened.
class StudyFile:
    """The rows of a study, in ``DIR/study.db``. A context manager that closes the file."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._connection = connection

    @classmethod
    def create(cls, folder: str | Path, settings: dict[str, Any]) -> Self:
        """Start a study in a folder that has none; raises `SearchError` where there is one."""
        folder = Path(folder)
        if (folder / STUDY_FILE).exists():
            raise SearchError(
                f"{folder}: there is a study here already; continue it with `hf-evomerge "
                f"search {folder}`"
            )
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{STUDY_FILE}.new"
        for leftover in folder.glob(f"{unfinished.name}*"):
            leftover.unlink()
        with _told(folder / STUDY_FILE), cls(folder, _connect(unfinished)) as study:
            study._connection.executescript(f"PRAGMA journal_mode = WAL; {_SCHEMA}")
            study.set_meta("settings", settings)
            study.set_meta("schema_version", SCHEMA_VERSION)
        unfinished.rename(folder / STUDY_FILE)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open the study of a folder, to read alone where this user may not write.

        Raises:
            SearchError: There is none, or it has another schema.
            DamagedStudyError: The file or a table is damaged.
        """
        folder = Path(folder)
        if not (folder / STUDY_FILE).is_file():
            raise SearchError(
                f"{folder}: no {STUDY_FILE} here; start a search with `hf-evomerge search "
                f"FILE --out {folder}`"
            )
        try:
            study = cls(folder, _connect(folder / STUDY_FILE))
        except sqlite3.DatabaseError as cause:
            raise DamagedStudyError(folder, _fault_of_file(cause)) from cause
        try:
            study._check_version()
            if (fault := _fault(study._connection)) is not None:
                raise DamagedStudyError(folder, fault)
            if study.meta("schema_version") is None:
                raise DamagedStudyError(folder, "schema_version (lost)")
        except EvoMergeError:
            study.close()
            raise
        return study

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _check_version(self) -> None:
        """Raise `SearchError` where the study has another schema, before anything else of it is
        called damaged."""
        try:
            row = self._connection.execute(
                "SELECT * FROM meta WHERE key = 'schema_version'"
            ).fetchone()
            version = json.loads(row[1]) if row is not None else SCHEMA_VERSION
        except (sqlite3.DatabaseError, ValueError, RecursionError):
            return
        if version != SCHEMA_VERSION:
            versions = self.meta("versions")
            writer = "of another version"
            if isinstance(versions, dict):
                writer = one_line(str(versions.get("hf-evomerge")))
            raise SearchError(
                f"{self.folder / STUDY_FILE}: written by hf_evomerge {writer} with schema "
                f"{one_line(json.dumps(version))}, and "
                f"this version reads schema {SCHEMA_VERSION}; search again in another "
                "folder, or install the version that "
                "wrote it; its models are fine"
            )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the study while a search writes to it; raises `SearchError` where another process
        does."""
        lock = FileLock(self.folder / f"{STUDY_FILE}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as cause:
            raise SearchError(f"{self.folder}: another process is running this study") from cause
        try:
            yield
        finally:
            lock.release()

    def meta(self, key: str, of: str = "") -> Any:
        """Read a value stored beside the trials, of a stage, a source or a tracker where it is
        one's own; None where absent."""
        for name, value in self._whole("meta", "key = ?", f"{key}:{of}" if of else key):
            try:
                return json.loads(value)
            except (TypeError, ValueError, RecursionError) as cause:
                raise self._damage("meta", (name,)) from cause
        return None

    def set_meta(self, key: str, value: Any, of: str = "") -> None:
        """Store a value beside the trials; see `meta`."""
        self.write("meta", (f"{key}:{of}" if of else key, json.dumps(value)), replace=True)

    def forget(self) -> None:
        """Drop the values beside the trials, except what every study has."""
        with _told(self.folder / STUDY_FILE), self._connection:
            self._connection.execute(
                "DELETE FROM meta WHERE key NOT IN ('settings', 'schema_version')"
            )

    def write(self, table: str, values: Values, *, replace: bool = False) -> None:
        """Write one row, in a transaction of its own.

        Raises:
            MachineError: The disk takes nothing more.
            SearchError: This user may only read the study, or it has this row.
        """
        marks = ", ".join("?" * len(values))
        verb = "INSERT OR REPLACE" if replace else "INSERT"
        with _told(self.folder / STUDY_FILE), self._connection:
            self._connection.execute(f"{verb} INTO {table} VALUES ({marks})", values)

    def _whole(self, table: str, where: str, *arguments: Any) -> Iterator[Values]:
        """Rows of a table; raises `DamagedStudyError` where they cannot be read."""
        try:
            yield from self._connection.execute(f"SELECT * FROM {table} WHERE {where}", arguments)
        except sqlite3.DatabaseError as cause:
            raise DamagedStudyError(self.folder, _fault_of_file(cause)) from cause

    @contextmanager
    def _readable(self, table: str, row: Values) -> Iterator[None]:
        """Refuse a row whose content is none: this program did not write it."""
        try:
            yield
        except (FitnessError, TypeError, ValueError) as cause:
            raise self._damage(table, row) from cause

    def _damage(self, table: str, row: Values) -> DamagedStudyError:
        named = f"{table.removesuffix('s')} {' '.join(map(one_line, row[: _KEYS[table]]))}"
        return DamagedStudyError(self.folder, named.removeprefix("meta "))


def _fault(connection: sqlite3.Connection) -> str | None:
    """The first thing in a study that is damaged, the file or a table; None where all is whole."""
    try:
        (said,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if said != "ok":
            return _fault_of_file(said.removeprefix("*** in database main ***").strip())
        tables = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master")}
        for table, sql in zip(_KEYS, _SCHEMA.split(";"), strict=False):
            if sql.strip() not in tables:
                return f"not a study, or the table {table} (lost, or of other columns)"
    except sqlite3.DatabaseError as cause:
        return _fault_of_file(cause)
    return None


def _fault_of_file(cause: object) -> str:
    """Say what is damaged; raises `MachineError` where the file may be whole, and there is no room
    to work with it."""
    if _is_of_disk(cause):
        raise MachineError(f"{STUDY_FILE}: cannot be read or written on this disk: {cause}")
    return f"not a study, or the file ({cause})"


def _is_of_disk(cause: object) -> bool:
    """Tell whether SQLite had no room to work with a file that may be whole."""
    code = getattr(cause, "sqlite_errorcode", 0)
    reading = (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ)
    return (
        code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
        and code not in reading
    )


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Name the file in the error of a write that SQLite refuses."""
    try:
        yield
    except sqlite3.DatabaseError as cause:
        kind = MachineError if _is_of_disk(cause) else SearchError
        raise kind(f"{file}: cannot be written: {cause}") from cause


def _connect(file: Path) -> sqlite3.Connection:
    if os.access(file.parent, os.W_OK) and (not file.exists() or os.access(file, os.W_OK)):
        connection = sqlite3.connect(file)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection
    return _connect_to_read(file)


# A reader of SQLite in WAL mode must be able to write the shared index beside the log. Without the
# right to write there, a study whose log is gone is whole in its file, and `immutable` says so.
def _connect_to_read(file: Path) -> sqlite3.Connection:
    log = file.with_name(
        f"{file.name}-wal"
    )  # where there is none, none can be made, and nobody is writing
    return sqlite3.connect(
        f"{file.absolute().as_uri()}?{'mode=ro' if log.exists() else 'immutable=1'}", uri=True
    )
