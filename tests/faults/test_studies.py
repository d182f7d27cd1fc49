"""Studies as the truth of a search: what they stand on does not change unnoticed, and what a disk
changes is noticed."""

import os
import shutil
from hashlib import file_digest
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import strategies as st
from refused import refused
from searches import copy_of
from test_files import damaged, look
from watch import killed, sql

from hf_evomerge.checkpoints.digests import digest_source
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import EvoMergeError, SearchError
from hf_evomerge.fitness import Example, FunctionTask, Scores
from hf_evomerge.recipes.recipe import SourceRef
from hf_evomerge.search.results.show import describe_study
from hf_evomerge.search.run import resume_search, run_search
from hf_evomerge.search.study.database import STUDY_FILE
from hf_evomerge.search.study.study import Study, Trial


def _stopped(config, out, after=6, **more):
    """Run a search until some trials are stored."""
    killed(lambda seen: seen.phase == "ps" and seen.done == after, run_search, config, out, **more)


def _trials(folder):
    with Study.open(folder) as study:
        return [
            (t.stage, t.number, t.genome.tobytes(), t.recipe_key, t.scores.values.tobytes())
            for t in study.trials()
        ]


@pytest.fixture
def family(tiny, tmp_path):
    """Models and problems that a test may change."""
    return shutil.copytree(tiny, tmp_path / "family")


@pytest.fixture
def config(search_config, family):
    """A small search of that family."""
    return search_config(folder=family)


