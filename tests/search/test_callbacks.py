"""What a search over a toy fitness tells on its way, and what may end a stage early."""

from collections.abc import Sequence

import numpy as np
import pytest
from toy_search import EXAMPLES, StoppedError, ToyRunner, columns, table_rows, toy_search
from watch import Watch

from hf_evomerge.search.callbacks import Generation, Progress, SearchCallback
from hf_evomerge.search.study.study import Study, Trial


def test_progress(tmp_path):
    """One report comes after every trial and evaluation; the best never falls, and replayed trials are told from fresh ones."""
    reports: list[Progress] = []
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


def test_the_best_of_batches_is_not_reported(tmp_path):
    """The best so far is that of trials scored on all examples; until there is one, none."""
    reports: list[Progress] = []
    study, _ = toy_search(tmp_path, ToyRunner(), "batches", callbacks=[Watch(reports.append)])
    stage, best = [report for report in reports if report.phase == "ps"], None
    for report, trial in zip(stage, study.trials("ps"), strict=True):
        if trial.scores.values.size == EXAMPLES and trial.fitness is not None:
            best = trial.fitness if best is None else max(best, trial.fitness)
        assert report.best == best
    assert stage[0].best is None


class Recorder(SearchCallback):
    """Notes what it is told, and stops each stage after so many generations; afterwards it would not."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.trials, self.stages = stop_after, list[Trial](), list[tuple[str, int]]()
        self.generations: list[Generation] = []

    def on_trial(self, study: Study, trial: Trial) -> None:
        assert study.trials(trial.stage)[trial.number].fitness == trial.fitness
        self.trials.append(trial)

    def on_generation(self, study: Study, generation: Generation) -> None:
        self.generations.append(generation)

    def on_stage(self, study: Study, stage: str, trials: Sequence[Trial]) -> None:
        assert [trial.number for trial in trials] == [trial.number for trial in study.trials(stage)]
        self.stages.append((stage, len(trials)))

    def should_stop(self, study: Study, generation: Generation) -> bool:
        return self.stop_after is not None and generation.number + 1 >= self.stop_after


def test_callbacks(tmp_path):
    """Callbacks are told of every new trial once, of every generation, also replayed ones, and of the end of every stage."""
    first, second, third = Recorder(), Recorder(), Recorder()
    with pytest.raises(StoppedError):
        toy_search(tmp_path, ToyRunner(stop_after=2 + 10), "hybrid", callbacks=[first])
    study, _ = toy_search(tmp_path, ToyRunner(), "hybrid", callbacks=[second])
    told = [(trial.stage, trial.number) for trial in [*first.trials, *second.trials]]
    assert sorted(told) == sorted((trial.stage, trial.number) for trial in study.trials())
    assert len(first.generations) == 1
    generations = [(each.stage, each.number) for each in second.generations]
    assert generations == list(dict.fromkeys(generations))
    assert [each.replayed for each in second.generations] == [True] + [False] * (len(generations) - 1)
    assert second.generations[0].trials[0].fitness == first.generations[0].trials[0].fitness
    assert [stage for stage, _ in second.stages] == ["ps", "dfs", "random"]
    toy_search(tmp_path, ToyRunner(), "hybrid", callbacks=[third])
    assert third.trials == []
    assert [(each.stage, each.number) for each in third.generations] == generations
    for each in third.generations:
        assert each.evaluations <= sum(trial.cost for trial in study.trials(each.stage))
        assert each.mean == pytest.approx(np.mean([trial.fitness for trial in each.trials]))
        assert each.best is not None


def test_a_stage_that_was_stopped_stays_so(tmp_path):
    """A stage that a callback ends is not gone on with when the search is resumed, wherever it was killed."""
    study, result = toy_search(tmp_path / "whole", ToyRunner(), "hybrid", callbacks=[Recorder(stop_after=2)])
    assert [sum(trial.stage == stage for trial in study.trials()) for stage in ("ps", "dfs", "random")] == [14, 12, 14]
    expected, table = columns(study), table_rows(result)
    _, again = toy_search(tmp_path / "whole", ToyRunner(stop_after=0), "hybrid")  # nothing is evaluated, and nobody stops it
    assert table_rows(again) == table
    for stop_after in (2 + 9, 2 + 14, 2 + 14 + 3 + 4):
        folder = tmp_path / f"stopped-{stop_after}"
        with pytest.raises(StoppedError):
            toy_search(folder, ToyRunner(stop_after=stop_after), "hybrid", callbacks=[Recorder(stop_after=2)])
        resumed, result = toy_search(folder, ToyRunner(), "hybrid", callbacks=[Recorder(stop_after=2)])
        assert columns(resumed) == expected
        assert table_rows(result) == table
