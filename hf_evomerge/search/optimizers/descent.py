"""Follows the gradient of the fitness: projected Adam on batches of examples, a point at a time.
Knows nothing of models."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator

import numpy as np
from numpy.typing import NDArray

from .ask_tell import AskTell, Batches, Request, Start, Vector

_FIRST = 0.9
_SECOND = 0.99  # Adam's averages of gradients and of their squares (arXiv:1412.6980)
_FLOOR = 0.02  # of the rate, where the cosine ends
# steps at the lower bound, after which a coordinate is given up; a sixth of the steps where these
# are few
_QUIET = 10
_TRIES = 4  # lengths of a step of gates, each half of the one before
_CHECKS = (0.5, 0.75)  # of the budget spent, where the average of the last points is scored in full
_WINDOW = 10  # of the last points, which are averaged; an eighth of the steps where these are few
_MOST = 0.05  # of the budget, what these scores may take: steps lead further
_MANY = 128  # examples, from which on each coordinate moves by itself
_FEW = 16  # examples: where a batch has fewer, it does not tell one start from another
_CLOSE = 4  # starts, which are told apart on all examples then
_FAR = 6.5  # nats: an example that begins further from its answer counts for more than one


def checks_of(budget: float) -> tuple[float, ...]:
    """Shares of a budget, after which the average of the last points is scored in full; it is
    scored at the end anyway."""
    return _CHECKS if len(_CHECKS) <= _MOST * budget else ()


def cost_of_starts(start: Start, budget: float, share: float, examples: int) -> float:
    """Cost of choosing among the candidates of a start, in scores of all examples."""
    on_a_batch = int(min(len(start.candidates), max(1.0, budget / (3 * share))))
    close = _close(start, budget, share, examples)
    if not close:
        return on_a_batch * share
    return min(on_a_batch, close) + (on_a_batch * share if on_a_batch > close else 0.0)


def _close(start: Start, budget: float, share: float, examples: int) -> int:
    """Number of candidates of a start that are scored on all examples, a sixth of the budget at
    most; 0 where a batch is large enough to choose by it.

    Paths are chosen on a batch: one source's own path is often ahead of a mixture at first, and
    gates that are shut hardly open again.
    """
    if start.prunable or share * examples >= _FEW or budget < 12:
        return 0
    return int(min(_CLOSE, budget / 6))


# Given is the fitness f and its gradient on a fresh batch of examples at each step. The optimizer
# ascends with Adam; a projection (clip) onto the bounds follows each step. The rate falls as half a
# cosine over the budget b, with s spent (Loshchilov and Hutter, arXiv:1608.03983, equation 5):
#   sigma = sigma_0 [ floor + (1 - floor) (1 + cos(pi s / b)) / 2 ],  floor = .02
# Cost takes the place of the number of steps, because steps become cheaper as gates are given up.
#
# A single point follows the noise of its last batch. The result is an exponential average over
# about w points, avg <- (1 - 1/w) avg + x / w. It alone is scored on all examples.
#
# Prunable coordinates are gates. A gate that was at 0 for `patience` steps in a row leaves the
# search for good: its slot is not computed any more. A step that fails (NaN) goes back to the last
# good point, halves the rate and forgets Adam's averages, which belong to the place that was left.
class GradientOptimizer(AskTell):
    """Ask for a point, evaluate it and its gradient anywhere, tell both.

    Adam ascends on batches with a rate that falls as a cosine over the budget, inside the bounds.
    What is scored on all examples, and so competes for the result, is the average of the last
    points: at the end, and where that takes little of the budget also halfway and at three
    quarters.

    Args:
        start: Where to begin. Its candidates are scored first, and the best is the first point:
            on one batch, and the four best of them on all examples where a batch has fewer than 16
            and coordinates are not prunable. Its sigma is the first rate. Where coordinates are
            prunable, those that stay at their lower bound are given up, which is cheaper.
        price: Cost of a gradient, in scores of the same examples, given which coordinates are still
            in play.
        budget: Budget in scores of all examples.
        share: Share of the examples that a batch holds.
        examples: How many search examples there are.

    Raises:
        SearchError: `tell` does not match the last `ask`.

    Example:
        >>> start = Start(np.zeros(2), 0.1, np.full(2, -1.0), np.ones(2))
        >>> optimizer = GradientOptimizer(start, price=lambda active: 3.0, budget=300.0, share=1.0)
        >>> while (points := optimizer.ask()) is not None:
        ...     scores = [-float(((x - 0.5) ** 2).sum()) for x in points]
        ...     optimizer.tell(scores, [1.0 - 2 * x for x in points])
        >>> np.allclose(points_of_the_end := optimizer.average, 0.5, atol=0.01)
        True
    """

    def __init__(
        self,
        start: Start,
        *,
        price: Callable[[NDArray[np.bool_]], float],
        budget: float,
        share: float,
        examples: int = _MANY,
    ) -> None:
        super().__init__(budget, share)
        self.start = start
        self.price = price
        self.examples = examples
        self.sigma = start.sigma
        self.average = start.mean.copy()
        self._batches = self._steps()

    def _steps(self) -> Batches:
        """Candidates, steps, and scores in full."""
        point = yield from self._first_point()
        begin = point
        self.average = point.copy()
        adam: _Adam | _Nested | None = None
        quiet = np.zeros(point.size, dtype=int)
        checks = list(checks_of(self.budget))
        good = point
        rate = self.start.sigma
        trust = _TrustRegion() if self.start.prunable else None
        # Reserved for the end: one full score; with gates also three points on a batch, of which
        # the best is scored in full. Steps stop early enough to leave this much of the budget.
        last = 1.0 if trust is None else 1 + 3 * self.share  # what the end costs
        steps = self.budget / (self.price(quiet == 0) * self.share)
        window = max(1.0, min(_WINDOW, steps / 8))
        patience = max(1, min(_QUIET, int(steps / 6)))
        while True:
            active = quiet < patience
            price = self.price(active)
            if self.spent + price * self.share + last > self.budget or not active.any():
                break
            self.request = Request(price=price, active=active)
            (fitness,) = yield [point]
            self.sigma = rate * (
                _FLOOR
                + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, self.spent / self.budget)))
            )
            if math.isnan(fitness):  # go back, and on in smaller steps
                point = good
                rate = rate / 2
                adam = None
                continue
            good = point
            adam = adam or self._ascent(fitness)
            step = self.sigma * adam.direction(self.gradients[0])
            lower = np.where(active, self.start.lower, point)
            upper = np.where(active, self.start.upper, point)
            if trust is None:
                point = np.clip(point + step, lower, upper)
            else:
                point = yield from trust.step(self, fitness, point, step, (lower, upper), last)
            if self.start.prunable:
                # Coordinates that are out stay out: their count is frozen.
                quiet = np.where(active, np.where(point <= self.start.lower, quiet + 1, 0), quiet)
            self.average = (1 - 1 / window) * self.average + 1 / window * point
            if checks and self.spent >= checks[0] * self.budget:
                del checks[0]
                self.request = Request(full=True)
                yield [self.average]
        if (
            trust is not None and self.spent + last <= self.budget
        ):  # an average of gates is a path of its own
            self.average = yield from self.best_of([self.average, point, begin])
        self.request = Request(full=True)
        yield [self.average]

    def _first_point(self) -> Generator[list[Vector], list[float], Vector]:
        """Ask for the start's candidates; gives the best one.

        A batch of few examples can put a single source before an average that is nearly as good and
        leads much further. The best candidates on such a batch are scored on all examples.
        """
        close = _close(self.start, self.budget, self.share, self.examples)
        if not close:
            return (yield from self.best_candidate(self.start))
        candidates = self.affordable(self.start)
        if len(candidates) > close:
            self.request = Request()
            values = yield candidates
            order = np.argsort([np.inf if math.isnan(value) else -value for value in values])
            candidates = [candidates[number] for number in np.sort(order[:close])]
        if not candidates:
            return self.start.mean.copy()
        return (yield from self.best_of(candidates, full=True))

    def _ascent(self, fitness: float) -> _Adam | _Nested:
        """Begin an ascent. Examples that are far from their answers tell more, and bear more
        numbers.

        A share of each step, from 0 to 1, is taken by each coordinate alone and not with its group:
        that of the examples in 128, where one whose fitness is f below 0, and further than 6.5,
        counts for (f / 6.5)^2.
        """
        # fine = n max(1, |f| / 6.5)^2 / 128, at most 1, with n examples and mean fitness f at the
        # start. At 1 every coordinate moves alone (plain Adam). Below, members of a group mostly
        # move together.
        fine = min(1.0, self.examples * max(1.0, -fitness / _FAR) ** 2 / _MANY)
        groups = self.start.groups
        return _Adam(self.start.mean.size) if groups is None or fine >= 1 else _Nested(groups, fine)


# Fitness along gates is far from linear: a step that is good for one gate may break another. With
# gradient g and step d, a linear model predicts the change <g, d> = sum_i g_i d_i. The step is kept
# where
#   f(x + d) >= f(x) + sum_i g_i d_i - sum_i |g_i d_i|
# The last sum is the tolerance. Where every g_i d_i is positive the right side is f(x), and nothing
# may be lost. Each negative one, to which Adam's older gradients may lead, lowers it by twice its
# size. Both values are of one batch (`Request.repeats` asks for it again), so sampling noise
# cancels. A refused step is halved and tried again, `_TRIES` times in all; a kept one doubles the
# factor, up to 1 (backtracking as in Nocedal and Wright, Numerical Optimization, algorithm 3.1).
class _TrustRegion:
    """Tries each step on the batch that its gradient is of, and halves it until it holds; then
    steps may grow again.

    A step d along a gradient g should change the fitness by <g, d>. It holds where the fitness does
    not fall short of this by more than sum_i |g_i d_i|, the most that these slopes explain: a step
    straight up must not lose anything, one that older gradients lead down may. Scores of one batch
    are compared with each other alone, so no noise of sampling is in them.
    """

    def __init__(self) -> None:
        self.factor = 1.0

    def step(
        self,
        asked: AskTell,
        fitness: float,
        point: Vector,
        step: Vector,
        bounds: tuple[Vector, Vector],
        least: float,
    ) -> Generator[list[Vector], list[float], Vector]:
        """Ask for points along a step from one whose fitness and gradient were told; gives the
        first that holds, or that one.

        What is asked for leaves `least` of the budget.
        """
        gradient = asked.gradients[0]
        for tries in range(1, _TRIES + 1):
            if asked.spent + asked.share + least > asked.budget:
                break
            moved: Vector = np.clip(point + self.factor * step, *bounds)
            changes = gradient * (moved - point)
            asked.request = Request(repeats=tries)
            (reached,) = yield [moved]
            if reached >= fitness + float(changes.sum() - np.abs(changes).sum()):  # false for NaN
                self.factor = min(1.0, 2 * self.factor)
                return moved
            self.factor /= 2
        return point


# Two Adams side by side: one on the sums of the gradient over each group, one on each coordinate.
#   d = (1 - fine) d_group + fine d_each
# Adam divides by the size of its gradient, so both directions are about 1 per coordinate and the
# mixture keeps that scale. The sum over a group averages noise away, and it keeps the part of the
# gradient that its members share.
class _Nested:
    """Adam's direction of groups of coordinates, and a share of that of each coordinate.

    With few examples many numbers would follow the noise of a step as far as its signal, which
    groups have in common.
    """

    def __init__(self, groups: NDArray[np.int64], fine: float) -> None:
        self.groups = groups
        self.fine = fine
        self.coarse = _Adam(int(groups.max()) + 1)
        self.each = _Adam(groups.size)

    def direction(self, slope: Vector) -> Vector:
        """Upwards, each coordinate at most about 1."""
        sums: Vector = np.bincount(self.groups, slope).astype(np.float64)
        together: Vector = self.coarse.direction(sums)[self.groups]
        return (1 - self.fine) * together + self.fine * self.each.direction(slope)


# Adam (Kingma and Ba, arXiv:1412.6980, algorithm 1), for ascent. With gradient g at step t:
#   m <- beta_1 m + (1 - beta_1) g,      v <- beta_2 v + (1 - beta_2) g^2
#   m^ = m / (1 - beta_1^t),             v^ = v / (1 - beta_2^t)
#   d  = m^ / (sqrt(v^) + eps)
# The caller multiplies d by the rate. beta_2 is .99 where the paper has .999: a run has tens to
# hundreds of steps, over which a longer memory would hardly be filled.
class _Adam:
    def __init__(self, size: int) -> None:
        self.first = np.zeros(size)
        self.second = np.zeros(size)
        self.count = 0

    def direction(self, slope: Vector) -> Vector:
        """Upwards, each coordinate at most about 1."""
        self.count += 1
        self.first = _FIRST * self.first + (1 - _FIRST) * slope  # m
        self.second = _SECOND * self.second + (1 - _SECOND) * slope**2  # v
        first = self.first / (1 - _FIRST**self.count)  # m^
        second = self.second / (1 - _SECOND**self.count)  # v^
        direction: Vector = first / (np.sqrt(second) + 1e-8)
        return direction
