"""The path of the hidden state as a picture, and the weights of a merge as a heat map: inline SVG, themed by style.css.

Each picture is drawn for wide screens, tablets and phones, at the size it is shown; the style sheet shows one of them. What
a mark means is in its `data-tip`, which page.js shows on hover, tap and focus. All text is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from edits import Route, describe, name_of
from published import as_float, listing, mapping
from texts import counted, details, escape, number, table

WIDE, MIDDLE, NARROW = 1120, 700, 348
_SHAPES = 6


def both(draw: Callable[[int], str], wide: int = WIDE) -> str:
    """A picture for wide screens, one for tablets where that is too wide, and one for phones; style.css shows what fits."""
    narrow = f'<div class="ev-narrow">{draw(NARROW)}</div>'
    if wide < WIDE:
        return f'<div class="ev-wide">{draw(wide)}</div>{narrow}'
    return f'<div class="ev-wide ev-large">{draw(wide)}</div><div class="ev-medium">{draw(MIDDLE)}</div>{narrow}'


def svg(width: float, height: float, content: str, *, label: str, scroll: bool = False) -> str:
    """The frame of a picture. It shrinks with the page, unless it is wide and scrolls."""
    style = f"width:{width:.0f}px" if scroll else f"width:100%;max-width:{width:.0f}px"
    return (
        f'<div class="ev-scroll"><svg class="ev-svg" viewBox="0 0 {width:.0f} {height:.0f}" style="{style}" role="group" '
        f'tabindex="0" aria-label="{escape(label)}">{content}</svg></div>'
    )


def text(x: float, y: float, words: object, *, anchor: str = "start", kind: str = "") -> str:
    """A text in a picture."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


@dataclass(frozen=True)
class _Grid:
    """Where the hops and the layers of a path picture are, in pixels."""

    left: float
    top: float
    pitch: float
    row: float
    gap: float
    layers: tuple[int, ...]
    order: tuple[int, ...]

    def x(self, hop: int) -> float:
        return self.left + (hop + 0.5) * self.pitch

    def block(self, source: int) -> float:
        """The upper end of the rows of a source."""
        above = self.order[: self.order.index(source)]
        return self.top + sum(self.layers[other] * self.row + self.gap for other in above) + self.gap

    def y(self, source: int, layer: int) -> float:
        return self.block(source) + (self.layers[source] - layer - 0.5) * self.row

    @property
    def height(self) -> float:
        return self.top + sum(self.layers[source] * self.row + self.gap for source in self.order)


@dataclass(frozen=True)
class _Flow:
    """How much each term of each hop adds to the stream, and how wide its line is."""

    added: list[list[float]]
    gated: bool

    def said(self, hop: int) -> str:
        return " + ".join(number(value, 2) for value in self.added[hop])

    def width(self, value: float, pitch: float) -> float:
        """In pixels: 1 is 5 of them, less where that makes the widest line too wide."""
        most = max(max(each) for each in self.added)
        return max(value * min(5.0, max(min(pitch * 0.6, 12.0), 4.0) / max(most, 1e-9)), 0.7)


