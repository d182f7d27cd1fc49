"""Paired comparison of two models' scores on the same examples: a difference, its interval, and how
often chance gives as much.

Right or wrong answers: McNemar's exact test (McNemar 1947) and the interval of Agresti and Min
(2005, "Simple improved confidence intervals for comparing matched proportions"), which stays honest
where few answers differ. Other scores: a bootstrap over examples, and Fisher's test by random
signs. The seed is fixed: the same scores give the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import FitnessError
from .scores import Scores

Measure = Literal["accuracy", "fitness"]
K = TypeVar("K", bound=Hashable)
RESAMPLES = 10_000
_Z = 1.959964  # of a two-sided interval of 95 %


@dataclass(frozen=True)
class Comparison:
    """Comparison: by how much one model is better than another on the same examples.

    Attributes:
        measure: What was compared: ``accuracy`` or ``fitness``.
        difference: Mean over examples of the first model's score less the second's; positive where
            the first is better.
        low, high: Interval of 95 % for the difference.
        p: Probability of a difference as large, either way, between equally good models.
        examples: Number of examples.
    """

    measure: Measure
    difference: float
    low: float
    high: float
    p: float
    examples: int

    @property
    def is_better(self) -> bool:
        """True where the first is better beyond chance: by its interval and by its p value."""
        return self.low > 0 and self.p < 0.05

    @property
    def is_worse(self) -> bool:
        """True where the first is worse beyond chance."""
        return self.high < 0 and self.p < 0.05

    @property
    def is_close(self) -> bool:
        """True where interval and p value disagree, as two methods may at the edge: nothing that
        one could rely on."""
        return (self.low > 0 or self.high < 0) != (self.p < 0.05)

    @property
    def interval(self) -> str:
        """The interval for people: ``0.063 to 0.181``."""
        return f"{self.low:.3f} to {self.high:.3f}"

    def __str__(self) -> str:
        """The difference, its interval and p: ``+0.120 (0.063 to 0.181), p = 0.0004``."""
        return self.text()

    def text(self, of: str = "") -> str:
        """Write the comparison; the name of the measure stands behind the difference."""
        p = "p < 0.0001" if self.p < 1e-4 else f"p = {self.p:.2g}"
        return f"{self.difference:+.3f}{of} ({self.interval}), {p}"


# Two models on the same n examples are compared example by example: d_i = a_i - b_i. What makes an
# example hard for both drops out of d, so the interval is narrower than that of two separate means.
#
# Right or wrong answers leave a table of four cells, of which only two matter: b examples that the
# first model alone solves (gained), and c that the second alone solves (lost). The difference is (b
# - c) / n. Interval and p value come from different methods and may disagree at the edge. A claim
# needs both (`is_better`); `is_close` says where they part.
def compare(first: Scores, second: Scores, measure: Measure | None = None) -> Comparison | None:
    """Compare two models on the same examples.

    Args:
        first, second: Scores of both, example by example, in the same order.
        measure: ``accuracy`` or ``fitness``; `main_measure` by default.

    Returns:
        The comparison; None where one of them failed, or there are fewer than two examples.

    Raises:
        FitnessError: They were scored on different numbers of examples, or there is no such
            measure.

    Example:
        >>> worse, better = [0.0] * 6 + [1.0] * 4, [0.0] * 1 + [1.0] * 9
        >>> print(compare(Scores(better), Scores(worse)))
        +0.500 (0.093 to 0.740), p = 0.062
    """
    if first.error is not None or second.error is not None or first.values.size < 2:
        return None
    if first.values.size != second.values.size:
        raise FitnessError(
            f"{first.values.size} scores cannot be paired with {second.values.size}; use the "
            "same examples"
        )
    measure = measure or main_measure(first, second)
    one = column(first, measure)
    other = column(second, measure)
    difference = one - other
    mean = float(difference.mean())
    count = difference.size
    if _is_binary(one) and _is_binary(other):
        gained = int((difference > 0).sum())
        lost = int((difference < 0).sum())
        return Comparison(
            measure, mean, *_matched_interval(gained, lost, count), mcnemar(gained, lost), count
        )
    return Comparison(measure, mean, *_resampled(difference.tobytes()), count)


def main_measure(*scores: Scores) -> Measure:
    """Choose what tells models apart best: accuracy, unless fitness itself is right or wrong, or
    there is no accuracy."""
    whole = [each for each in scores if each.error is None]
    right_or_wrong = all(_is_binary(each.values) for each in whole)
    return (
        "fitness" if right_or_wrong or any(each.correct is None for each in whole) else "accuracy"
    )


def measures(*scores: Scores) -> list[Measure]:
    """List what models can be compared by, `main_measure` first: accuracy and fitness, where they
    are two things."""
    main = main_measure(*scores)
    return [main] if main == "fitness" else [main, "fitness"]


def compare_all(first: Scores, second: Scores, by: Sequence[Measure]) -> list[Comparison]:
    """Comparisons by each measure; the one that tells the models apart first, or fitness where
    accuracies are equal.

    Returns:
        As many as there are measures; none where one of the two failed, or there are fewer than two
        examples.
    """
    comparisons = [compare(first, second, measure) for measure in by]

    # Sorting is stable: among equals the main measure stays first.
    def rank(each: Comparison) -> int:
        if each.is_better or each.is_worse:
            return 0
        return 2 if each.measure == "accuracy" and each.difference == 0 else 1

    return sorted((each for each in comparisons if each is not None), key=rank)


# Right answers come first, for a mean log-likelihood is ruled by the answers that a model is surely
# wrong of. Where accuracies are closer than chance would make them, the fitness knows more.
def best_of(models: Mapping[K, Scores]) -> K:
    """Choose a model by its scores on the examples that models are chosen on.

    Of those whose accuracy is within a standard error of the highest it is the one with the best
    fitness; where the task cannot tell right from wrong, of all.

    Args:
        models: Scores of each, on the same examples; none failed.

    Returns:
        Its key, of equals the first's.
    """
    right = {key: scores.accuracy or 0.0 for key, scores in models.items()}
    most = max(right, key=right.__getitem__)
    least = right[most] - (models[most].accuracy_error or 0.0)
    return max(
        (key for key in models if right[key] >= least),
        key=lambda key: float(models[key].values.mean()),
    )


# Between equally good models each of the n = b + c examples that tell them apart falls to either
# side with probability 1/2. So min(b, c) = m is judged by a binomial distribution, both tails:
#   p = min(1, 2 sum_{k=0..m} C(n, k) / 2^n)
# Integers make this exact for any n. The chi-squared form of McNemar (1947) is too small for few
# examples.
def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact test: the probability of a split as uneven, or more, of the examples on which
    two models differ.

    Args:
        gained: Examples that only the first model solves.
        lost: Examples that only the second solves.

    Example:
        >>> mcnemar(5, 0), mcnemar(3, 3)
        (0.0625, 1.0)
    """
    count = gained + lost
    fewer = min(gained, lost)
    return min(1.0, 2 * sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count)


