"""Damaged studies: whatever a disk does to the file is noticed in one line."""

import os
import re
import shutil

import numpy as np
import pytest
from commands import invoke
from refusals import refused
from searches import copy_of, minimal
from watch import sql

from hf_evomerge import MergePart, Recipe, Scores, SourceRef, Trial, resume_search
from hf_evomerge.errors import MachineError, SearchError
from hf_evomerge.search.results.show import describe_study
from hf_evomerge.search.study.database import STUDY_FILE
from hf_evomerge.search.study.study import Study

TRIALS = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a study of 40 trials, some of whose rows run over into other pages; no model is
    there."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    config = minimal(merge="{method: linear}", data="{search: {jsonl: search.jsonl}}")
    with Study.create(folder / "study", config.model_dump(mode="json")) as study:
        study.add_evaluation("base", "search", Scores([0.0, 1.0], correct=[False, True]))
        for number in range(TRIALS):
            part = MergePart(method="linear", parameters=[{"weight": float(number)}])
            key = study.add_recipe(Recipe(sources=[SourceRef(model="a")], merge=part))
            scores = Scores(rng.standard_normal(4), outputs=[f"{number} "] * 4)
            genome = rng.standard_normal(900 if number == 9 else 60)
            study.add_trial(Trial("ps", number, number // 4, genome, key, scores))
    return folder / "study"


@pytest.fixture
def folder(made, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "study")


def _cut_off(folder):
    os.truncate(folder / STUDY_FILE, (folder / STUDY_FILE).stat().st_size * 4 // 5)


def _flip(of):
    def damage(folder):
        data = bytearray((folder / STUDY_FILE).read_bytes())
        data[data.index(of)] ^= 1
        (folder / STUDY_FILE).write_bytes(data)

    return damage


def _sql(statement):
    return lambda folder: sql(folder, statement)


DAMAGES = {
    "cut off": (_cut_off, "the file "),
    "schema": (_flip(b"CREATE TABLE meta"), "the file "),
    "a column": (_flip(b"genome BLOB"), "table trials"),
    "the version": (
        _sql("UPDATE meta SET value = '{' WHERE key = 'schema_version'"),
        "schema_version",
    ),
    "no version": (
        _sql("DELETE FROM meta WHERE key = 'schema_version'"),
        r"schema_version \(lost\)",
    ),
    "a table": (_sql("DROP TABLE evaluations"), r"table evaluations \(lost"),
    "settings": (_sql("DELETE FROM meta WHERE key = 'settings'"), r"settings \(lost\)"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_one_line_says_what_is_damaged(folder, name):
    """Whatever is damaged is named by every command, in one line that says what to do."""
    damage, what = DAMAGES[name]
    damage(folder)
    for command in ("show", "search"):
        told = invoke(command, folder)
        assert (told.exit_code, told.output.count("\n")) == (1, 1)
        assert re.search(rf"study\.db: .*{what}.* is damaged; put a copy in its", told.output)


@pytest.mark.parametrize("key", ["examples", "files:base", "files:source:0", "task"])
def test_a_study_that_does_not_know_its_sources_does_not_go_on(hybrid_search, tmp_path, key):
    """Where it is lost what scores stand on, the study is shown, and does not go on."""
    folder = copy_of(hybrid_search, tmp_path / "study")
    sql(folder, f"DELETE FROM meta WHERE key = '{key}'")
    with refused(SearchError, rf"{key.replace(':', ' of ', 1)} \(lost\) is damaged"):
        resume_search(folder, build=False)
    assert "trials" in describe_study(folder)


def test_a_study_of_another_schema_is_not_called_damaged(folder):
    """Every command says in one line which version wrote a study of another schema, whatever its
    tables are."""
    with Study.open(folder) as study:
        study.set_meta("versions", {"hf-evomerge": "0.0.7"})
        study.set_meta("schema_version", 1)
    sql(folder, "DROP TABLE objectives")
    for command, *words in (["show"], ["search"], ["eval"]):
        told = invoke(command, folder, *words)
        assert (told.exit_code, told.output.count("\n")) == (1, 1)
        for said in (
            "study.db: written by hf_evomerge 0.0.7 with schema 1, and this version reads schema",
            "its models are fine",
        ):
            assert said in told.output
        assert "damaged" not in told.output


def test_a_study_that_one_may_only_read(folder, monkeypatch):
    """Somebody else's study is shown, nothing is left beside it, and writing to it is
    refused."""
    files = sorted(folder.iterdir())
    monkeypatch.setattr("os.access", lambda path, mode, **more: mode != os.W_OK)
    assert "40 trials" in describe_study(folder)
    with (
        Study.open(folder) as study,
        refused(SearchError, r"study.db: cannot be written: .*readonly"),
    ):
        study.set_meta("x", 1)
    assert sorted(folder.iterdir()) == files


def test_a_full_disk_is_named_with_the_file(folder):
    """A study that SQLite can write no further names its file and keeps what it has."""
    with Study.open(folder) as study:
        study._connection.execute("PRAGMA max_page_count = 1")
        with refused(MachineError, r"study\.db: cannot be written: database or disk is full"):
            study.set_meta("x", "y" * 1_000_000)
        assert study.meta("x") is None