def path_picture(
    way: Route,
    labels: Sequence[str],
    layers: Sequence[int],
    *,
    gated: bool = True,
    select: bool = False,
    hops: int = 0,
    listed: bool = True,
) -> str:
    """The route of the hidden state: hops from left to right, the layers of each source from bottom to top.

    Args:
        way: The path.
        labels: The names of the sources.
        layers: The number of layers of each source; as many as the path needs where it is not known.
        gated: Whether scales are gates of what each hop adds; see `LayerPath.added`.
        select: Whether a hop can be chosen, and which one is shows.
        hops: Room for so many hops, so that pictures of several paths are alike.
        listed: Whether a table of the hops follows, for those who read rather than see.
    """
    parsed = [[(term.source, term.layer, term.weight) for term in hop.terms] for hop in way.path.hops]
    rows = _rows(parsed, layers)
    room = max(len(way), hops)
    words = f"{counted(len(way), 'hop')} over {counted(len({term[:2] for hop in parsed for term in hop}), 'layer')}"
    wide = MIDDLE if select else WIDE  # where a path is edited, its answers are beside it
    flow = _Flow(way.path.added(gated=gated), gated)
    picture = both(
        lambda width: _path(way, parsed, labels, rows, flow, width=width, room=room, select=select, words=words), wide
    )
    if not listed:
        return picture
    heads = ["hop", "layer", "scale", *(["adds"] if gated else [])]
    lines = [
        (at + 1, describe(hop, 1.0, labels).removesuffix(", scale 1"), number(scale), flow.said(at))[: len(heads)]
        for at, (hop, scale) in enumerate(zip(way.hops, way.scales, strict=True))
    ]
    return picture + details("The same as a table", table(heads, lines, caption=words, mark=way.selected if select else None))


def _rows(parsed: Sequence[list[tuple[int, int, float]]], layers: Sequence[int]) -> tuple[int, ...]:
    """The layers that are drawn of each source; none of a source that the path never visits and of which nothing is known."""
    count = max([len(layers), *(source + 1 for hop in parsed for source, _, _ in hop)])
    needed = [0] * min(count, 64)
    for hop in parsed:
        for source, layer, _ in hop:
            if source < len(needed):
                needed[source] = max(needed[source], layer + 1)
    known = [*layers, *[0] * len(needed)]
    return tuple(min(max(need, known[source]), 4096) for source, need in enumerate(needed))


def _path(
    way: Route,
    parsed: Sequence[list[tuple[int, int, float]]],
    labels: Sequence[str],
    rows: tuple[int, ...],
    flow: _Flow,
    *,
    width: int,
    room: int,
    select: bool,
    words: str,
) -> str:
    narrow = width == NARROW
    left, after = (34.0, 26.0) if narrow else (92.0, 68.0)  # room for what goes in and what comes out
    space = width - left - after
    pitch = max(min(space / room, 26.0 if narrow else 84.0), 10.0 if narrow else 7.0)
    total = max(sum(rows[source] for source in {source for hop in parsed for source, _, _ in hop}), 1)
    most = 16.0 if select else 18.0 if narrow else 26.0  # where a path is edited, its answer should be on the same screen
    row = max(min((320 if select else 520) / total, most), 6.0)
    used = {source for hop in parsed for source, _, _ in hop}
    folded = [name_of(labels, source)[:36] for source in range(len(rows)) if source not in used and rows[source]]
    visited = sorted(used)
    wide = max(left + pitch * room + after, min(width, 348))
    seen = min(wide, width)
    under = seen < MIDDLE or width < min(wide, WIDE)  # the legend is under the title where there is no room beside it
    grid = _Grid(left, 74.0 if under else 34.0, pitch, row, 26.0, rows, tuple(reversed(visited)))
    height = grid.height + 36
    parts = [_layer_rows(grid, parsed, right=left + pitch * room)]
    parts.append(_legend(way, flow, words, grid, right=seen - (120 if wide > width and not under else 10), under=under))
    if wide > width:
        parts.append(text(width - 10, 18, "scroll for more \N{RIGHTWARDS ARROW}", anchor="end", kind="ev-tick"))
    spots = [[(grid.x(at), grid.y(source, layer)) for source, layer, _ in hop] for at, hop in enumerate(parsed)]
    lines = [
        [(f"ev-s{source % _SHAPES}", flow.width(value, pitch)) for (source, _, _), value in zip(hop, values, strict=True)]
        for hop, values in zip(parsed, flow.added, strict=True)
    ]
    parts.append(_route(spots, lines, left, left + pitch * room, narrow))
    parts += [_source_name(grid, parsed, labels, source) for source in grid.order]
    unit = _unit(way, grid)
    for at, hop in enumerate(parsed):
        said = f", adds {flow.said(at)} of what its layer{'s' if len(hop) > 1 else ''} would" if flow.gated else ""
        parts.append(_hop(way, at, hop, labels, grid=grid, unit=unit, select=select, said=said))
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 4096) if step * pitch >= 22)
    parts += [
        text(grid.x(at), grid.height + 16, at + 1, anchor="middle", kind="ev-tick")
        for at in range(room)
        if (at + 1) % step == 0 or at == 0
    ]
    parts.append(text(left, grid.height + 32, "hop", kind="ev-tick"))
    if folded:
        parts.append(text(left + 34, grid.height + 32, f"not on the path: {', '.join(folded)}", kind="ev-tick"))
    label = f"Path picture: {words}. Arrow keys go from hop to hop."
    return svg(wide, height, "".join(parts), label=label, scroll=wide > width or narrow)


