"""A whole search over a toy fitness: what is evaluated, what is kept, and that resuming changes nothing. No model is loaded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from watch import Watch

from hf_evomerge.errors import SearchError
from hf_evomerge.fitness import Scores
from hf_evomerge.recipes.recipe import Recipe, SourceRef
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search import optimizer
from hf_evomerge.search.callbacks import Generation, Patience, Progress, SearchCallback
from hf_evomerge.search.config import SearchConfig
from hf_evomerge.search.loop import Search
from hf_evomerge.search.opened import SourceSummary
from hf_evomerge.search.results import Result
from hf_evomerge.search.runner import Job
from hf_evomerge.search.study import Study, Trial

LAYERS = [3, 3]
EXAMPLES = 12


class StoppedError(Exception):
    """The runner was stopped, as if the process had been killed."""


def _hardness(split: str) -> np.ndarray:
    return np.random.default_rng(sum(map(ord, split))).normal(0, 0.05, EXAMPLES)


def toy_scores(job: Job) -> np.ndarray:
    """Scores of the toy task: a weight of 0.7 for each source, and a path of five hops with scales near 1.1, are best."""
    target, value = job.target, -2.0
    if isinstance(target, Recipe):
        value = 0.0
        if target.merge is not None:
            value -= sum((float(mapping["weight"]) - 0.7) ** 2 for mapping in target.merge.parameters)  # type: ignore[arg-type]
        if target.flow is not None:
            path = target.flow.to_path()
            value -= (len(path) - 5) ** 2 / 10 + float(np.mean([(scale - 1.1) ** 2 for scale in path.scales]))
    scores = value + _hardness(job.split) + (10.0 if job.fitness is not None else 0.0)
    return scores if job.batch is None else scores[list(job.batch)]


class ToyRunner:
    """Evaluates toy scores; may fail, stop after some jobs, and finish jobs in a random order."""

    def __init__(
        self,
        *,
        stop_after: int | None = None,
        shuffle: int | None = None,
        fails: Callable[[Job], bool] = lambda _: False,
        scores: Callable[[Job], np.ndarray] = toy_scores,
    ) -> None:
        self.stop_after, self.fails, self.scores = stop_after, fails, scores
        self.rng = None if shuffle is None else random.Random(shuffle)
        self.jobs: list[Job] = []
        self.rounds: list[list[Job]] = []

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Scores]]:
        """Evaluate jobs."""
        order = list(range(len(jobs)))
        if self.rng is not None:
            self.rng.shuffle(order)
        self.rounds.append(list(jobs))
        for index in order:
            if self.stop_after is not None and len(self.jobs) >= self.stop_after:
                raise StoppedError
            self.jobs.append(jobs[index])
            if self.fails(jobs[index]):
                yield index, Scores.failed("toy: this one fails", 0.5)
            else:
                scores = self.scores(jobs[index])
                yield index, Scores(scores, correct=scores > 0, seconds=0.25)

    def close(self) -> None:
        """Nothing to free."""


OPTIMIZER = {"evaluations": 31, "population": 7}
SPACES: dict[str, dict[str, Any]] = {
    "ps": {"ps": {"method": "linear", "blocks_per_group": "model", "optimizer": OPTIMIZER}},
    "dfs": {"space": "dfs", "dfs": {"scales": "slot", "optimizer": OPTIMIZER}},
    "none": {"space": "dfs", "dfs": {"scales": "none", "repetitions": 1, "optimizer": OPTIMIZER}},
    "terms": {"space": "dfs", "dfs": {"terms": 2, "optimizer": OPTIMIZER}},
    "hybrid": {
        "space": "hybrid",
        "ps": {"method": "linear", "blocks_per_group": "model", "optimizer": OPTIMIZER},
        "dfs": {"scales": "slot", "optimizer": {"evaluations": 20, "population": 6}},
        "baselines": ["average", "random"],
    },
    "first": {
        "space": "hybrid",
        "ps": {
            "method": "linear",
            "blocks_per_group": "model",
            "first": {"algorithm": "cma", "evaluations": 14, "population": 7, "fitness": {"task": "generation"}},
            "optimizer": OPTIMIZER,
        },
        "dfs": {"first": {**OPTIMIZER, "algorithm": "cma", "evaluations": 12}, "optimizer": {**OPTIMIZER, "evaluations": 20}},
    },
    "batches": {"ps": {"method": "linear", "blocks_per_group": "model", "optimizer": OPTIMIZER}, "batch": 4},
}
ONE: dict[str, Any] = {"space": "dfs", "sources": [{"model": "a"}]}  # of six layers
SWEEPS: dict[str, dict[str, Any]] = {
    "prune": {**ONE, "dfs": {"prune": 2, "optimizer": {"algorithm": "sweep", "evaluations": 31}}, "batch": 3},
    "repeat": {**ONE, "dfs": {"repeat": {"longest": 3, "times": [0, 2]}, "optimizer": {"evaluations": 31}}, "batch": "all"},
}


def _config(kind: str, **more: Any) -> SearchConfig:
    data = {"space": "ps", "sources": [{"model": "a"}, {"model": "b"}], "fitness": {"task": "likelihood"}, "finalists": 3}
    return validate(SearchConfig, {**data, **{**SPACES, **SWEEPS}[kind], **more}, SearchError)


def _search(
    folder: Path,
    runner: ToyRunner,
    kind: str = "ps",
    splits: Sequence[str] = ("search", "validation", "test"),
    callbacks: Sequence[SearchCallback] = (),
    **more: Any,
) -> tuple[Study, Result]:
    """Run a search in a folder, or go on with the one that is there."""
    study = Study.open(folder) if (folder / "study.db").exists() else Study.create(folder, {})
    how: dict[str, Any] = {"splits": dict.fromkeys(splits, EXAMPLES)}
    config = _config(kind, **more)
    how["callbacks"] = [Patience(config), *callbacks]
    search = Search(config, study, runner, sources=SourceSummary(LAYERS if len(config.sources) > 1 else [6]), **how)
    return study, search.run()


def _columns(study: Study) -> list[tuple[Any, ...]]:
    """Every column of every trial but the seconds, to the last bit."""

    def row(trial: Trial) -> tuple[Any, ...]:
        correct = None if trial.scores.correct is None else trial.scores.correct.tobytes()
        recipe = None if trial.recipe_key is None else study.recipe(trial.recipe_key).to_yaml()
        bits = (trial.genome.tobytes(), trial.scores.values.tobytes(), correct)
        place = (trial.stage, trial.number, trial.generation, trial.state)
        return (*place, *bits, trial.recipe_key, recipe, trial.duplicate_of, trial.fitness, trial.scores.error)

    return [row(trial) for trial in study.trials()]


def _table(result: Result) -> list[tuple[Any, ...]]:
    return [(row.stage, row.model, row.scores.mean, row.evaluations, row.winner) for row in result.rows]


@pytest.mark.parametrize("kind", SPACES)
def test_a_search_finds_something_good(kind: str, tmp_path: Path) -> None:
    """Each kind of search spends its budget exactly and ends with a winner better than every parent."""
    study, result = _search(tmp_path, ToyRunner(), kind)
    config = _config(kind)
    budgets = {"ps-first": 14, "ps": 31, "dfs-first": 12, "dfs": 20 if kind in ("hybrid", "first") else 31, "random": 51}
    for stage in config.stages:
        spent = sum(trial.cost for trial in study.trials(stage))
        generation = 7 * 4 / EXAMPLES + 1 if kind == "batches" else 0  # the mean at the end leaves no room for part of one
        assert budgets[stage] - generation - 1e-9 < spent < budgets[stage] + 1e-9
    assert len({trial.stage for trial in study.trials()}) == len(config.stages)
    winner = max(row.scores.mean or -9 for row in result.rows if row.winner)
    assert winner > max(row.scores.mean or -9 for row in result.rows[:2])
    assert winner > -0.5
    assert study.recipe(result.winner.key) == result.winner


@pytest.mark.parametrize(("kind", "path"), [("prune", "0:0, 0:1, 0:3, 0:5"), ("repeat", "0:0, 0:1, 0:3, 0:4, 0:5")])
def test_a_sweep_finds_the_best_path_of_one_model(kind: str, path: str, tmp_path: Path) -> None:
    """The layers that count least are left out one after the other; the best block is found, and both cost what was said."""
    worth = [0.5, 0.4, 0.0, 0.3, 0.1, 0.6]

    def scores(job: Job) -> np.ndarray:
        layers = job.target.flow.to_path().unique_layers if isinstance(job.target, Recipe) and job.target.flow else []
        value = sum(worth[layer] for _, layer in layers) if kind == "prune" else toy_scores(job).mean()
        found = value - 0.05 * (kind == "repeat" and (0, 2) in layers) + _hardness(job.split)
        return found if job.batch is None else found[list(job.batch)]

    study, result = _search(tmp_path, ToyRunner(scores=scores), kind)
    assert result.winner.flow is not None
    assert str(result.winner.flow.to_path()) == path
    assert result.winner.flow.scales is None
    trials = study.trials("dfs")
    moves = [6, 2, 5, 2] if kind == "prune" else [30]  # a quarter goes on to four times as many examples
    assert [sum(trial.generation == each for trial in trials) for each in range(len(moves))] == moves
    assert sum(trial.cost for trial in trials) == (pytest.approx(6 / 4 + 2 * 11 / 12 + 5 / 4 + 2) if kind == "prune" else 30)


@pytest.mark.parametrize("kind", ["ps", "dfs", "none", "hybrid", "batches", "first", "prune", "repeat"])
def test_resuming_changes_nothing(kind: str, tmp_path: Path) -> None:
    """Stopped anywhere, once or many times, and resumed, a search ends with the trials and results of one never stopped."""
    study, result = _search(tmp_path / "whole", ToyRunner(), kind)
    expected, table = _columns(study), _table(result)
    whole = ToyRunner()
    _search(tmp_path / "again", whole, kind)
    total = len(whole.jobs)
    stops = {0, 1, 3, 9, 12, 33, total - 5, total - 1}
    for stop in (stop for stop in sorted(stops) if stop < total):
        folder = tmp_path / str(stop)
        with pytest.raises(StoppedError):
            _search(folder, ToyRunner(stop_after=stop), kind)
        rest = ToyRunner()
        study, result = _search(folder, rest, kind)
        assert _columns(study) == expected
        assert _table(result) == table
        assert len(rest.jobs) == total - stop
    folder, pieces = tmp_path / "pieces", 0
    while True:
        try:
            study, result = _search(folder, ToyRunner(stop_after=11, shuffle=pieces), kind)
            break
        except StoppedError:
            pieces += 1
    assert pieces == (total - 1) // 11
    assert (_columns(study), _table(result)) == (expected, table)


@pytest.mark.parametrize("kind", ["ps", "none", "hybrid"])
def test_the_order_of_finishing_changes_nothing(kind: str, tmp_path: Path) -> None:
    """However many workers finish in whatever order, the trials are the same."""
    expected = _columns(_search(tmp_path / "in order", ToyRunner(), kind)[0])
    for shuffle in range(2):
        assert _columns(_search(tmp_path / str(shuffle), ToyRunner(shuffle=shuffle), kind)[0]) == expected


def test_another_seed_is_another_search(tmp_path: Path) -> None:
    """The seed decides the genomes of every stage, and the stages of one search do not repeat each other's."""
    first = _columns(_search(tmp_path / "0", ToyRunner(), "hybrid")[0])
    other = _columns(_search(tmp_path / "1", ToyRunner(), "hybrid", seed=1)[0])
    assert not {row[4] for row in first} & {row[4] for row in other if row[0] != "dfs"}
    ps = {**SPACES["ps"]["ps"], "optimizer": {**OPTIMIZER, "algorithm": "random"}}
    both = _columns(_search(tmp_path / "2", ToyRunner(), ps=ps, baselines=["average", "random"])[0])
    assert len({row[4] for row in both}) == len(both) == 62


