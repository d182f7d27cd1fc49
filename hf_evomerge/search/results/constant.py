"""The constant answer: how much is right where every question gets the same answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ...fitness import Example, Scores

LITTLE = 0.1  # of accuracy: who is the best of models that solve less is no advice
FEW = 30  # examples; that fewer do not tell two models apart is no news


@dataclass(frozen=True)
class Constant:
    """Most frequent answer of the search examples.

    Attributes:
        answer: The answer.
        accuracy: Share of some examples that it answers right.
        skill: Name of the skill that the examples are of; empty where they are all.
        solved: Share of them that a model solves; None without a model.
        rest: Share that the model solves of those with another answer; None where there are none.
        examples: Number of these examples.
    """

    answer: str
    accuracy: float
    skill: str = ""
    solved: float | None = None
    rest: float | None = None
    examples: int = 0

    @classmethod
    def of(
        cls,
        searched: Sequence[Example],
        judged: Sequence[Example],
        model: Scores | None = None,
        skill: str = "",
    ) -> Constant | None:
        """Take the answer from some examples, the first of equals, and count it in others.

        Args:
            searched: Examples whose most frequent answer is taken.
            judged: Examples that it is counted in.
            model: Scores of a model on them.
            skill: Name of their skill.

        Returns:
            The answer; None where examples have no answers.
        """
        answers = Counter(each.answer for each in searched)
        answer, _ = answers.most_common(1)[0] if answers else ("", 0)
        if not answer:
            return None
        is_frequent = [each.answer == answer for each in judged]
        accuracy = sum(is_frequent) / len(judged)
        if model is None or model.correct is None:
            return cls(answer, accuracy, skill)
        others = [place for place, frequent in enumerate(is_frequent) if not frequent]
        rest = model.take(others).accuracy if others else None
        return cls(answer, accuracy, skill, model.accuracy, rest, len(judged))

    # Model and answer are told apart by the examples in which one of them alone is right. In a
    # share b the model is, in a share c the answer. Where none is better, b - c has the standard
    # error sqrt((b + c) / n) over n examples.
    @property
    def suffices(self) -> bool:
        """True where the model is right no more often, beyond two standard errors, or hardly where
        the answer is another one."""
        if self.solved is None or self.accuracy < LITTLE:
            return False
        if self.rest is not None and self.rest < LITTLE:
            return True
        lead = self.solved - self.accuracy
        if self.rest is None or self.examples < FEW:
            return lead <= 0
        by_model = self.rest * (1 - self.accuracy)
        return lead <= 2 * math.sqrt((2 * by_model - lead) / self.examples)

    def __str__(self) -> str:
        of_skill = f" of {self.skill!r:.40}" if self.skill else ""
        return (
            f"always answering {self.answer!r:.40}, the most frequent answer of the search "
            f"examples{of_skill}, is right in {self.accuracy:.3f}"
        )
