"""Proposes genomes: pycma's CMA-ES, or random search. Knows nothing of models or recipes.

Fitness is maximised everywhere in this package; it is negated here, where pycma is called. All
random numbers come from one generator of the optimizer's own, so the same seed and the same fitness
values give the same genomes, whatever else runs in the process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import SearchError

GROWTH = 100
"""Generations, after which the next share of the examples is drawn: near the optimum a small batch
no longer tells."""

# coordinates, beyond which a full covariance takes minutes of linear algebra per generation
_SEPARABLE = 1000

Vector = NDArray[np.float64]
Batches = Generator[list[Vector], list[float], None]


@dataclass(frozen=True)
class Start:
    """Start of a search.

    Attributes:
        mean: The first mean of the distribution, shape (n,).
        sigma: Its step size.
        lower, upper: Bounds of each coordinate, shape (n,); infinite where there are none.
        candidates: Points that are scored before the search begins, which it does at the best of
            them. The first are the most important, should the budget not do for all.
        names: What the candidates are, such as "a splice"; what `mean` is where there are no
            candidates.
        groups: Group of each coordinate, for a search by gradient with few examples: its members
            move together at first, shape (n,). None: each moves by itself.
        prunable: Whether coordinates switch something off at their lower bound: a search by
            gradient gives up those that stay there, and tries its steps before it goes on from
            them.
        moves: The points that a sweep tries from one, few enough to try all; an empty list ends it.
            None where there is no such list.
    """

    mean: Vector
    sigma: float
    lower: Vector
    upper: Vector
    candidates: tuple[Vector, ...] = ()
    names: tuple[str, ...] = ("first point",)
    groups: NDArray[np.int64] | None = None
    prunable: bool = False
    moves: Callable[[Vector], list[Vector]] | None = None

    def sample(self, rng: np.random.Generator) -> Vector:
        """Draw one genome of random search: uniform between bounds, and normal around the mean
        where there are none."""
        bounded = np.isfinite(self.lower) & np.isfinite(self.upper)
        normal = self.mean + self.sigma * rng.standard_normal(self.mean.shape)
        uniform = rng.uniform(
            np.where(bounded, self.lower, 0.0), np.where(bounded, self.upper, 1.0)
        )
        return np.where(bounded, uniform, normal)


@dataclass(frozen=True)
class Request:
    """Request about the genomes that were asked for.

    Attributes:
        full: Whether they are scored on all examples, also where generations are scored on batches.
        price: Cost of each of them, in scores of the examples that it is scored on.
        active: Coordinates that the gradient of the fitness is wanted of too; None where it is not.
        repeats: Number of asks since the one whose batch they are scored on; a batch of their own
            where 0.
    """

    full: bool = False
    price: float = 1.0
    active: NDArray[np.bool_] | None = None
    repeats: int = 0


# An optimizer is a generator: it yields genomes and is sent their fitness. `ask` runs it to the
# next `yield`, `tell` keeps what it will be sent. So an algorithm of several phases (candidates,
# then generations, then a last score in full) reads as the loop that it is, without a state
# machine.
#
# Cost is counted here for all algorithms. One unit is the cost of scoring one model on all search
# examples. A genome costs price * share: price is 1 for a score and about 3 for a gradient, share
# is the part of the examples in the batch. Budgets of different algorithms are comparable for this
# reason.
class AskTell:
    """Asking and telling, whatever the algorithm, and the count of what was spent.

    Attributes:
        request: What is to be done with the genomes of the last `ask`.
        gradients: Gradients last told, where they were wanted.
        vectors: Scores last told, of which the first is the fitness, shape (k,) each.
        spent: Cost of what has been told, in scores of all examples.
        share: Share of the examples that the genomes of the last `ask` are scored on, unless it is
            to be all.
    """

    _batches: Batches
    sigma: float

    def __init__(self, budget: float = np.inf, share: float = 1.0) -> None:
        self.budget = budget
        self.share = share
        self.request = Request()
        self.spent = 0.0
        self.gradients: list[Vector] = []
        self.vectors: list[Vector] = []
        self._asked: list[Vector] | None = None
        self._told: list[float] | None = None

    @property
    def cost(self) -> float:
        """Cost of each genome of the last `ask`, in scores of all examples."""
        return self.request.price * (1.0 if self.request.full else self.share)

    def ask(self) -> list[Vector] | None:
        """The next genomes to evaluate; None when converged."""
        if self._asked is not None:
            raise SearchError("ask() was called twice without tell()")
        try:
            self._asked = (
                next(self._batches) if self._told is None else self._batches.send(self._told)
            )
        except StopIteration:
            return None
        return [genome.copy() for genome in self._asked]

    def tell(self, scores: Sequence[float | Vector], gradients: Sequence[Vector] = ()) -> None:
        """Report the genomes of the last `ask`, in its order.

        Args:
            scores: Fitness of each, or a vector that begins with it, to be maximised; NaN for a
                candidate that failed.
            gradients: Gradient of each, where `request` wants it; those of candidates that failed
                are not looked at.
        """
        if self._asked is None or len(scores) != len(self._asked):
            raise SearchError(
                f"tell() got {len(scores)} values for {len(self._asked or [])} genomes"
            )
        self.spent += self.cost * len(scores)
        self._asked = None
        self.vectors = [np.atleast_1d(each) for each in scores]
        self._told = [float(vector[0]) for vector in self.vectors]
        self.gradients = list(gradients)

    def affordable(self, start: Start) -> list[Vector]:
        """The start's candidates, as far as a third of the budget goes."""
        # Each candidate costs `share`. A third of the budget buys budget / (3 share) of them; the
        # rest is left for the search itself. At least one is scored, however small the budget is.
        most = min(len(start.candidates), max(1.0, self.budget / (3 * self.share)))
        return list(start.candidates[: int(most)])

    def best_candidate(self, start: Start) -> Generator[list[Vector], list[float], Vector]:
        """Ask for the start's candidates; gives the best, or the mean without any.

        One alone leaves nothing to choose: it is scored on all examples, to be a result itself.
        """
        candidates = self.affordable(start)
        if not candidates:
            return start.mean.copy()
        return (yield from self.best_of(candidates, full=len(start.candidates) == 1))

    def best_of(
        self, points: list[Vector], *, full: bool = False
    ) -> Generator[list[Vector], list[float], Vector]:
        """Ask for points; gives the best, of equals the first."""
        self.request = Request(full=full)
        values = yield points
        return points[
            int(np.argmax([-np.inf if np.isnan(value) else value for value in values]))
        ].copy()


