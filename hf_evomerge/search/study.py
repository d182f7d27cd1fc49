"""The study: every trial of one search, in one SQLite file that survives ``kill -9``. Stores and reads; decides nothing.

Trials are written as they finish, each in a transaction of its own. Nothing is pickled: genomes and scores are arrays of
float64 in little-endian order, recipes are YAML. Every row has a checksum of what stands in it, and is refused where that is
another one: a score that a disk has changed would otherwise decide the search. The file that holds the rows is checked whenever
a study is opened.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ..errors import FitnessError, SearchError, one_line
from ..fitness.scores import Scores
from ..recipes.recipe import Recipe
from .pages import PAGE

if TYPE_CHECKING:
    from ..hub.push import Pushed

STUDY_FILE = "study.db"
SCHEMA_VERSION = 3
State = Literal["COMPLETE", "FAILED"]

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
_REFERENCES = (
    ("trials", "recipe", 5, "stage = ? AND number = ?"),
    ("evaluations", "label", 0, "label = ? AND split = ?"),
    ("answers", "owner", 0, "owner = ? AND split = ?"),
)
"""Where a recipe's key stands: table, column and its place, and what names a row."""
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


@dataclass(frozen=True)
class Trial:
    """One genome, its recipe and its scores.

    Attributes:
        stage: ``ps``, ``dfs``, ``joint`` or ``random``, or what ran first: ``ps-first``, ``dfs-first``.
        number: From 0, in the order of `ask`.
        generation: The `ask` it came from.
        genome: The vector, shape (n,).
        recipe_key: Key of the recipe in the study; None where the genome has none (its error says why).
        scores: What the recipe scored, or why it could not be scored.
        duplicate_of: Number of the earlier trial whose recipe is the same and whose scores this one shares.
        cost: What it counts of the budget, in scores of all search examples.
    """

    stage: str
    number: int
    generation: int
    genome: NDArray[np.float64]
    recipe_key: str | None
    scores: Scores
    duplicate_of: int | None = None
    cost: float = 1.0

    @property
    def state(self) -> State:
        """COMPLETE or FAILED."""
        return "COMPLETE" if self.scores.error is None else "FAILED"

    @property
    def fitness(self) -> float | None:
        """The mean score; None where the trial failed."""
        return self.scores.mean


