"""Paints scenes as inline SVG for pages: a look is a class, which the page's style sheet paints in
light and in dark.

Words that a page shows for a mark are in its ``data-tip``, a hop that can be pressed has its number
in ``data-hop``. All text is escaped.
"""

from collections.abc import Callable, Iterable
from functools import singledispatch
from html import escape
from typing import Any

from .marks import Line, Rect, Spot, Symbol, Text
from .scene import MIDDLE, NARROW, WIDE, Axes, Scene
from .style import LOOKS, SHAPES


def responsive(draw: Callable[[int], Scene], wide: int = WIDE) -> str:
    """Draw one picture for each width of screens; the style sheet shows the one that fits: wide,
    for tablets, for phones.

    The picture for tablets is left out where `wide`, the width in pixels for wide screens, is no
    larger.
    """
    narrow = f'<div class="ev-narrow">{paint_svg(draw(NARROW))}</div>'
    if wide < WIDE:
        return f'<div class="ev-wide">{paint_svg(draw(wide))}</div>{narrow}'
    middle = f'<div class="ev-medium">{paint_svg(draw(MIDDLE))}</div>'
    return f'<div class="ev-wide ev-large">{paint_svg(draw(wide))}</div>{middle}{narrow}'


def paint_svg(scene: Scene) -> str:
    """A scene as SVG. It shrinks with the page, unless it scrolls."""
    content = "".join(_painted(mark, panel.axes) for panel in scene.panels for mark in panel.marks)
    whole = (
        "width:100%" if min(abs(scene.width - each) for each in (WIDE, MIDDLE, NARROW)) < 2 else ""
    )  # to the page's edge
    style = (
        f"width:{scene.width:.0f}px"
        if scene.scrolls
        else whole or f"width:100%;max-width:{scene.width:.0f}px"
    )
    return (
        f'<div class="ev-scroll"><svg class="ev-svg" viewBox="0 0 {scene.width:.0f} '
        f'{scene.height:.0f}" style="{style}" '
        f'role="group" tabindex="0" aria-label="{escape(scene.label)}">{content}</svg></div>'
    )


def _class(look: str, colour: str) -> str:
    names = [f"ev-{word}" for word in (*look.split(), colour) if word]
    return f' class="{" ".join(names)}"' if names else ""


def _tip(words: str) -> str:
    return f' data-tip="{escape(words)}"' if words else ""


def _places(spots: Iterable[Spot]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)


@singledispatch
def _painted(mark: Any, axes: Axes) -> str:
    """Paint one mark: a group, with the marks in it; the other kinds follow."""
    content = "".join(_painted(each, axes) for each in mark.marks)
    head = _class(f"{mark.look}{' selected' if mark.selected else ''}", mark.colour)
    if mark.tip:
        role = "img" if mark.hop is None else "button"
        head += f' role="{role}" tabindex="-1"{_tip(mark.tip)} aria-label="{escape(mark.tip)}"'
    if mark.hop is not None:
        head += f' data-hop="{mark.hop}" aria-pressed="{str(mark.selected).lower()}"'
    return f"<g{head}>{content}</g>"


@_painted.register
def _(mark: Line, axes: Axes) -> str:
    width = "" if mark.width is None else f' stroke-width="{mark.width:.1f}"'
    head = f"{_class(mark.look, mark.colour)}{width}{_tip(mark.tip)}"
    places = list(map(axes.spot, mark.points))
    if mark.steps and places:  # half as long as with all corners
        steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in places[1:])
        return f'<path{head} d="M{_places(places[:1])}{steps}"/>'
    return (
        f'<{"polygon" if LOOKS[mark.look].fill else "polyline"}{head} points="{_places(places)}"/>'
    )


@_painted.register
def _(mark: Rect, axes: Axes) -> str:
    (x0, y0), (x1, y1) = map(axes.spot, mark.corners)
    x = min(x0, x1)
    y = min(y0, y1)
    width = abs(x1 - x0)
    height = abs(y1 - y0)
    fades = "" if mark.strength is None else f' fill-opacity="{mark.strength:.2f}"'
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f"<rect{_class(mark.look, mark.colour)}{fades} {place}{_tip(mark.tip)}/>"


@_painted.register
def _(mark: Symbol, axes: Axes) -> str:
    x, y = axes.spot(mark.at, mark.shift)
    head = f"{_class(mark.look, mark.colour)}{_tip(mark.tip)}"
    if mark.shape == "circle":
        return f'<circle{head} cx="{x:.1f}" cy="{y:.1f}" r="{mark.size:.1f}"/>'
    corners = ((x + dx * mark.size, y + dy * mark.size) for dx, dy in SHAPES[mark.shape])
    return f'<polygon{head} points="{_places(corners)}"/>'


@_painted.register
def _(mark: Text, axes: Axes) -> str:
    x, y = axes.spot(mark.at, mark.shift)
    turned = f' transform="rotate({mark.angle} {x:.1f} {y:.1f})"' if mark.angle else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{mark.anchor}"'
    return f"<text {place}{_class(mark.look, mark.colour)}{turned}>{escape(mark.words)}</text>"