def test_a_failed_candidate_is_a_failed_trial(tmp_path: Path) -> None:
    """A candidate that fails is stored as FAILED with its message, and the search goes on to a good winner."""

    def fails(job: Job) -> bool:
        return isinstance(job.target, Recipe) and job.split == "search" and toy_scores(job)[0] < -0.25

    study, result = _search(tmp_path, ToyRunner(fails=fails))
    states = [trial.state for trial in study.trials()]
    assert 0 < states.count("FAILED") < 31
    assert all((trial.scores.error == "toy: this one fails") == (trial.state == "FAILED") for trial in study.trials())
    assert all(trial.fitness is None for trial in study.trials() if trial.state == "FAILED")
    assert study.best("ps")[0].state == "COMPLETE"
    assert max(row.scores.mean or -9 for row in result.rows if row.winner) > -0.2


def test_all_failing_is_one_line(tmp_path: Path) -> None:
    """Where the whole first generation fails, the search ends after it with one line that says why."""
    runner = ToyRunner(fails=lambda job: isinstance(job.target, Recipe))
    with pytest.raises(SearchError) as caught:
        _search(tmp_path, runner)
    assert str(caught.value) == "ps: every candidate of the first generation failed: toy: this one fails"
    assert len(Study.open(tmp_path).trials()) == 7


