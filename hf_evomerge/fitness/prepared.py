"""Shells of tasks: what a task keeps of its section, its examples and the tokenizer, and how one
with a gradient is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import FitnessError
from .example import Example
from .scores import Scores


class PreparedTask:
    """Keeps the section, the examples and the tokenizer.

    Args:
        spec: The section of the task.
    """

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self._examples: list[Example] = []
        self._tokenizer: Any = None

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Keep the examples and the tokenizer; raises `FitnessError` where there are no
        examples."""
        if not examples:
            raise FitnessError("no examples to evaluate on")
        self._examples = list(examples)
        self._tokenizer = tokenizer

    def evaluate(self, model: Any) -> Scores:
        """Score one model.

        Raises:
            FitnessError: What the model gives is not finite, or does not fit the task. What a
                user's function raises passes through.
        """
        return self._weighted(self._run(model, gradient=False))

    def _weighted(self, scores: Scores) -> Scores:
        """Scores times the examples' weights."""
        weights = [example.weight for example in self._examples]
        return scores.replace(values=scores.values * weights)

    def _run(self, model: Any, *, gradient: bool) -> Scores:
        raise NotImplementedError


class GradientTask(PreparedTask):
    """Scores a model in one run, with a backward pass or without."""

    def backward(self, model: Any) -> Scores:
        """Evaluate with a backward pass of the mean score; the gradients of micro-batches add
        up."""
        score = getattr(self.spec, "score", "log_probability")
        if score != "log_probability":
            raise FitnessError(f"fitness.score: {score} has no gradient; write log_probability")
        return self._weighted(self._run(model, gradient=True))
