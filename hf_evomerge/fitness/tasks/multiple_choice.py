"""Fitness as the share of questions whose right choice is the most probable one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np

from ...errors import FitnessError
from ..example import Example
from ..registry import register_task
from ..scores import Scores
from ..text.encoding import encode_pair
from ..text.pairs import Pair
from .likelihood import TextSpec, TextTask


class MultipleChoiceSpec(TextSpec):
    """Score a model by whether it gives the right choice the greatest log-probability."""

    takes_shots: ClassVar[bool] = True
    append_eos: ClassVar[bool] = False
    task: Literal["multiple_choice"] = "multiple_choice"
    score: Literal["accuracy", "log_probability"] = "accuracy"
    """``accuracy`` is 1 where the right choice is the most probable, else 0; ``log_probability`` is
    the logarithm of its probability among the choices, which is smooth."""
    separator: str = ""
    """Text between prompt and choice. It is scored as part of the choice."""

    @property
    def unit(self) -> str:
        """Unit of the score."""
        return "share of right answers" if self.score == "accuracy" else "nats per answer"


@register_task("multiple_choice")
class MultipleChoiceTask(TextTask):
    """Choice of the most probable of an example's choices after its prompt; of equals the first.

    ``correct`` says whether it is the right one, ``outputs`` are the choices that were taken.
    """

    spec_type = MultipleChoiceSpec
    spec: MultipleChoiceSpec

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Tokenise every choice of every example; raises `FitnessError` where an example has no
        choices to choose from."""
        for example in examples:
            if len(set(example.choices)) < 2 or example.answer not in example.choices:
                raise FitnessError(
                    f"{example.id}: multiple choice needs two choices or more, the answer "
                    f"{example.answer!r:.80} among them "
                    f"(found {list(example.choices)!r:.120}); name them with 'choices' under data"
                )
        super().prepare(
            [replace(example, answer=choice) for example in examples for choice in example.choices],
            tokenizer,
        )
        self._examples = list(examples)  # a score is an example's, not a choice's

    def _encode(self, example: Example, tokenizer: Any) -> list[Pair]:
        return [encode_pair(example, self.spec.separator, tokenizer)]

    def _scores(self, values: list[float], exact: list[bool]) -> Scores:
        left = iter(values)
        found = []
        correct = []
        outputs = []
        for example in self._examples:
            scores = np.array([next(left) for _ in example.choices])
            right = example.choices.index(example.answer)
            taken = int(scores.argmax())
            correct.append(taken == right)
            outputs.append(example.choices[taken])
            found.append(float(scores[right] - np.logaddexp.reduce(scores)))
        return Scores(
            correct if self.spec.score == "accuracy" else found, correct=correct, outputs=outputs
        )