def test_a_parent_that_fails_ends_the_search_until_it_is_mended(tmp_path: Path) -> None:
    """A parent that cannot be evaluated ends the search before a trial is made; once it can be, the search goes on."""
    runner = ToyRunner(fails=lambda job: job.target == SourceRef(model="b"))
    with pytest.raises(SearchError, match="b: cannot be evaluated: toy: this one fails"):
        _search(tmp_path, runner)
    assert Study.open(tmp_path).trials() == []
    assert len(_search(tmp_path, ToyRunner())[0].trials()) == 31


def test_identical_recipes_are_evaluated_once(tmp_path: Path) -> None:
    """Genomes that decode to the same recipe share one evaluation; each is still a trial of its own, pointing at the first."""
    runner = ToyRunner()
    study, _ = _search(tmp_path, runner, "none")
    trials = study.trials("dfs")
    evaluated = [job.target.to_yaml() for job in runner.jobs if job.split == "search" and isinstance(job.target, Recipe)]
    duplicates = [trial for trial in trials if trial.duplicate_of is not None]
    assert len(evaluated) == len(set(evaluated)) == len({trial.recipe_key for trial in trials})
    assert len(evaluated) + len(duplicates) == len(trials) == 31
    assert duplicates
    for trial in duplicates:
        original = trials[trial.duplicate_of or 0]
        assert original.duplicate_of is None
        assert original.number < trial.number
        assert (original.recipe_key, original.fitness) == (trial.recipe_key, trial.fitness)
        assert trial.scores.seconds == 0


