"""The trials of a search, ready to be drawn: stages, generations, the best of each, and the front. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from ..recipes.stage_names import STAGES

FITNESS = "fitness"  # the first of several objectives


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Attributes:
        stage: The stage it is of, such as ``ps``.
        number: Its number in the stage, from 0.
        generation: The generation it is of.
        fitness: What it scored; None where it failed.
        accuracy: The share of right answers, where the task tells.
        path, scales: Its hops and their scales in data flow space.
        recipe: Its recipe as text, as far as that is known.
        examples: How many it was scored on; 0 where that is not known.
        cost: What it cost, in scores of all examples.
        others: The values of the objectives beside the fitness.
    """

    stage: str
    number: int
    generation: int
    fitness: float | None
    accuracy: float | None = None
    path: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    recipe: str = ""
    examples: int = 0
    cost: float = 1.0
    others: Mapping[str, float] = field(default_factory=dict)

    def value(self, objective: str) -> float | None:
        """The fitness or another objective; None where there is none."""
        return self.fitness if objective == FITNESS or self.fitness is None else self.others.get(objective)


@dataclass(frozen=True)
class Objective:
    """One of several objectives: its name, and what it is measured in."""

    name: str
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Point:
    """One model that no other of the search beats in every objective.

    Attributes:
        number: What it is picked by.
        stage, trial: The trial that found it.
        search: The objectives on the search split.
        judged: The same where the results are measured; empty where it was not scored there.
        winner: Whether it is the model that the search ended with.
    """

    number: int
    stage: str
    trial: int
    search: Mapping[str, float]
    judged: Mapping[str, float]
    winner: bool


@dataclass(frozen=True)
class Generation:
    """What one generation scored.

    Attributes:
        number: Its number, from 0.
        fitness: The fitness of its trials, from the worst to the best; without the failed ones.
        best: Its best trial; None where all failed.
        so_far: The best fitness up to and with this generation, of trials on all examples; None where there is none yet.
        evaluations: What the trials up to and with this generation cost, in scores of all examples.
    """

    number: int
    fitness: tuple[float, ...]
    best: Trial | None
    so_far: float | None
    evaluations: float

    def quantile(self, share: float) -> float:
        """A quantile of the fitness."""
        return quantile(self.fitness, share)


def quantile(ordered: Sequence[float], share: float) -> float:
    """A quantile of numbers in order, by linear interpolation."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def stages(trials: Sequence[Trial]) -> list[str]:
    """The stages that the trials belong to, in the order they ran, the random search last."""
    there, order = list(dict.fromkeys(trial.stage for trial in trials)), list(STAGES)
    return sorted(there, key=lambda stage: order.index(stage) if stage in STAGES else len(order))


def without_first(trials: Sequence[Trial]) -> list[Trial]:
    """The trials without those of stages that run before another, whose fitness may be another one."""
    return [trial for trial in trials if not trial.stage.endswith("-first")]


def of_stage(trials: Sequence[Trial], stage: str) -> list[Trial]:
    """The trials of one stage, in order."""
    return sorted((trial for trial in trials if trial.stage == stage), key=lambda trial: trial.number)


def whole(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that were scored on the most examples and did not fail: the best of batches is the luckiest, not the best."""
    scored = [trial for trial in trials if trial.fitness is not None]
    most = max((trial.examples for trial in scored), default=0)
    return [trial for trial in scored if trial.examples == most]


def generations(trials: Sequence[Trial]) -> list[Generation]:
    """The generations of one stage's trials."""
    members: dict[int, list[Trial]] = {}
    for trial in trials:
        members.setdefault(trial.generation, []).append(trial)
    grown: list[Generation] = []
    so_far: float | None = None
    count = 0.0
    compared = {trial.number for trial in whole(trials)}
    for number in sorted(members):
        scored = [(trial.fitness, trial) for trial in members[number] if trial.fitness is not None]
        best = max(scored, key=lambda pair: pair[0])[1] if scored else None
        count += sum(trial.cost for trial in members[number])
        for value, trial in scored:
            if trial.number in compared:
                so_far = value if so_far is None else max(so_far, value)
        grown.append(Generation(number, tuple(sorted(value for value, _ in scored)), best, so_far, count))
    return grown


def spent(trials: Sequence[Trial], start: float = 0.0) -> list[float]:
    """The evaluations that were spent when each trial had ended."""
    return list(accumulate((trial.cost for trial in trials), initial=start))[1:]


def best_so_far(trials: Sequence[Trial], start: float = 0.0) -> list[tuple[float, Trial]]:
    """The best trials so far, of those on all examples: where the best rises, and at the last evaluation."""
    points: list[tuple[float, Trial]] = []
    best = -math.inf
    compared = {trial.number for trial in whole(trials)}
    ends = spent(trials, start)
    for at, trial in zip(ends, trials, strict=True):
        if trial.fitness is not None and trial.number in compared and trial.fitness > best:
            best = trial.fitness
            points.append((at, trial))
    return [*points, *((ends[-1], trial) for _, trial in points[-1:])]


def in_steps(grown: Sequence[Generation]) -> bool:
    """Whether most generations are one trial, as in a search by gradient: they have no spread."""
    return 2 * sum(len(one.fitness) > 1 for one in grown) < len(grown)
