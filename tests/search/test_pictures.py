"""The pictures of a search: which trials of a study they show."""

from __future__ import annotations

from pathlib import Path

from hf_evomerge.fitness import Scores
from hf_evomerge.search.results.plots import drawn_trials
from hf_evomerge.search.study.study import Study


def test_trials_are_drawn_as_the_study_has_them(hybrid_search: Path) -> None:
    """Each trial has its fitness, its accuracy, its examples, its cost and its objectives; stages are in the order they ran."""
    study = Study.open(hybrid_search)
    drawn = drawn_trials(study, ["fitness"])
    assert list(dict.fromkeys(trial.stage for trial in drawn)) == ["ps", "dfs"]
    for stage in ("ps", "dfs"):
        mine, theirs = [trial for trial in drawn if trial.stage == stage], study.trials(stage)
        assert [(t.number, t.generation, t.fitness, t.cost) for t in mine] == [
            (t.number, t.generation, t.fitness, t.cost) for t in theirs
        ]
        assert [trial.examples for trial in mine] == [trial.scores.values.size for trial in theirs]
        assert [trial.accuracy for trial in mine] == [trial.scores.accuracy for trial in theirs]
        assert mine[0].others == {"fitness": mine[0].fitness}
    study.close()


def test_a_failed_trial_stays_failed(hybrid_search: Path) -> None:
    """It has neither a fitness nor examples."""
    assert Scores.failed("broken").mean is None
    study = Study.open(hybrid_search)
    failed = [trial for trial in drawn_trials(study) if trial.fitness is None]
    assert all(trial.examples == 0 for trial in failed)
    study.close()
