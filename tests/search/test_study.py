"""The study file: what goes in comes out, and nothing short of a broken disk takes it away."""

import os
import signal
import sqlite3
from dataclasses import replace
from threading import Timer

import numpy as np
import pytest
from forked import status_of_fork
from refusals import refused

from hf_evomerge import FlowPart, MergePart, Recipe, Scores, SourceRef, Trial
from hf_evomerge.errors import SearchError
from hf_evomerge.search.study.database import STUDY_FILE
from hf_evomerge.search.study.study import Study


def _recipe(*weights, **more):
    sources = [SourceRef(model=name) for name, _ in zip("ab", weights, strict=False)]
    parameters = [{"weight": weight} for weight in weights]
    return Recipe(sources=sources, merge=MergePart(method="linear", parameters=parameters), **more)


def _trial(number, fitness, key=None, stage="ps", **more):
    scores = Scores.failed("it broke") if fitness is None else Scores([fitness])
    return Trial(stage, number, 0, np.array([float(number)]), key or f"key{number}", scores, **more)  # type: ignore[arg-type]


@pytest.fixture
def study(tmp_path):
    """An empty study."""
    return Study.create(tmp_path / "study", {"a": 1})


def _same(one, other):
    return (
        replace(one, genome=None, scores=None) == replace(other, genome=None, scores=None)
        and one.genome.tobytes() == other.genome.tobytes()
        and one.scores == other.scores
        and one.scores.seconds == other.scores.seconds
    )


def test_trials_come_back_bit_for_bit(study):
    """Genomes, scores, flags, times and errors of complete, failed and duplicate trials are the
    same after reopening."""
    rng = np.random.default_rng(0)
    extremes = np.array([0.1 + 0.2, -0.0, 5e-324, 1e100, -np.pi])
    scores = Scores(rng.standard_normal(7), correct=rng.random(7) < 0.5, seconds=0.1 + 0.2)
    trials = [
        Trial("ps", 0, 0, rng.standard_normal(4288), "k0", scores),
        Trial("ps", 1, 0, extremes, "k1", Scores(extremes, seconds=1.5)),
        Trial("ps", 2, 1, extremes, None, Scores.failed("genome: no path; 日本語")),
        Trial("ps", 3, 1, extremes, "k0", Scores([1.0], correct=[True]), duplicate_of=0),
        Trial("dfs", 0, 0, np.zeros(2), "k3", Scores([0.0], correct=[False])),
    ]
    for trial in trials:
        study.add_trial(trial)
    study.close()
    again = Study.open(study.folder)
    assert [trial.number for trial in trials if trial.state == "FAILED"] == [2]
    assert all(map(_same, again.trials("ps"), trials[:4]))
    assert all(map(_same, again.trials("dfs"), trials[4:]))
    assert len(again.trials()) == 5
    assert again.trials("ps-first") == []


def test_a_trial_is_stored_once(study):
    """A second trial of the same stage and number is refused, and the first one stays; trials are
    listed by number."""
    for trial in (_trial(1, 1.0), _trial(0, 1.0), _trial(0, 3.0, stage="dfs")):
        study.add_trial(trial)
    with refused(SearchError, "UNIQUE constraint"):
        study.add_trial(_trial(0, 2.0))
    stored = [(trial.number, trial.fitness) for trial in study.trials()]
    assert stored == [(0, 3.0), (0, 1.0), (1, 1.0)]


def test_best_first(study):
    """The best trials come by fitness, of equals the earlier, without failures, duplicates and
    repeated recipes."""
    for number, value in enumerate([0.2, 0.9, None, 0.9, 0.5, 0.95, -1.0]):
        study.add_trial(_trial(number, value))
    study.add_trial(_trial(7, 0.97, key="key0", duplicate_of=0))
    study.add_trial(_trial(8, 0.96, key="key5"))  # the same recipe on other examples
    assert [trial.number for trial in study.best("ps", 10)] == [8, 1, 3, 4, 0, 6]
    assert [trial.number for trial in study.best("ps")] == [8]
    assert study.best("dfs") == []


def test_best_of_all_examples_first(study):
    """A trial that was scored on all examples comes before a better one of a batch."""
    study.add_trial(_trial(0, 0.9))
    study.add_trial(replace(_trial(1, 0.5), scores=Scores([0.5] * 2)))
    assert [trial.number for trial in study.best("ps", 2)] == [1, 0]


