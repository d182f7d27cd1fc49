"""A whole search over a toy fitness: what is evaluated, kept and told. No model is loaded."""

from itertools import groupby

import numpy as np
import pytest
from refusals import refused
from searches import facts
from slowly import slow_beyond
from toy_search import (
    EXAMPLES,
    LAYERS,
    OPTIMIZER,
    OTHERS,
    SPACES,
    StoppedError,
    ToyRunner,
    hardness,
    is_recipe,
    table_rows,
    toy_config,
    toy_scores,
    toy_search,
)
from watch import Watch

from hf_evomerge import SearchCallback, SourceRef
from hf_evomerge.errors import SearchError
from hf_evomerge.search.evaluation.sources import SourceSummary
from hf_evomerge.search.optimizers import ask_tell as optimizer
from hf_evomerge.search.phases.phase import SearchRun
from hf_evomerge.search.run import run_phases
from hf_evomerge.search.runners.job import Job
from hf_evomerge.search.study.study import Study


@pytest.mark.parametrize("kind", SPACES)
def test_a_search_finds_something_good(kind, tmp_path):
    """Each kind of search spends its budget exactly and ends with a winner better than every
    parent."""
    study, result = toy_search(tmp_path, ToyRunner(), kind)
    # the mean of a distribution at the end leaves no room for part of a generation
    room = 7 * 4 / EXAMPLES + 1 if kind == "batches" else 0
    stages = toy_config(kind).stages
    for stage in stages:
        spent = sum(trial.cost for trial in study.trials(stage.name))
        assert stage.evaluations - room - 1e-9 < spent < stage.evaluations + 1e-9
    assert {trial.stage for trial in study.trials()} == {stage.name for stage in stages}
    first, second, *others = result.rows
    (winner,) = (row.scores.mean for row in others if row.winner)
    assert winner > max(first.scores.mean, second.scores.mean, -0.5)
    assert study.recipe(result.winner.key) == result.winner


def test_a_sweep_finds_the_best_path_of_one_model(tmp_path):
    """The layers that count least are left out one after the other, which costs what was said."""
    worth = [0.5, 0.4, 0.0, 0.3, 0.1, 0.6]

    def scores(job):
        flow = job.target.flow if is_recipe(job) else None
        layers = flow.to_path().unique_layers if flow else ()
        values = sum(worth[layer] for _, layer in layers) + hardness(job.split)
        return values if job.batch is None else values[list(job.batch)]

    study, result = toy_search(tmp_path, ToyRunner(scores=scores), "prune")
    assert str(result.winner.flow.to_path()) == "0:0, 0:1, 0:3, 0:5"
    assert result.winner.flow.scales is None
    trials = study.trials("dfs")
    moves = [6, 2, 5, 2]  # a quarter goes on to four times as many examples
    assert [sum(trial.generation == each for trial in trials) for each in range(4)] == moves
    assert sum(trial.cost for trial in trials) == pytest.approx(6 / 4 + 2 * 11 / 12 + 5 / 4 + 2)


def test_a_failed_candidate_is_a_failed_trial(tmp_path):
    """A candidate that fails is stored as FAILED with its message, and the search goes on to a good
    winner."""

    def fails(job):
        return is_recipe(job) and job.split == "search" and toy_scores(job)[0] < -0.25

    study, result = toy_search(tmp_path, ToyRunner(fails=fails))
    kinds = {(trial.state, trial.scores.error, trial.fitness is None) for trial in study.trials()}
    assert kinds == {("COMPLETE", None, False), ("FAILED", "toy: this one fails", True)}
    assert study.best("ps")[0].state == "COMPLETE"
    assert result.row("ps").scores.mean > -0.2


def test_a_parent_that_fails_ends_the_search_until_it_is_mended(tmp_path):
    """A parent that cannot be evaluated ends the search before a trial is made; once it can be, the
    search goes on."""
    runner = ToyRunner(fails=lambda job: job.target == SourceRef(model="b"))
    with refused(SearchError, "b: cannot be evaluated: toy: this one fails"):
        toy_search(tmp_path, runner)
    assert Study.open(tmp_path).trials() == []
    assert len(toy_search(tmp_path, ToyRunner())[0].trials()) == 31


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_failed_evaluation_is_a_row_of_the_results(split, tmp_path):
    """Where the first finalist or parent fails on a split, the search ends; going on ends with the
    same table, and free."""
    asked = []

    def fails(job):
        asked.append(job.split)
        return asked[-1] == split and asked.count(split) == 1

    study, result = toy_search(tmp_path, ToyRunner(fails=fails))
    stored = [
        study.evaluation(label, split) for label, judged in study.evaluated() if judged == split
    ]
    assert "toy: this one fails" in [scores.error for scores in stored]
    again = ToyRunner()
    assert table_rows(toy_search(tmp_path, again)[1]) == table_rows(result)
    assert again.jobs == []


