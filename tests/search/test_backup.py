"""Damaged studies: whatever a disk does to the file is noticed in one line, which says how to go on
from the copy beside it."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from searches import facts, minimal
from typer.testing import CliRunner
from watch import killed, sql

from hf_evomerge.cli import app
from hf_evomerge.errors import MachineError, SearchError
from hf_evomerge.fitness import Scores
from hf_evomerge.recipes.recipe import MergePart, Recipe, SourceRef
from hf_evomerge.search.callbacks import Progress
from hf_evomerge.search.folder import check_study
from hf_evomerge.search.results.show import describe_study
from hf_evomerge.search.run import resume_search, run_search
from hf_evomerge.search.study.database import BACKUP_FILE, STUDY_FILE
from hf_evomerge.search.study.study import Study, Trial

TRIALS = 40
PAGE = 4096


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of 40 trials, some of whose rows run over into other pages, and a copy
    of 30; no model is there."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    config = minimal(merge={"method": "linear"}, data={"search": {"jsonl": "search.jsonl"}})
    with Study.create(folder / "study", config.model_dump(mode="json")) as study:
        study.add_evaluation("base", "search", Scores([0.0, 1.0], correct=[False, True]))
        for number in range(TRIALS):
            part = MergePart(method="linear", parameters=[{"weight": float(number)}])
            key = study.add_recipe(Recipe(sources=[SourceRef(model="a")], merge=part))
            scores = Scores(
                rng.standard_normal(4), outputs=[f"{number} "] * 4, seconds=float(number)
            )
            study.add_trial(
                Trial(
                    "ps",
                    number,
                    number // 4,
                    rng.standard_normal(900 if number == 9 else 60),
                    key,
                    scores,
                )
            )
            if number == 29:
                study.backup()
    return folder / "study"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "study")


def _patch(folder: Path, change: Callable[[bytearray], object]) -> None:
    data = bytearray((folder / STUDY_FILE).read_bytes())
    change(data)
    (folder / STUDY_FILE).write_bytes(data)


def _flip(data: bytearray, of: bytes) -> None:
    data[data.index(of)] ^= 1


def _put_back(message: object) -> None:
    """Run the command that a message gives."""
    (command,) = re.findall(r"with `(rm -f .*? && cp .*?)`", str(message))
    subprocess.run(command, shell=True, check=True)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (
        lambda folder: _patch(
            folder, lambda data: data.__delitem__(slice(len(data) * 4 // 5, None))
        ),
        "the file ",
    ),
    "schema": (
        lambda folder: _patch(folder, lambda data: _flip(data, b"CREATE TABLE meta")),
        "the file ",
    ),
    "a column": (
        lambda folder: _patch(folder, lambda data: _flip(data, b"genome BLOB")),
        "table trials",
    ),
    "the version": (
        lambda folder: sql(folder, "UPDATE meta SET value = '{' WHERE key = 'schema_version'"),
        "schema_version",
    ),
    "no version": (
        lambda folder: sql(folder, "DELETE FROM meta WHERE key = 'schema_version'"),
        r"schema_version \(lost\)",
    ),
    "a table": (lambda folder: sql(folder, "DROP TABLE evaluations"), r"table evaluations \(lost"),
    "settings": (
        lambda folder: sql(folder, "DELETE FROM meta WHERE key = 'settings'"),
        r"settings \(lost\)",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_one_line_says_what_is_damaged(folder, name):
    """Whatever is damaged is named by every command, in one line with the command that puts the
    copy in its place."""
    damage, what = DAMAGES[name]
    damage(folder)
    for command in ("show", "search"):
        told = CliRunner().invoke(app, [command, str(folder)])
        assert (told.exit_code, told.output.count("\n")) == (1, 1)
        assert re.search(
            rf"study\.db: .*{what}.* with 30 trials; put it in its place with `rm -f", told.output
        )
    _put_back(told.output)
    assert (
        CliRunner().invoke(app, ["show", str(folder), "--check"]).output
        == f"{folder / STUDY_FILE}: whole\n"
    )


def test_a_copy_that_is_damaged_too_is_not_offered(folder):
    """Where the copy is damaged, or none is there, the message says that there is none."""
    sql(folder, "UPDATE trials SET scores = x'00' WHERE number = 3")
    data = bytearray((folder / BACKUP_FILE).read_bytes())
    data[2 * PAGE : 3 * PAGE] = bytes(PAGE)
    (folder / BACKUP_FILE).write_bytes(data)
    for _ in range(2):
        with pytest.raises(
            SearchError,
            match=r"trial ps 3 is damaged; no copy of it is there; search again in another folder",
        ):
            check_study(folder)
        (folder / BACKUP_FILE).unlink(missing_ok=True)


def test_a_damaged_study_does_not_replace_its_copy(folder):
    """A study that was damaged while a search ran is not copied over the last whole copy, and the
    search ends."""
    before = (folder / BACKUP_FILE).read_bytes()
    with Study.open(folder) as study:
        sql(folder, "DROP TABLE evaluations")
        with pytest.raises(SearchError, match=r"table evaluations .*is damaged; .* with 30 trials"):
            study.backup()
    assert (folder / BACKUP_FILE).read_bytes() == before
    assert sorted(item.name for item in folder.iterdir()) == [STUDY_FILE, BACKUP_FILE]


def test_a_copy_that_cannot_be_made_ends_no_search(folder, caplog):
    """Where the copy cannot be written a warning says so, once per attempt, and trials are stored
    all the same."""
    (folder / f".{BACKUP_FILE}.new").mkdir()
    with Study.open(folder) as study:
        study.backup()
        study.add_trial(Trial("ps", TRIALS, 10, np.zeros(2), None, Scores([1.0])))
        assert len(study.trials()) == TRIALS + 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no copy of the study could be made" in caplog.text


def test_a_copy_goes_on_to_the_same_study(search_config, tmp_path):
    """A copy that is put in the place of its study, also beside the log of a killed process, goes
    on to the same trials and results, bit for bit."""
    config = search_config("ps")
    out = tmp_path / "out"
    log = out / f"{STUDY_FILE}-wal"

    def copy(progress: Progress) -> object:
        if progress.phase == "ps" and progress.done == 3:
            with Study.open(out) as study:
                study.backup()
        return progress.phase == "ps" and progress.done == 6 and shutil.copy(log, tmp_path)

    whole = run_search(config, tmp_path / "whole", build=False)
    killed(copy, run_search, config, out)
    sql(out, "UPDATE trials SET scores = x'00' WHERE number = 1")
    with pytest.raises(SearchError, match=r"trial ps 1 is damaged; .* with 3 trials") as caught:
        resume_search(out, build=False)
    shutil.copy(tmp_path / log.name, log)
    _put_back(caught.value)
    assert not log.exists()
    result = resume_search(out, build=False)
    assert [row.scores.values.tolist() for row in result.rows] == [
        row.scores.values.tolist() for row in whole.rows
    ]
    assert facts(out) == facts(tmp_path / "whole")
    shutil.copy(out / BACKUP_FILE, out / STUDY_FILE)  # the copy of the end holds the whole search
    assert facts(out) == facts(tmp_path / "whole")


LOSSES = ["examples", "files:base", "files:source:0", "task"]


@pytest.mark.parametrize("key", LOSSES)
def test_a_study_that_does_not_know_its_sources_does_not_go_on(hybrid_search, tmp_path, key):
    """Where it is lost what scores stand on, the study is shown, and does not go on."""
    folder = shutil.copytree(hybrid_search, tmp_path / "study")
    sql(folder, f"DELETE FROM meta WHERE key = '{key}'")
    with pytest.raises(SearchError, match=rf"{key.replace(':', ' of ', 1)} \(lost\) is damaged"):
        resume_search(folder, build=False)
    assert "trials" in describe_study(folder)


def test_a_study_of_another_schema_is_not_called_damaged(folder):
    """Every command says in one line which version wrote a study of another schema, whatever its
    tables are."""
    with Study.open(folder) as study:
        study.set_meta("versions", {"hf-evomerge": "0.0.7"})
        study.set_meta("schema_version", 1)
    sql(folder, "DROP TABLE objectives")
    for command in (
        ["show"],
        ["show", "--check"],
        ["search"],
        ["export", "--csv", str(folder / "x.csv")],
        ["eval"],
    ):
        told = CliRunner().invoke(app, [command[0], str(folder), *command[1:]])
        assert (told.exit_code, told.output.count("\n")) == (1, 1)
        assert (
            "study.db: written by hf_evomerge 0.0.7 with schema 1, and this version reads schema"
            in told.output
        )
        assert "its models are fine" in told.output
        assert "damaged" not in told.output


def test_a_study_that_one_may_only_read(folder, monkeypatch):
    """Somebody else's study is shown and checked, nothing is left beside it, and writing to it is
    refused."""
    files = sorted(folder.iterdir())
    monkeypatch.setattr("os.access", lambda path, mode, **more: mode != os.W_OK)
    assert "40 trials" in describe_study(folder)
    assert check_study(folder) == []
    with (
        Study.open(folder) as study,
        pytest.raises(SearchError, match=r"study.db: cannot be written: .*readonly"),
    ):
        study.set_meta("x", 1)
    assert sorted(folder.iterdir()) == files


def test_a_full_disk_is_named_with_the_file(folder):
    """A study that SQLite can write no further names its file and keeps what it has."""
    with Study.open(folder) as study:
        study._connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(
            MachineError, match=r"study\.db: cannot be written: database or disk is full"
        ):
            study.set_meta("x", "y" * 1_000_000)
        assert study.meta("x") is None
