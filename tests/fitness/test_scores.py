"""Scores: statistics of a mean, failures, and what is refused."""

import math

import numpy as np
import pytest

from hf_evomerge.fitness import Scores

from .conftest import refused


def test_statistics():
    """Mean, accuracy and their standard errors are those of the textbook."""
    scores = Scores([1.0, 2.0, 3.0, 6.0], correct=[True, True, True, False])
    assert scores.mean == 3.0
    assert scores.standard_error == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3 / 4))
    assert scores.accuracy == 0.75
    assert scores.accuracy_error == pytest.approx(math.sqrt(3 * 0.0625 + 0.5625) / math.sqrt(3) / 2)


@pytest.mark.parametrize(
    ("scores", "figures"),
    [
        (Scores([1.0], correct=[True]), (1.0, None, 1.0, None)),
        (Scores([1.0, 2.0]), (1.5, 0.5, None, None)),
        (Scores.failed("no memory", 2.5), (None, None, None, None)),
    ],
)
def test_a_figure_that_there_is_not_is_none(scores, figures):
    """One score has no standard error, a task that knows no right answer no accuracy, and what
    failed no number."""
    assert (scores.mean, scores.standard_error, scores.accuracy, scores.accuracy_error) == figures
    assert (scores.error, scores.seconds) == (
        ("no memory", 2.5) if scores.values.size == 0 else (None, 0.0)
    )


def test_equal_to_the_last_bit_and_whatever_the_time():
    """Scores are equal where their numbers, outputs and errors are; a bit, a sign of zero or a flag
    makes a difference."""
    columns = {"values": [0.1 + 0.2, 0.0], "correct": [True, False], "outputs": ["a", "b"]}
    scores = Scores(**columns)
    assert scores == Scores(**{**columns, "values": np.array(columns["values"])}, seconds=3.0)
    for change in (
        {"values": [0.3, 0.0]},
        {"values": [0.1 + 0.2, -0.0]},
        {"correct": [True, True]},
        {"outputs": None},
    ):
        assert scores != Scores(**{**columns, **change})
    assert Scores.failed("a") == Scores.failed("a", 1.0)
    assert Scores.failed("a") != Scores.failed("b")


@pytest.mark.parametrize(
    ("values", "columns", "message"),
    [
        ([], {}, "no scores"),
        ([1.0, math.nan], {}, "the score of example 1 is nan"),
        ([math.inf], {}, "the score of example 0 is inf"),
        ([1e101], {}, "beyond 1e"),
        (1.0, {}, "no scores"),
        ([[1.0]], {}, "no scores"),
        ([1.0, 2.0], {"outputs": ["a"]}, "2 scores but 1 outputs"),
        ([1.0, 2.0], {"correct": [True, False, True]}, "2 scores but 3 correct"),
    ],
)
def test_scores_are_finite_numbers_one_per_example(values, columns, message):
    """No scores at all, a number by itself, a table, one that is no finite number, columns of other
    lengths: refused."""
    with refused(message):
        Scores(values, **columns)
