"""Which of a search's candidates wins, on which split it is judged, and what the table says of
it."""

from collections import Counter

import numpy as np
import pytest
from toy_search import (
    EXAMPLES,
    LAYERS,
    ToyRunner,
    is_recipe,
    table_rows,
    toy_config,
    toy_scores,
    toy_search,
)

from hf_evomerge.search.evaluation.sources import SourceSummary
from hf_evomerge.search.phases.phase import SearchRun
from hf_evomerge.search.run import run_phases
from hf_evomerge.search.runners.job import Job
from hf_evomerge.search.study.study import Study


def test_validation_chooses_the_winner(tmp_path):
    """The finalist that scores best on validation examples wins, which see nothing but finalists,
    and test examples rows."""

    def scores(job):
        if job.split == "validation":
            return -toy_scores(Job(job.target, "search"))
        return toy_scores(job)

    runner = ToyRunner(scores=scores)
    study, result = toy_search(tmp_path, runner)
    splits = Counter(job.split for job in runner.jobs)
    assert splits == {"search": 2 + 31, "validation": 3, "test": 2 + 1 + 1}
    finalists = study.best("ps", 3)
    assert result.winner.key == finalists[2].recipe_key
    assert study.evaluation(result.winner.key, "test") is not None
    assert study.evaluation(finalists[0].recipe_key, "test") is None


def test_a_validation_fitness_of_zero_is_a_fitness(tmp_path):
    """Of finalists that score below zero and one that scores exactly zero, the latter wins, before
    those that fail."""

    def scores(job):
        if job.split != "validation":
            return toy_scores(job)
        (best,) = study.best("ps")
        return np.full(EXAMPLES, 0.0 if job.target == study.recipe(best.recipe_key) else -1.0)

    study = Study.create(tmp_path, {})
    runner = ToyRunner(scores=scores)
    sizes = dict.fromkeys(("search", "validation"), EXAMPLES)
    result = run_phases(SearchRun(toy_config("ps"), study, runner, SourceSummary(LAYERS), sizes))
    assert result.winner.key == study.best("ps")[0].recipe_key


def test_without_validation_the_search_fitness_chooses(tmp_path):
    """Without a validation split the best trial wins, and of a hybrid search's stages the one with
    the better trial."""
    study, result = toy_search(tmp_path / "ps", ToyRunner(), splits=("search", "test"))
    assert result.winner.key == study.best("ps")[0].recipe_key

    def dfs_is_better(job):
        return toy_scores(job) + (5.0 if is_recipe(job) and job.target.flow else 0.0)

    for scores, better, model in (
        (dfs_is_better, "dfs", "evolved PS+DFS"),
        (lambda job: -dfs_is_better(job), "ps", "evolved PS"),
    ):
        runner = ToyRunner(scores=scores)
        study, result = toy_search(tmp_path / better, runner, "hybrid", splits=("search",))
        assert result.winner.key == study.best(better)[0].recipe_key
        winners = [(row.stage, row.model) for row in result.rows if row.winner]
        assert winners == [(better, model)]


def test_the_test_split_is_touched_once(tmp_path):
    """Parents, average and winners, with their costs, are the rows; each is tested once, at the
    end, however often it runs."""
    first = ToyRunner()
    second = ToyRunner()
    _, result = toy_search(tmp_path, first, "hybrid", base="{model: org/c}")
    again = toy_search(tmp_path, second, "hybrid", base="{model: org/c}")[1]
    rows = [(row.stage, row.model, row.evaluations) for row in result.rows]
    assert rows == [
        ("base", "base (c)", 0),
        ("source", "a", 0),
        ("source", "b", 0),
        ("average", "uniform average", 0),
        ("average", "sum of the task vectors", 0),
        ("ps", "evolved PS", 31),
        ("dfs", "evolved PS+DFS", 51),
    ]
    assert (result.split, sum(row.winner for row in result.rows)) == ("test", 1)
    tested = [str(job.target) for job in first.jobs if job.split == "test"]
    assert len(tested) == len(set(tested)) == len(result.rows) == 7
    assert [job.split for job in first.jobs[-7:]] == ["test"] * 7
    assert second.jobs == []
    assert table_rows(again) == table_rows(result)


