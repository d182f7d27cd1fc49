"""Paired comparisons: their figures against independent ones, what they say of equal models, and
that they never move."""

import itertools

import numpy as np
import pytest

from hf_evomerge.fitness.comparison import best_of, compare, main_measure, mcnemar, share_interval
from hf_evomerge.fitness.scores import Scores

from .conftest import refused


def _scores(right):
    """Scores of right and wrong answers, whose fitness is another number."""
    return Scores(-1.0 - np.arange(len(right)) / 7, correct=right)


def test_mcnemar_is_the_exact_binomial_test():
    """The p value is the probability, over all ways in which the differing examples could split, of
    one as uneven."""
    for gained, lost in ((0, 0), (1, 0), (5, 0), (3, 3), (2, 7), (9, 1)):
        splits = [sum(ways) for ways in itertools.product((0, 1), repeat=gained + lost)]
        middle = (gained + lost) / 2
        expected = np.mean([abs(split - middle) >= abs(gained - middle) for split in splits])
        assert mcnemar(gained, lost) == pytest.approx(expected)
    assert mcnemar(1500, 1500) == 1.0
    assert 0 < mcnemar(900, 600) < 1e-10


def test_a_clear_lead_is_called_one_whichever_way():
    """A model that solves 40 examples that the other does not, and loses 5, is better; the other is
    worse by the same."""
    first = _scores([1] * 40 + [0] * 5 + [1] * 55)
    second = _scores([0] * 40 + [1] * 5 + [1] * 55)
    better = compare(first, second)
    worse = compare(second, first)
    assert (better.measure, better.difference) == ("accuracy", pytest.approx(0.35))
    assert (better.is_better, better.is_worse, worse.is_worse) == (True, False, True)
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low))


def test_interval_of_matched_answers_is_that_of_agresti_and_min():
    """Ten examples, five gained and none lost: the interval by hand, which is not of width zero for
    equal answers either."""
    found = compare(_scores([1] * 9 + [0]), _scores([1] * 4 + [0] * 6))
    middle = 5 / 12
    half = 1.959964 * ((6 / 12 - middle**2) / 12) ** 0.5
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))
    same = compare(_scores([1, 0, 1]), _scores([1, 0, 1]))
    assert same.low < same.difference == 0 < same.high
    assert same.p == 1.0


def test_interval_of_a_share_holds_what_could_have_given_it():
    """Each end is the true share from which the measured one lies 1.96 errors away; with nothing
    wrong it ends at 1."""
    for right, count in ((3, 10), (491, 500), (1, 2)):
        for end in share_interval(right, count):
            assert abs(end - right / count) == pytest.approx(
                1.959964 * (end * (1 - end) / count) ** 0.5
            )
    low, high = share_interval(8, 8)
    assert (share_interval(0, 8), high) == (pytest.approx((0.0, 1 - low)), 1.0)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """Over 150 experiments with a known difference of scores, between 90 % and 99 % of the
    intervals hold it."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(150):
        shared = rng.normal(size=60)
        found = compare(Scores(shared + rng.normal(0.3, 1, 60)), Scores(shared))
        held += found.low <= 0.3 <= found.high
    assert 0.9 < held / 150 < 0.99


def test_pairing_sees_what_unpaired_errors_hide():
    """A small gain on every example is a lead, though it is far below the spread between
    examples."""
    values = np.linspace(-9, -1, 50)
    found = compare(Scores(values + 0.05), Scores(values))
    assert (found.is_better, found.measure) == (True, "fitness")
    assert found.p < 0.001


def test_figures_never_move():
    """The same scores give the same interval and p, to the last bit, whatever numpy's own generator
    does."""
    rng = np.random.default_rng(5)
    pair = [Scores(rng.normal(size=40)) for _ in range(2)]
    figures = []
    for seed in (1, 2):
        np.random.seed(seed)
        figures.append(compare(*pair))
    assert figures[0] == figures[1]


def test_measure_is_accuracy_unless_fitness_is_right_or_wrong():
    """Log-probabilities are told apart by accuracy; right answers in the wrong language count as
    wrong, as fitness says."""
    assert main_measure(_scores([1, 0])) == "accuracy"
    assert main_measure(Scores([1.0, 0.0], correct=[True, True])) == "fitness"
    assert main_measure(Scores([0.3, 0.7])) == "fitness"


def test_what_cannot_be_paired_is_not():
    """A failed evaluation and a single example have no comparison; other examples, or no accuracy,
    are refused."""
    assert compare(Scores.failed("broke"), Scores([1.0, 2.0])) is None
    assert compare(Scores([1.0]), Scores([2.0])) is None
    with refused("2 scores cannot be paired with 3"):
        compare(Scores([1.0, 2.0]), Scores([1.0, 2.0, 3.0]))
    with refused("accuracy cannot be compared"):
        compare(Scores([0.1, 2.0]), Scores([1.0, 0.2]), "accuracy")


@pytest.mark.parametrize(
    ("models", "best"),
    [
        ({"likely": (-2.0, 6), "right": (-3.0, 9)}, "right"),  # of 32: .19, .28 +- .081
        ({"likely": (-0.4, 29), "right": (-0.5, 30)}, "likely"),  # .91, .94 +- .044
        ({"few": (-9.0, 0), "none": (-8.0, 0)}, "none"),
        ({"first": (-1.0, 5), "second": (-1.0, 5)}, "first"),
        ({"a": (-2.0, None), "b": (-1.0, None)}, "b"),
    ],
)
def test_the_best_of_models(models, best):
    """More right answers, beyond a standard error, come before a better fitness."""
    scores = {
        name: Scores([mean] * 32, correct=None if right is None else np.arange(32) < right)
        for name, (mean, right) in models.items()
    }
    assert best_of(scores) == best