def _route(
    spots: Sequence[Sequence[tuple[float, float]]],
    lines: Sequence[Sequence[tuple[str, float]]],
    left: float,
    right: float,
    narrow: bool,
) -> str:
    """The way of the hidden state: in from the left, a lane for each term of a sum, and out to the right.

    A line is as wide as what the hop at its end adds, in the colour of its source.
    """
    lanes, plain = [], []

    def lane(a: tuple[float, float], b: tuple[float, float], look: tuple[str, float]) -> None:
        way = f"M{a[0]:.1f},{a[1]:.1f}L{b[0]:.1f},{b[1]:.1f}"
        lanes.append(f'<path class="ev-flow {look[0]}" stroke-width="{look[1]:.1f}" d="{way}"/>')

    here = (left, sum(y for _, y in spots[0]) / len(spots[0]))
    tokens = text(left - 20, here[1] + 4, "tokens \N{RIGHTWARDS ARROW}", anchor="end", kind="ev-title")
    words = [_upright(12, here[1], "tokens", -90) if narrow else tokens]
    for at, (there, looks) in enumerate(zip(spots, lines, strict=True)):
        for spot, look in zip(there, looks, strict=True):
            lane(here, spot, look)
        here = there[0]
        if len(there) > 1:  # a sum: its lanes meet half way to the next hop
            after = spots[at + 1][0][0] if at + 1 < len(spots) else max(right, here[0] + 12)
            here = ((here[0] + after) / 2, sum(y for _, y in there) / len(there))
            for spot, look in zip(there, looks, strict=True):
                lane(spot, here, look)
            plain.append(f'<circle class="ev-join" cx="{here[0]:.1f}" cy="{here[1]:.1f}" r="3"/>')
    last = max(right, here[0] + 6)
    plain.append(f'<path class="ev-route" d="M{here[0]:.1f},{here[1]:.1f}H{last:.1f}"/>')
    plain.append(f'<path class="ev-arrow" d="M{last:.1f},{here[1] - 4:.1f}l6,4l-6,4z"/>')
    words.append(
        _upright(last + 10, here[1], "answer", 90) if narrow else text(last + 9, here[1] + 4, "answer", kind="ev-title")
    )
    return "".join([*lanes, *plain, *words])


def _upright(x: float, y: float, words: str, angle: int) -> str:
    """Words that stand, on phones, beside the middle of a line."""
    turned = f'<g transform="rotate({angle} {x:.1f} {y:.1f})">'
    return f"{turned}{text(x, y, words, anchor='middle', kind='ev-title')}</g>"


def _unit(way: Route, grid: _Grid) -> float:
    """The half width of a mark with scale 1."""
    largest = max(1.0, *map(abs, way.scales))
    return max(min(grid.pitch * 0.46, grid.row * 0.8, 15.0), 5.0) / largest


