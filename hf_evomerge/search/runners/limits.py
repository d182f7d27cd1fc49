"""The time that one evaluation may take. Knows nothing of who runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...fitness import Scores
from ...recipes.recipe import Recipe
from ..evaluation.gradients import GateSlopes

if TYPE_CHECKING:
    from ..file.sections import LimitsConfig
    from .job import Job

FLOOR = 60.0  # seconds that every evaluation may take where the file sets no limit
TIMES = 10  # what a parent takes, where the file sets no limit
GRADIENT = 3  # what a backward pass takes, in scores


@dataclass(frozen=True)
class Limit:
    """Limit of one evaluation.

    Attributes:
        seconds: Time, without that for loading models.
        whose: Origin of the time.
    """

    seconds: float = math.inf
    whose: str = "compute.limits.seconds"

    def exceeded(self, seconds: float) -> str | None:
        """The line that says that the limit is exceeded after so many seconds; None where it is
        not."""
        if seconds > self.seconds:
            return f"took longer than {math.ceil(self.seconds)} s ({self.whose})"
        return None


class Limits:
    """The limits of a search.

    Args:
        config: What the search file says.
        examples: How many examples there are, per split.
        layers: How many layers a parent has; the least number where they differ.
        parents: Gives the parents' scores on the search split, as far as they are there.
    """

    def __init__(
        self,
        config: LimitsConfig,
        *,
        examples: Mapping[str, int],
        layers: int,
        parents: Callable[[], Iterable[Scores | None]],
    ) -> None:
        self._config = config
        self._examples = examples
        self._layers = layers
        self._parents = parents
        self._slowest = math.inf

    def of(self, job: Job) -> Limit:
        """Return what a job may take.

        Where the file sets no time it is ten times what the slowest parent took, and more for as
        many more examples, a longer path or a gradient. The parents then have no limit, nor have
        scores by another fitness than theirs.
        """
        if self._config.seconds is not None:
            return Limit(self._config.seconds)
        if not isinstance(job.target, Recipe) or job.fitness is not None:
            return Limit()
        if self._slowest == math.inf:
            self._slowest = max(
                (scores.seconds for scores in self._parents() if scores is not None),
                default=math.inf,
            )
        return Limit(
            max(FLOOR, TIMES * self._slowest * self.size(job)),
            f"{TIMES} times a parent's time; compute.limits.seconds is not set",
        )

    # size = (examples / search examples) (1 + shots) max(1, layers / a parent's layers) (3 with a
    # gradient): linear in each, as the time of a forward pass is. It orders jobs and scales limits;
    # it need not be exact.
    def size(self, job: Job) -> float:
        """Estimate what a job takes, in scores of one parent on the search split: by its examples,
        those in their prompts, its hops, its gradient."""
        count = self._examples[job.split] if job.batch is None else len(job.batch)
        examples = (1 + job.shots) * count / self._examples["search"]
        if not isinstance(job.target, Recipe):
            return examples
        layers = (
            sum(len(hop.terms) for hop in job.target.flow.to_path().hops)
            if job.target.flow is not None
            else 0
        )
        if isinstance(job.slopes, GateSlopes):
            layers = max(layers, sum(job.slopes.active))
        return examples * max(1.0, layers / self._layers) * (1 if job.slopes is None else GRADIENT)
