"""Marks: what a picture is made of, in the units of its axes (evaluations, hops, layers).

What has a size on screen is in pixels: letters, radii, widths of lines, and how far words are from
their place. A look names how a mark is painted, a colour whose it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Spot = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line from place to place, or the area that it surrounds where its look fills.

    Attributes:
        points: The places; with `steps` each height lasts until the next place.
        width: Width in pixels; that of the look where None.
    """

    points: Sequence[Spot]
    look: str
    colour: str = ""
    tip: str = ""
    width: float | None = None
    steps: bool = False

    @property
    def corners(self) -> Sequence[Spot]:
        """The places that are joined by straight lines."""
        if not self.steps:
            return self.points
        between = zip(self.points, self.points[1:], strict=False)
        return (
            *self.points[:1],
            *(spot for (_, y), (x, after) in between for spot in ((x, y), (x, after))),
        )


@dataclass(frozen=True)
class Rect:
    """A rectangle around a place, `strength` from 0 to 1 fades it."""

    at: Spot
    size: Spot
    look: str
    colour: str = ""
    tip: str = ""
    strength: float | None = None

    @property
    def corners(self) -> tuple[Spot, Spot]:
        """Two opposite corners."""
        x, y = self.at
        width, height = self.size
        return (x - width / 2, y - height / 2), (x + width / 2, y + height / 2)


@dataclass(frozen=True)
class Symbol:
    """A symbol at a place, moved by `shift` pixels; `size` is its half width in pixels."""

    at: Spot
    size: float
    look: str
    colour: str = ""
    shape: str = "circle"
    tip: str = ""
    shift: Spot = (0.0, 0.0)


@dataclass(frozen=True)
class Text:
    """Words at a place, moved by `shift` pixels and turned by `angle` degrees."""

    at: Spot
    words: str
    look: str = ""
    colour: str = ""
    anchor: Literal["start", "middle", "end"] = "start"
    shift: Spot = (0.0, 0.0)
    angle: int = 0


@dataclass(frozen=True)
class Group:
    """Marks that are one thing to point at, with its words in `tip`; without these, marks of one
    colour.

    `hop` is the number of the hop that a page selects where the group is pressed, from 0; None
    where it cannot be pressed.
    """

    marks: Sequence[Mark]
    look: str = ""
    colour: str = ""
    tip: str = ""
    hop: int | None = None
    selected: bool = False


Mark = Line | Rect | Symbol | Text | Group