def _layer_rows(grid: _Grid, parsed: Sequence[list[tuple[int, int, float]]], *, right: float) -> str:
    used = {(source, layer) for hop in parsed for source, layer, _ in hop}
    every = next(step for step in (1, 2, 4, 8, 16, 32, 4096) if step * grid.row >= 14)
    parts = []
    for source in grid.order:
        count = grid.layers[source]
        bars = []
        for layer in range(count):
            y, kind = grid.y(source, layer), "ev-used" if (source, layer) in used else "ev-unused"
            bars.append(
                f'<rect class="{kind}" x="{grid.left:.1f}" y="{y - grid.row * 0.43:.1f}" width="{right - grid.left:.1f}" '
                f'height="{grid.row * 0.86:.1f}"/>'
            )
            if layer % every == 0:
                bars.append(text(grid.left - 6, y + 4, layer, anchor="end", kind="ev-tick"))
        parts.append(f'<g class="ev-s{source % _SHAPES}">{"".join(bars)}</g>')
    return "".join(parts)


def _source_name(grid: _Grid, parsed: Sequence[list[tuple[int, int, float]]], labels: Sequence[str], source: int) -> str:
    visits = len({layer for hop in parsed for place, layer, _ in hop if place == source})
    name = f"{name_of(labels, source)[:36]}   {visits} of {grid.layers[source]} layers"
    words = text(grid.left, grid.block(source) - 6, name, kind="ev-name ev-halo")
    return f'<g class="ev-s{source % _SHAPES}">{words}</g>'


def _hop(
    way: Route,
    at: int,
    hop: Sequence[tuple[int, int, float]],
    labels: Sequence[str],
    *,
    grid: _Grid,
    unit: float,
    select: bool,
    said: str,
) -> str:
    scale = way.scales[at]
    tip = f"Hop {at + 1}: {describe(way.hops[at], scale, labels)}{said}"
    size = max(abs(scale) * unit, 2.5)
    marks = "".join(
        f'<g class="ev-s{source % _SHAPES}">{_shape(source, grid.x(at), grid.y(source, layer), size)}</g>'
        for source, layer, _ in hop
    )
    # an invisible pad, so that a small mark can be hit with a finger
    pads = "".join(
        f'<rect class="ev-pad" x="{grid.x(at) - grid.pitch / 2:.1f}" y="{grid.y(source, layer) - 12:.1f}" '
        f'width="{grid.pitch:.1f}" height="24"/>'
        for source, layer, _ in hop
    )
    kind = "ev-hop" + (" ev-negative" if scale < 0 else "") + (" ev-selected" if select and at == way.selected else "")
    chosen = f' data-hop="{at}" aria-pressed="{str(at == way.selected).lower()}"' if select else ""
    role = "button" if select else "img"
    words = f'data-tip="{escape(tip)}" aria-label="{escape(tip)}"'
    return f'<g class="{kind}" role="{role}" tabindex="-1" {words}{chosen}>{pads}{marks}</g>'


def _shape(source: int, x: float, y: float, r: float) -> str:
    """A mark: circle, square, triangles and diamonds, so that sources differ without colour too."""
    kind = source % _SHAPES
    if kind == 0:
        return f'<circle class="ev-markshape" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>'
    s = r * 0.9
    points = {
        1: [(-s, -s), (s, -s), (s, s), (-s, s)],
        2: [(0, -r * 1.1), (r, r * 0.8), (-r, r * 0.8)],
        3: [(0, r * 1.1), (r, -r * 0.8), (-r, -r * 0.8)],
        4: [(0, -r * 1.15), (r * 1.15, 0), (0, r * 1.15), (-r * 1.15, 0)],
        5: [(-r * 0.5, -r), (r * 0.5, -r), (r, 0), (r * 0.5, r), (-r * 0.5, r), (-r, 0)],
    }[kind]
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in points)
    return f'<polygon class="ev-markshape" points="{corners}"/>'