GATES = {"space": "dfs", "optimize": "[{evaluations: 40, population: 7}]"}
MERGE = (
    "{method: linear, groups: model, starts: [average], parameters: {weight: {low: 0, high: 2}}}"
)
WEIGHTS = {"merge": MERGE, "optimize": "[{evaluations: 20}]"}
TWICE = {"merge": MERGE, "optimize": "[{evaluations: 9, by: cma}, {evaluations: 20}]"}


@pytest.mark.parametrize(
    ("more", "best", "name"),
    [
        (GATES, 0, "start of DFS: a's layers"),
        (GATES, 1, "start of DFS: b's layers"),
        (GATES, 2, "start of DFS: splice of a's layers and b's layers"),
        (GATES, 20, "evolved DFS"),
        (WEIGHTS, 0, "start of PS: first point"),
        (WEIGHTS, 1, "start of PS: uniform average"),
        (WEIGHTS, 5, "evolved PS"),
        (TWICE, 4, "start of PS: winner of ps-first"),
    ],
)
def test_a_winner_that_is_a_start_is_called_that(more, best, name, tmp_path):
    """A stage that found nothing better than where it began says so in its row, also when the
    search is run again."""
    seen = []

    def scores(job):
        if is_recipe(job) and job.target.key not in seen:
            seen.append(job.target.key)
        won = is_recipe(job) and seen.index(job.target.key) == best
        return toy_scores(job) + (50.0 if won else 0.0)

    for _ in range(2):
        result = toy_search(tmp_path, ToyRunner(scores=scores), "ps", **more)[1]
        assert [row.model for row in result.rows if row.winner] == [name]
    said = name[0].upper() + name[1:]
    assert any(sentence.startswith(said) for sentence in result.verdict)


def test_sources_of_different_depth_have_no_average(tmp_path):
    """Where sources have different numbers of layers, no average of their weights is tried."""
    runner = ToyRunner()
    run = SearchRun(toy_config("dfs"), Study.create(tmp_path, {}), runner, SourceSummary([3, 4]))
    assert [row.model for row in run_phases(run).rows] == ["a", "b", "evolved DFS"]
    assert not any(is_recipe(job) and job.target.flow is None for job in runner.jobs)


def test_the_winner_of_what_runs_first_may_win(tmp_path):
    """What a stage began at is validated too, although it is none of the best in its search."""
    at_first = set()

    def scores(job):
        if job.fitness is not None:
            at_first.add(job.target.key)
        elif is_recipe(job) and job.target.key in at_first:
            return toy_scores(job) + (9.0 if job.split == "validation" else -9.0)
        return toy_scores(job)

    study, result = toy_search(tmp_path, ToyRunner(scores=scores), "first", space="ps")
    assert result.winner.key == study.best("ps-first")[0].recipe_key
    assert [row.stage for row in result.rows if row.winner] == ["ps"]


def test_parents_in_folders_of_one_name_are_told_apart(tmp_path, caplog):
    """Two fine-tunes that were both saved as ``final`` have names of their own in notes, table and
    verdict."""
    better = {"runs/m/final": -1.0, "runs/j/final": -4.0, "base/final": -3.0}
    *sources, base = ({"model": name} for name in better)

    def scores(job):
        return toy_scores(job) + (-20.0 if is_recipe(job) else better[job.target.model])

    with caplog.at_level("INFO"):
        _, result = toy_search(tmp_path, ToyRunner(scores=scores), sources=sources, base=base)
    assert [row.model for row in result.rows][:3] == ["base (base/final)", "m/final", "j/final"]
    assert any("its best parent, m/final" in sentence for sentence in result.verdict)
    assert "by m/final only" in caplog.text or "ahead of m/final, the best" in caplog.text
