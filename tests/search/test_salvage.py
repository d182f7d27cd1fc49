"""Damaged studies: whatever a disk does to the file is noticed, and every row that can still be read is kept."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hf_evomerge.cli import app
from hf_evomerge.errors import SearchError
from hf_evomerge.fitness import Scores
from hf_evomerge.recipes.recipe import MergePart, Recipe, SourceRef
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.evaluation.provenance import records
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.results.show import describe_study
from hf_evomerge.search.salvage import check_study, check_whole, salvage_study
from hf_evomerge.search.study.database import STUDY_FILE
from hf_evomerge.search.study.pages import PAGE, rows_of_pages
from hf_evomerge.search.study.paths import settings_of
from hf_evomerge.search.study.study import Study, Trial

TRIALS = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of 40 trials, some of whose rows run over into other pages; no model stands behind it."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("a", "b", "base"):
        (folder / name).mkdir()
    sources = [{"model": str(folder / name)} for name in ("a", "b", "base")]
    settings = {"space": "ps", "sources": sources[:2], "base": sources[2]}
    settings |= {"ps": {"method": "linear"}, "fitness": {"task": "likelihood"}, "data": {"search": {"jsonl": "search.jsonl"}}}
    config = validate(SearchConfig, settings, SearchError)
    config.save(folder / "search.yaml")
    rng = np.random.default_rng(0)
    with closing(Study.create(folder / "study", config.model_dump(mode="json"))) as study:
        for key in records(config):
            study.set_meta(key, {"x": ["0" * 64, 1, 2, 3]})
        study.add_evaluation("base", "search", Scores([0.0, 1.0], correct=[False, True]))
        for number in range(TRIALS):
            part = MergePart(method="linear", parameters=[{"weight": float(number)}])
            key = study.add_recipe(Recipe(sources=[SourceRef(model="a")], merge=part))
            scores = Scores(rng.standard_normal(4), outputs=[f"{number} "] * 4, seconds=float(number))
            study.add_trial(Trial("ps", number, number // 4, rng.standard_normal(900 if number == 9 else 60), key, scores))
    shutil.copy(folder / "search.yaml", folder / "study")
    return folder / "study"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "study")


def _trials(folder: Path) -> dict[int, tuple[Any, ...]]:
    with closing(Study.open(folder)) as study:
        trials = {
            trial.number: (trial.genome.tobytes(), trial.recipe_key, trial.scores.values.tobytes(), trial.scores.seconds)
            for trial in study.trials()
        }
        assert all(study.answers(f"ps:{number}")[0] in (None, [f"{number} "] * 4) for number in trials)
        return trials


def _patch(folder: Path, change: Callable[[bytearray], object]) -> None:
    data = bytearray((folder / STUDY_FILE).read_bytes())
    change(data)
    (folder / STUDY_FILE).write_bytes(data)


def _sql(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / STUDY_FILE)) as connection, connection:
        connection.execute(statement)


def _pages(folder: Path, kind: int) -> list[int]:
    """Where the pages of a kind begin that hold something: 10 leaves of an index, 13 of a table."""
    data = (folder / STUDY_FILE).read_bytes()
    return [at for at in range(PAGE, len(data), PAGE) if data[at] == kind and any(data[at + 3 : at + 5])]


def _check(folder: Path, *more: str) -> tuple[int, str]:
    told = CliRunner().invoke(app, ["check", str(folder), *more])
    return told.exit_code, told.output


def test_the_pages_give_what_sqlite_gives(made: Path) -> None:
    """Rows read from the pages are, of every type and length, those that SQLite reads, also while they are in the log."""
    with closing(sqlite3.connect(made / STUDY_FILE)) as connection:
        stored = [
            row for table in ("meta", "recipes", "trials", "answers") for row in connection.execute(f"SELECT * FROM {table}")
        ]
        rows = [row for _, row in rows_of_pages(made / STUDY_FILE)]
        assert all(row in rows for row in stored)
        assert max(len(row[4]) for row in rows if len(row) == 15) > PAGE
    with closing(Study.open(made)) as study:
        study.set_meta("x", 0.5)
        assert study._connection.execute("SELECT 1 FROM meta WHERE key = 'x'").fetchone()
        assert any(row[:2] == ("x", "0.5") for _, row in rows_of_pages(made / STUDY_FILE))


def test_every_page_that_is_lost_is_noticed(made: Path, tmp_path: Path) -> None:
    """Whichever page is overwritten, that is said, nobody goes on with it, and what is kept is bit for bit as before."""
    before, pages = _trials(made), (made / STUDY_FILE).stat().st_size // PAGE
    for page in range(pages):
        folder = shutil.copytree(made, tmp_path / str(page))
        _patch(folder, lambda data, at=page * PAGE: data.__setitem__(slice(at, at + PAGE), bytes(PAGE)))
        condition = check_study(folder)
        assert condition.damaged, page
        with pytest.raises(SearchError, match=r"damaged: .* are whole, and `hf-evomerge check .* --salvage` keeps them"):
            check_whole(folder)
        salvage_study(folder)
        assert not check_study(folder).damaged
        after = _trials(folder)
        assert len(after) > TRIALS // 2
        assert all(before[number] == trial for number, trial in after.items())
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", [10, 13])
def test_one_bit_in_a_page_is_noticed(made: Path, tmp_path: Path, kind: int) -> None:
    """A flipped bit in the number of cells of any leaf, or in the place of one, is noticed, and the others are saved."""
    before = _trials(made)
    for at in _pages(made, kind):
        for byte, bit in ((4, 0), (9, 4)):
            folder = shutil.copytree(made, tmp_path / "study")
            _patch(folder, lambda data, place=at + byte, bit=bit: data.__setitem__(place, data[place] ^ 1 << bit))
            assert check_study(folder).damaged, (at, byte)
            salvage_study(folder)
            assert not check_study(folder).damaged
            after = _trials(folder)
            assert len(after) == TRIALS if kind == 10 else len(after) > TRIALS // 2
            assert all(before[number] == trial for number, trial in after.items())
            shutil.rmtree(folder)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "the first page": lambda folder: _patch(folder, lambda data: data.__setitem__(slice(0, PAGE), bytes(PAGE))),
    "the schema": lambda folder: _patch(folder, lambda data: data.__setitem__(data.index(b"CREATE TABLE meta"), 0x44)),
    "a column": lambda folder: _patch(folder, lambda data: data.__setitem__(data.index(b"genome BLOB"), 0x66)),
    "the version": lambda folder: _sql(folder, "UPDATE meta SET value = '{' WHERE key = 'schema_version'"),
    "no version": lambda folder: _sql(folder, "DELETE FROM meta WHERE key = 'schema_version'"),
    "a table": lambda folder: _sql(folder, "DROP TABLE evaluations"),
    "settings": lambda folder: _sql(folder, "DELETE FROM meta WHERE key = 'settings'"),
    "settings and pins": lambda folder: _sql(folder, "UPDATE meta SET value = '1' WHERE key = 'settings'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_trials_that_can_be_read_are_all_kept(folder: Path, name: str) -> None:
    """What is lost beside the trials costs none of them: they are saved, and the study is whole again."""
    before = _trials(folder)
    DAMAGES[name](folder)
    status, said = _check(folder)
    assert (status, said.count("\n")) == (1, 1)
    assert f"{folder / STUDY_FILE}: damaged: " in said
    with pytest.raises(SearchError, match=rf"study\.db: .* damaged.*`hf-evomerge check {folder}"):
        settings_of(Study.open(folder))
    assert _check(folder, "--salvage")[0] == 0
    assert _check(folder) == (0, f"{folder / STUDY_FILE}: whole: {TRIALS} ps trials\n")
    assert _trials(folder) == before


def test_of_a_file_that_was_cut_off_the_rest_is_kept(folder: Path) -> None:
    """Of a file whose end is missing the rows of the part that is there are kept."""
    before = _trials(folder)
    os.truncate(folder / STUDY_FILE, (folder / STUDY_FILE).stat().st_size * 4 // 5)
    salvage_study(folder)
    after = _trials(folder)
    assert 0 < len(after) < TRIALS
    assert all(before[number] == trial for number, trial in after.items())


GROUNDS = ["examples", "files:base", "files:source:0", "files:source:1", "task"]
LOSSES = {
    "changed": "UPDATE meta SET value = 'garbage' WHERE key = 'files:source:0'",
    "gone": "DELETE FROM meta WHERE key LIKE 'files:%'",
    "examples": "DELETE FROM meta WHERE key = 'examples'",
    "task": "UPDATE meta SET value = '{}' WHERE key = 'task'",
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_study_that_does_not_know_its_sources_does_not_go_on(folder: Path, name: str) -> None:
    """Where it is lost what scores stand on, that is said, salvaged or not, until the user says that it is the same."""
    _sql(folder, LOSSES[name])
    salvage_study(folder)
    condition = check_study(folder)
    assert (condition.damaged, bool(condition.lost)) == ([], True)
    assert set(condition.lost) <= set(GROUNDS)
    status, said = _check(folder)
    assert (status, said.count("\n")) == (1, 1)
    assert f"lost: {', '.join(condition.lost)}, which say what the scores stand on" in said
    with pytest.raises(SearchError, match=r"does not go on; if you know .* --salvage --same-sources"):
        check_whole(folder)
    assert "40 trials" in describe_study(folder)
    assert _check(folder, "--same-sources")[0] == 1
    assert _check(folder, "--salvage", "--same-sources")[0] == 0
    check_whole(folder)


def test_a_study_without_scores_needs_no_sources(folder: Path) -> None:
    """A study that was killed before it took anything down, and before it scored anything, is whole."""
    for table in ("trials", "evaluations", "answers", "meta WHERE key NOT IN ('settings', 'schema_version')"):
        _sql(folder, f"DELETE FROM {table}")
    check_whole(folder)


def test_what_is_no_study_is_not_salvaged(tmp_path: Path) -> None:
    """A file of nothing of a study is left alone, in one line."""
    for content in (b"", b"not a database" * 1000, struct.pack(">I", 0x0D000001) * 4096):
        (tmp_path / STUDY_FILE).write_bytes(content)
        status, said = _check(tmp_path, "--salvage")
        assert (status, said.count("\n")) == (1, 1)
        assert "not a study, or nothing of one can be read" in said
        assert (tmp_path / STUDY_FILE).read_bytes() == content


def test_a_study_that_one_may_only_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's study is shown and checked, nothing is left beside it, and writing to it is refused."""
    files = sorted(folder.iterdir())
    monkeypatch.setattr("os.access", lambda path, mode, **more: mode != os.W_OK)
    assert "40 trials" in describe_study(folder)
    assert _check(folder)[0] == 0
    _sql(folder, "DROP TABLE objectives")  # one that was begun before there were any
    assert "40 trials" in describe_study(folder)
    with closing(Study.open(folder)) as study, pytest.raises(sqlite3.OperationalError, match="readonly"):
        study.set_meta("x", 1)
    assert sorted(folder.iterdir()) == files
