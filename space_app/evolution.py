"""The trials of a search, ready to be drawn: stages, generations, the best of each. Pure functions over `Published.trials`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from published import Published, Trial

from hf_evomerge.recipes.stage_names import STAGES


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
    found: list[Generation] = []
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
        found.append(Generation(number, tuple(sorted(value for value, _ in scored)), best, so_far, count))
    return found


def spent(trials: Sequence[Trial], start: float = 0.0) -> list[float]:
    """The evaluations that were spent when each trial had ended."""
    return list(accumulate((trial.cost for trial in trials), initial=start))[1:]


def best_line(trials: Sequence[Trial], start: float = 0.0) -> list[tuple[float, float]]:
    """The best fitness so far, of trials on all examples: where it rises, and the last point, as (evaluations, fitness)."""
    return [(at, trial.fitness) for at, trial in best_so_far(trials, start) if trial.fitness is not None]


def best_so_far(trials: Sequence[Trial], start: float = 0.0) -> list[tuple[float, Trial]]:
    """The trials of `best_line`."""
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


def winner(published: Published) -> Trial | None:
    """The trial that found the published model; None where the record does not tell it."""
    row = next((row for row in published.rows if row.get("winner")), {})
    point = next((point for point in published.front if point.winner), None)
    there = of_stage(published.trials, point.stage if point else str(row.get("stage")))
    if point is not None:
        return next((trial for trial in there if trial.number == point.trial), None)
    made = (published.path, published.scales if published.path else (), "" if published.path else _merge(published.recipe_text))
    found = [trial for trial in there if (trial.path, trial.scales, _merge(trial.recipe)) == made and any(made)]
    return max(found, key=lambda trial: trial.examples, default=None)


def _merge(recipe: str) -> str:
    """What of a recipe's text says how the weights are made: not what the sources are called."""
    found = re.search(r"^merge:((?:\n[ -].*)*)", recipe, re.MULTILINE)
    return found[1] if found else ""


def opening(published: Published, stage: str) -> int:
    """The place of a stage's generation that is shown first: the published model's, or the last."""
    grown = generations(of_stage(published.trials, stage))
    chosen = winner(published)
    there = (at for at, one in enumerate(grown) if chosen and chosen.stage == stage and chosen.generation == one.number)
    return next(there, len(grown) - 1)