def test_identical_recipes_are_evaluated_once(tmp_path):
    """Genomes that decode to the same recipe share one evaluation; each is still a trial of its
    own, pointing at the first."""
    runner = ToyRunner()
    study, _ = toy_search(tmp_path, runner, "none")
    trials = study.trials("dfs")
    evaluated = [job.target.key for job in runner.jobs if job.split == "search" and is_recipe(job)]
    duplicates = [trial for trial in trials if trial.duplicate_of is not None]
    assert len(evaluated) == len(set(evaluated)) == len({trial.recipe_key for trial in trials})
    assert len(evaluated) + len(duplicates) == len(trials) == 31
    assert duplicates
    for trial in duplicates:
        original = trials[trial.duplicate_of]
        assert original.duplicate_of is None
        assert original.number < trial.number
        assert (original.recipe_key, original.fitness) == (trial.recipe_key, trial.fitness)
        assert trial.scores.seconds == 0


def test_no_generation_starts_after_the_minutes(tmp_path):
    """A budget in minutes that is spent ends a stage after a whole generation, and a resumed search
    does not exceed it."""

    def search(folder, **budget):
        return toy_search(tmp_path / folder, ToyRunner(), optimize=[{**OPTIMIZER, **budget}])[0]

    with refused(SearchError, "ps: ended before its first trial; give it more minutes"):
        search("none", minutes=1e-9)
    search("some", evaluations=7).set_meta("seconds", 100.0, "ps")
    assert len(search("some", minutes=1.0).trials()) == 7


def test_batches(tmp_path):
    """All candidates of a generation are scored on the same examples, another generation on others;
    finals and means on all."""
    runner = ToyRunner()
    toy_search(tmp_path, runner, "batches")
    generations = [
        jobs for jobs in runner.rounds if jobs and is_recipe(jobs[0]) and jobs[0].split == "search"
    ]
    drawn = []
    for jobs in generations:
        (batch,) = {job.batch for job in jobs}
        if batch is not None:
            drawn.append(batch)
            assert [*batch] == sorted({*range(EXAMPLES)} & {*batch})
            assert len(batch) == 4
    assert len(set(drawn)) == len(drawn) > 8
    means = [jobs for jobs in generations if jobs[0].batch is None]
    assert len(means) > 2
    assert means[-1] == generations[-1]  # the mean of the distribution, now and then and at the end
    assert {len(jobs) for jobs in means} == {1}
    others = [job for job in runner.jobs if job.split != "search" or not is_recipe(job)]
    assert {job.batch for job in others} == {None}


def test_batches_grow(tmp_path, monkeypatch):
    """By default a generation has 16 examples, and twice as many after every so many generations,
    up to half of all."""
    monkeypatch.setattr(optimizer, "GROWTH", 4)

    def scores(job):
        return np.resize(toy_scores(Job(job.target)), 64 if job.batch is None else len(job.batch))

    study = Study.create(tmp_path, {})
    runner = ToyRunner(scores=scores)
    sources = SourceSummary(LAYERS)
    run_phases(SearchRun(toy_config("ps"), study, runner, sources, {"search": 64}))
    trials = study.trials("ps")
    generations = [[*each] for _, each in groupby(trials, key=lambda trial: trial.generation)]
    sizes = [each[0].scores.values.size for each in generations if len(each) > 1]
    assert sizes == [16] * 4 + [32] * (len(sizes) - 4)
    assert len(sizes) > 6
    assert {each[0].scores.values.size for each in generations if len(each) == 1} == {64}
    assert all(trial.cost == trial.scores.values.size / 64 for trial in trials)
    assert 31 - 1 - 7 / 2 < sum(trial.cost for trial in trials) <= 31


