"""Stages of a search: what each one searches, with which optimizer, on which task and at what cost. Made once from the file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ...fitness.registry import TaskSpec
from ...recipes.stage_names import STAGES as STAGES
from ...recipes.stage_names import StageName as StageName
from ..optimizers.ask_tell import Algorithm
from .sections import FirstConfig, FlowSpaceConfig, OptimizerConfig, ParameterSpaceConfig

SpaceName = Literal["ps", "dfs", "joint"]
_FIRST: dict[SpaceName, StageName] = {"ps": "ps-first", "dfs": "dfs-first"}
_BATCH = 16  # examples of the first generations, where the file does not say it
_STEP, _FEWEST = 8, 4  # examples of a gradient's step: many small steps lead further than few large ones
_STEPS = 60  # of a gradient, for which its batches are made smaller than that where there are few examples


@dataclass(frozen=True)
class Stage:
    """One stage of a search.

    Attributes:
        name: Its name in the study.
        number: Its place among the stages of the search, from 0; its random numbers depend on it.
        space: What it searches.
        role: ``main``: its winner may be the search's; ``first``: the main stage of the space begins at its winner;
            ``random``: a random search to compare with, of the budget of all other stages, in the space of the first.
        optimizer: The settings of its optimizer; a random search has those of the first space.
        evaluations: Its budget, in scores of all search examples.
        minutes: Its budget in minutes; infinite where unbounded.
        batch: Examples of a generation, or ``all``, where the file says it.
        begins_at: The stage at whose winner it begins, if it does.
    """

    name: StageName
    number: int
    space: SpaceName
    role: Literal["first", "main", "random"]
    optimizer: OptimizerConfig
    evaluations: int
    minutes: float
    batch: int | Literal["all"] | None
    begins_at: StageName | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def title(self) -> str:
        """Its name in tables."""
        return STAGES[self.name]

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm that proposes genomes."""
        return "random" if self.role == "random" else self.optimizer.algorithm

    @property
    def fitness(self) -> TaskSpec | None:
        """The task that it climbs, where it is not the search's."""
        return self.optimizer.fitness if self.role == "first" and isinstance(self.optimizer, FirstConfig) else None

    def batch_sizes(self, examples: int) -> tuple[int, ...]:
        """Sizes of the batches that generations are scored on, of so many examples: one after the other, see `GROWTH`."""
        if self.batch == "all" or self.algorithm in ("random", "nsga2"):
            return (examples,)
        batch = self.batch
        if batch is None and self.algorithm == "gradient":
            batch = min(_STEP, max(1, min(_FEWEST, examples // 2), examples * self.evaluations // (3 * _STEPS)))
        if batch is not None or self.algorithm in ("gradient", "sweep"):
            return (min(examples, batch or _BATCH),)
        sizes = [min(examples, _BATCH)]
        while 4 * sizes[-1] <= examples:
            sizes.append(2 * sizes[-1])
        return tuple(sizes)


def make_stages(
    spaces: tuple[SpaceName, ...],
    ps: ParameterSpaceConfig,
    dfs: FlowSpaceConfig,
    *,
    batch: int | Literal["all"] | None,
    random: bool,
) -> list[Stage]:
    """Make the stages of a search, in the order that they run.

    Args:
        spaces: What is searched, one after the other.
        ps, dfs: The sections of the two spaces; a stage that searches both has the optimizer of `ps` and both budgets.
        batch: Examples of a generation where an optimizer does not say it.
        random: Whether a random search is to be compared with.
    """
    stages: list[Stage] = []

    def add(name: StageName, space: SpaceName, role: Literal["first", "main"], *optimizers: OptimizerConfig) -> None:
        own, before = optimizers[0], stages[-1] if stages else None
        begins_at = before.name if before is not None and (before.role, before.space) == ("first", space) else None
        evaluations, minutes = sum(each.evaluations for each in optimizers), sum(map(_minutes, optimizers))
        stages.append(Stage(name, len(stages), space, role, own, evaluations, minutes, own.batch or batch, begins_at))

    for space in spaces:
        part = dfs if space == "dfs" else ps
        if part.first is not None:
            add(_FIRST[space], space, "first", part.first)
        add(space, space, "main", part.optimizer, *([dfs.optimizer] if space == "joint" else []))
    if random:
        own = (dfs if spaces[0] == "dfs" else ps).optimizer
        if own.algorithm == "sweep":  # a sweep starts from the full depth, which is no place for a random search
            own = own.model_copy(update={"algorithm": "random"})
        evaluations, minutes = sum(stage.evaluations for stage in stages), sum(stage.minutes for stage in stages)
        stages.append(Stage("random", len(stages), spaces[0], "random", own, evaluations, minutes, "all"))
    return stages


def _minutes(optimizer: OptimizerConfig) -> float:
    return math.inf if optimizer.minutes is None else optimizer.minutes