class Study:
    """All trials of one search, in ``DIR/study.db``.

    Example:
        >>> study = Study.open("my-search")
        >>> best = study.best("ps")[0]
        >>> best.state, len(best.scores.values)  # one score per example
        ('COMPLETE', 5)
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder, self._connection = folder, connection

    @classmethod
    def create(cls, folder: str | os.PathLike[str], settings: dict[str, Any]) -> Study:
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
    def open(cls, folder: str | os.PathLike[str]) -> Study:
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

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        license: str | None = None,
        **options: Any,
    ) -> Pushed:
        """Publish the winner with this study's record, in one commit; see `hf_evomerge.push_model`.

        Args:
            repo_id: ``user/name``; made where it does not exist.
            commit_message: The commit's title; one that names this package by default.
            private: Make a new repository private. One that exists and is public is refused.
            token: A token of the Hub; by default the one that ``hf auth login`` has left.
            license: A Hub identifier, in place of what follows from the parents' licenses.
            **options: The other fields of `hf_evomerge.PushOptions`, such as ``revision``, ``create_pr`` and ``space``.

        Returns:
            The address and the commit of the model and of its Space, and warnings.

        Raises:
            HubError: The search is not finished, the licenses forbid it, or the Hub does not take it.

        Example:
            >>> Study.open("my-search").push_to_hub("me/my-merge", private=True).model.url  # doctest: +SKIP
            'https://huggingface.co/me/my-merge'
        """
        from ..hub.push import PushOptions, default_api, push_model

        settings = PushOptions(commit_message=commit_message, private=bool(private), license=license, **options)
        return push_model(self.folder, repo_id, settings, api=default_api(token))

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

    def add_recipe(self, recipe: Recipe) -> str:
        """Store a recipe and return its key; the same recipe has the same key."""
        key = recipe.key
        if not self._connection.execute("SELECT 1 FROM recipes WHERE key = ?", (key,)).fetchone():
            self.write("recipes", (key, recipe.to_yaml()))
        return key

    def recipe(self, key: str) -> Recipe:
        """The recipe of a key; raises `SearchError` where there is none."""
        for _, text in self._whole("recipes", "key = ?", key):
            return Recipe.from_yaml(str(text))
        raise SearchError(f"recipe {key!r}: not in this study")

    def add_trial(self, trial: Trial) -> None:
        """Store a finished trial, durably; what its model wrote, and its other objectives, are kept under ``stage:number``."""
        if trial.duplicate_of is None:
            self._add_beside(f"{trial.stage}:{trial.number}", "search", trial.scores)
        names = (trial.stage, trial.number, trial.generation, trial.state)
        genome = (_pack(trial.genome), trial.recipe_key, trial.duplicate_of)
        costs = (float(trial.cost), _pack(trial.scores.gradient))
        self.write("trials", (*names, *genome, *_score_columns(trial.scores), *costs))

    def trials(self, stage: str | None = None) -> list[Trial]:
        """All trials, or those of one stage, by number."""
        found, others = [], self._others("search")
        for row in self._whole("trials", "? IS NULL OR stage = ? ORDER BY stage, number", stage, stage):
            with self._readable("trials", row):
                values, correct, seconds, error, cost, gradient = row[8:]
                scores = _scores(values, correct, seconds, error, gradient)
                scores = scores.with_others(others.get(f"{row[0]}:{row[1] if row[6] is None else row[6]}", {}))
                found.append(Trial(row[0], row[1], row[2], _unpack(row[4]), row[5], scores, row[6], cost))
        return found

    def best(self, stage: str | None = None, count: int = 1) -> list[Trial]:
        """The best complete trials with distinct recipes, best first; of equals the earlier.

        Those that were scored on more examples than others come before them: a batch says less.
        """
        complete = [trial for trial in self.trials(stage) if trial.fitness is not None and trial.duplicate_of is None]
        complete.sort(key=lambda trial: (-trial.scores.values.size, -(trial.fitness or 0.0), trial.number))
        first_of_recipe: dict[str | None, Trial] = {}
        for trial in complete:
            first_of_recipe.setdefault(trial.recipe_key, trial)
        return list(first_of_recipe.values())[:count]

    def add_evaluation(self, label: str, split: str, scores: Scores) -> None:
        """Store the scores of a recipe key, or of a parent, on a split, with what it wrote."""
        self._add_beside(label, split, scores)
        self.write("evaluations", (label, split, *_score_columns(scores)), replace=True)

    def evaluation(self, label: str, split: str) -> Scores | None:
        """The stored scores of a recipe key, or of a parent, on a split."""
        for row in self._whole("evaluations", "label = ? AND split = ?", label, split):
            with self._readable("evaluations", row):
                scores = _scores(*row[3:]).with_outputs(*self.answers(label, split))
                return scores.with_others(self._others(split, label).get(label, {}))
        return None

    def evaluated(self) -> list[tuple[str, str]]:
        """The labels and splits that `evaluation` has scores of, in the order they were scored."""
        return [(row[0], row[1]) for row in self._whole("evaluations", "1 ORDER BY rowid")]

    def answers(self, owner: str, split: str = "search") -> tuple[list[str] | None, NDArray[np.bool_] | None]:
        """What a model wrote for the examples that it was scored on, and which of it was cut at the limit of its length.

        Args:
            owner: A recipe's key, a parent's label (``base``, ``source:0``), or a trial's ``stage:number``.
            split: The split that it was scored on; ``search`` for a trial, which may have seen a batch of it.

        Returns:
            One output per example, and whether each was cut; None where the task keeps no outputs.
        """
        for row in self._whole("answers", "owner = ? AND split = ?", owner, split):
            with self._readable("answers", row):
                cut = None if row[3] is None else np.frombuffer(row[3], dtype=np.uint8).astype(np.bool_)
                return [str(output) for output in json.loads(row[2])], cut
        return None, None

    def _others(self, split: str, owner: str | None = None) -> dict[str, dict[str, Scores]]:
        """Scores of the objectives beside the fitness on a split, by owner and name."""
        found: dict[str, dict[str, Scores]] = {}
        where = "split = ? AND (? IS NULL OR owner = ?) ORDER BY rowid"
        for row in self._whole("objectives", where, split, owner, owner):
            with self._readable("objectives", row):
                found.setdefault(row[0], {})[row[2]] = _scores(row[4], row[5], 0.0, None)
        return found

    def _add_beside(self, owner: str, split: str, scores: Scores) -> None:
        """Store what goes with scores, before them: scores that are there are whole."""
        if scores.outputs is not None:
            self.write("answers", (owner, split, json.dumps(scores.outputs), _pack(scores.truncated)), replace=True)
        for name, other in scores.others.items():
            row = (owner, split, name, other.mean, _pack(other.values), _pack(other.correct))
            self.write("objectives", row, replace=True)

    def write(self, table: str, values: Values, *, replace: bool = False) -> None:
        """Write one row with its checksum, in a transaction of its own; raises `sqlite3.DatabaseError`."""
        with self._connection:
            self._put(table, values, replace=replace)

    def _put(self, table: str, values: Values, *, replace: bool) -> None:
        marks = ", ".join("?" * (len(values) + 1))
        verb = "INSERT OR REPLACE" if replace else "INSERT"
        self._connection.execute(f"{verb} INTO {table} VALUES ({marks})", (*values, _checksum(values)))

    def rename(self, recipe: Callable[[Recipe], Recipe], meta: Mapping[str, Any]) -> None:
        """Put other recipes in the place of all, whose keys what refers to them follows, and values beside; all or nothing.

        Args:
            recipe: Makes a recipe of an old one.
            meta: Values to store, by key.

        Raises:
            SearchError: A row is damaged; nothing is changed.
        """
        new = {str(key): recipe(Recipe.from_yaml(str(text))) for key, text in self._whole("recipes", "1")}
        changed = {key: each.key for key, each in new.items() if each.key != key}
        with self._connection:
            for table, column, place, row_is in _REFERENCES:
                for old, key in changed.items():
                    for row in list(self._whole(table, f"{column} = ?", old)):
                        checksum = _checksum((*row[:place], key, *row[place + 1 :]))
                        command = f"UPDATE {table} SET {column} = ?, checksum = ? WHERE {row_is}"
                        self._connection.execute(command, (key, checksum, *row[: TABLES[table]]))
            for old, key in changed.items():
                self._connection.execute(
                    "UPDATE recipes SET key = ?, yaml = ?, checksum = ? WHERE key = ?",
                    (key, text := new[old].to_yaml(), _checksum((key, text)), old),
                )
            for name, value in meta.items():
                self._put("meta", (name, json.dumps(value)), replace=True)

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
    return bool(row) and row[-1] == _checksum(row[:-1])


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


def _pack(values: NDArray[Any] | None) -> bytes | None:
    if values is None:
        return None
    return values.astype(np.uint8 if values.dtype == np.bool_ else "<f8").tobytes()


def _unpack(blob: bytes) -> NDArray[np.float64]:
    return np.frombuffer(blob, dtype="<f8").astype(np.float64)


def _score_columns(scores: Scores) -> tuple[Any, ...]:
    """Fitness, scores, correct, seconds and error, as they are stored."""
    values = None if scores.error is not None else _pack(scores.values)
    return scores.mean, values, _pack(scores.correct), float(scores.seconds), scores.error


def _checksum(values: Values) -> str:
    """Sixteen hexadecimal digits that stand for what is in a row, to the last bit."""
    digest = sha256()
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode("utf-8", "backslashreplace")
        digest.update(f"{type(value).__name__} {len(data)} ".encode() + data)
    return digest.hexdigest()[:16]


def _scores(
    values: bytes | None, correct: bytes | None, seconds: float, error: str | None, gradient: bytes | None = None
) -> Scores:
    if error is not None:
        return Scores.failed(error, seconds)
    right = None if correct is None else np.frombuffer(correct, dtype=np.uint8)
    slopes = None if gradient is None else _unpack(gradient)
    return Scores(_unpack(values or b""), correct=right, seconds=seconds, gradient=slopes)