def _legend(way: Route, flow: _Flow, words: str, grid: _Grid, *, right: float, under: bool) -> str:
    """The number of hops, the widths of lines, and the sizes of the least scale, 1 and the greatest."""
    values = [value for each in flow.added for value in each]
    title = text(4, 18, words, kind="ev-title")
    if all(value == 1 for value in [*way.scales, *values]):
        return title + text(right, 40 if under else 18, "every scale 1, every layer whole", anchor="end", kind="ev-tick")
    unit, x, parts, y = _unit(way, grid), right, [], 40 if under else 18
    for size in _sizes(way.scales):
        r = max(abs(size) * unit, 2.5)
        kind = "ev-legend ev-negative" if size < 0 else "ev-legend"
        x -= 8.0 * len(number(size))
        parts.append(text(x, y, number(size), kind="ev-tick"))
        parts.append(f'<g class="{kind}"><circle class="ev-markshape" cx="{x - r - 5:.1f}" cy="{y - 4}" r="{r:.1f}"/></g>')
        x -= 2 * r + 14
    parts.append(text(x, y, "scale", anchor="end", kind="ev-tick"))
    if flow.gated:
        x, y = (right, 64) if under else (x - 60, 18)
        for value in _sizes(values):
            x -= 8.0 * len(number(value))
            parts.append(text(x, y, number(value), kind="ev-tick"))
            line = f'd="M{x - 33:.1f},{y - 4}h20" stroke-width="{flow.width(value, grid.pitch):.1f}"'
            parts.append(f'<path class="ev-flow ev-grey" {line}/>')
            x -= 48
        parts.append(text(x, y, "a hop adds", anchor="end", kind="ev-tick"))
    return title + "".join(parts)


def _sizes(values: Sequence[float]) -> list[float]:
    """What a legend shows, the greatest first: 1, and the ends of the range where the eye tells them from it."""
    ends = (round(min(values), 2), round(max(values), 2))
    return sorted({1.0, *(value for value in ends if abs(value - 1) > 0.05)}, reverse=True)


_KEY = re.compile(r"(embed|head|default)|blocks\.(\d{1,6})(?:-(\d{1,6}))?(?:\.(attn|mlp))?")
_TENSOR = re.compile(r".*?\.(\d{1,6})\.(.+?)(?:\.weight)?")


class _Row(NamedTuple):
    """The name of a row of a heat map, its value per layer group, and whose it is; -1 where it is no source's."""

    name: str
    values: Mapping[str, float]
    source: int = -1


def weights_picture(merge: Mapping[str, Any], labels: Sequence[str]) -> str:
    """The parameters of a merge per layer group, as a heat map with its numbers.

    Args:
        merge: The `merge` part of a recipe.
        labels: The names of the sources.
    """
    rows = weight_rows(merge, labels)
    method = str(merge.get("method", ""))[:40]
    options = mapping(merge.get("options"))
    notes = [f"{key} = {value}" for key, value in options.items() if not isinstance(value, dict)]
    if rows and all(row.values.get("default") == 0 and len(row.values) > 1 for row in rows):
        rows = [row._replace(values={key: value for key, value in row.values.items() if key != "default"}) for row in rows]
        notes.append("everything else is the base's")
    said = ", ".join(notes)
    if not rows:
        return f'<p class="ev-faint">The merge method {escape(method)} has no parameters per source. {escape(said)}</p>'
    most = _largest(rows)
    columns = rows
    rows, most = _by_tensor(rows, most)
    groups = sorted({group for row in rows for group in row.values} - {"all"}, key=_group_order) or ["all"]
    title = f"{method}{': ' + said if said else ''}"
    down = len(rows) == len(columns)  # on phones; a row per kind of tensor stays one

    def draw(width: int) -> str:
        return _heat_down(rows, groups, most, title) if down and width == NARROW else _heat(rows, groups, most, title, width)

    heads = ["layers", *(row.name for row in rows)]
    lines = [[_group_name(group), *(number(row.values.get(group, row.values.get("all"))) for row in rows)] for group in groups]
    listed = details("The same as a table", table(heads, lines, caption=title))
    return both(draw) + listed