def test_a_stage_begins_at_the_winner_of_its_first(tmp_path):
    """What runs first has its own fitness; the stage after it begins at its best genome, near by,
    and shares its row's cost."""
    runner = ToyRunner()
    study, result = toy_search(tmp_path, runner, "first")
    keys = {}
    for first, stage in (("ps-first", "ps"), ("dfs-first", "dfs")):
        best = study.best(first)[0]
        trials = study.trials(stage)
        keys[stage] = {trial.recipe_key for trial in trials}
        assert trials[0].genome.tobytes() == best.genome.tobytes()
        assert (trials[0].generation, trials[1].generation, trials[0].cost) == (0, 1, 1.0)
        spread = np.std([trial.genome - best.genome for trial in trials if trial.generation == 1])
        assert 0.02 < spread < 0.06
    searched = [job for job in runner.jobs if job.split == "search" and is_recipe(job)]
    assert [job for job in runner.jobs if job.fitness is not None] == searched[:14]
    assert all(trial.fitness > 5 for trial in study.trials("ps-first"))
    rows = [(row.stage, row.model, row.evaluations) for row in result.rows[-4:]]
    assert rows == [
        ("ps-first", "first PS", 14),
        ("ps", "evolved PS", 45),
        ("dfs-first", "start of first PS+DFS: the merged model", 57),
        ("dfs", "evolved PS+DFS", 77),
    ]
    assert result.row("ps-first").scores.mean < 5
    assert keys["ps"].isdisjoint(trial.recipe_key for trial in study.trials("dfs-first"))


def test_dfs_of_a_hybrid_search_builds_on_the_winner_of_ps(tmp_path):
    """Every DFS recipe of a hybrid search carries the merge that validation chose, as its first
    source."""

    def scores(job):
        return -toy_scores(job) if job.split == "validation" else toy_scores(job)

    study, _ = toy_search(tmp_path, ToyRunner(scores=scores), "hybrid")
    *_, chosen = study.best("ps", 8)
    merge = study.recipe(chosen.recipe_key).merge
    for trial in study.trials("dfs"):
        recipe = study.recipe(trial.recipe_key)
        flow = recipe.flow
        assert (recipe.merge, flow.embedding_source, flow.path[0]) == (merge, 2, "2:0")


# ---- stopped, resumed, evaluated in another order