# Wilson's interval solves |p^ - p| = z sqrt(p (1 - p) / n) for p, in place of using p^ in the
# error:
#   (p^ + z^2 / 2n  +-  z sqrt(p^ (1 - p^) / n + z^2 / 4n^2)) / (1 + z^2 / n)
# Here both parts of the fraction are multiplied by n. It does not collapse to a point at 0 or 1.
def share_interval(right: int, count: int) -> tuple[float, float]:
    """Interval of 95 % for the share of right answers (Wilson 1927, "Probable inference").

    Args:
        right: Examples that were solved.
        count: Examples, at least 1.

    Example:
        >>> [round(end, 3) for end in share_interval(491, 500)]
        [0.966, 0.991]
    """
    share = right / count
    size = count + _Z**2
    middle = (right + _Z**2 / 2) / size
    half = _Z * math.sqrt(count * share * (1 - share) + _Z**2 / 4) / size
    return max(0.0, middle - half), min(1.0, middle + half)


def column(scores: Scores, measure: Measure) -> NDArray[np.float64]:
    """The numbers of a measure, one per example; raises `FitnessError` where the scores have no
    such measure."""
    if measure == "fitness":
        return scores.values
    if scores.correct is None:
        raise FitnessError(
            "accuracy cannot be compared: the task does not say which answers are right"
        )
    return scores.correct.astype(np.float64)


def _is_binary(values: NDArray[np.float64]) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


# Agresti and Min (2005): add 1/2 to each of the four cells, then Wald's interval for matched pairs,
#   (b - c) / n  +-  z sqrt((b + c) - (b - c)^2 / n) / n
# The addition gives the interval a width even where no example tells the models apart.
def _matched_interval(gained: int, lost: int, count: int) -> tuple[float, float]:
    """Wald's interval after half an example more in each of the four cells."""
    more = gained + 0.5
    fewer = lost + 0.5
    size = count + 2
    middle = (more - fewer) / size
    half = _Z * math.sqrt((more + fewer) - (more - fewer) ** 2 / size) / size
    return max(-1.0, middle - half), min(1.0, middle + half)


@lru_cache(maxsize=256)  # the table, its file and the words are about the same comparisons
def _resampled(difference: bytes) -> tuple[float, float, float]:
    numbers = np.frombuffer(difference)
    return *_bootstrap_interval(numbers), _random_signs(numbers)


# Percentile bootstrap (Efron 1979): draw n examples with replacement, take the mean, 10,000 times.
# The interval is from the 2.5th to the 97.5th percentile of these means. It assumes no shape of the
# scores: log-probabilities have long tails.
def _bootstrap_interval(difference: NDArray[np.float64]) -> tuple[float, float]:
    """Percentiles of the means of examples drawn with replacement."""
    size = difference.size
    means = np.concatenate(
        [difference[rng.integers(0, size, (rows, size))].mean(1) for rng, rows in _rounds(size)]
    )
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


# Fisher's randomisation test: between equally good models the sign of each d_i is a coin toss. With
# r of B draws whose |mean| is at least the observed one, p = (r + 1) / (B + 1): the data count as
# one draw, so p is never 0. The factor 1 - 1e-12 counts draws that equal the data up to rounding.
def _random_signs(difference: NDArray[np.float64]) -> float:
    """Test a mean by random signs. The p value is the share of draws whose mean is as far from 0;
    the data are one draw."""
    observed = abs(difference.mean()) * (1 - 1e-12)
    size = difference.size
    hits = sum(
        int(
            (np.abs((difference * rng.choice((-1.0, 1.0), (rows, size))).mean(1)) >= observed).sum()
        )
        for rng, rows in _rounds(size)
    )
    return (hits + 1) / (RESAMPLES + 1)


def _rounds(size: int) -> Iterator[tuple[np.random.Generator, int]]:
    """Yield one generator, and how many resamples to draw at a time: few megabytes whatever the
    number of examples."""
    rng = np.random.default_rng(0)
    left = RESAMPLES
    while left:
        rows = min(left, max(1, 500_000 // size))
        yield rng, rows
        left -= rows
