"""The constant answer: how much is right where every question gets the same answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ...fitness import Example


@dataclass(frozen=True)
class Constant:
    """Most frequent answer of the search examples.

    Attributes:
        answer: The answer.
        accuracy: Share of some examples that it answers right.
    """

    answer: str
    accuracy: float

    @classmethod
    def of(cls, searched: Sequence[Example], judged: Sequence[Example]) -> Constant | None:
        """Take the answer from some examples, the first of equals, and count it in others; None
        where examples have no answers."""
        answer, _ = Counter(each.answer for each in searched).most_common(1)[0]
        if not answer:
            return None
        right = sum(each.answer == answer for each in judged)
        return cls(answer, right / len(judged))

    def __str__(self) -> str:
        return (
            f"always answering {self.answer!r:.40}, the most frequent answer of the search "
            f"examples, is right in {self.accuracy:.3f}"
        )
