"""The pictures of a search: which curves a study gives."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from hf_evomerge import plots
from hf_evomerge.fitness import Scores
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.search.results.plots import draw_pictures, stage_curves
from hf_evomerge.search.study.paths import settings_of
from hf_evomerge.search.study.study import Study, Trial


def _trial(stage: str, number: int, score: float | None) -> Trial:
    """A trial as a study returns it; failed where there is no score."""
    scores = Scores.failed("broken") if score is None else Scores([score])
    return Trial(stage, number, number // 2, np.zeros(1), None, scores)


def test_stages_follow_each_other_and_random_search_runs_beside_them() -> None:
    """DFS begins where PS ended; random search begins at 0; a failed trial stays failed."""
    trials = [_trial("dfs", 0, -0.5), _trial("ps", 0, -2.0), _trial("ps", 1, None), _trial("random", 0, -3.0)]
    curves = {curve.label: curve for curve in stage_curves(trials)}
    assert {label: curve.x.tolist() for label, curve in curves.items()} == {"ps": [1, 2], "dfs": [3], "random": [1]}
    assert curves["ps"].fitness == (-2.0, None)
    assert curves["ps"].title == "parameter space"


def test_the_best_so_far_is_of_trials_scored_on_all_examples() -> None:
    """The luckiest batch is no result: the line begins at the first trial that was scored on all examples."""
    sizes = [(1, -0.1), (2, -0.9), (1, -0.2), (2, -0.7), (2, -0.8)]
    trials = [Trial("ps", n, n, np.zeros(1), None, Scores([score] * size)) for n, (size, score) in enumerate(sizes)]
    (curve,) = stage_curves(trials)
    assert np.array_equal(curve.best, [np.nan, -0.9, -0.9, -0.7, -0.7], equal_nan=True)


def test_the_fitness_has_its_unit_on_its_axis(hybrid_search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture of a search by likelihood says what its fitness is measured in."""
    labels: list[str] = []
    monkeypatch.setattr(plots, "plot_fitness", lambda *_, ylabel: labels.append(ylabel))
    with closing(Study.open(hybrid_search)) as study:
        winner = Recipe.load(hybrid_search / "recipe.yaml")
        draw_pictures(settings_of(study), study, winner, [4, 4], tmp_path / "plots")
    assert labels == ["fitness (nats per answer)"]
