"""Measures the objectives beside the fitness: further tasks, and what a model takes."""

from __future__ import annotations

from ...errors import FitnessError
from ...fitness.scores import Scores
from ...recipes.recipe import Recipe, SourceRef
from ..evaluation.model_pool import ModelPool
from ..evaluation.sources import SearchSources, Target
from ..evaluation.tasks import SearchTasks
from .file import TaskObjective


def measured(
    tasks: SearchTasks,
    models: ModelPool,
    target: Target,
    split: str,
    scores: Scores,
    rows: int | None,
    shots: int,
) -> dict[str, Scores]:
    """Measure the objectives of a model that has been scored.

    Args:
        tasks: The tasks of the search.
        models: The live models that the target is made of.
        target: The model.
        split: The split that it was scored on.
        scores: What it scored.
        rows, shots: As in `SearchTasks.prepared`.
    """
    others: dict[str, Scores] = {}
    for objective in tasks.config.objectives:
        if isinstance(objective, TaskObjective):
            task = tasks.prepared(
                target, objective.split(split), None, objective.fitness, rows, shots
            )
            others[objective.name] = task.evaluate(models.model(target))
            continue
        if objective == "seconds":
            taken = [scores.seconds]
        elif objective == "tokens":
            if scores.outputs is None:
                raise FitnessError(
                    "objectives: tokens counts those of answers, and the task keeps none"
                )
            tokenizer = tasks.tokenizer(target)
            texts = (
                tokenizer(text, add_special_tokens=False)["input_ids"] for text in scores.outputs
            )
            taken = [*map(len, texts)]
        elif objective == "parameters":
            taken = [sum(each.numel() for each in models.model(target).parameters())]
        else:
            taken = [_hops(target, tasks.sources)]
        others[objective] = Scores(taken)
    return others


def _hops(target: Target, sources: SearchSources) -> int:
    """Count the layers that a token passes."""
    if isinstance(target, Recipe) and target.flow is not None:
        return len(target.flow.path)
    ref = target if isinstance(target, SourceRef) else target.sources[target.merge_sources[0]]
    return sources.open(ref).layer_count
