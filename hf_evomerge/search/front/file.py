"""Objectives beside the fitness in a search file, further tasks and what a model takes: how they
are written, and which numbers they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Discriminator, Field, Tag, model_validator

from ...fitness.data.spec import DataSpec
from ...fitness.registry import AnyTaskSpec, TaskSpec
from ...fitness.scores import FITNESS, Scores
from ...fitness.tasks.writing import WritingSpec
from ...recipes.strict_yaml import StrictModel
from ..file.splits import ExtraSplit
from ..optimizers.ask_tell import Vector

Taken = Literal["tokens", "hops", "parameters", "seconds"]
"""Costs of a model, of which less is better: tokens of its answers, hops, stored parameters, time
for the fitness."""

TAKEN: dict[Taken, str] = {
    "tokens": "per answer",
    "hops": "layers that a token passes",
    "parameters": "stored",
    "seconds": "of one evaluation",
}
"""Units of the costs."""


class TaskObjective(StrictModel):
    """A further task, or the search's task on further examples."""

    name: str = Field(pattern=r"^[\w-]{1,40}$")
    """Name in tables."""
    fitness: AnyTaskSpec | None = None
    """The task; the search's own where absent."""
    data: dict[Literal["search", "validation", "test"], DataSpec] = Field(default_factory=dict)
    """Its examples, for the splits that the search's own have; those themselves where absent."""

    @model_validator(mode="after")
    def _is_another(self) -> TaskObjective:
        if self.fitness is None and not self.data:
            raise ValueError(
                f"{self.name}: is what the fitness measures already; give a fitness, or "
                "data, of its own"
            )
        return self

    def split(self, split: str) -> str:
        """The name of the split that holds its examples in place of one of the search's."""
        return f"objective:{self.name}:{split}" if self.data else split


def _kind(written: Any) -> str:
    """Tell which kind of objective is meant, so that only its own faults are said."""
    return "[taken]" if isinstance(written, str) else "[task]"


AnyObjective = Annotated[
    Annotated[Taken, Tag("[taken]")] | Annotated[TaskObjective, Tag("[task]")], Discriminator(_kind)
]


def check(objectives: Sequence[AnyObjective], space: str, fitness: TaskSpec) -> None:
    """Raise `ValueError` where objectives contradict each other or the search."""
    names = [*map(_name, objectives)]
    known = [FITNESS, *TAKEN, *(each.name for each in only_tasks(objectives))]
    if taken := [name for name in names if names.count(name) > 1 or known.count(name) > 1]:
        raise ValueError(
            f"objectives: {taken[0]} is there twice; the fitness and what a model takes "
            "have their own names"
        )
    if space == "ps" and (same := [name for name in names if name in ("hops", "parameters")]):
        raise ValueError(
            f"objectives: {same[0]} is the same for every merge of a ps search; leave it "
            "out, or search paths"
        )
    if "tokens" in names and not isinstance(fitness, WritingSpec):
        raise ValueError(
            f"objectives: tokens counts those of answers, and {fitness.task} writes "
            "none; use generation"
        )


def _name(objective: AnyObjective) -> str:
    return objective if isinstance(objective, str) else objective.name


def units(objectives: Sequence[AnyObjective], fitness: TaskSpec) -> dict[str, str]:
    """Units of objectives by their names; empty where a task does not say one."""
    return {
        _name(each): TAKEN[each] if isinstance(each, str) else (each.fitness or fitness).unit
        for each in objectives
    }


def vector(scores: Scores, names: Iterable[str]) -> Vector:
    """Metrics as numbers to be maximised, in the order of the names; NaN where there is none."""
    known = scores.metrics(names)
    return np.array([known.get(name, np.nan) * (-1 if name in TAKEN else 1) for name in names])


def only_tasks(objectives: Sequence[AnyObjective]) -> list[TaskObjective]:
    """List the objectives measured by a task."""
    return [objective for objective in objectives if isinstance(objective, TaskObjective)]


def extra_splits(objectives: Sequence[AnyObjective]) -> list[ExtraSplit]:
    """List the splits that objectives have of their own."""
    return [
        ExtraSplit(each.split(split), split, spec, each.fitness)
        for each in only_tasks(objectives)
        for split, spec in each.data.items()
    ]