@pytest.mark.parametrize(("budget", "generations"), [(1, [1]), (7, [7]), (15, [7, 7, 1]), (20, [7, 7, 6])])
def test_the_budget_is_exact(budget: int, generations: list[int], tmp_path: Path) -> None:
    """The number of trials is the budget, also where that is no multiple of the population."""
    ps = {**SPACES["ps"]["ps"], "optimizer": {"evaluations": budget, "population": 7}}
    study, _ = _search(tmp_path, ToyRunner(), ps=ps)
    seen = [trial.generation for trial in study.trials()]
    assert [seen.count(generation) for generation in sorted(set(seen))] == generations


def test_a_larger_budget_goes_on(tmp_path: Path) -> None:
    """The trials of a small budget are the first trials of a larger one."""
    ps = {**SPACES["ps"]["ps"], "optimizer": {"evaluations": 14, "population": 7}}
    small = _columns(_search(tmp_path / "small", ToyRunner(), ps=ps)[0])
    assert small == _columns(_search(tmp_path / "large", ToyRunner())[0])[:14]


def test_no_generation_starts_after_the_minutes(tmp_path: Path) -> None:
    """A budget in minutes that is spent ends a stage after a whole generation, and a resumed search does not exceed it."""
    ps = {**SPACES["ps"]["ps"], "optimizer": {**OPTIMIZER, "minutes": 1e-9}}
    with pytest.raises(SearchError):  # no time at all: no trial
        _search(tmp_path / "none", ToyRunner(), ps=ps)
    study, _ = _search(tmp_path / "some", ToyRunner(), ps={**ps, "optimizer": {**OPTIMIZER, "evaluations": 7}})
    study.set_meta("seconds:ps", 100.0)
    study, _ = _search(tmp_path / "some", ToyRunner(), ps={**ps, "optimizer": {**OPTIMIZER, "minutes": 1.0}})
    assert len(study.trials()) == 7


def test_validation_chooses_the_winner(tmp_path: Path) -> None:
    """The winner is the finalist that scores best on the validation split, not the one that scored best in the search."""

    def scores(job: Job) -> np.ndarray:
        if job.split == "validation":
            return -toy_scores(Job(job.target, "search"))
        return toy_scores(job)

    study, result = _search(tmp_path, ToyRunner(scores=scores))
    finalists = study.best("ps", 3)
    assert result.winner.key == finalists[2].recipe_key
    assert study.evaluation(result.winner.key, "test") is not None
    assert study.evaluation(finalists[0].recipe_key or "", "test") is None


def test_a_validation_fitness_of_zero_is_a_fitness(tmp_path: Path) -> None:
    """Of finalists that score below zero and one that scores exactly zero, the latter wins, before those that fail."""

    def scores(job: Job) -> np.ndarray:
        if job.split != "validation" or not (best := study.best("ps")):
            return toy_scores(job)
        return np.full(EXAMPLES, 0.0 if job.target == study.recipe(best[0].recipe_key or "") else -1.0)

    study = Study.create(tmp_path, {})
    runner = ToyRunner(scores=scores)
    result = Search(
        _config("ps"), study, runner, sources=SourceSummary(LAYERS), splits=dict.fromkeys(("search", "validation"), EXAMPLES)
    ).run()
    assert result.winner.key == study.best("ps")[0].recipe_key


