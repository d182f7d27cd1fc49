import resource
from contextlib import contextmanager

import numpy as np
import pytest
from commands import invoke
from refusals import refused
from searches import minimal

from hf_evomerge import FlowPart, MergePart, Recipe, Scores, Trial
from hf_evomerge.errors import SearchError
from hf_evomerge.search.results.export import trial_rows, write_parquet
from hf_evomerge.search.study.study import Study

SOURCES = [{"model": "me/one"}, {"model": "me/two"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of two stages: merges, one of which failed, and paths."""
    folder = tmp_path_factory.mktemp("studies") / "my-search"
    study = Study.create(folder, minimal(space="hybrid", sources=SOURCES).model_dump(mode="json"))
    failed = Scores.failed("no recipe, sorry")
    study.add_trial(Trial("ps", 0, 0, np.array([0.5, 0.5]), None, failed))
    weights = [{"weight": {"embed": 0.25, "default": 1.0}}, {"weight": 0.5}]
    merge = MergePart(method="task_arithmetic", parameters=weights)
    key = study.add_recipe(Recipe(sources=SOURCES, base={"model": "me/base"}, merge=merge))
    scores = Scores([0.25, 1.25], correct=[True, False], seconds=2.0)
    study.add_trial(Trial("ps", 1, 0, np.array([0.25, 0.5]), key, scores, cost=0.5))
    key = study.add_recipe(Recipe(sources=SOURCES, flow=FlowPart(path=["0:0-1", "1:1"])))
    study.add_trial(Trial("dfs", 0, 0, np.array([1.0, -2.0]), key, Scores([0.5, 0.5])))
    study.close()
    return folder


def test_rows_of_trials(folder):
    """Every trial is a row with the values of its merge by name; a failed one says why."""
    failed, merge, path = trial_rows(folder)
    assert [failed[key] for key in ("stage", "number", "state")] == ["ps", 0, "FAILED"]
    assert (failed["error"], failed["fitness"]) == ("no recipe, sorry", None)
    expected = {
        "state": "COMPLETE",
        "params.one.weight.embed": 0.25,
        "params.two.weight": 0.5,
        "fitness": 0.75,
        "accuracy": 0.5,
        "evaluations": 0.5,
        "seconds": 2.0,
        "examples": 2,
    }
    assert expected.items() <= merge.items()
    assert (path["stage"], path["params.x000"], path["params.x001"]) == ("dfs", 1.0, -2.0)


def test_a_table_holds_the_rows(folder, tmp_path):
    """A table holds what the rows say."""
    from pyarrow import parquet

    rows = trial_rows(folder)
    write_parquet(rows, tmp_path / "x")
    assert parquet.read_table(tmp_path / "x").to_pylist() == rows


def test_several_objectives(tmp_path):
    """A trial of a search for several objectives has a column for each."""
    config = minimal(space="dfs", sources=SOURCES, objectives="[hops]", optimize="[{by: nsga2}]")
    study = Study.create(tmp_path / "front", config.model_dump(mode="json"))
    flow = FlowPart(path=["0:0-2"])
    key = study.add_recipe(Recipe(sources=SOURCES, flow=flow))
    scores = Scores([0.5], others={"hops": Scores([3])})
    study.add_trial(Trial("dfs", 0, 0, np.array([0.0]), key, scores))
    study.close()
    (row,) = trial_rows(tmp_path / "front")
    assert (row["fitness"], row["objective.hops"]) == (0.5, 3.0)


def test_nothing_to_export(tmp_path):
    """A study without trials, and a folder without a study, are named."""
    Study.create(tmp_path / "empty", minimal().model_dump(mode="json")).close()
    with refused(SearchError, "empty: no trial is finished yet"):
        trial_rows(tmp_path / "empty")
    with refused(SearchError, r"no study\.db here"):
        trial_rows(tmp_path / "none")


@contextmanager
def _room(size):
    """A limit on the size of files, which a full disk is to whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_no_half_of_a_table(tmp_path):
    """What cannot be written whole is not there."""
    text = "".join(map(chr, np.random.default_rng(0).integers(48, 122, 200_000)))
    with _room(100_000), pytest.raises(OSError, match="File too large"):
        write_parquet([{"error": text}], tmp_path / "table")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_file_that_was_there(tmp_path):
    """A recipe that cannot be written whole leaves the one before as it was, and nothing beside
    it."""
    file = tmp_path / "recipe.yaml"
    recipe, long = (Recipe(sources=SOURCES, flow=FlowPart(path=["0:0"] * n)) for n in (1, 4000))
    recipe.save(file)
    with _room(1000), pytest.raises(OSError, match="File too large"):
        long.save(file)
    assert list(tmp_path.iterdir()) == [file]
    assert Recipe.load(file) == recipe


def test_a_full_disk_is_no_damage(folder):
    """Where SQLite has no room for its own files the study is not called damaged."""
    with _room(1000):
        told = invoke("show", folder, "--trials")
    assert told.exit_code == 1
    said = "study.db: cannot be read or written on this disk: disk I/O error; free memory"
    assert said in told.output
    assert "damaged" not in told.output
