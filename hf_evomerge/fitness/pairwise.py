"""Fitness as how often a judge prefers a model's response to the one that the data gives. Python only: YAML names no code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import FitnessError
from .scores import Scores
from .writing import WritingSpec, WritingTask

Judge = Callable[[list[str], list[list[str]]], Iterable[int]]


class PairwiseTask(WritingTask):
    """Share of prompts whose response a judge prefers to the example's answer.

    Every pair is judged twice, once in each order, so that a judge who prefers what comes first prefers nobody. A value is 1
    where the model won both, 0.5 where the judge contradicts itself or finds no difference, 0 where it lost both.

    Args:
        judge: A function of the prompts and two responses to each; it returns 0 or 1 for the better of each two, and -1 for
            neither. The method ``judge`` of trl's pairwise judges is one.
        max_new_tokens, stop, batch_size: As for the task ``generation``.

    Example:
        >>> def shorter(prompts, responses):
        ...     return [int(len(second) < len(first)) for first, second in responses]
        >>> task = PairwiseTask(shorter, max_new_tokens=8)
        >>> task.prepare([Example("2 + 3 =", "that makes five, or so I was told by somebody who can add numbers")], tokenizer)
        >>> task.evaluate(model).mean
        1.0
    """

    def __init__(self, judge: Judge, *, max_new_tokens: int = 256, stop: Sequence[str] = (), batch_size: int = 16) -> None:
        super().__init__(WritingSpec(task="pairwise", max_new_tokens=max_new_tokens, stop=list(stop), batch_size=batch_size))
        self.function = judge

    def evaluate(self, model: Any) -> Scores:
        """Score one model.

        Raises:
            FitnessError: The model cannot be scored, or the judge returns something else than -1, 0 or 1 per prompt. What it
                raises itself passes through.
        """
        outputs, truncated = self.write(model)
        answers = [example.answer for example in self._examples]
        first = self._judge([[ours, theirs] for ours, theirs in zip(outputs, answers, strict=True)])
        second = self._judge([[theirs, ours] for ours, theirs in zip(outputs, answers, strict=True)])
        worth = {0: 1.0, -1: 0.5, 1: 0.0}
        values = [(worth[one] + 1 - worth[other]) / 2 for one, other in zip(first, second, strict=True)]
        return Scores(values, outputs=outputs, truncated=truncated)

    def _judge(self, responses: list[list[str]]) -> list[int]:
        found = self.function([example.prompt for example in self._examples], responses)
        choices = list(found) if isinstance(found, Iterable) else [found]
        if len(choices) != len(responses) or not all(choice in (-1, 0, 1) for choice in choices):
            name = getattr(self.function, "__name__", type(self.function).__name__)
            raise FitnessError(
                f"judge {name}: expected -1, 0 or 1 for each of {len(responses)} prompts, found {choices!r:.120}; return the "
                "place of the better response, and -1 for neither"
            )
        return choices