def test_without_validation_the_search_fitness_chooses(tmp_path: Path) -> None:
    """Without a validation split the best trial wins, and of a hybrid search's stages the one with the better trial."""
    study, result = _search(tmp_path / "ps", ToyRunner(), splits=("search", "test"))
    assert result.winner.key == study.best("ps")[0].recipe_key

    def dfs_is_better(job: Job) -> np.ndarray:
        return toy_scores(job) + (5.0 if isinstance(job.target, Recipe) and job.target.flow else 0.0)

    for scores, better in ((dfs_is_better, "dfs"), (lambda job: -dfs_is_better(job), "ps")):
        study, result = _search(tmp_path / better, ToyRunner(scores=scores), "hybrid", splits=("search",))
        assert result.winner.key == study.best(better)[0].recipe_key
        assert [(row.stage, row.model) for row in result.rows if row.winner] == [
            ("ps", "evolved PS") if better == "ps" else ("dfs", "evolved PS+DFS")
        ]


def test_the_test_split_is_touched_once(tmp_path: Path) -> None:
    """Each model is evaluated on the test split exactly once, at the end, however often the search is run."""
    first, second = ToyRunner(), ToyRunner()
    _, result = _search(tmp_path, first, "hybrid", base={"model": "c"})
    again = _search(tmp_path, second, "hybrid", base={"model": "c"})[1]
    tested = [str(job.target) for job in first.jobs if job.split == "test"]
    assert len(tested) == len(set(tested)) == len(result.rows) == 7
    assert [job.split for job in first.jobs[-7:]] == ["test"] * 7
    assert second.jobs == []
    assert _table(again) == _table(result)


def test_only_the_search_split_scores_candidates(tmp_path: Path) -> None:
    """Validation sees only finalists, the test split only what the table shows."""
    runner = ToyRunner()
    _search(tmp_path, runner)
    splits = [job.split for job in runner.jobs]
    assert (splits.count("search"), splits.count("validation"), splits.count("test")) == (2 + 31, 3, 2 + 1 + 1)


def test_rows_of_the_table(tmp_path: Path) -> None:
    """The table has the parents, the plain average and the winner of each stage, with what each has cost."""
    _, result = _search(tmp_path, ToyRunner(), "hybrid", base={"model": "org/c"})
    rows = [(row.stage, row.model, row.evaluations) for row in result.rows]
    fixed = [("base", "base: c", 0), ("source", "a", 0), ("source", "b", 0), ("average", "uniform average", 0)]
    assert rows == [*fixed, ("ps", "evolved PS", 31), ("dfs", "evolved PS+DFS", 51), ("random", "random search", 51)]
    assert result.split == "test"
    assert sum(row.winner for row in result.rows) == 1


def test_sources_of_different_depth_have_no_average(tmp_path: Path) -> None:
    """Where sources have different numbers of layers, no average of their weights is tried."""
    runner = ToyRunner()
    search = Search(_config("dfs"), Study.create(tmp_path, {}), runner, sources=SourceSummary([3, 4]))
    assert [row.model for row in search.run().rows] == ["a", "b", "evolved DFS"]
    assert not any(isinstance(job.target, Recipe) and job.target.flow is None for job in runner.jobs)


def test_batches(tmp_path: Path) -> None:
    """All candidates of a generation are scored on the same examples, another generation on others; finals and means on all."""
    runner = ToyRunner()
    _search(tmp_path, runner, "batches")
    generations = [jobs for jobs in runner.rounds if jobs and isinstance(jobs[0].target, Recipe) and jobs[0].split == "search"]
    batches = [{job.batch for job in jobs} for jobs in generations]
    assert all(len(batch) == 1 for batch in batches)
    means = [jobs for jobs, batch in zip(generations, batches, strict=True) if batch == {None}]
    assert len(means) > 2
    assert means[-1] == generations[-1]  # the mean of the distribution, now and then and at the end
    assert all(len(jobs) == 1 for jobs in means)
    drawn = [batch.pop() for batch in batches if batch != {None}]
    assert len(set(drawn)) == len(drawn) > 8
    assert all(len(set(batch or ())) == 4 and list(batch or ()) == sorted(batch or ()) for batch in drawn)
    assert {i for batch in drawn for i in batch or ()} <= set(range(EXAMPLES))
    assert all(job.batch is None for job in runner.jobs if job.split != "search" or isinstance(job.target, SourceRef))


