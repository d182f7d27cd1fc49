"""Draws the pictures of a search from its study: fitness over evaluations, and what the winner
is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ...fitness.scores import Scores
from ...pictures.fitness import fitness_scene
from ...pictures.matplotlib_painter import save_scenes
from ...pictures.path import path_scene
from ...pictures.scene import Scene
from ...pictures.trials import FITNESS, Metric
from ...pictures.trials import DrawnTrial as Drawn
from ...pictures.weights import weights_of, weights_scene
from ...recipes.recipe import Recipe
from ...recipes.stage_names import STAGES
from ..file.config import SearchConfig
from ..front.results import front, front_scenes
from ..study.study import Study

_CHART = 860


def draw_pictures(
    config: SearchConfig, study: Study, winner: Recipe, layers: Sequence[int], folder: Path
) -> None:
    """Draw fitness over evaluations, the weights per layer group and the path, as far as the winner
    has them.

    Stages with a fitness of their own are in a picture apart, without the parents.

    Args:
        config: The search.
        study: Its trials.
        winner: What it ended with.
        layers: The layers of each source.
        folder: Where the pictures go; made where it is not there.
    """
    folder.mkdir(exist_ok=True)

    def save(name: str, *scenes: Scene) -> None:
        save_scenes(scenes, folder / f"{name}.png")

    trials = drawn_trials(study, config.metrics)
    apart = {stage.name: stage.fitness.task for stage in config.stages if stage.fitness is not None}
    own = [trial for trial in trials if trial.stage not in apart]
    name = str(Metric(FITNESS, config.fitness.unit))
    save("fitness", fitness_scene(own, parent_levels(config, study), name, _CHART))
    if others := [trial for trial in trials if trial.stage in apart]:
        save(
            "fitness-first",
            fitness_scene(others, {}, ", ".join(dict.fromkeys(apart.values())), _CHART),
        )
    if points := front(config, study).judged({}, winner.key):
        save("front", *front_scenes(config, points, trials, parent_scores(config, study)))
    names = config.source_names
    if winner.merge is not None and (weights := weights_of(winner.merge.model_dump(), names)).rows:
        save("weights", weights_scene(weights))
    if winner.flow is not None:
        if winner.merge is not None:
            names = [*names, "merged"]
            layers = [*layers, layers[winner.merge_sources[0]]]
        gated = config.path.gated
        save("path", path_scene(winner.flow.to_path(), names, layers, gated=gated, width=None))


def drawn_trials(study: Study, metrics: Iterable[str] = ()) -> list[Drawn]:
    """The trials of a study, stage by stage, as pictures take them.

    Args:
        study: The study.
        metrics: What the search optimises.
    """
    return [
        Drawn(
            *(trial.stage, trial.number, trial.generation, trial.fitness, trial.scores.accuracy),
            examples=trial.scores.values.size,
            cost=trial.cost,
            others=trial.scores.metrics(metrics),
        )
        for stage in STAGES
        for trial in study.trials(stage)
    ]


def parent_scores(config: SearchConfig, study: Study) -> dict[str, Scores]:
    """Scores of the base and the sources on the search split, by their short names; without those
    that failed."""
    names = {**config.parent_names, "base": "base"}
    scored = {name: study.evaluation(label, "search") for label, name in names.items()}
    return {
        name: scores
        for name, scores in scored.items()
        if scores is not None and scores.error is None
    }


def parent_levels(config: SearchConfig, study: Study) -> dict[str, float]:
    """Return parents' fitness."""
    return {
        name: float(scores.values.mean()) for name, scores in parent_scores(config, study).items()
    }
