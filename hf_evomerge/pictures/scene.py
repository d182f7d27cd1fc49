"""Scenes: pictures as marks on axes, before anybody paints them; and the grid and the numbers that
they share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .marks import Line, Mark, Spot, Text

WIDE = 1120
MIDDLE = 700
NARROW = 348
"""Widths in pixels that pictures are made for: wide screens, tablets, phones."""


@dataclass(frozen=True)
class Axes:
    """Axes of a panel on a picture: its edges in pixels, and the numbers at them."""

    left: float
    top: float
    right: float
    bottom: float
    x_range: Spot
    y_range: Spot

    def x(self, value: float) -> float:
        """Pixels from the left edge of the picture."""
        low, high = self.x_range
        return self.left + (value - low) / ((high - low) or 1) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Pixels from the upper edge of the picture."""
        low, high = self.y_range
        return self.bottom - (value - low) / ((high - low) or 1) * (self.bottom - self.top)

    def spot(self, at: Spot, shift: Spot = (0.0, 0.0)) -> Spot:
        """A place in pixels, moved by as many."""
        return self.x(at[0]) + shift[0], self.y(at[1]) + shift[1]


PIXELS = Axes(0, 0, 1, 1, (0, 1), (1, 0))
"""For titles and legends, which stand where no number puts them."""


@dataclass(frozen=True)
class Panel:
    """Marks on the same axes."""

    axes: Axes
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Scene:
    """A picture, ready to be painted.

    Attributes:
        width, height: Its size in pixels.
        panels: What is on it, the later ones in front.
        label: Text for those who cannot see it.
        scrolls: Whether it keeps its size where the page is narrower.
    """

    width: float
    height: float
    panels: Sequence[Panel]
    label: str
    scrolls: bool = False


def number(value: float | None, digits: int = 3) -> str:
    """A number in a few digits, with a proper minus; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    return f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}")


def counted(count: int, noun: str) -> str:
    """A number with its noun, in the plural where it is not one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """Words as a sentence lists them: A, B and C."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def source_colour(source: int) -> str:
    """The colour of a source; grey for what belongs to none."""
    return f"s{source % 6}" if source >= 0 else "grey"


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between two numbers."""
    span = (high - low) or 1.0
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [
        round(index * step, 12)
        for index in range(math.ceil(low / step), math.floor(high / step) + 1)
    ]


def sparse(
    width: float, room: float, steps: Sequence[int] = (1, 2, 5, 10, 20, 50, 100, 4096)
) -> int:
    """Find the step, in places of a width, that leaves room for words."""
    return next((step for step in steps if step * width >= room), steps[-1])


def value_lines(
    axes: Axes, values: Sequence[float], words: Callable[[float], str] = number
) -> list[Mark]:
    """Lines across a chart at some values, with these in words on the left."""
    left, right = axes.x_range
    marks: list[Mark] = []
    for value in values:
        marks.append(Line(((left, value), (right, value)), "gridline"))
        marks.append(Text((left, value), words(value), "tick", anchor="end", shift=(-6, 4)))
    return marks


def grid(axes: Axes, *, x_name: str, y_name: str, x_ticks: int) -> list[Mark]:
    """Lines across a chart, with their numbers and the names of both axes."""
    left, right = axes.x_range
    low, high = axes.y_range
    marks = value_lines(axes, ticks(low, high, 6))
    marks += [
        Text((value, low), number(value, 6), "tick", anchor="middle", shift=(0, 17))
        for value in ticks(left, right, x_ticks)
    ]
    marks.append(Text(((left + right) / 2, low), x_name, "tick", anchor="middle", shift=(0, 34)))
    return [*marks, Text((left, high), y_name, "tick", shift=(4 - axes.left, -8))]