def _flip(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


# A file, and what becomes of it.
CHANGES = yaml.safe_load("""
a/model.safetensors: changed
base/model.safetensors: changed
b/config.json: changed
a/tokenizer.json: changed
a/chat_template.jinja: new
a/generation_config.json: lost
test.jsonl: changed
""")


@pytest.mark.parametrize("name", CHANGES)
def test_a_search_does_not_go_on_on_other_ground(config, family, tmp_path, name):
    """A resumed search whose sources, base or examples have changed is refused by the name of what
    has, and left as it was."""
    out = tmp_path / "out"
    _stopped(config, out)
    before = _trials(out)
    file = family / name
    what = rf"{file.name} of .*{file.parent.name}"
    if CHANGES[name] == "lost":
        file.unlink()
    elif file.suffix == ".safetensors":
        _flip(file)
    elif file.suffix == ".jsonl":
        file.write_text(file.read_text().replace("w1", "w2"))
        what = "the test examples"
    else:
        file.write_text(f"{file.read_text() if file.exists() else ''}\n")
    with refused(rf"{what} \({CHANGES[name]}\)", SearchError):
        resume_search(out, build=False)
    assert _trials(out) == before


def test_another_system_message_is_another_ground(config, tmp_path):
    """A resumed search whose examples differ in the system message alone is refused."""
    began, changed = (
        {
            split: [Example(f"w1 {split}", "w3", split, system=system)]
            for split in ("search", "test")
        }
        for system in ("be brief", "be long")
    )
    out = tmp_path / "out"
    task = {"task_factory": lambda: FunctionTask(_shorter)}
    _stopped(config, out, examples=began, **task)
    with refused(r"the (search|test) examples \(changed\)", SearchError):
        run_search(config, out, examples=changed, build=False, **task)


def test_files_that_are_only_touched_are_the_same(config, family, tmp_path, monkeypatch):
    """Other times and other files of the same bytes are no change, and weights with the same times
    are not read again."""
    out = tmp_path / "out"
    _stopped(config, out)
    for file in (family / "a").iterdir():
        os.utime(file, (1, 1))
    weights = family / "b" / "model.safetensors"
    shutil.copyfile(weights, family / "copy")
    (family / "copy").replace(weights)
    _stopped(config, out, after=7)
    read = []

    def digest(stream, name):
        read.append(stream.name)
        return file_digest(stream, name)

    monkeypatch.setattr("hf_evomerge.checkpoints.digests.file_digest", digest)
    resume_search(out, build=False)
    assert {Path(name).suffix for name in read} == {".json"}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_change_with_the_size_and_the_times_of_before_is_noticed(family, name):
    """Weights that are overwritten in place and a config that is edited, with their old time set
    back, are changed files."""
    file = family / "a" / name
    source = open_source(SourceRef(model=str(family / "a")))
    before = digest_source(source, {})
    times = file.stat()
    _flip(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    for kept in ("st_size", "st_mtime_ns", "st_ino"):
        assert getattr(file.stat(), kept) == getattr(times, kept)
    after = digest_source(source, before)
    assert [each for each in after if after[each][0] != before[each][0]] == [name]


def _shorter(model, tokenizer, examples):
    return [-float(len(example.prompt)) for example in examples]


def _longer(model, tokenizer, examples):
    return [float(len(example.prompt)) for example in examples]


def test_another_task_is_refused(config, tmp_path):
    """A search that began with one function does not go on with another."""
    out = tmp_path / "out"
    _stopped(config, out, task_factory=lambda: FunctionTask(_shorter))
    with refused(r"the task's function \(changed\)", SearchError):
        run_search(config, out, task_factory=lambda: FunctionTask(_longer), build=False)
    with refused(r"the task's function \(lost\)", SearchError):
        resume_search(out, build=False)
    run_search(config, out, task_factory=lambda: FunctionTask(_shorter), build=False)


def test_a_task_that_scores_otherwise_is_refused(config, tmp_path, monkeypatch):
    """A search does not go on with another version of its task's scores, and does with another text
    of its class."""
    out = tmp_path / "out"
    _stopped(config, out)
    with monkeypatch.context() as patch:
        patch.setattr(
            "inspect.getsource", lambda thing: f"class {thing.__name__}:\n    'another docstring'\n"
        )
        _stopped(config, out, after=7)
    monkeypatch.setattr(type(config.fitness), "scores_version", 2, raising=False)
    with refused(
        r"the task's scores of \w+ \(version 1, now 2\) are not what this study was begun on",
        SearchError,
    ):
        resume_search(out, build=False)


@pytest.mark.parametrize("changed", [False, True])
def test_a_class_of_the_users_own_is_known_by_its_text(config, tmp_path, monkeypatch, changed):
    """A task that is not registered has no version: the text of its class must stay."""
    out = tmp_path / "out"
    _stopped(config, out, task_factory=lambda: _CountTask(0))
    if not changed:
        _stopped(config, out, after=7, task_factory=lambda: _CountTask(0))
        return
    monkeypatch.setattr("inspect.getsource", lambda thing: "class _CountTask: ...")
    with refused(r"the task's code \(changed\)", SearchError):
        run_search(config, out, task_factory=lambda: _CountTask(0), build=False)


class _CountTask:
    """Gives some scores too many, or too few."""

    def __init__(self, more):
        self.more = more

    def prepare(self, examples, tokenizer):
        self.count = len(examples)

    def evaluate(self, model):
        return Scores([1.0] * (self.count + self.more))


@pytest.mark.parametrize("more", [-1, 1])
def test_a_score_too_many_or_too_few_is_refused(config, tmp_path, more):
    """Whatever the task, scores that are not one per example are an error that counts both."""
    with refused(rf"the task gave {5 + more} scores for 5 examples", SearchError):
        run_search(config, tmp_path / "out", task_factory=lambda: _CountTask(more), build=False)


def test_an_error_that_cannot_be_written_is_stored(tmp_path):
    """Half a surrogate pair in an error's text, and a text of a million characters, are a trial
    like others."""
    study = Study.create(tmp_path / "study", {})
    study.add_trial(
        Trial("ps", 0, 0, np.zeros(2), None, Scores.failed("bad \ud800 " + "x" * 10**6))
    )
    error = study.trials()[0].scores.error
    assert error.startswith("bad \\ud800 x")
    assert len(error) <= 1000


@pytest.fixture
def finished(hybrid_search, tmp_path):
    """The folder of a finished search that a test may damage."""
    return copy_of(hybrid_search, tmp_path / "search")


DAMAGES = {
    "odd": ("UPDATE trials SET scores = x'00' WHERE stage = 'ps' AND number = 3", "trial ps 3"),
    "genome": (
        "UPDATE trials SET genome = x'0011' WHERE stage = 'dfs' AND number = 0",
        "trial dfs 0",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_row_is_noticed(finished, name):
    """A row that holds no scores or no genome is named and never used; a copy of the study, put in
    its place, goes on."""
    statement, row = DAMAGES[name]
    before = _trials(finished)
    copy = shutil.copy(finished / STUDY_FILE, finished.parent)
    sql(finished, statement)
    with refused(rf"study\.db: {row}.* is damaged; put a copy in", EvoMergeError):
        resume_search(finished, build=False)
    with refused(rf"study\.db: {row}", EvoMergeError):
        describe_study(finished)
    shutil.copy(copy, finished / STUDY_FILE)
    resume_search(finished, build=False)
    assert _trials(finished) == before


def test_results_are_written_whole(finished, monkeypatch):
    """Where the disk takes no new results the old ones stay as they were."""
    before = (finished / "results.json").read_bytes()

    def full(old, new):
        if Path(new).name == "results.json":
            raise OSError("No space left")
        os.rename(old, new)

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        resume_search(finished, build=False)
    assert (finished / "results.json").read_bytes() == before


def test_an_edited_search_file_is_said_not_to_count(finished, caplog):
    """Going on says which keys of search.yaml differ from the study, whose settings count; an
    unedited one goes unmentioned."""
    resume_search(finished, build=False)
    assert "search.yaml" not in caplog.text
    file = finished / "search.yaml"
    for text, said in (
        (
            file.read_text().replace("seed: 0", "seed: 5"),
            "seed was 0 and is 5; the study's own settings count",
        ),
        ("{", "search.yaml: not valid YAML"),
    ):
        file.write_text(text)
        resume_search(finished, build=False)
        assert said in caplog.text


def test_settings_of_strangers(finished):
    """A study whose settings were written by another hand is shown, or refused in one line."""

    def read(case):
        with Study.open(finished) as study:
            study.set_meta("settings", case)
        describe_study(finished)

    with Study.open(finished) as study:
        settings = study.meta("settings")
    look(damaged(settings) | st.none(), read, 20)
