"""Objectives beside the fitness, further tasks and what a model takes: how they are written, and
which numbers they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Discriminator, Field, Tag, model_validator

from ...fitness.data.spec import DataSpec
from ...fitness.registry import AnyTaskSpec
from ...fitness.scores import Scores
from ...recipes.strict_yaml import StrictModel
from ..optimizers.ask_tell import Vector
from .splits import objective_split

Taken = Literal["tokens", "hops", "parameters", "seconds"]
"""What a model takes, of which less is better: tokens of its answers, hops, stored parameters, time
for the fitness."""

FITNESS = "fitness"
TAKEN: dict[Taken, str] = {
    "tokens": "per answer",
    "hops": "layers that a token passes",
    "parameters": "stored",
    "seconds": "of one evaluation",
}
"""What they are counted in."""


class TaskObjective(StrictModel):
    """A further task, or the search's task on further examples."""

    name: str = Field(pattern=r"^[\w-]{1,40}$")
    """What it is called in tables."""
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
        return objective_split(self.name, split) if self.data else split


def _kind(written: Any) -> str:
    """Tell which kind of objective is meant, so that only its own faults are said."""
    return "[taken]" if isinstance(written, str) else "[task]"


AnyObjective = Annotated[
    Annotated[Taken, Tag("[taken]")] | Annotated[TaskObjective, Tag("[task]")], Discriminator(_kind)
]


def name_of(objective: AnyObjective) -> str:
    """Return an objective's name."""
    return objective if isinstance(objective, str) else objective.name


def values(scores: Scores, names: Sequence[str]) -> dict[str, float | None]:
    """The value of the fitness and of the other objectives, by name, as people read them; None
    where there is none."""
    by_name = {**scores.others, FITNESS: scores}
    return {name: by_name[name].mean if name in by_name else None for name in names}


def known_values(scores: Scores, names: Sequence[str]) -> dict[str, float]:
    """The values of the objectives that have one."""
    return {name: value for name, value in values(scores, names).items() if value is not None}


def vector(scores: Scores, names: Sequence[str]) -> Vector:
    """The same as numbers to be maximised, in the order of the names; NaN where there is none."""
    numbers = []
    for name, value in values(scores, names).items():
        if value is None:
            numbers.append(np.nan)
        else:
            numbers.append(-value if name in TAKEN else value)
    return np.array(numbers)


def only_task_objectives(objectives: Sequence[AnyObjective]) -> list[TaskObjective]:
    """List the objectives measured by a task."""
    return [objective for objective in objectives if isinstance(objective, TaskObjective)]


def objective_splits(objectives: Sequence[AnyObjective]) -> dict[str, DataSpec]:
    """Return the data of objectives' own splits."""
    return {
        each.split(split): spec
        for each in only_task_objectives(objectives)
        for split, spec in each.data.items()
    }
