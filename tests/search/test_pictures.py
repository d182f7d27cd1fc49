"""The pictures of a search: which trials of a study they show, and what they are called."""

from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
from scenes import marks_of

from hf_evomerge.fitness import Scores
from hf_evomerge.pictures.marks import Text
from hf_evomerge.pictures.scene import Scene
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.search.results import plots
from hf_evomerge.search.study.paths import settings_of
from hf_evomerge.search.study.study import Study, Trial


class _Trials:
    """A study of these trials."""

    def __init__(self, *trials: Trial) -> None:
        self._trials = trials

    def trials(self, stage: str) -> list[Trial]:
        return [trial for trial in self._trials if trial.stage == stage]


def test_trials_are_drawn_as_the_study_has_them():
    """Each has its fitness, accuracy, examples, cost and objectives; a failed one has none; stages stand in order."""
    right = Scores([-1.0, -3.0], correct=[True, False], others={"hops": Scores([7.0])})
    study = _Trials(
        Trial("dfs", 0, 0, np.zeros(1), None, right, cost=0.5), Trial("ps", 3, 1, np.zeros(1), None, Scores.failed("broken"))
    )
    failed, scored = plots.drawn_trials(cast(Study, study), ["fitness", "hops"])
    assert (failed.stage, failed.number, failed.generation, failed.fitness, failed.examples) == ("ps", 3, 1, None, 0)
    assert (scored.stage, scored.fitness, scored.accuracy, scored.examples, scored.cost) == ("dfs", -2.0, 0.5, 2, 0.5)
    assert scored.others == {"fitness": -2.0, "hops": 7.0}


def test_a_search_has_pictures_of_what_its_winner_is(hybrid_search, tmp_path, monkeypatch):
    """A hybrid has its fitness with its unit, the weights by source, and the path, whose last source is the merge."""
    drawn: dict[str, list[str]] = {}

    def keep(scenes: Any, file: Path) -> None:
        (scene,) = cast("tuple[Scene]", scenes)
        drawn[file.name] = [mark.words for mark in marks_of(scene) if isinstance(mark, Text)]

    monkeypatch.setattr(plots, "save_scenes", keep)
    with closing(Study.open(hybrid_search)) as study:
        config, winner = settings_of(study), Recipe.load(hybrid_search / "recipe.yaml")
        plots.draw_pictures(config, study, winner, [4, 4], tmp_path / "plots")
    assert list(drawn) == ["fitness.png", "weights.png", "path.png"]
    assert "fitness (nats per answer)" in drawn["fitness.png"]
    assert set(config.source_names) <= set(drawn["weights.png"])
    assert "merged" in " ".join(drawn["path.png"])
