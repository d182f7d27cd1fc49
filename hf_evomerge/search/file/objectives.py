"""Objectives beside the fitness, further tasks and what a model takes: how they are written, and which numbers they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Discriminator, Field, Tag, model_validator

from ...fitness.data import DataSpec
from ...fitness.registry import AnyTaskSpec, TaskSpec
from ...fitness.scores import Scores
from ...fitness.writing import WritingSpec
from ...recipes.strict_yaml import StrictModel
from ..optimizers.ask_tell import Vector

if TYPE_CHECKING:
    from .config import SearchConfig

Taken = Literal["tokens", "hops", "parameters", "seconds"]
"""What a model takes, of which less is better: tokens of its answers, hops, stored parameters, time for the fitness."""

FITNESS = "fitness"
TAKEN: dict[Taken, str] = {
    "tokens": "per answer",
    "hops": "layers that a token passes",
    "parameters": "stored",
    "seconds": "of one evaluation",
}
"""What they are counted in."""
OBJECTIVE = "objective:"  # begins the names of splits of an objective's own examples


class TaskObjective(StrictModel):
    """A further task, or the search's task on further examples.

    Attributes:
        name: What it is called in tables.
        fitness: The task; the search's own where absent.
        data: Its examples, for the splits that the search's own have; those themselves where absent.
    """

    name: str = Field(pattern=r"^[\w-]{1,40}$")
    fitness: AnyTaskSpec | None = None
    data: dict[Literal["search", "validation", "test"], DataSpec] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_another(self) -> TaskObjective:
        if self.fitness is None and not self.data:
            raise ValueError(f"{self.name}: is what the fitness measures already; give a fitness, or data, of its own")
        return self

    def split(self, split: str) -> str:
        """The name of the split that holds its examples in place of one of the search's."""
        return f"{OBJECTIVE}{self.name}:{split}" if self.data else split


def _kind(written: Any) -> str:
    """Which of the two is meant, so that only what is wrong with that one is said."""
    return "[taken]" if isinstance(written, str) else "[task]"


AnyObjective = Annotated[Annotated[Taken, Tag("[taken]")] | Annotated[TaskObjective, Tag("[task]")], Discriminator(_kind)]


def name_of(objective: AnyObjective) -> str:
    """What an objective is called."""
    return objective if isinstance(objective, str) else objective.name


def values(scores: Scores, names: Sequence[str]) -> dict[str, float | None]:
    """The value of the fitness and of the other objectives, by name, as people read them; None where there is none."""
    found = {FITNESS: scores, **scores.others}
    return {name: found[name].mean if name in found else None for name in names}


def columns(scores: Scores, names: Sequence[str]) -> dict[str, float | None]:
    """The values beside the fitness, as the columns of a table of trials."""
    return {f"objective.{name}": value for name, value in values(scores, names).items() if name != FITNESS}


def units(config: SearchConfig) -> dict[str, str]:
    """What each objective is measured in, the fitness first; empty where its task does not say."""
    found = {FITNESS: config.fitness.unit}
    for objective in config.objectives:
        if isinstance(objective, TaskObjective):
            found[objective.name] = (objective.fitness or config.fitness).unit
        else:
            found[objective] = TAKEN[objective]
    return found


def vector(scores: Scores, names: Sequence[str]) -> Vector:
    """The same as numbers to be maximised, in the order of the names; NaN where there is none."""
    return np.array(
        [np.nan if value is None else -value if name in TAKEN else value for name, value in values(scores, names).items()]
    )


def check_objectives(config: SearchConfig) -> None:
    """Raise ValueError where objectives contradict each other or the search."""
    algorithms = {f"{name}.optimizer": config.part(name).optimizer.algorithm for name in config.spaces}
    firsts = {f"{name}.first": first.algorithm for name in config.spaces if (first := config.part(name).first) is not None}
    nsga = [key for key, algorithm in {**algorithms, **firsts}.items() if algorithm == "nsga2"]
    if not config.objectives:
        if nsga:
            raise ValueError(f"{nsga[0]}.algorithm: nsga2 is for several objectives; name them in objectives, or write cma")
        return
    names = [name_of(objective) for objective in config.objectives]
    if reserved := [name for name in names if names.count(name) > 1 or name == FITNESS]:
        raise ValueError(f"objectives: {reserved[0]} is there twice; the fitness is always the first objective")
    if named := [each.name for each in config.objectives if isinstance(each, TaskObjective) and each.name in TAKEN]:
        raise ValueError(f"objectives: {named[0]} is the name of what a model takes; call the task something else")
    if config.space == "ps" and (same := [name for name in names if name in ("hops", "parameters")]):
        raise ValueError(f"objectives: {same[0]} is the same for every merge of a ps search; leave it out, or search paths")
    if "tokens" in names and not isinstance(config.fitness, WritingSpec):
        raise ValueError(f"objectives: tokens counts those of answers, and {config.fitness.task} writes none; use generation")
    if config.joint or "nsga2" in firsts.values():
        raise ValueError("objectives: go with the optimizer of a space, not with joint or first")
    for key, algorithm in algorithms.items():
        if algorithm not in ("nsga2", "random"):
            raise ValueError(f"objectives: {key}.algorithm {algorithm} climbs one fitness; write nsga2, or leave it out")
    if {config.batch, *(config.part(name).optimizer.batch for name in config.spaces)} - {None, "all"}:
        raise ValueError("objectives: every generation is compared with the ones before, on all examples; leave batch out")
    for objective in config.objectives:
        if isinstance(objective, TaskObjective) and objective.data and objective.data.keys() != config.data.keys():
            has = ", ".join(objective.data)
            raise ValueError(f"objectives: {objective.name} has data for {has}, and the search for {', '.join(config.data)}")


def only_task_objectives(objectives: Sequence[AnyObjective]) -> list[TaskObjective]:
    """Those that are measured by a task."""
    return [objective for objective in objectives if isinstance(objective, TaskObjective)]


def objective_splits(objectives: Sequence[AnyObjective]) -> dict[str, DataSpec]:
    """Where the examples of objectives' own splits come from."""
    return {each.split(split): spec for each in only_task_objectives(objectives) for split, spec in each.data.items()}


def task_specs(config: SearchConfig) -> list[TaskSpec]:
    """The fitness of a search, those of its stages and those of its objectives."""
    own = [config.fitness, *map(config.fitness_of, config.stages)]
    return [task for task in (*own, *(each.fitness for each in only_task_objectives(config.objectives))) if task is not None]


def engines(config: SearchConfig) -> set[str]:
    """What has models write in a search."""
    return {task.engine if isinstance(task, WritingSpec) else "transformers" for task in task_specs(config)}


def measured_on(config: SearchConfig, split: str) -> Any:
    """The task that a split's examples are for: an objective's own where the split is one of its; None for the search's."""
    for each in only_task_objectives(config.objectives):
        if split.startswith(f"{OBJECTIVE}{each.name}:"):
            return each.fitness
    return None