def test_batches_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default a generation has 16 examples, and twice as many after every so many generations, up to half of all."""
    monkeypatch.setattr(optimizer, "GROWTH", 4)

    def scores(job: Job) -> np.ndarray:
        return np.resize(toy_scores(Job(job.target)), 64 if job.batch is None else len(job.batch))

    study = Study.create(tmp_path, {})
    Search(_config("ps"), study, ToyRunner(scores=scores), sources=SourceSummary(LAYERS), splits={"search": 64}).run()
    trials = study.trials("ps")
    generations = [[trial for trial in trials if trial.generation == number] for number in range(trials[-1].generation + 1)]
    sizes = [found[0].scores.values.size for found in generations if len(found) > 1]
    assert sizes == [16] * 4 + [32] * (len(sizes) - 4)
    assert len(sizes) > 6
    assert {found[0].scores.values.size for found in generations if len(found) == 1} == {64}
    assert all(trial.cost == trial.scores.values.size / 64 for trial in trials)
    assert 31 - 1 - 7 / 2 < sum(trial.cost for trial in trials) <= 31


def test_a_recipe_is_scored_anew_on_other_examples(tmp_path: Path) -> None:
    """With batches a recipe that comes back in a later generation is no duplicate: its old score was on other examples."""
    study, _ = _search(tmp_path, ToyRunner(), "none", batch=4)
    trials = study.trials("dfs")
    for trial in trials:
        if trial.duplicate_of is not None and trial.scores.values.size < EXAMPLES:
            assert trials[trial.duplicate_of].generation == trial.generation
    evaluated = [(trial.recipe_key, trial.generation) for trial in trials if trial.duplicate_of is None]
    assert len(evaluated) == len(set(evaluated))
    assert len({key for key, _ in evaluated}) < len(evaluated)


def test_a_batch_of_all_is_no_batch(tmp_path: Path) -> None:
    """A batch as large as the split is the split."""
    runner = ToyRunner()
    _search(tmp_path, runner, batch=EXAMPLES)
    assert {job.batch for job in runner.jobs} == {None}


def test_a_stage_begins_at_the_winner_of_its_first(tmp_path: Path) -> None:
    """What runs first has its own fitness; the stage after it begins at its best genome, near by, and shares its row's cost."""
    runner = ToyRunner()
    study, result = _search(tmp_path, runner, "first")
    for first, stage in (("ps-first", "ps"), ("dfs-first", "dfs")):
        best, trials = study.best(first)[0], study.trials(stage)
        assert trials[0].genome.tobytes() == best.genome.tobytes()
        assert (trials[0].generation, trials[1].generation, trials[0].cost) == (0, 1, 1.0)
        spread = np.std([trial.genome - best.genome for trial in trials if trial.generation == 1])
        assert 0.02 < spread < 0.06
    searched = [job for job in runner.jobs if job.split == "search" and isinstance(job.target, Recipe)]
    assert [job.fitness is not None for job in searched[:15]] == [True] * 14 + [False]
    assert all(job.fitness is None for job in runner.jobs if job not in searched[:14])
    assert all((trial.fitness or 0) > 5 for trial in study.trials("ps-first"))
    rows = [(row.stage, row.model, row.evaluations) for row in result.rows[-4:]]
    assert rows == [
        ("ps-first", "first PS", 14),
        ("ps", "evolved PS", 45),
        ("dfs-first", "first PS+DFS", 57),
        ("dfs", "evolved PS+DFS", 77),
    ]
    assert result.row("ps-first").scores.mean < 5  # type: ignore[operator]
    assert {trial.recipe_key for trial in study.trials("dfs-first")}.isdisjoint(
        {trial.recipe_key for trial in study.trials("ps")}
    )


def test_the_winner_of_what_runs_first_may_win(tmp_path: Path) -> None:
    """Where evolution finds nothing better, the stage's winner is that of what ran first, judged by the search's fitness."""
    at_first: list[str] = []

    def scores(job: Job) -> np.ndarray:
        if job.split == "search" and job.fitness is not None and isinstance(job.target, Recipe):
            at_first.append(job.target.key)
        worse = isinstance(job.target, Recipe) and job.target.key not in at_first
        return toy_scores(job) - (5.0 if worse else 0.0)

    for splits in (("search", "validation", "test"), ("search", "test")):
        study, result = _search(tmp_path / splits[1], ToyRunner(scores=scores), "first", space="ps", splits=splits)
        assert result.winner.key == study.best("ps-first")[0].recipe_key
        assert [row.stage for row in result.rows if row.winner] == ["ps"]


def test_the_random_baseline_has_the_budget_of_all_stages(tmp_path: Path) -> None:
    """The random search makes as many trials as the other stages together, in the space of the first, and cannot win."""

    def scores(job: Job) -> np.ndarray:
        merge_only = isinstance(job.target, Recipe) and job.target.flow is None
        return toy_scores(job) if not merge_only or job.split == "search" else np.full(EXAMPLES, 99.0)

    study, result = _search(tmp_path, ToyRunner(scores=scores), "hybrid")
    randoms = study.trials("random")
    assert len(randoms) == 31 + 20
    assert {study.recipe(trial.recipe_key or "").flow for trial in randoms} == {None}
    assert result.row("random").winner is False


