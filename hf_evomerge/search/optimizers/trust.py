"""Says how far a step along a gradient may go: as far as the gradient still explains what happens. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from .ask_tell import Asked, Request, Vector

_TRIES = 4  # lengths of a step that are tried, each half of the one before


class TrustRegion:
    """Tries each step on the batch that its gradient is of, and halves it until it holds.

    A step d along a gradient g should change the fitness by <g, d>. The step holds where the fitness does not fall short of
    this by more than sum_i |g_i d_i|, the most that these slopes explain: a step straight up must not lose anything, one that
    older gradients lead down may lose what it was going to. Scores of one batch are compared with each other alone, so there
    is no noise of sampling between them.

    Attributes:
        factor: What steps are multiplied by. A step that holds doubles it, up to 1.
    """

    def __init__(self) -> None:
        self.factor = 1.0

    def step(
        self, asked: Asked, fitness: float, point: Vector, step: Vector, bounds: tuple[Vector, Vector], least: float
    ) -> Generator[list[Vector], list[float], Vector | None]:
        """Ask for points along a step until one holds; gives it, or None where none does.

        Args:
            asked: What asks; it was told a gradient last.
            fitness, point: Where the step begins.
            step: All of it.
            bounds: The lower and the upper bounds of points.
            least: What must be left of the budget.
        """
        gradient = np.asarray(asked.gradients[0], dtype=np.float64)
        for tries in range(1, _TRIES + 1):
            if asked.spent + asked.share + least > asked.budget:
                break
            there: Vector = np.clip(point + self.factor * step, *bounds)
            changes = gradient * (there - point)
            asked.request = Request(repeats=tries)
            (found,) = yield [there]
            if found >= fitness + float(changes.sum()) - float(np.abs(changes).sum()):  # false for NaN
                self.factor = min(1.0, 2 * self.factor)
                return there
            self.factor /= 2
        return None
