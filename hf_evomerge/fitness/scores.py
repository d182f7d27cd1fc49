"""Scores: what one model scored on some examples. The same object from the task that measures it to
the card that prints it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import FitnessError, one_line

FITNESS = "fitness"
"""The metric that the mean score is."""
LARGEST = 1e100  # of a score's absolute value: sums and squares of them are numbers still


class Scores:
    """Scores, one number per example, more is better; or why there are none.

    Args:
        values: A number per example, at most 1e100 in absolute value, in their order, shape (n,).
            The mean is the fitness.
        correct: Whether each answer was right, where the task can tell, shape (n,).
        outputs: Outputs of the model for each example, where it wrote anything.
        truncated: Whether each output was cut at the limit of its length, where outputs have one,
            shape (n,).
        seconds: Wall time of the evaluation.
        gradient: Gradient of the fitness, in the coordinates that it was asked for.
        others: Scores by the other metrics, by name.
        error: Reason why there are no scores; see `failed`.

    Raises:
        FitnessError: There is no value, one is not finite, or the other columns are not as long.

    Example:
        >>> scores = Scores([1.0, 0.0, 0.0, 1.0], correct=[True, False, False, True])
        >>> scores.mean, scores.accuracy
        (0.5, 0.5)
        >>> Scores.failed("out of memory").mean is None
        True
    """

    def __init__(
        self,
        values: ArrayLike,
        *,
        correct: ArrayLike | None = None,
        outputs: Sequence[str] | None = None,
        truncated: ArrayLike | None = None,
        seconds: float = 0.0,
        gradient: ArrayLike | None = None,
        others: Mapping[str, Scores] = MappingProxyType({}),
        error: str | None = None,
    ) -> None:
        self.values: NDArray[np.float64] = np.array(values, dtype=np.float64)
        self.correct: NDArray[np.bool_] | None = _column(correct, np.bool_)
        self.outputs = None if outputs is None else list(outputs)
        self.truncated: NDArray[np.bool_] | None = _column(truncated, np.bool_)
        self.gradient: NDArray[np.float64] | None = _column(gradient, np.float64)
        self.seconds = seconds
        self.others = dict(others)
        self.error = error
        if error is None and (self.values.ndim != 1 or not self.values.size):
            raise FitnessError("no scores: there must be one per example")
        if (bad := np.flatnonzero(~(np.abs(self.values) <= LARGEST))).size:
            found = self.values[bad[0]]
            what = f"beyond {LARGEST:g}" if np.isfinite(found) else "not a finite number"
            raise FitnessError(f"the score of example {bad[0]} is {found}, {what}")
        if self.gradient is not None and not np.isfinite(self.gradient).all():
            raise FitnessError("the gradient of the fitness is not finite")
        for name in ("outputs", "correct", "truncated"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.values):
                raise FitnessError(
                    f"{len(self.values)} scores but {len(given)} {name}; there must be one "
                    "per example"
                )

    @classmethod
    def failed(cls, error: str, seconds: float = 0.0) -> Scores:
        """An evaluation that gave no scores, and one line that says why."""
        return cls([], seconds=seconds, error=one_line(error, 1000))

    def replace(self, **columns: Any) -> Scores:
        """Replace columns, by the names of the arguments; raises `FitnessError` as above."""
        return Scores(**{**vars(self), **columns})

    def take(self, numbers: Sequence[int]) -> Scores:
        """Return the scores of some examples, by their places."""
        if self.error is not None:
            return self
        places = list(numbers)
        return Scores(
            self.values[places],
            correct=None if self.correct is None else self.correct[places],
            outputs=None if self.outputs is None else [self.outputs[place] for place in places],
            truncated=None if self.truncated is None else self.truncated[places],
        )

    @property
    def mean(self) -> float | None:
        """The fitness; None where the evaluation failed."""
        return None if self.error is not None else float(self.values.mean())

    def metrics(self, names: Iterable[str]) -> dict[str, float]:
        """Mean scores by these metrics, as far as they are known; the first of all is called
        ``fitness``."""
        known = {**self.others, FITNESS: self}
        there = [name for name in names if name in known and self.error is None]
        return {name: float(known[name].values.mean()) for name in there}

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean over examples; None for fewer than two, which say nothing of
        it."""
        return _standard_error(self.values)

    @property
    def accuracy(self) -> float | None:
        """Share of right answers; None where the task cannot tell."""
        return None if self.correct is None else float(self.correct.mean())

    @property
    def truncated_share(self) -> float | None:
        """Share of the outputs that were cut at the limit of their length; None where outputs have
        none."""
        return None if self.truncated is None else float(self.truncated.mean())

    @property
    def accuracy_error(self) -> float | None:
        """Standard error of the accuracy over examples; None where there is no accuracy, and for a
        single example."""
        return None if self.correct is None else _standard_error(self.correct.astype(np.float64))

    def __eq__(self, other: object) -> bool:
        """Tell whether every number (to the last bit), output and error is the same; the time may
        differ."""
        return self._bits() == other._bits() if isinstance(other, Scores) else NotImplemented

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Scores.failed({self.error!r})"
        return (
            f"Scores(mean={self.mean}, examples={self.values.size}, accuracy={self.accuracy}, "
            f"seconds={self.seconds})"
        )

    def _bits(self) -> tuple[object, ...]:
        columns = (self.values, self.correct, self.truncated, self.gradient)
        others = {name: scores._bits() for name, scores in self.others.items()}
        return (
            *(None if each is None else each.tobytes() for each in columns),
            self.outputs,
            self.error,
            others,
        )


def _column(values: ArrayLike | None, kind: type) -> NDArray[Any] | None:
    return None if values is None else np.array(values, dtype=kind)


def plus_minus(value: float | None, error: float | None) -> str:
    """A number with its standard error, where it has one; empty where there is no number.

    Example:
        >>> plus_minus(0.75, 0.02), plus_minus(0.75, None), plus_minus(None, None)
        ('0.750 ± 0.020', '0.750', '')
    """
    if value is None:
        return ""
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


# s / sqrt(n), with s^2 = sum (x - mean)^2 / (n - 1).
def _standard_error(values: NDArray[np.float64]) -> float | None:
    """Standard error of the mean of independent values, by the sample's own spread."""
    return float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else None