def test_dfs_of_a_hybrid_search_builds_on_the_winner_of_ps(tmp_path: Path) -> None:
    """Every DFS recipe of a hybrid search carries the merge that validation chose, as its first source."""
    study, _ = _search(tmp_path, ToyRunner(), "hybrid")
    finalists = [trial.recipe_key or "" for trial in study.best("ps", 3)]
    chosen = max(finalists, key=lambda key: study.evaluation(key, "validation").mean)  # type: ignore[union-attr, return-value, arg-type]
    for trial in study.trials("dfs"):
        recipe = study.recipe(trial.recipe_key or "")
        assert recipe.merge == study.recipe(chosen).merge
        assert recipe.flow is not None
        assert recipe.flow.embedding_source == 2
        assert recipe.flow.path[0] == "2:0"


def test_a_study_of_another_search_is_refused(tmp_path: Path) -> None:
    """Going on with other settings is refused: by the first genome that differs, or by trials that are left over."""
    _search(tmp_path, ToyRunner())
    with pytest.raises(SearchError, match="ps trial 0: the stored genome is not the one"):
        _search(tmp_path, ToyRunner(), seed=1)
    ps = {**SPACES["ps"]["ps"], "optimizer": {"evaluations": 14, "population": 7}}
    with pytest.raises(SearchError, match="the study holds trial 14, which this search never asked for"):
        _search(tmp_path, ToyRunner(), ps=ps)


def test_progress(tmp_path: Path) -> None:
    """One report comes after every trial and evaluation; the best never falls, and replayed trials are told from fresh ones."""
    reports: list[Progress] = []
    with pytest.raises(StoppedError):
        _search(tmp_path, ToyRunner(stop_after=2 + 10), callbacks=[Watch(reports.append)])
    assert [report.done for report in reports if report.phase == "ps"] == list(range(1, 11))
    reports.clear()
    _search(tmp_path, ToyRunner(), callbacks=[Watch(reports.append)])
    stage = [report for report in reports if report.phase == "ps"]
    assert [report.done for report in stage] == list(range(1, 32))
    assert all(report.total == 31 for report in stage)
    assert [report.fresh for report in stage] == [0] * 10 + list(range(1, 22))
    bests = [report.best for report in stage if report.best is not None]
    assert bests == sorted(bests)
    assert {report.phase for report in reports} == {"ps", "finalists", "test"}


def test_the_best_of_batches_is_not_reported(tmp_path: Path) -> None:
    """The best so far is that of trials scored on all examples; until there is one, none."""
    reports: list[Progress] = []
    study, _ = _search(tmp_path, ToyRunner(), "batches", callbacks=[Watch(reports.append)])
    stage, best = [report for report in reports if report.phase == "ps"], None
    for report, trial in zip(stage, study.trials("ps"), strict=True):
        if trial.scores.values.size == EXAMPLES and trial.fitness is not None:
            best = trial.fitness if best is None else max(best, trial.fitness)
        assert report.best == best
    assert stage[0].best is None


def test_two_searches_cannot_write_to_one_study(tmp_path: Path) -> None:
    """A search refuses a study that another holds, and writes nothing."""
    study = Study.create(tmp_path, {})
    with study.exclusive(), pytest.raises(SearchError, match="another process is running this study"):
        _search(tmp_path, ToyRunner())
    assert study.trials() == []


