"""Paints scenes as PNG files on white, for results and cards.

matplotlib is imported where it is used, and without pyplot: nothing is shown, no global state
changes, and the same scenes give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EvoMergeError
from .marks import Group, Line, Mark, Rect, Symbol, Text
from .scene import Axes, Scene
from .style import LETTERS, LOOKS, SHAPES, Look, paint

if TYPE_CHECKING:
    from matplotlib import axes as axes_module
    from matplotlib.figure import Figure

_DPI = 160
_POINT = 72 / 100  # points of a pixel of a scene, of which an inch has 100
_LETTER = 0.92 * _POINT  # matplotlib's own letters are wider than those of pages


def save_scenes(scenes: Sequence[Scene], file: str | Path) -> None:
    """Write scenes side by side to a ``.png`` file, without anything that differs from run to run.

    Raises:
        EvoMergeError: The file has another suffix.
    """
    from matplotlib import style

    if (suffix := Path(file).suffix.lower()) != ".png":
        raise EvoMergeError(
            f"{os.fspath(file)}: a picture is a .png file, not {suffix or 'one without a suffix'}"
        )
    with style.context("default"):  # whatever the user's matplotlibrc says
        paint_figure(scenes).savefig(file, format="png", metadata={"Software": None})


def paint_figure(scenes: Sequence[Scene]) -> Figure:
    """Scenes side by side as a figure; each mark is one artist, in the order in which they lie on
    each other."""
    from matplotlib.figure import Figure

    width = sum(scene.width for scene in scenes)
    height = max(scene.height for scene in scenes)
    figure = Figure(figsize=(width / 100, height / 100), dpi=_DPI)
    left = 0.0
    for scene in scenes:
        share = scene.height / height
        part = scene.width / width
        axes = figure.add_axes(
            (left, 1 - share, part, share), xlim=(0, scene.width), ylim=(scene.height, 0)
        )
        axes.set_axis_off()
        for panel in scene.panels:
            for mark in panel.marks:
                _paint(axes, mark, panel.axes, "")
        left += part
    return figure


def _paint(axes: axes_module.Axes, mark: Mark, place: Axes, colour: str) -> None:
    """Paint one mark; a group hands its colour on."""
    own = mark.colour or colour
    if isinstance(mark, Group):
        for each in mark.marks:
            _paint(axes, each, place, own)
    elif isinstance(mark, Text):
        _write(axes, mark, place, own)
    elif (look := LOOKS[mark.look]) != Look():
        axes.add_patch(_patch(mark, place, _style(mark, look, own), look))


def _style(mark: Any, look: Look, own: str) -> dict[str, Any]:
    """Return matplotlib's settings for a mark."""
    from matplotlib.colors import to_rgba

    opacity = getattr(mark, "strength", None) or look.opacity
    width = (getattr(mark, "width", None) or look.width) * _POINT
    edge: Any = "none"
    if look.stroke:
        edge = to_rgba(paint(look.stroke, own), 1 if look.fill else opacity)
    return {
        "facecolor": to_rgba(paint(look.fill, own), opacity) if look.fill else "none",
        "edgecolor": edge,
        "linewidth": width if look.stroke else 0.0,
        "linestyle": (0, [length * _POINT / width for length in look.dash]) if look.dash else "-",
        "capstyle": "round" if isinstance(mark, Line) else "butt",
        "gid": mark.look,
        "zorder": 1,  # of all marks, so that the later ones are in front
        "clip_on": False,
    }


def _patch(mark: Line | Rect | Symbol, place: Axes, style: dict[str, Any], look: Look) -> Any:
    """The outline of a mark."""
    from matplotlib.patches import Circle, Polygon, Rectangle

    if isinstance(mark, Line):
        return Polygon(
            [place.spot(corner) for corner in mark.corners], closed=bool(look.fill), **style
        )
    if isinstance(mark, Rect):
        (x0, x1), (y0, y1) = map(sorted, zip(*map(place.spot, mark.corners), strict=True))
        return Rectangle((x0, y0), x1 - x0, y1 - y0, **style)
    x, y = place.spot(mark.at, mark.shift)
    if mark.shape == "circle":
        return Circle((x, y), mark.size, **style)
    return Polygon(
        [(x + dx * mark.size, y + dy * mark.size) for dx, dy in SHAPES[mark.shape]], **style
    )


def _write(axes: axes_module.Axes, mark: Text, place: Axes, own: str) -> None:
    from matplotlib.patheffects import withStroke

    size, weight, colour = LETTERS[mark.look.removesuffix("halo").strip()]
    words = axes.text(
        *place.spot(mark.at, mark.shift),
        mark.words.replace("$", r"\$"),
        fontsize=size * _LETTER,
        weight=weight,
    )
    words.set(
        color=paint(colour, own),
        ha={"start": "left", "middle": "center", "end": "right"}[mark.anchor],
        va="baseline",
    )
    words.set(rotation=-mark.angle, rotation_mode="anchor", zorder=1, gid=mark.look, clip_on=False)
    if mark.look.endswith("halo"):
        words.set_path_effects([withStroke(linewidth=2.2, foreground="white")])
