"""Draws the pictures of a search from its study: fitness over evaluations, and what the winner is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import plots
from ..recipes.recipe import Recipe
from .config import STAGES, SearchConfig, source_label
from .study import Study, Trial


def draw_pictures(config: SearchConfig, study: Study, winner: Recipe, layers: Sequence[int], folder: Path) -> None:
    """Draw fitness over evaluations, the weights per layer group and the path, as far as the winner has them.

    Stages with a fitness of their own are in a picture apart, without the parents.
    """
    folder.mkdir(exist_ok=True)
    curves = stage_curves(study.trials())
    apart = {stage: fitness.task for stage in config.stages if (fitness := config.fitness_of(stage)) is not None}
    own = [curve for curve in curves if curve.label not in apart]
    plots.plot_fitness(own, parent_levels(config, study), folder / "fitness.png")
    if others := [curve for curve in curves if curve.label in apart]:
        plots.plot_fitness(others, {}, folder / "fitness-first.png", ylabel=", ".join(dict.fromkeys(apart.values())))
    names = [source_label(ref) for ref in config.sources]
    if winner.merge is not None:
        plots.plot_weights(winner.merge, [names[i] for i in winner.merge_sources], folder / "weights.png")
    if winner.flow is not None:
        merged = [layers[winner.merge_sources[0]]] if winner.merge is not None else []
        labels = [*names, *(["merged"] if merged else [])]
        plots.plot_path(winner.flow.to_path(), [*layers, *merged], labels, folder / "path.png")


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


def parent_levels(config: SearchConfig, study: Study) -> dict[str, float]:
    """Fitness of the base and the sources on the search split, by their short names; without those that failed."""
    names = {"base": "base", **{f"source:{i}": source_label(ref) for i, ref in enumerate(config.sources)}}
    found = {name: study.evaluation(label, "search") for label, name in names.items()}
    return {name: scores.mean for name, scores in found.items() if scores is not None and scores.mean is not None}