class Recorder(SearchCallback):
    """Notes what it is told, and stops each stage after so many generations; afterwards it would not."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.trials, self.stages = stop_after, list[Trial](), list[tuple[str, int]]()
        self.generations: list[Generation] = []

    def on_trial(self, study: Study, trial: Trial) -> None:
        """A trial that the study has."""
        assert study.trials(trial.stage)[trial.number].fitness == trial.fitness
        self.trials.append(trial)

    def on_generation(self, study: Study, generation: Generation) -> None:
        """A generation."""
        self.generations.append(generation)

    def on_stage(self, study: Study, stage: str, trials: Sequence[Trial]) -> None:
        """A stage with all its trials."""
        assert [trial.number for trial in trials] == [trial.number for trial in study.trials(stage)]
        self.stages.append((stage, len(trials)))

    def should_stop(self, study: Study, generation: Generation) -> bool:
        """Whether there were enough."""
        return self.stop_after is not None and generation.number + 1 >= self.stop_after


def test_callbacks(tmp_path: Path) -> None:
    """Callbacks are told of every new trial once, of every generation, also replayed ones, and of the end of every stage."""
    first, second, third = Recorder(), Recorder(), Recorder()
    with pytest.raises(StoppedError):
        _search(tmp_path, ToyRunner(stop_after=2 + 10), "hybrid", callbacks=[first])
    study, _ = _search(tmp_path, ToyRunner(), "hybrid", callbacks=[second])
    told = [(trial.stage, trial.number) for trial in [*first.trials, *second.trials]]
    assert sorted(told) == sorted((trial.stage, trial.number) for trial in study.trials())
    assert len(first.generations) == 1
    generations = [(each.stage, each.number) for each in second.generations]
    assert generations == list(dict.fromkeys(generations))
    assert [each.replayed for each in second.generations] == [True] + [False] * (len(generations) - 1)
    assert second.generations[0].trials[0].fitness == first.generations[0].trials[0].fitness
    assert [stage for stage, _ in second.stages] == ["ps", "dfs", "random"]
    _search(tmp_path, ToyRunner(), "hybrid", callbacks=[third])
    assert third.trials == []
    assert [(each.stage, each.number) for each in third.generations] == generations
    for each in third.generations:
        assert each.evaluations <= sum(trial.cost for trial in study.trials(each.stage))
        assert each.mean == pytest.approx(np.mean([trial.fitness for trial in each.trials]))
        assert each.best is not None


def test_a_stage_that_was_stopped_stays_so(tmp_path: Path) -> None:
    """A stage that a callback ends is not gone on with when the search is resumed, wherever it was killed."""
    study, result = _search(tmp_path / "whole", ToyRunner(), "hybrid", callbacks=[Recorder(stop_after=2)])
    assert [sum(trial.stage == stage for trial in study.trials()) for stage in ("ps", "dfs", "random")] == [14, 12, 14]
    expected, table = _columns(study), _table(result)
    _, again = _search(tmp_path / "whole", ToyRunner(stop_after=0), "hybrid")  # nothing is evaluated, and nobody stops it
    assert _table(again) == table
    for stop_after in (2 + 9, 2 + 14, 2 + 14 + 3 + 4):
        folder = tmp_path / f"stopped-{stop_after}"
        with pytest.raises(StoppedError):
            _search(folder, ToyRunner(stop_after=stop_after), "hybrid", callbacks=[Recorder(stop_after=2)])
        resumed, result = _search(folder, ToyRunner(), "hybrid", callbacks=[Recorder(stop_after=2)])
        assert _columns(resumed) == expected
        assert _table(result) == table


def test_patience(tmp_path: Path) -> None:
    """A stage ends when its last generations are no better than those before: soon where nothing moves, late where it does."""
    impatient = {"ps": {**SPACES["ps"]["ps"], "optimizer": {"evaluations": 700, "population": 7, "patience": 2}}}
    flat, _ = _search(tmp_path / "flat", ToyRunner(scores=lambda job: np.zeros(EXAMPLES)), **impatient)
    assert len(flat.trials("ps")) == 4 * 7
    study, result = _search(tmp_path / "whole", ToyRunner(), **impatient)
    found = len(study.trials("ps"))
    assert 4 * 7 < found < 700
    assert max(trial.fitness or -9 for trial in study.trials("ps")) > -0.02 + _hardness("search").mean()
    with pytest.raises(StoppedError):
        _search(tmp_path / "stopped", ToyRunner(stop_after=found // 2), **impatient)
    resumed, again = _search(tmp_path / "stopped", ToyRunner(), **impatient)
    assert (_columns(resumed), _table(again)) == (_columns(study), _table(result))
    with pytest.raises(SearchError, match="patience: goes with algorithm: cma, whose generations get better"):
        _config("ps", ps={"optimizer": {"algorithm": "random", "patience": 2}})


def test_parents_in_folders_of_one_name_are_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two fine-tunes that were both saved as ``final`` have names of their own in notes, table and verdict."""
    parents = {"sources": [{"model": "runs/m/final"}, {"model": "runs/j/final"}], "base": {"model": "base/final"}}
    better = {"runs/m/final": -1.0, "runs/j/final": -4.0, "base/final": -3.0}

    def scores(job: Job) -> np.ndarray:
        return toy_scores(job) + (better[job.target.model] if isinstance(job.target, SourceRef) else -20.0)

    with caplog.at_level("INFO"):
        _, result = _search(tmp_path, ToyRunner(scores=scores), **parents)
    assert [row.model for row in result.rows][:3] == ["base: base/final", "m/final", "j/final"]
    assert any("its best parent, m/final" in sentence for sentence in result.verdict)
    assert "by m/final alone" in caplog.text or "ahead of m/final, the best" in caplog.text