def _largest(rows: Sequence[_Row]) -> dict[str, float]:
    """The largest value of each row's parameter: the colours of weights and of densities have a scale of their own."""
    most: dict[str, float] = {}
    for row in rows:
        kind = row.name.rsplit(": ", 1)[-1]
        most[kind] = max([most.get(kind, 0.0), *map(abs, row.values.values())])
    return {row.name: most[row.name.rsplit(": ", 1)[-1]] or 1.0 for row in rows}


def _by_tensor(rows: Sequence[_Row], most: Mapping[str, float]) -> tuple[list[_Row], dict[str, float]]:
    """Where a row has a value for each tensor: a row for each kind of tensor, with a value per layer."""
    found, largest = list[_Row](), dict[str, float]()
    for row in rows:
        kinds: dict[str, dict[str, float]] = {}
        for key, value in row.values.items():
            match = _TENSOR.fullmatch(key)
            kind = match[2].rsplit(".", 1)[-1] if match else _group_name(key)
            kinds.setdefault(kind, {})[f"blocks.{match[1]}" if match else "all"] = value
        if not any("blocks." in key for values in kinds.values() for key in values) or len(rows) * len(kinds) > 200:
            kinds = {"": dict(row.values)}
        for kind, values in sorted(kinds.items(), key=lambda item: "all" in item[1]):
            name = row.name if not kind else f"{row.name.removesuffix(': weight')}: {kind}"[:48]
            found.append(_Row(name, values, row.source))
            largest[name] = most[row.name]
    return found, largest


def weight_rows(merge: Mapping[str, Any], labels: Sequence[str]) -> list[_Row]:
    """One row per parameter and source, and one per option that differs from layer to layer."""
    parameters = listing(merge.get("parameters"))
    taking_part = listing(merge.get("sources")) or list(range(len(parameters)))
    names = list(dict.fromkeys(name for item in parameters if isinstance(item, dict) for name in item))
    rows: list[_Row] = []
    for name in names:
        for source, item in zip(taking_part, parameters, strict=False):
            values = _group_values(item.get(name)) if isinstance(item, dict) else {}
            if values and isinstance(source, int):
                rows.append(_Row(f"{name_of(labels, source)}: {name}"[:48], values, source))
    options = mapping(merge.get("options"))
    return rows + [_Row(str(name)[:48], _group_values(value)) for name, value in options.items() if isinstance(value, dict)]


def _group_values(value: object) -> dict[str, float]:
    given = mapping(value) or {"all": value}
    pairs = [(str(key), as_float(item)) for key, item in given.items()]
    return {key: item for key, item in pairs if item is not None}


def _group_order(group: str) -> tuple[int, int, int, str]:
    match = _KEY.fullmatch(group)
    if not match:
        return (4, 0, 0, group)
    if match[1]:
        return ({"embed": 0, "head": 2, "default": 3}[match[1]], 0, 0, group)
    return (1, int(match[2]), int(match[3] or match[2]), match[4] or "")


def _group_name(group: str) -> str:
    return {"all": "all layers", "default": "all others"}.get(group, group.removeprefix("blocks."))[:20]


def _cell(x: float, y: float, width: float, height: float, *, value: float | None, most: float, tip: str, source: int) -> str:
    """A value in its source's colour: filled, or where it is negative outlined, the more the larger it is."""
    if value is None:
        return f'<rect class="ev-unused" x="{x:.1f}" y="{y:.1f}" width="{width - 2:.1f}" height="{height - 2:.1f}"/>'
    strength = abs(value) / most
    drawn, inset = f'class="ev-plus" fill-opacity="{0.04 + 0.46 * strength:.2f}"', 0.0  # pale enough for the page's own text
    if value < 0:
        drawn, inset = f'class="ev-minus" stroke-opacity="{0.25 + 0.75 * strength:.2f}"', 1.0
    words = ""
    if width >= 34:
        words = text(x + width / 2 - 1, y + height / 2 + 3, number(value, 2), anchor="middle")
    return (
        f'<g class="ev-cell ev-s{max(source, 0) % _SHAPES}" role="img" tabindex="-1" data-tip="{escape(tip)}" '
        f'aria-label="{escape(tip)}"><rect {drawn} x="{x + inset:.1f}" y="{y + inset:.1f}" '
        f'width="{width - 2 - 2 * inset:.1f}" height="{height - 2 - 2 * inset:.1f}" rx="2"/>{words}</g>'
    )


