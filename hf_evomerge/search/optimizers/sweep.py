"""Tries every move from the best point so far, round after round, until there is none. Knows
nothing of models."""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np

from .ask_tell import AskTell, Batches, Start, Vector

_KEPT = 4  # of so many points one goes on to so many times the examples


# Greedy search with successive halving (Jamieson and Talwalkar, arXiv:1502.07943). From n moves on
# a share s of the examples, the best n/4 go on to the share 4 s, and so on. Every level costs about
# n s, however long the race is. A point of a former level is not compared with one of a later
# level, since their batches differ. Rounds before the last stop short of all examples (`partial`):
# a full score would make a point a result, and only the end of the sweep is one.
class SweepOptimizer(AskTell):
    """Ask for points, evaluate them anywhere, tell their fitness.

    A round scores all moves on one batch, the better quarter of them on four times as many
    examples, and so on; the best of those that are left at the end is where the next round begins.
    Only the last round goes on to all examples, so that what competes for the result is where a
    sweep ends, and not where it came by.

    Args:
        start: Where to begin, with its `Start.moves`.
        budget: Budget in scores of all examples.
        share: Share of the examples that all moves are scored on.
        partial: The largest share below 1.

    Example:
        >>> def leave_one_out(x):
        ...     without = [np.where(np.arange(3) == i, 0.0, x) for i in np.flatnonzero(x)]
        ...     return without if x.sum() > 1 else []
        >>> start = Start(np.ones(3), 1.0, np.zeros(3), np.ones(3), moves=leave_one_out)
        >>> optimizer = SweepOptimizer(start)
        >>> while (points := optimizer.ask()) is not None:
        ...     optimizer.tell([float(x @ [1.0, 3.0, 2.0]) for x in points])
        >>> optimizer.best.tolist(), optimizer.spent
        ([0.0, 1.0, 0.0], 5.0)
    """

    def __init__(
        self, start: Start, *, budget: float = np.inf, share: float = 1.0, partial: float = 1.0
    ) -> None:
        super().__init__(budget, share)
        self.start = start
        self.first = share
        self.partial = partial
        self.sigma = start.sigma
        self.best = start.mean.copy()
        self._batches = self._rounds()

    def _rounds(self) -> Batches:
        assert self.start.moves is not None  # the search file has been checked
        while moves := self.start.moves(self.best):
            is_last = not self.start.moves(moves[0])
            self.best = yield from self._best_of(moves, 1.0 if is_last else self.partial)

    def _best_of(
        self, points: list[Vector], most: float
    ) -> Generator[list[Vector], list[float], Vector]:
        self.share = min(most, self.first)
        while True:
            values = yield points
            order = np.argsort(
                [math.inf if math.isnan(value) else -value for value in values], kind="stable"
            )
            if self.share >= most:
                return points[order[0]]
            points = [points[index] for index in order[: math.ceil(len(points) / _KEPT)]]
            self.share = min(most, _KEPT * self.share)


def sweep_over(start: Start, *, size: int, examples: int, budget: float = np.inf) -> SweepOptimizer:
    """A sweep that scores all moves on so many of the examples."""
    return SweepOptimizer(
        start, budget=budget, share=size / examples, partial=max(1, examples - 1) / examples
    )


# The number of moves and levels does not depend on the scores, so a dry run with equal scores has
# the cost of the real one. No formula has to be kept in step with the loop.
def sweep_cost(start: Start, *, size: int, examples: int) -> float:
    """Compute the cost of a `sweep_over`, in scores of all examples; which moves are the better
    ones does not matter."""
    optimizer = sweep_over(start, size=size, examples=examples)
    while (points := optimizer.ask()) is not None:
        optimizer.tell([0.0] * len(points))
    return optimizer.spent
