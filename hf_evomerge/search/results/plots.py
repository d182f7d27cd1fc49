"""Draws the pictures of a search from its study: fitness over evaluations, and what the winner is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ... import plots
from ...fitness.scores import Scores
from ...recipes.recipe import Recipe
from ..file.config import SearchConfig
from ..file.objectives import FITNESS, values
from ..file.stages import STAGES
from ..file.tasks import units
from ..study.study import Study, Trial
from .front import front, volumes


def draw_pictures(config: SearchConfig, study: Study, winner: Recipe, layers: Sequence[int], folder: Path) -> None:
    """Draw fitness over evaluations, the weights per layer group and the path, as far as the winner has them.

    Stages with a fitness of their own are in a picture apart, without the parents.

    Args:
        config: The search.
        study: Its trials.
        winner: What it ended with.
        layers: The layers of each source.
        folder: Where the pictures go; made where it is not there.
    """
    folder.mkdir(exist_ok=True)

    def file(name: str) -> Path:
        return folder / f"{name}.png"

    curves = stage_curves(study.trials())
    apart = {stage.name: stage.fitness.task for stage in config.stages if stage.fitness is not None}
    own = [curve for curve in curves if curve.label not in apart]
    unit = units(config)[FITNESS]
    plots.plot_fitness(own, parent_levels(config, study), file("fitness"), ylabel=f"fitness ({unit})" if unit else "fitness")
    if others := [curve for curve in curves if curve.label in apart]:
        plots.plot_fitness(others, {}, file("fitness-first"), ylabel=", ".join(dict.fromkeys(apart.values())))
    if config.objectives:
        plots.plot_front(front_of(config, study, winner), file("front"))
    names = config.source_names
    if winner.merge is not None:
        plots.plot_weights(winner.merge, [names[i] for i in winner.merge_sources], file("weights"))
    if winner.flow is not None:
        merged = [layers[winner.merge_sources[0]]] if winner.merge is not None else []
        labels = [*names, *(["merged"] if merged else [])]
        plots.plot_path(winner.flow.to_path(), [*layers, *merged], labels, file("path"), gated=config.dfs.scales == "gate")


def front_of(config: SearchConfig, study: Study, winner: Recipe) -> plots.Front:
    """The front of a study, on the search split, with the parents."""
    names = tuple(config.objective_names)

    def table(scores: Sequence[Scores]) -> NDArray[np.float64]:
        rows = [[np.nan if value is None else value for value in values(each, names).values()] for each in scores]
        return np.array(rows, dtype=np.float64).reshape(-1, len(names))

    def trials(*stages: str) -> NDArray[np.float64]:
        return table([trial.scores for stage in stages for trial in study.trials(stage) if trial.fitness is not None])

    points = front(config, study)
    return plots.Front(
        names,
        trials(*config.spaces),
        table([point.searched for point in points]),
        next((point.number for point in points if point.key == winner.key), None),
        {name: table([scores])[0].tolist() for name, scores in parent_scores(config, study).items()},
        trials("random") if "random" in config.baselines else None,
        volumes(config, study),
        units(config),
    )


def stage_curves(trials: Sequence[Trial]) -> list[plots.Curve]:
    """The curves of a study from all its trials: each stage goes on where the one before ended; a random search begins at 0."""
    curves, spent = [], 0.0
    for stage in STAGES:
        found = [trial for trial in trials if trial.stage == stage]
        costs = tuple(trial.cost for trial in found)
        fitness, generations = tuple(trial.fitness for trial in found), tuple(trial.generation for trial in found)
        most = max((trial.scores.values.size for trial in found), default=0)
        whole = tuple(trial.scores.values.size == most for trial in found)
        begin = 0.0 if stage == "random" else spent
        if found:
            curves.append(plots.Curve(stage, fitness, generations, begin, STAGES[stage], costs, whole))
        spent += sum(costs)
    return curves


def parent_scores(config: SearchConfig, study: Study) -> dict[str, Scores]:
    """Scores of the base and the sources on the search split, by their short names; without those that failed."""
    names = {"base": "base", **{f"source:{i}": name for i, name in enumerate(config.source_names)}}
    found = {name: study.evaluation(label, "search") for label, name in names.items()}
    return {name: scores for name, scores in found.items() if scores is not None and scores.error is None}


def parent_levels(config: SearchConfig, study: Study) -> dict[str, float]:
    """Their fitness."""
    return {name: float(scores.values.mean()) for name, scores in parent_scores(config, study).items()}
