"""Tasks of a search: the fitness, the fitness of its stages, and its objectives; their units."""

from __future__ import annotations

from typing import Any

from ...fitness.registry import TaskSpec
from .config import SearchConfig
from .objectives import FITNESS, TAKEN, TaskObjective, only_task_objectives
from .splits import SplitName


def units(config: SearchConfig) -> dict[str, str]:
    """What each objective is measured in, the fitness first; empty where its task does not say."""
    found = {FITNESS: config.fitness.unit}
    for objective in config.objectives:
        if isinstance(objective, TaskObjective):
            found[objective.name] = (objective.fitness or config.fitness).unit
        else:
            found[objective] = TAKEN[objective]
    return found


def task_specs(config: SearchConfig) -> list[TaskSpec]:
    """The fitness of a search, those of its stages and those of its objectives; of a sum its terms."""
    own = [config.fitness, *(stage.fitness for stage in config.stages)]
    tasks = (*own, *(each.fitness for each in only_task_objectives(config.objectives)))
    return [part for task in tasks if task is not None for part in task.parts]


def measured_on(config: SearchConfig, split: str) -> Any:
    """The task that a split's examples are for: an objective's own where the split is one of its; None for the search's."""
    objective = SplitName.parse(split).objective
    return next((each.fitness for each in only_task_objectives(config.objectives) if each.name == objective), None)
