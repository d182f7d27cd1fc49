"""Searches for several objectives: what is proposed, what is on the front, which point wins;
resuming changes nothing."""

import json
import re
import sys
from unittest.mock import ANY

import numpy as np
import pytest
import yaml
from pyarrow import parquet
from pymoo.indicators.hv import HV
from recipes import refs_in
from refusals import refused, told
from safetensors.numpy import load_file
from scenes import marks_of
from searches import facts
from toy_search import EXAMPLES, StoppedError, ToyRunner, toy_config, toy_search
from watch import killed

from hf_evomerge import (
    Recipe,
    Scores,
    SearchConfig,
    SourceRef,
    build_model,
    plan_search,
    resume_search,
    run_search,
)
from hf_evomerge.errors import FitnessError, SearchError
from hf_evomerge.hub.record import _public_settings, write_record
from hf_evomerge.pictures.marks import Group, Symbol
from hf_evomerge.search.folder import found_recipe
from hf_evomerge.search.front.file import vector
from hf_evomerge.search.front.optimizers import FrontOptimizer, knee, non_dominated, spread
from hf_evomerge.search.front.results import front_scenes
from hf_evomerge.search.optimizers.ask_tell import Start
from hf_evomerge.search.results.plots import drawn_trials, parent_scores
from hf_evomerge.search.study.paths import rooted
from hf_evomerge.search.study.study import Study

TOY = {
    "path": "{kind: gates, repetitions: 1}",
    "optimize": "[{evaluations: 33, population: 8}]",
    "objectives": "[hops, {name: other, fitness: {task: likelihood}}]",
    "compare": "{finalists: 4, baselines: []}",
}


def long_paths(job):
    """Long paths are right on all examples, the longer the less, and on half of the other
    objective, in proportion."""
    flow = getattr(job.target, "flow", None)
    sources = [0] * 3
    if flow is not None:
        sources = [term.source for hop in flow.to_path().hops for term in hop.terms]
    of_a = sources.count(0)
    others = {
        "hops": Scores([len(sources)]),
        "other": Scores([float(len(sources) - of_a)] * 2, correct=[True, False]),
    }
    return Scores(np.linspace(0, 1, EXAMPLES) + of_a**0.5 + 0.1 * len(job.split), others=others)


def _search(folder, **how):
    return toy_search(folder, ToyRunner(scores=long_paths, **how), "dfs", **TOY)


def test_points_that_nothing_beats():
    """Non-dominated points, the knee, and an even choice of them, of a front that can be read
    off."""
    points = np.array([[0, 10], [4, 9], [3, 8], [8, 6], [10, 0], [4, 9], [9, 1]])
    best = [0, 1, 3, 4, 6]
    assert non_dominated(points) == best
    whole = points[best]
    assert knee(whole) == 2
    # one that says the same, and one that says nothing
    assert knee(np.column_stack([whole, whole[:, 1], np.full(5, 7)])) == 2
    together = [[-9.345, -9, -9], [-9.527, -8, -8], [-10.481, -7, -7], [-10.555, -6, -6]]
    assert knee(together) == 1
    for count, chosen in ((2, [0, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3, 4])):
        assert spread(whole, count) == chosen


def test_the_optimizer_approaches_a_front_the_same_way_every_time():
    """Same seed, same genomes; they stay inside the bounds, begin at the start, and end close to
    the front of ZDT1."""
    start = Start(np.full(6, 0.5), 0.2, np.zeros(6), np.ones(6), candidates=(np.full(6, 0.25),))

    def run(seed):
        optimizer = FrontOptimizer(start, metrics=2, population=20, seed=seed)
        asked = []
        for _ in range(30):
            points = np.array(optimizer.ask())
            cost = 1 + 9 * points[:, 1:].mean(1)
            told = -np.column_stack([points[:, 0], cost * (1 - np.sqrt(points[:, 0] / cost))])
            told[3] = np.nan  # one that failed
            optimizer.tell(list(told))
            asked.append(points)
        return np.concatenate(asked), told

    found, told = run(3)
    np.random.seed(0)  # nobody else's generator is drawn from
    assert np.array_equal(found, run(3)[0])
    assert not np.array_equal(found, run(4)[0])
    assert np.array_equal(found[:2], [start.mean, *start.candidates])
    assert (np.clip(found, 0, 1) == found).all()
    front = HV(ref_point=np.full(2, 2.0)).do(-np.delete(told, 3, 0)) / 4
    assert front > 0.7  # the front itself: 0.83