def default_population(dimension: int) -> int:
    """Candidates per generation where nobody says it: 4 + floor(3 ln n), the CMA-ES default."""
    return 4 + int(3 * np.log(dimension))  # equation 48


# CMA-ES as in Hansen's tutorial (arXiv:1604.00772). A generation is lambda samples
#   x_k ~ m + sigma N(0, C),  k = 1 .. lambda                                          (equation 5)
# and m, sigma and C are updated from the ranking of their fitness. Only the ranking counts, so a
# batch of examples is as good as all of them while it ranks one generation alike. All genomes of a
# generation share a batch; the next generation draws another one, so no batch can be overfitted.
#
# Batches grow: after `GROWTH` generations on one size comes the next size, and the last one stays.
# A small batch is cheapest far from the optimum. Near it, differences between candidates are
# smaller than the noise of a batch, and more examples are needed to rank them.
#
# Fitness on different batches is not comparable. Therefore only the mean of the distribution is
# scored on all examples, and only it competes for the result. It is scored when at least 4
# evaluations and a tenth of the cost so far have gone by since the last time, and once more when
# the budget does not allow a generation and this score. The mean is a better report than the best
# sample, which owes its place partly to luck.
class Optimizer(AskTell):
    """Ask for genomes, evaluate them anywhere, tell their fitness.

    Args:
        start: Where to begin.
        algorithm: ``cma`` or ``random``. Beyond 1,000 coordinates the covariance of CMA-ES is kept
            diagonal.
        population: Candidates per generation; 4 + floor(3 ln n) where None, the CMA-ES default.
        seed: Seed of the generator.
        budgets: In scores of all examples; they only decide how many candidates of the start, and
            means, are scored. A search that was given more has several, each for when the one
            before is spent.
        shares: Shares of the examples that generations are scored on: `GROWTH` generations of each,
            and the last from then on. Below 1, the mean of the distribution is scored on all of
            them now and then, and at the end.

    Raises:
        SearchError: The settings contradict each other, or `tell` does not match the last `ask`.

    Example:
        >>> optimizer = Optimizer(Start(np.zeros(2), 0.3, np.full(2, -1.0), np.ones(2)), seed=1)
        >>> for _ in range(30):
        ...     optimizer.tell([-float((x**2).sum()) for x in optimizer.ask()])
        >>> optimizer.sigma < 0.05
        True
    """

    def __init__(
        self,
        start: Start,
        *,
        algorithm: Literal["cma", "random"] = "cma",
        population: int | None = None,
        seed: int = 0,
        budgets: Sequence[float] = (np.inf,),
        shares: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__(budgets[0], shares[0])
        self.later = list(budgets[1:])
        if start.mean.size < 2 and algorithm != "random":
            raise SearchError(
                "CMA-ES needs at least 2 numbers to evolve; give finer layer groups, or "
                "write by: random"
            )
        self.start = start
        self.shares = shares
        self.population = population or default_population(start.mean.size)
        self.rng = np.random.default_rng(seed)
        self.sigma = start.sigma
        self._batches = self._random_batches() if algorithm == "random" else self._cma_batches()

    def _random_batches(self) -> Batches:
        while True:
            yield [self.start.sample(self.rng) for _ in range(self.population)]

    def _is_last(self) -> bool:
        """Tell whether the budget falls short of another generation on a batch and the mean on all
        examples."""
        return self.share < 1 and self.spent + self.population * self.share + 1 > self.budget

    def _is_over(self) -> bool:
        """Tell whether the last budget falls short too; until then the next one counts."""
        # A search that is given more evaluations is replayed from the start. It must score the
        # means that it scored under its first budget at the same places, so budgets are used up one
        # after the other.
        while self._is_last() and self.later:
            self.budget = self.later.pop(0)
        return self._is_last()

    def _cma_batches(self) -> Batches:
        """Run CMA-ES from the start until it converges, which equal fitness alone does not say:
        accuracies have few values."""
        import cma

        mean = yield from self.best_candidate(self.start)
        options = {
            "popsize": self.population,
            "seed": np.nan,  # with `randn` given, pycma leaves numpy's global generator alone
            "randn": lambda rows, columns: self.rng.standard_normal((rows, columns)),
            "verbose": -9,
            "maxfevals": np.inf,
            "maxiter": np.inf,
            "bounds": [self.start.lower.tolist(), self.start.upper.tolist()],
            "CMA_diagonal": self.start.mean.size > _SEPARABLE,
            # A generation of equal accuracies is common and means nothing. The criteria on fitness
            # are off, and those on the distribution stay.
            "tolflatfitness": np.inf,
            "tolfun": -1,
            "tolfunhist": -1,
            "tolstagnation": np.inf,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            strategy = cma.CMAEvolutionStrategy(mean, self.start.sigma, options)
        generations = 0
        mean_at = self.spent
        while not strategy.stop():
            self.share = self.shares[min(len(self.shares) - 1, generations // GROWTH)]
            if self.share < 1 and (
                self._is_last() or self.spent - mean_at >= max(4.0, 0.1 * self.spent)
            ):
                self.request = Request(full=True)
                mean_at = self.spent
                yield [np.asarray(strategy.result.xfavorite, dtype=np.float64)]
                if self._is_over():
                    break
            self.request = Request()
            generations += 1
            genomes = [np.asarray(genome, dtype=np.float64) for genome in strategy.ask()]  # (5)
            costs = to_costs((yield genomes))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                strategy.tell(genomes, costs)
            self.sigma = float(strategy.sigma)


# Optimizers rank, so the cost of a failed candidate may be any number above all others. It
# is kept near the others, in units of their range, because pycma also looks at the spread of costs.
def to_costs(fitness: Sequence[float]) -> list[float]:
    """Costs to minimise. A failed candidate (NaN) costs more than the worst that did not fail."""
    costs = [-value for value in fitness]
    finite = [cost for cost in costs if np.isfinite(cost)]
    worst = max(finite) + 1 + (max(finite) - min(finite)) if finite else 1e9
    return [cost if np.isfinite(cost) else worst for cost in costs]