def test_recipes_have_the_key_of_their_content(study):
    """The same recipe has one key, another recipe another, and the recipe comes back equal."""
    recipe = _recipe(0.1 + 0.2)
    assert study.add_recipe(_recipe(0.3)) != recipe.key
    assert study.add_recipe(recipe) == study.add_recipe(_recipe(0.1 + 0.2)) == recipe.key
    assert study.recipe(recipe.key) == recipe
    for read in (study.recipe, lambda key: study.renamed_text(key, None)):
        with refused(SearchError, "'nokey': not in this study"):
            read("nokey")


@pytest.mark.parametrize("base", [None, SourceRef(model="base", revision="abc")])
def test_a_recipe_has_other_names_as_text(tmp_path, base):
    """The text under other names is that of the recipe that was read, renamed and written, of
    labelled sources too."""
    study = Study.create(tmp_path / "study", {"sources": [{"model": "a"}]})
    recipe = _recipe(0.3, 0.7, base=base, flow=FlowPart(path=["0:0", "1:1"], scales=[1.0, 0.5]))
    key = study.add_recipe(recipe)

    def rename(ref):
        return SourceRef(model=f"me/{ref.model}", revision=ref.revision)

    assert study.renamed_text(key, rename) == recipe.renamed(rename).to_yaml()


def test_evaluations_by_label_and_split(study):
    """Scores are found under their label and their split only; a failed evaluation has its message
    and time."""
    whole = Scores([0.25], correct=[True], seconds=2.0)
    failed = Scores.failed("out of memory", 1.5)
    study.add_evaluation("base", "test", whole)
    study.add_evaluation("k0", "test", failed)
    for label, scores in (("base", whole), ("k0", failed)):
        found = study.evaluation(label, "test")
        assert (found, found.seconds) == (scores, scores.seconds)
    assert study.evaluation("base", "validation") is None
    assert study.evaluation("source:0", "test") is None


def test_create_refuses_an_existing_study(study):
    """A search does not begin where a study is, and leaves that study alone."""
    study.add_trial(_trial(0, 1.0))
    with refused(SearchError, "a study here already; continue it with `hf-evomerge"):
        Study.create(study.folder, {})
    assert len(Study.open(study.folder).trials()) == 1


def test_open_refuses_what_is_no_study(tmp_path):
    """An empty folder and another program's file are refused in one line that names them."""
    with refused(SearchError, r"no study\.db here"):
        Study.open(tmp_path)
    with sqlite3.connect(tmp_path / "other") as connection:
        connection.execute("CREATE TABLE other (x)")
    file = tmp_path / STUDY_FILE
    for content in (
        b"not a database at all, but long enough to be one" * 100,
        b"SQLite format 3\0" + b"\1" * 5000,
        (tmp_path / "other").read_bytes(),
    ):
        file.write_bytes(content)
        with refused(SearchError, f"{STUDY_FILE}: not a study"):
            Study.open(tmp_path)
        assert file.read_bytes() == content


def test_exclusive_refuses_a_second_holder(study):
    """While a search holds the study no other process can, reading stays possible, and afterwards
    it is free again."""

    def hold():
        with Study.open(study.folder) as other:
            assert other.trials() == []
            with other.exclusive():
                pass

    with study.exclusive():
        assert status_of_fork(hold) == 1
        with refused(SearchError, "another process is running this study"):
            hold()
    assert status_of_fork(hold) == 0


def _long(number):
    values = np.full(3000, number + 0.5)
    scores = Scores(values, correct=values > 9, seconds=float(number))
    return Trial("ps", number, number // 9, values, f"key{number}", scores)


def test_survives_being_killed(study, tmp_path):
    """However often the writer is killed, each reported trial is there, every trial is whole, and
    it can go on."""
    said = tmp_path / "said"
    reported = -1

    def write(pause):
        killer = Timer(pause, os.kill, (os.getpid(), signal.SIGKILL))
        with Study.open(study.folder) as writer, writer.exclusive(), said.open("a") as lines:
            for number in range(len(writer.trials()), 1_000_000):
                writer.add_trial(_long(number))
                print(number, file=lines, flush=True)
                if not killer.is_alive():
                    killer.start()

    for pause in (0.01, 0.033, 0.057):
        assert status_of_fork(lambda pause=pause: write(pause)) == -signal.SIGKILL
        reported = int(said.read_text().split("\n")[-2])
        trials = Study.open(study.folder).trials("ps")
        assert [trial.number for trial in trials] == list(range(len(trials)))
        assert len(trials) in (reported + 1, reported + 2)
        assert all(_same(trial, _long(trial.number)) for trial in trials)
    assert reported > 3