def _heat(rows: Sequence[_Row], groups: Sequence[str], most: Mapping[str, float], title: str, room: int) -> str:
    """Layer groups from left to right, below each other a source's rows under its name where it has many."""
    under = max(len([row for row in rows if row.source == one.source]) for one in rows) > 3
    labels = [row.name.split(": ", 1)[-1] if under else row.name for row in rows]
    left = 14 + 7.2 * max(map(len, labels))
    width, height = max(min((room - left - 12) / len(groups), 84.0), 14.0), 22.0 if under else 34.0
    parts, y, before = [text(4, 18, title, kind="ev-title")], 34.0, -2
    for row, label in zip(rows, labels, strict=True):
        colour = f"ev-s{row.source % _SHAPES}" if row.source >= 0 else "ev-grey"
        if under and row.source != before:
            words = text(left, y + 14, row.name.split(": ", 1)[0], kind="ev-name")
            parts.append(f'<g class="{colour}">{words}</g>')
            y, before = y + 22, row.source
        parts.append(text(left - 8, y + height / 2 + 4, label, anchor="end"))
        for at, group in enumerate(groups):
            value = row.values.get(group, row.values.get("all"))
            tip = f"{row.name}, {_group_name(group)}: {number(value)}"
            parts.append(
                _cell(left + at * width, y, width, height, value=value, most=most[row.name], tip=tip, source=row.source)
            )
        y += height
    step = next(step for step in (1, 2, 4, 8, 16, 4096) if step * width >= 7.5 * max(len(_group_name(g)) for g in groups))
    for at, group in enumerate(groups):
        if at % step == 0 or group in ("embed", "head"):
            parts.append(text(left + (at + 0.5) * width, y + 16, _group_name(group), anchor="middle", kind="ev-tick"))
    parts.append(text(left, y + 32, "layer", kind="ev-tick"))
    wide = left + width * len(groups) + 12
    label = f"Heat map: {title}. Arrow keys go from cell to cell."
    return svg(wide, y + 42, "".join(parts), label=label, scroll=wide > room + 4)


def _heat_down(rows: Sequence[_Row], groups: Sequence[str], most: Mapping[str, float], title: str) -> str:
    """Layer groups from top to bottom, for phones."""
    left = 14 + 7.2 * max(len(_group_name(group)) for group in groups)
    width, height = max((NARROW - left - 6) / len(rows), 40.0), 26.0
    parts = [text(4, 18, title[:44], kind="ev-title")]
    top = 34.0 + 16 * len(rows)
    for across, row in enumerate(rows):
        x = left + across * width
        parts.append(text(x, 38 + 16 * across, row.name, kind="ev-tick"))
        parts.append(f'<path class="ev-route" d="M{x + 2:.1f},{42 + 16 * across}V{top + 6:.1f}"/>')
    for down, group in enumerate(groups):
        y = top + 8 + down * height
        parts.append(text(left - 8, y + height / 2 + 3, _group_name(group), anchor="end", kind="ev-tick"))
        for across, row in enumerate(rows):
            value = row.values.get(group, row.values.get("all"))
            tip = f"{row.name}, {_group_name(group)}: {number(value)}"
            x = left + across * width
            parts.append(_cell(x, y, width, height, value=value, most=most[row.name], tip=tip, source=row.source))
    wide = left + width * len(rows) + 4
    label = f"Heat map: {title}. Arrow keys go from cell to cell."
    return svg(wide, top + 16 + len(groups) * height, "".join(parts), label=label, scroll=wide > NARROW + 4)
