"""The trials of a search, ready to be drawn: stages, the moments at which they got better, and the
front. Pure functions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby

from ..recipes.stage_names import STAGES

FITNESS = "fitness"  # the first of the metrics


@dataclass(frozen=True)
class DrawnTrial:
    """Trial of a search.

    Attributes:
        stage, number, generation: The stage, such as ``ps``, its number in the stage, from 0, and
            its generation.
        fitness: What it scored; None where it failed.
        accuracy: The share of right answers, where the task tells.
        path, scales: Its hops and their scales in data flow space.
        recipe: Its recipe as text, as far as that is known.
        examples: How many it was scored on; 0 where that is not known.
        cost: What it cost, in scores of all examples.
        others: Values of the metrics beside the fitness.
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

    def value(self, metric: str) -> float | None:
        """The fitness or another metric; None where there is none."""
        if metric == FITNESS:
            return self.fitness
        return self.others.get(metric)


@dataclass(frozen=True)
class Metric:
    """Name and unit of a metric."""

    name: str
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class FrontPoint:
    """Model that no other of the search beats in every metric, with the number that it is picked
    by.

    Attributes:
        stage, trial: The trial that found it.
        search, judged: The metrics on the search split, and where the results are measured;
            empty if not scored there.
        winner: Whether it is the model that the search ended with.
    """

    number: int
    stage: str
    trial: int
    search: Mapping[str, float]
    judged: Mapping[str, float]
    winner: bool


@dataclass(frozen=True)
class Moment:
    """A moment at which a search got better.

    Attributes:
        trial: The best trial of its generation, or so far.
        value: How good the search was then, in accuracy where that of all trials is known, else in
            fitness.
        evaluations: What was spent until then, in scores of all examples.
    """

    trial: DrawnTrial
    value: float
    evaluations: float


def stages(trials: Sequence[DrawnTrial]) -> list[str]:
    """The stages that the trials belong to, in the order they ran."""
    there = list(dict.fromkeys(trial.stage for trial in trials))
    # `STAGES` is in the order in which stages run; `sorted` is stable, so unknown ones keep theirs,
    # at the end.
    order = list(STAGES)
    return sorted(there, key=lambda stage: order.index(stage) if stage in STAGES else len(order))


def without_first(trials: Sequence[DrawnTrial]) -> list[DrawnTrial]:
    """The trials without those of stages that run before another, whose fitness may be another
    one."""
    return [trial for trial in trials if not trial.stage.endswith("-first")]


def of_stage(trials: Sequence[DrawnTrial], stage: str) -> list[DrawnTrial]:
    """The trials of one stage, in order."""
    return sorted(
        (trial for trial in trials if trial.stage == stage), key=lambda trial: trial.number
    )


def whole(trials: Sequence[DrawnTrial]) -> list[DrawnTrial]:
    """The trials that were scored on the most examples and did not fail: the best of batches is the
    luckiest, not the best."""
    scored = [trial for trial in trials if trial.fitness is not None]
    most = max((trial.examples for trial in scored), default=0)
    return [trial for trial in scored if trial.examples == most]


def accurate(trials: Sequence[DrawnTrial]) -> bool:
    """Tell whether an accuracy is known of all trials that did not fail, and not 0 throughout."""
    known = [trial.accuracy for trial in trials if trial.fitness is not None]
    return None not in known and any(known)


def climb(
    trials: Sequence[DrawnTrial], most: int = 24, winner: DrawnTrial | None = None
) -> list[Moment]:
    """The moments at which a stage got better, in order; the last is the published model's, where
    it is of the stage.

    Where generations are scored on batches, a value is the mean over the last quarter of what came
    before, so that a lucky batch is no progress, and no moment is as good as the published model's
    where that was scored on all examples; elsewhere it is that of the best trial so far. Trials of
    the first generation stand by themselves. Of more than `most` moments some are left out, the
    first and the last never.
    """
    exact = {trial.number for trial in whole(trials)}
    ends = spent(trials)
    share = accurate(trials)
    batches = 2 * len(exact) < sum(trial.fitness is not None for trial in trials)
    steps = list[Moment]()
    past = list[float]()
    best = -math.inf
    values = {trial.number: (trial.accuracy if share else trial.fitness) or 0.0 for trial in trials}
    last = (
        values[winner.number]
        if winner is not None and winner in trials and winner.number in exact
        else math.inf
    )
    for _, members in groupby(
        zip(trials, ends, strict=True), key=lambda pair: pair[0].generation or -pair[0].number
    ):
        scored = [
            pair
            for pair in members
            if pair[0].fitness is not None and (batches or pair[0].number in exact)
        ]
        if not scored:
            continue
        trial, end = max(scored, key=lambda pair: pair[0].fitness or 0.0)
        past.append(values[trial.number])
        recent = past[-1 - len(past) // 4 :] if batches else past[-1:]
        if best < (now := sum(recent) / len(recent)) < last:
            best = now
            steps.append(Moment(trial, now, end))
    every = max(1, math.ceil(len(steps) / most))
    steps = [*steps[::every], *(steps[-1:] if (len(steps) - 1) % every else [])]
    if winner is not None and winner in trials:
        steps = [step for step in steps if step.trial.number < winner.number]
        # one batch says no more
        value = steps[-1].value if steps and winner.number not in exact else values[winner.number]
        steps.append(Moment(winner, value, ends[list(trials).index(winner)]))
    return steps


def spent(trials: Sequence[DrawnTrial], start: float = 0.0) -> list[float]:
    """The evaluations that were spent when each trial had ended."""
    return list(accumulate((trial.cost for trial in trials), initial=start))[1:]


def best_so_far(trials: Sequence[DrawnTrial], start: float = 0.0) -> list[tuple[float, DrawnTrial]]:
    """The best trials so far, of those on all examples: where the best rises, and at the last
    evaluation."""
    points: list[tuple[float, DrawnTrial]] = []
    best = -math.inf
    compared = {trial.number for trial in whole(trials)}
    ends = spent(trials, start)
    for at, trial in zip(ends, trials, strict=True):
        if trial.fitness is not None and trial.number in compared and trial.fitness > best:
            best = trial.fitness
            points.append((at, trial))
    return [*points, *((ends[-1], trial) for _, trial in points[-1:])]
