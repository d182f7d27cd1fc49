"""Steps of a search file, and the stages that they make: what each searches, how, on which task, at
what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...fitness.registry import AnyTaskSpec, TaskSpec
from ...recipes.stage_names import STAGES as STAGES
from ...recipes.strict_yaml import Count, Positive, StrictModel
from ..optimizers.ask_tell import default_population

Algorithm = Literal["cma", "random", "gradient", "sweep", "nsga2"]
SpaceName = Literal["ps", "dfs"]
_FIRST: dict[SpaceName, str] = {"ps": "ps-first", "dfs": "dfs-first"}
_BATCH = 16  # examples of the first generations, where the file does not say it
_STEP = 8
_FEWEST = 4  # examples of a gradient's step: many small steps lead further than few large ones
# of a gradient, for which its batches are made smaller than that where there are few examples
_STEPS = 60


class Step(StrictModel):
    """Optimizer, and its budget. The second step of a space begins at the winner of its first."""

    by: Algorithm = "cma"
    """``cma``; ``gradient`` (Adam on batches), where the fitness has a gradient, of merges and
    gates; ``random``; ``sweep`` (every layer in turn) with ``path: {kind: prune}``; ``nsga2`` where
    there are several objectives, and there by default."""
    space: Literal["ps", "dfs"] | None = None
    """The space that it searches, in a hybrid search; each, one after the other, where absent."""
    evaluations: Count = 1000
    """Budget in scores of all search examples. A score of a batch counts as its share, a gradient
    of merge weights three times as much, one of gates twice as much for as many hops as the first
    source has layers."""
    minutes: Positive | None = None
    """Budget in minutes; no generation starts after it. Whichever budget ends first."""
    population: Annotated[Count, Field(ge=2, le=10_000)] | None = None
    """Candidates per generation of ``cma``, ``random`` and ``nsga2``; 4 + floor(3 ln n) where
    absent, and twice that for ``nsga2``."""
    sigma: Positive | None = None
    """First step size. Of merges as a fraction of each parameter's range, 1/6 by default
    (``gradient``: 0.04, and 0.01 where the weights have its default bounds); of paths in the units
    of the genome, 0.1 by default (gates by evolution: 0.2); 0.04 by default in a second step."""
    batch: Count | Literal["all"] | None = None
    """Number of search examples per generation of ``cma``, ``gradient`` and ``sweep``, drawn anew
    for each, or ``all``. Where absent 16, which with ``cma`` doubles after every 100 generations,
    up to half of the examples, and with ``gradient`` 8 or fewer."""
    fitness: AnyTaskSpec | None = None
    """What a first step climbs; the search's own fitness where absent."""

    @model_validator(mode="after")
    def _check_heard(self) -> Step:
        for key, deaf in {
            "population": ("gradient", "sweep"),
            "batch": ("random", "nsga2"),
        }.items():
            if self.by in deaf and getattr(self, key) is not None:
                raise ValueError(f"{key}: says nothing to by: {self.by}; leave it out")
        return self


@dataclass(frozen=True)
class Stage:
    """Stage of a search.

    Attributes:
        name: Its name in the study.
        title: Its name in tables.
        number: What its random numbers depend on, beside the seed: its place among the search's own
            stages, from 0. A stage that is run again has the number of the first run; so no
            baseline depends on the others.
        space: What it searches.
        step: The settings of its optimizer.
        evaluations: Its budget, in scores of all search examples.
        minutes: Its budget in minutes; infinite where unbounded.
        begins_at: The stage at whose winner it begins, if it does.
        builds_on: The stage whose winner's merge its paths run through, if they do.
        control: Of a search that is run again to compare with: the name of that search.
        source: The only source that it searches; None where all take part.
    """

    name: str
    title: str
    number: int
    space: SpaceName
    step: Step
    evaluations: int
    minutes: float
    begins_at: str | None = None
    builds_on: str | None = None
    control: str = ""
    source: int | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def main(self) -> bool:
        """True of the last stage of a space, whose winner may be the search's; what runs before it
        finds where it begins."""
        return self.original == self.space

    @property
    def original(self) -> str:
        """Name of the stage that it repeats; its own where it repeats none."""
        return self.name.removeprefix(f"{self.control}-")

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm that proposes genomes."""
        return self.step.by

    @property
    def fitness(self) -> TaskSpec | None:
        """The task that it climbs, where it is not the search's."""
        return self.step.fitness

    def population(self, dimension: int) -> int:
        """Candidates per generation, over so many numbers."""
        usual = default_population(dimension) * (2 if self.algorithm == "nsga2" else 1)
        return self.step.population or usual

    def batch_sizes(self, examples: int) -> tuple[int, ...]:
        """Sizes of the batches that generations are scored on, of so many examples: one after the
        other, see `GROWTH`."""
        batch = self.step.batch
        if batch == "all" or self.algorithm in ("random", "nsga2"):
            return (examples,)
        if batch is None and self.algorithm == "gradient":
            batch = min(
                _STEP,
                max(1, min(_FEWEST, examples // 2), examples * self.evaluations // (3 * _STEPS)),
            )
        if batch is not None or self.algorithm in ("gradient", "sweep"):
            return (min(examples, batch or _BATCH),)
        sizes = [min(examples, _BATCH)]
        while 4 * sizes[-1] <= examples:
            sizes.append(2 * sizes[-1])
        return tuple(sizes)


@dataclass(frozen=True)
class Control:
    """Search that is run again to compare with: the same stages, over other sources.

    Attributes:
        name: Name, which those of its stages begin with.
        title: Name in tables.
        source: The only source that it searches; None where all take part.
    """

    name: str
    title: str
    source: int | None = None

    def again(self, stage: Stage) -> Stage:
        """A stage of the search itself, once more."""
        before = f"{self.name}-"
        return replace(
            stage,
            name=before + stage.name,
            title=f"{self.title}, {stage.title}",
            begins_at=stage.begins_at and before + stage.begins_at,
            builds_on=stage.builds_on and before + stage.builds_on,
            control=self.name,
            source=self.source,
        )


def make_stages(
    steps: Mapping[SpaceName, Sequence[Step]], controls: Sequence[Control]
) -> list[Stage]:
    """Make the stages of a search, in the order that they run.

    Args:
        steps: The steps of each space that is searched, one space after the other.
        controls: What the search is run again over, to compare with.
    """
    own: list[Stage] = []

    def add(name: str, space: SpaceName, step: Step, begins_at: str | None = None) -> None:
        minutes = math.inf if step.minutes is None else step.minutes
        merged = "ps" if space == "dfs" and "ps" in steps else None
        title = STAGES[name]
        number = len(own)
        own.append(
            Stage(name, title, number, space, step, step.evaluations, minutes, begins_at, merged)
        )

    for space, (*before, last) in steps.items():
        for step in before:
            add(_FIRST[space], space, step)
        add(space, space, last, _FIRST[space] if before else None)
    return own + [control.again(stage) for control in controls for stage in own]
