"""Shots: solved examples in the prompt, before the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..example import Example, Shot
from .loading import content_of

COUNTS = (1, 4, 8, 16)
"""How many examples a prompt is tried with."""
BETWEEN = "\n\n"  # solved problems that are no turns of a chat


def shot_counts(examples: Sequence[Example], *, among: bool) -> list[int]:
    """The numbers of shots to try: those of `COUNTS`, and in place of larger ones all examples.

    Args:
        examples: The examples that are shown.
        among: Whether the questions are among them: none is shown to itself.
    """
    most = len({content_of(example) for example in examples}) - among
    return sorted({min(count, most) for count in COUNTS} - {0})


# A question must not be shown with its own answer. It gets the first `count` of the others, so all
# questions that are not shown themselves have one prompt in front, which is run once for all.
def with_shots(
    examples: Sequence[Example],
    solved: Sequence[Example],
    count: int,
    *,
    separator: str | None = None,
    end: str = "",
) -> list[Example]:
    """Put solved problems in front of every example's prompt: turns of its chat, or text with an
    empty line after each.

    Args:
        examples: The questions.
        solved: The problems, in the order that they are shown in.
        count: How many are shown: the first, without one that is the question itself.
        separator: Text between prompt and answer; a space where None, unless there is one.
        end: Text after an answer that is no turn of a chat.

    Example:
        >>> sums = [Example("1 + 1 =", "2"), Example("2 + 2 =", "4")]
        >>> with_shots([Example("3 + 3 =", "6")], sums, 2)[0].shots[1]
        Shot(prompt='2 + 2 =', answer=' 4\\n\\n')
    """
    contents = [content_of(each) for each in solved]

    def shown(example: Example) -> Example:
        own = content_of(example)
        others = [each for each, name in zip(solved, contents, strict=True) if name != own]
        after = "" if example.chat else end + BETWEEN
        return replace(
            example,
            shots=tuple(
                Shot(each.prompt, f"{_between(each, separator)}{each.answer}{after}")
                for each in others[:count]
            ),
        )

    return [shown(example) for example in examples]


def _between(solved: Example, separator: str | None) -> str:
    """Text between the prompt and the answer of a solved problem."""
    if separator is not None:
        return separator
    spaced = solved.chat or solved.prompt[-1:].isspace() or solved.answer[:1].isspace()
    return "" if spaced else " "
