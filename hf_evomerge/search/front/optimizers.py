"""Proposes genomes where there are several objectives: pymoo's NSGA-II. Knows nothing of models,
nor what objectives are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...errors import SearchError, optional
from ..optimizers.ask_tell import AskTell, Batches, Start, Vector, to_costs

_STEPS = 4  # between the start's points and a bound, where a coordinate has none
_MOST_LEFT_OUT = (
    0.5  # of the coordinates, where they are prunable, of a genome of the first generation
)


# NSGA-II (Deb, Pratap, Agarwal and Meyarivan 2002, IEEE Transactions on Evolutionary Computation
# 6). Parents and offspring are sorted into fronts: a point dominates another when it is at least as
# good in every objective and better in one (section III-A). The next parents are the first fronts;
# of the front that does not fit whole, those with the largest crowding distance are kept, so that
# the front stays wide (section III-B). pymoo does this; here are the first generation and the
# bounds. Its operators need finite bounds, and genomes may have none. Every value is maximised here
# and minimised there. Each objective is converted by itself, so a failed candidate is the worst in
# all of them.
class FrontOptimizer(AskTell):
    """Ask for genomes, evaluate them anywhere, tell the values of all their objectives.

    The first generation is the start's mean and candidates, and points around these; where
    coordinates are prunable, a share of them is switched off in every second one of those. From
    then on it is NSGA-II (Deb et al., 2002) with pymoo's settings.

    Args:
        start: Where to begin. A coordinate without bounds stays within four step sizes of the
            start's points, and of 0 where coordinates are prunable.
        metrics: How many objectives there are.
        population: Candidates per generation.
        seed: Seed of all random numbers.

    Raises:
        SearchError: pymoo is not installed.

    Example:
        >>> start = Start(np.full(2, 0.5), 0.2, np.zeros(2), np.ones(2))
        >>> optimizer = FrontOptimizer(start, metrics=2, population=8)
        >>> for _ in range(20):
        ...     points = optimizer.ask()
        ...     optimizer.tell([np.array([x[0], 1 - x[0] - x[1]]) for x in points])
        >>> bool(np.mean([x[1] for x in points]) < 0.1)
        True
    """

    def __init__(self, start: Start, *, metrics: int, population: int, seed: int = 0) -> None:
        super().__init__()
        require_pymoo()
        self.start = start
        self.count = metrics
        self.seed = seed
        self.sigma = start.sigma
        self.population = population
        self._batches = self._generations()

    def _generations(self) -> Batches:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.evaluator import Evaluator
        from pymoo.core.problem import Problem
        from pymoo.core.termination import NoTermination
        from pymoo.problems.static import StaticProblem

        lower, upper = self._bounds()
        problem = Problem(n_var=lower.size, n_obj=self.count, xl=lower, xu=upper)
        algorithm = NSGA2(
            pop_size=self.population, sampling=np.clip(self._first(), lower, upper), seed=self.seed
        )
        algorithm.setup(problem, termination=NoTermination())
        while (offspring := algorithm.ask()) is not None and len(offspring):
            yield list(np.asarray(offspring.get("X"), dtype=np.float64))
            costs = np.column_stack(
                [to_costs(column) for column in np.array(self.vectors).T]
            )  # a failed one is worse
            Evaluator().eval(StaticProblem(problem, F=costs), offspring)
            algorithm.tell(infills=offspring)

    def _bounds(self) -> tuple[Vector, Vector]:
        start = self.start
        points = np.array([start.mean, *start.candidates])
        reach = _STEPS * start.sigma
        lowest = points.min(0) - reach
        if start.prunable:  # which are off below 0
            lowest = np.minimum(lowest, -reach)
        lower = np.where(np.isfinite(start.lower), start.lower, lowest)
        return lower, np.where(np.isfinite(start.upper), start.upper, points.max(0) + reach)

    def _first(self) -> NDArray[np.float64]:
        """The first generation, shape (population, n)."""
        rng = np.random.default_rng(self.seed)
        known = [self.start.mean, *self.start.candidates]
        points = known[: self.population]
        while len(points) < self.population:
            point = known[len(points) % len(known)] + self.start.sigma * rng.standard_normal(
                self.start.mean.size
            )
            # Points around a path with every gate on are all long. Some gates are pushed below 0,
            # half a step deep, so that short paths are there from the start.
            if self.start.prunable and len(points) % 2:
                out = rng.random(point.size) < rng.uniform(0, _MOST_LEFT_OUT)
                point = np.where(out, -0.5 * self.start.sigma, point)
            points.append(point)
        return np.array(points)


def require_pymoo() -> None:
    """Raise `SearchError` where pymoo is not installed."""
    optional("pymoo", "objectives", "objectives: a search for several", SearchError)


def non_dominated(vectors: Sequence[Vector]) -> list[int]:
    """Indices of the points that none is better than in one objective without being worse in
    another; of equals the first.

    Example:
        >>> non_dominated([np.array(point) for point in ([1, 1], [2, 0], [0, 0], [1, 1])])
        [0, 1]
    """
    points = np.array(vectors).reshape(len(vectors), -1)
    indices = []
    for index, point in enumerate(points):
        better = (points >= point).all(1) & (points > point).any(1)
        if not better.any() and not (points[:index] == point).all(1).any():
            indices.append(index)
    return indices


def scaled(vectors: Sequence[Vector]) -> NDArray[np.float64]:
    """Points with each objective between 0, the worst of them, and 1, the best; 0 where all are the
    same."""
    points = np.array(vectors, dtype=np.float64).reshape(len(vectors), -1)
    low = points.min(0)
    width = np.ptp(points, axis=0)
    return np.where(width > 0, (points - low) / np.where(width > 0, width, 1.0), 0.0)


# The knee in the sense of Das (1999, Structural Optimization 18): scale each objective to 0..1,
# take the best point of each (the ends of the front), and lay a plane n x = 1 through them. The
# knee maximises n x, which is the distance beyond this plane up to a constant. With fewer distinct
# ends than objectives the plane is not unique; the least-squares normal of least length is taken.
# Negative parts of n are cut off, because being worse in an objective must not count as an
# advantage. Rounding to 9 digits makes ties the same on every machine.
def knee(vectors: Sequence[Vector]) -> int:
    """The point of a front that bulges most: farthest beyond the line, or plane, through the best
    of each objective.

    Objectives that go together, as hops and parameters do, share the weight of one. The first of
    equals, the best in the first objective where a front is sorted by it.

    Example:
        >>> knee([np.array(point) for point in ([0.0, 1.0], [0.8, 0.9], [1.0, 0.0])])
        1
    """
    points = scaled(vectors)
    ends = np.unique(points[points.argmax(0)], axis=0)
    normal = np.linalg.lstsq(ends, np.ones(len(ends)), rcond=None)[
        0
    ]  # the shortest, where the ends leave it open
    return int(np.argmax(np.round(points @ np.maximum(normal, 0.0), 9)))


def best_point(vectors: Sequence[Vector]) -> int:
    """Index of the knee of the points that nothing beats, and of the best of plain numbers; NaN is
    worse than any, and of equals it is the first.

    Example:
        >>> best_point([np.array([number]) for number in (np.nan, 1.0, 3.0, 3.0)])
        2
    """
    alive = [i for i, point in enumerate(vectors) if not np.isnan(point[0])] or [0]
    points = [vectors[i] for i in alive]
    best = non_dominated(points)
    return alive[best[knee([points[i] for i in best])]]


# Farthest-point sampling (Gonzalez 1985): each new point maximises its distance to the nearest
# chosen one. Ends and knee come first, because people look for them.
def spread(vectors: Sequence[Vector], count: int) -> list[int]:
    """Indices of so many points of a front: the best of each objective, the knee, then always the
    one farthest from those."""
    points = scaled(vectors)
    chosen = list(dict.fromkeys([*(int(best) for best in points.argmax(0)), knee(vectors)]))[:count]
    while len(chosen) < min(count, len(points)):
        distances = np.linalg.norm(points[:, None] - points[chosen][None], axis=2).min(1)
        distances[chosen] = -1.0
        chosen.append(int(distances.argmax()))
    return sorted(chosen)