@pytest.mark.parametrize("kind", slow_beyond(["ps", "dfs", "prune", "rows"], [*SPACES, *OTHERS]))
def test_resuming_changes_nothing(kind, tmp_path):
    """Stopped anywhere, once or many times, and resumed, a search ends with the trials and results
    of one never stopped."""
    whole = ToyRunner()
    _, result = toy_search(tmp_path / "whole", whole, kind)
    expected = facts(tmp_path / "whole")
    total = len(whole.jobs)
    # the pieces below end at every eleventh job
    for stop in sorted({0, 3, min(9, total - 2), total - 5, total - 1}):
        folder = tmp_path / str(stop)
        with pytest.raises(StoppedError):
            toy_search(folder, ToyRunner(stop_after=stop), kind)
        rest = ToyRunner()
        _, again = toy_search(folder, rest, kind)
        assert (facts(folder), table_rows(again)) == (expected, table_rows(result))
        assert len(rest.jobs) == total - stop
    folder = tmp_path / "pieces"
    for piece in range((total - 1) // 11):
        with pytest.raises(StoppedError):
            toy_search(folder, ToyRunner(stop_after=11, shuffle=piece), kind)
    _, again = toy_search(folder, ToyRunner(stop_after=11, shuffle=99), kind)
    assert (facts(folder), table_rows(again)) == (expected, table_rows(result))


def _genomes(study, stage=None):
    return {trial.genome.tobytes() for trial in study.trials(stage)}


def test_another_seed_is_another_search(tmp_path):
    """The seed decides the genomes of every stage, and the stages of one search do not repeat each
    other's."""
    first = toy_search(tmp_path / "0", ToyRunner(), "hybrid")[0]
    other = toy_search(tmp_path / "1", ToyRunner(), "hybrid", compute="{seed: 1}")[0]
    for stage in ("ps", "dfs"):
        assert _genomes(first).isdisjoint(_genomes(other, stage))
    step = "{by: random, evaluations: 31, population: 7}"
    both = toy_search(tmp_path / "2", ToyRunner(), optimize=f"[{step}, {step}]")[0]
    assert len(_genomes(both)) == len(both.trials()) == 62


def test_a_study_of_another_search_is_refused(tmp_path):
    """Going on with other settings is refused: by the first genome that differs, or by trials that
    are left over."""
    toy_search(tmp_path, ToyRunner())
    with refused(SearchError, "ps trial 0: the stored genome is not the one"):
        toy_search(tmp_path, ToyRunner(), compute="{seed: 1}")
    with refused(SearchError, "the study holds trial 14, which this search never asked for"):
        toy_search(tmp_path, ToyRunner(), optimize="[{evaluations: 14, population: 7}]")


def test_two_searches_cannot_write_to_one_study(tmp_path):
    """A search refuses a study that another holds, and writes nothing."""
    study = Study.create(tmp_path, {})
    with study.exclusive(), refused(SearchError, "another process is running this"):
        toy_search(tmp_path, ToyRunner())
    assert study.trials() == []


# ---- what a search tells on its way


def test_progress(tmp_path):
    """One report comes after every trial and evaluation; the best never falls, and replayed trials
    are told from fresh ones."""
    reports = []
    with pytest.raises(StoppedError):
        toy_search(tmp_path, ToyRunner(stop_after=2 + 10), callbacks=[Watch(reports.append)])
    assert [report.done for report in reports if report.phase == "ps"] == list(range(1, 11))
    reports.clear()
    toy_search(tmp_path, ToyRunner(), callbacks=[Watch(reports.append)])
    stage = [report for report in reports if report.phase == "ps"]
    assert [report.done for report in stage] == list(range(1, 32))
    assert all(report.total == 31 for report in stage)
    assert [report.fresh for report in stage] == [0] * 10 + list(range(1, 22))
    bests = [report.best for report in stage if report.best is not None]
    assert bests == sorted(bests)
    assert {report.phase for report in reports} == {"ps", "finalists", "test"}


class Recorder(SearchCallback):
    """Notes what it is told, and stops each stage after so many generations; afterwards it would
    not."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.trials = []
        self.stages = []
        self.generations = []

    def on_trial(self, study, trial):
        assert study.trials(trial.stage)[trial.number].fitness == trial.fitness
        self.trials.append((trial.stage, trial.number))

    def on_generation(self, study, generation):
        self.generations.append(generation)

    def on_stage(self, study, stage, trials):
        assert [trial.number for trial in trials] == [trial.number for trial in study.trials(stage)]
        self.stages.append(stage)

    def should_stop(self, study, generation):
        return self.stop_after is not None and generation.number + 1 >= self.stop_after

    @property
    def numbers(self):
        return [(each.stage, each.number) for each in self.generations]


def test_callbacks(tmp_path):
    """Callbacks are told of every new trial once, of every generation, also replayed ones, and of
    the end of every stage."""
    first, second, third = (Recorder() for _ in range(3))
    with pytest.raises(StoppedError):
        toy_search(tmp_path, ToyRunner(stop_after=2 + 10), "hybrid", callbacks=[first])
    study, _ = toy_search(tmp_path, ToyRunner(), "hybrid", callbacks=[second])
    trials = [(trial.stage, trial.number) for trial in study.trials()]
    assert sorted([*first.trials, *second.trials]) == sorted(trials)
    (before,) = first.generations
    assert len({*second.numbers}) == len(second.numbers)
    again, *others = second.generations
    assert again.replayed
    assert not any(each.replayed for each in others)
    assert again.trials[0].fitness == before.trials[0].fitness
    assert second.stages == ["ps", "dfs"]
    toy_search(tmp_path, ToyRunner(), "hybrid", callbacks=[third])
    assert (third.trials, third.numbers) == ([], second.numbers)
    for each in third.generations:
        assert each.evaluations <= sum(trial.cost for trial in study.trials(each.stage))
        assert each.mean == pytest.approx(np.mean([trial.fitness for trial in each.trials]))
        assert each.best is not None


def test_a_stage_that_was_stopped_stays_so(tmp_path):
    """A stage that a callback ends is not gone on with when the search is resumed, wherever it was
    killed."""

    def search(name, runner, stop_after=2):
        callbacks = [Recorder(stop_after)]
        study, result = toy_search(tmp_path / name, runner, "hybrid", callbacks=callbacks)
        return study, facts(study.folder), table_rows(result)

    study, *expected = search("whole", ToyRunner())
    stages = [trial.stage for trial in study.trials()]
    assert [stages.count(stage) for stage in ("ps", "dfs")] == [14, 12]
    # nothing is evaluated, and nobody stops it
    assert [*search("whole", ToyRunner(stop_after=0), None)][1:] == expected
    for stop_after in (2 + 9, 2 + 14, 2 + 14 + 3 + 4):
        name = f"stopped-{stop_after}"
        with pytest.raises(StoppedError):
            search(name, ToyRunner(stop_after=stop_after))
        assert [*search(name, ToyRunner())][1:] == expected
