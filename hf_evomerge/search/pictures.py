"""Draws the pictures of a search from its study: fitness over evaluations, and what the winner is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import plots
from ..recipes.recipe import Recipe
from .config import STAGES, SearchConfig, source_label
from .study import Study, Trial


def draw_pictures(config: SearchConfig, study: Study, winner: Recipe, layers: Sequence[int], folder: Path) -> None:
    """Draw fitness over evaluations, the weights per layer group and the path, as far as the winner has them."""
    folder.mkdir(exist_ok=True)
    plots.plot_fitness(stage_curves(study.trials()), parent_levels(config, study), folder / "fitness.png")
    names = [source_label(ref) for ref in config.sources]
    if winner.merge is not None:
        plots.plot_weights(winner.merge, [names[i] for i in winner.merge_sources], folder / "weights.png")
    if winner.flow is not None:
        merged = [layers[winner.merge_sources[0]]] if winner.merge is not None else []
        labels = [*names, *(["merged"] if merged else [])]
        plots.plot_path(winner.flow.to_path(), [*layers, *merged], labels, folder / "path.png")


def stage_curves(trials: Sequence[Trial]) -> list[plots.Curve]:
    """The curves of a study from all its trials: DFS goes on where PS ended; random search begins at 0, beside them."""
    by_stage = {stage: [trial for trial in trials if trial.stage == stage] for stage in STAGES}
    starts = {"dfs": sum(trial.cost for trial in by_stage["ps"])}
    return [
        plots.Curve(
            stage,
            tuple(trial.fitness for trial in found),
            tuple(trial.generation for trial in found),
            start=starts.get(stage, 0),
            title=STAGES[stage],
            costs=tuple(trial.cost for trial in found),
        )
        for stage, found in by_stage.items()
        if found
    ]


def parent_levels(config: SearchConfig, study: Study) -> dict[str, float]:
    """Fitness of the base and the sources on the search split, by their short names; without those that failed."""
    names = {"base": "base", **{f"source:{i}": source_label(ref) for i, ref in enumerate(config.sources)}}
    found = {name: study.evaluation(label, "search") for label, name in names.items()}
    return {name: scores.mean for name, scores in found.items() if scores is not None and scores.mean is not None}