def test_what_can_be_left_out_is_left_out_however_small_the_steps():
    """Half of the first generation is without some coordinates, where these begin far from 0 in
    short steps too."""
    start = Start(np.ones(20), 0.04, np.full(20, -np.inf), np.full(20, np.inf), prunable=True)
    points = np.array(FrontOptimizer(start, metrics=2, population=30).ask())
    off = (points < 0.1).sum(1)
    assert np.array_equal(points[0], np.ones(20))
    assert 10 <= np.count_nonzero(off) <= 15
    assert off.max() > 4


@pytest.mark.parametrize(("by", "least"), [("nsga2", 5), ("random", 2)])
def test_a_search_finds_a_front(by, least, tmp_path):
    """The front is what no trial beats; its points are judged, one wins, and text, JSON and verdict
    say so."""

    def fails(job):
        return isinstance(job.target, Recipe) and len(job.target.flow.path) == 5

    runner = ToyRunner(scores=long_paths, fails=fails)
    steps = f"[{{by: {by}, evaluations: 33, population: 8}}]"
    study, result = toy_search(tmp_path, runner, "dfs", **TOY | {"optimize": steps})
    front = result.front
    fitness = [point.trial.scores.mean for point in front]
    assert [point.number for point in front] == list(range(len(front)))
    assert fitness == sorted(fitness, reverse=True)
    assert len(front) >= least
    vectors = [vector(point.trial.scores, front.names) for point in front]
    for trial in study.trials("dfs"):
        if trial.fitness is not None:
            theirs = vector(trial.scores, front.names)
            assert not any((theirs >= each).all() and (theirs > each).any() for each in vectors)
    (winner,) = (point for point in front if point.winner)
    assert result.winner.key == winner.key
    assert [row.stage for row in result.rows] == ["source", "source", "dfs"]
    assert sum(point.scores is not None for point in front) == min(4, len(front))
    report = json.loads(json.dumps(result.to_json()))
    assert report["objectives"] == ["fitness", "hops", "other"]
    assert report["front"][0]["search"]["fitness"] == fitness[0]
    assert report["rows"][0]["objectives"] == {"hops": 3.0, "other": 0.0}
    text = str(result)
    for part in (
        "hops, search",
        f"{winner.number} *",
        f"The front has {len(front)} points",
        "better than a in one objective and worse in none, on the test examples",
    ):
        assert part in text


def test_what_is_the_same_for_all_parents_is_said_once(tmp_path, caplog):
    """A fitness, or another objective: one line each; the search goes on, for candidates may differ
    in it, as they do here."""
    with pytest.raises(StoppedError):
        _search(tmp_path, stop_after=20)
    _, result = _search(tmp_path)
    fitness, other = (
        line for line in caplog.messages if re.search("^every source|for every source", line)
    )
    assert fitness.startswith("every source scores the same on every search example")
    assert other == "objectives: other is 0 for every source; it may see nothing"
    assert len({point.trial.scores.others["other"].mean for point in result.front}) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    told("""
objectives: [hops, hops]
  objectives: hops is there twice
objectives: [{name: fitness, data: {search: {jsonl: x}}}]
  objectives: fitness is there twice; the fitness and what a model takes have their own
objectives: [{name: same}]
  objectives.0: same: is what the fitness measures already
objectives: [tokes]
  objectives.0: must be 'tokens', 'hops', 'parameters' or 'seconds'
objectives: [tokens]
  objectives: tokens counts those of answers, and likelihood wri
{space: ps, objectives: [parameters]}
  objectives: parameters is the same for every merge of a ps search
optimize: [{by: cma}]
  optimize: by: cma cannot search dfs with path.kind: gates with
{objectives: [], optimize: [{by: nsga2}]}
  optimize: by: nsga2 cannot search dfs with path.kind: gates; wr
{data: {search: {jsonl: x}}, objectives: [{name: more, data: {test: {jsonl: x}}}]}
  objectives: more has data for test, and the search for search
"""),
)
def test_refusals(changes, message):
    """Objectives that contradict each other or the search are refused in one line."""
    with refused(SearchError, rf"^{message}.*$"):
        toy_config("dfs", **{**TOY, **yaml.safe_load(changes)})


@pytest.mark.parametrize("searched", ["search", "test"])
def test_no_objective_is_tested_on_what_another_looks_at(searched, settings):
    """Test examples of one objective that the search looks at for another are refused, whichever
    task they are for."""
    data = settings["data"]
    more = {"search": data[searched], "test": data["search"]}
    objective = {"name": "x", "fitness": {"task": "perplexity"}, "data": more}
    with refused(FitnessError, "the splits overlap"):
        plan_search(SearchConfig.model_validate({**settings, "objectives": [objective]}))


def test_without_pymoo(settings, monkeypatch):
    """Where pymoo is missing the search says so before it begins."""
    monkeypatch.setitem(sys.modules, "pymoo", None)
    with refused(SearchError, r"needs pymoo: pip install 'hf-evomerge\[objectives\]'"):
        plan_search(SearchConfig.model_validate(settings))


@pytest.fixture(scope="module")
def settings(search_settings, tiny):
    """A search of the tiny family for the likelihood on two sets of problems, and hops and
    parameters."""
    data = {split: {"jsonl": str(tiny / f"{split}.jsonl")} for split in ("search", "test")}
    return search_settings(
        "dfs",
        sources=refs_in(tiny, "a", "deep"),
        base=None,
        optimize="[{evaluations: 18, population: 6}]",
        objectives=[
            "hops",
            "parameters",
            {"name": "sure", "fitness": {"task": "perplexity"}},
            {"name": "more", "data": data},
        ],
        data={split: {**given, "start": 2} for split, given in data.items()},
    )


@pytest.mark.slow
def test_killed_and_resumed(settings, tmp_path):
    """Killed with two workers and resumed with none, the study is bit for bit that of one process;
    every point can be built."""
    config = SearchConfig.model_validate(settings)
    out = tmp_path / "whole"
    killed(
        lambda seen: seen.phase == "dfs" and seen.done >= 7,
        run_search,
        config,
        tmp_path / "killed",
        workers=2,
    )
    resumed = resume_search(tmp_path / "killed", build=False)
    whole = run_search(config, out, build=False)
    assert facts(tmp_path / "killed") == facts(out)
    assert [point.key for point in resumed.front] == [point.key for point in whole.front]
    assert (out / "plots" / "front.png").read_bytes().startswith(b"\x89PNG")
    trials = Study.open(out).trials("dfs")
    assert [each.values.size for each in trials[0].scores.others.values()] == [1, 1, 3, 5]
    last = whole.front[-1]
    recipe, folder = found_recipe(out, last.number)
    assert folder == out / f"model-{last.number}"
    stored = load_file(build_model(recipe, folder) / "model.safetensors")
    assert sum(each.size for each in stored.values()) == last.trial.scores.others["parameters"].mean
    record = write_record(out, tmp_path / "record")
    assert len(record.objectives) == 5
    assert record.results == whole.published()
    assert record.parents["a"]["hops"] == 2.0
    rows = parquet.read_table(tmp_path / "record" / "trials.parquet").to_pylist()
    rows = [row for row in rows if row["stage"] == "dfs"]
    for row, trial in zip(rows, trials, strict=True):
        for name, scores in trial.scores.others.items():
            assert row[f"objective.{name}"] == scores.mean
    with refused(SearchError, "the points of the front are 0 to"):
        found_recipe(out, len(whole.front))


def test_files_of_objectives_are_found_from_everywhere_and_published_by_name(
    settings, tiny, monkeypatch
):
    """A study keeps their absolute names, so that it goes on from another folder; a record has no
    folder in it."""
    monkeypatch.chdir(tiny)
    data, more = ({"search": {"jsonl": f"{split}.jsonl"}} for split in ("search", "test"))
    objectives = ["hops", {"name": "more", "data": more}]
    given = {**settings, "objectives": objectives, "data": data}
    config = rooted(SearchConfig.model_validate(given))
    (split,) = (split for split in config.splits if split.startswith("objective:"))
    assert config.splits[split].jsonl == str(tiny / "test.jsonl")
    published = _public_settings(config, lambda ref: SourceRef(model="me/it"))
    assert published["objectives"] == ["hops", {"name": "more", "data": {"search": ANY}}]
    assert str(tiny) not in json.dumps(published)


def test_the_picture(tmp_path):
    """Each objective has a panel with the fitness over it, in which the front is where its values
    are. Its knee wins, without validation examples too."""
    study, result = toy_search(tmp_path, ToyRunner(scores=long_paths), "dfs", ["search"], **TOY)
    assert not result.front[0].winner
    config = toy_config("dfs", **TOY)
    parents = parent_scores(config, study)
    panels = front_scenes(config, result.front, drawn_trials(study, config.metrics), parents)
    for scene, name in zip(panels, ("hops", "other"), strict=True):
        assert scene.label.startswith(f"fitness over {name}:")
        marks = list(marks_of(scene))
        symbols = [mark for mark in marks if isinstance(mark, Symbol) and mark.look == "point"]
        for point in result.front:
            scores = point.trial.scores
            assert (scores.others[name].mean, scores.mean) in [mark.at for mark in symbols]
        tips = [mark.tip for mark in marks if isinstance(mark, Group)]
        assert sum(tip.endswith("; this model") for tip in tips) == 1
