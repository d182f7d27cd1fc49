"""The parameters of a merge per layer group, as a heat map with its numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from ..errors import RecipeError
from ..recipes.layer_groups import GroupKey, parse_key
from .marks import Group, Line, Mark, Rect, Spot, Text
from .path import name_of
from .scene import NARROW, PIXELS, WIDE, Axes, Panel, Scene, number, source_colour, sparse

_TENSOR = re.compile(r".*?\.(\d{1,6})\.(.+?)(?:\.weight)?")
_KINDS = ("embed", "block", "head", "default", "pattern")
_MOST_ROWS = 200
WHOLE = "all"  # the group of a value for the whole model


class WeightRow(NamedTuple):
    """The name of a row of a heat map, its value per layer group, and whose it is; -1 where it is no source's."""

    name: str
    values: Mapping[str, float]
    source: int = -1

    @property
    def parameter(self) -> str:
        """What the values are of: each parameter has a scale of colours of its own."""
        return self.name.rsplit(": ", 1)[-1]

    def at(self, group: str) -> float | None:
        """The value of a group: its own, that of a group it is part of, or that for all others; None where there is none."""
        key = _key(group)
        if group in self.values:
            return self.values[group]
        if key.kind == "block":
            around = (each for each in self.values if _covers(_key(each), key))
            if (wider := next(around, None)) is not None:
                return self.values[wider]
        return self.values.get(WHOLE, self.values.get("default"))


class Weights(NamedTuple):
    """A merge, ready to be drawn: a title, its rows, its layer groups in order, and the largest value of each parameter."""

    title: str
    rows: list[WeightRow]
    groups: list[str]
    most: dict[str, float]
    by_tensor: bool = False


def weights_of(merge: Mapping[str, Any], labels: Sequence[str]) -> Weights:
    """Read the numbers of a merge.

    Args:
        merge: The `merge` part of a recipe as plain data.
        labels: The names of the sources.
    """
    rows = _rows(merge, labels)
    numbers = {name: value for name, value in (merge.get("options") or {}).items() if not isinstance(value, dict)}
    notes = [f"{name} = {value}" for name, value in numbers.items()]
    if rows and all(row.values.get("default") == 0 and len(row.values) > 1 for row in rows):
        rows = [row._replace(values={key: value for key, value in row.values.items() if key != "default"}) for row in rows]
        notes.append("everything else is the base's")
    if not rows:
        rows = [WeightRow(str(name)[:48], values) for name, value in numbers.items() if (values := _group_values(value))]
    title = f"{str(merge.get('method', ''))[:40]}{': ' if notes else ''}{', '.join(notes)}"
    largest = dict[str, float]()
    for row in rows:
        largest[row.parameter] = max([largest.get(row.parameter, 0.0), *map(abs, row.values.values())])
    split = _by_tensor(rows)
    most = {each.name: largest[row.parameter] or 1.0 for row, parts in zip(rows, split, strict=True) for each in parts}
    shown = [each for parts in split for each in parts]
    groups = sorted({group for row in shown for group in row.values} - {WHOLE}, key=_order) or [WHOLE]
    return Weights(title, shown, groups, most, len(shown) > len(rows))


def weights_scene(weights: Weights, width: int = WIDE) -> Scene:
    """Draw the parameters of a merge, each value in its source's colour: filled, or outlined where it is negative.

    Layer groups go from left to right, or on phones from top to bottom.
    """
    return _down(weights) if width == NARROW and not weights.by_tensor else _across(weights, width)


def _rows(merge: Mapping[str, Any], labels: Sequence[str]) -> list[WeightRow]:
    """One row per parameter and source, and one per option that differs from layer to layer."""
    parameters = merge.get("parameters") or []
    taking_part = merge.get("sources") or range(len(parameters))
    rows = [
        WeightRow(f"{name_of(labels, source)}: {name}"[:48], _group_values(item[name]), source)
        for name in dict.fromkeys(name for item in parameters for name in item)
        for source, item in zip(taking_part, parameters, strict=False)
        if name in item
    ]
    options = {name: value for name, value in (merge.get("options") or {}).items() if isinstance(value, dict)}
    rows += [WeightRow(str(name)[:48], _group_values(value)) for name, value in options.items()]
    return [row for row in rows if row.values]


def group_name(group: str) -> str:
    """A layer group as pictures and tables call it."""
    return {WHOLE: "all layers", "default": "all others"}.get(group, group.removeprefix("blocks."))[:20]


def _group_values(value: object) -> dict[str, float]:
    """The numbers of a parameter per layer group, the mean over a tensor's rows; a gradient over the layers has none."""
    given = value if isinstance(value, dict) else {WHOLE: value}
    items = {str(key): _over_rows(str(key), item) for key, item in given.items() if not isinstance(item, bool)}
    numbers = {key: float(item) for key, item in items.items() if isinstance(item, (int, float))}
    return {WHOLE: numbers["default"]} if list(numbers) == ["default"] else numbers


def _over_rows(key: str, value: object) -> object:
    """The mean of a list of numbers under the name of a tensor; other values as they are."""
    if not isinstance(value, list) or not value or not all(isinstance(item, (int, float)) for item in value):
        return value
    return sum(value) / len(value) if _key(key).kind == "pattern" and "*" not in key else value


def _key(group: str) -> GroupKey:
    """A group as the recipe reads it; what it cannot read is a name."""
    try:
        return parse_key(group)
    except RecipeError:
        return GroupKey("pattern", pattern=group)


def _covers(wide: GroupKey, key: GroupKey) -> bool:
    return wide.kind == "block" and wide.first <= key.first and key.last <= wide.last and wide.has_half(key.half)


def _order(group: str) -> tuple[int, int, int, str]:
    key = _key(group)
    return _KINDS.index(key.kind), key.first, key.last, key.half or key.pattern


def _by_tensor(rows: Sequence[WeightRow]) -> list[list[WeightRow]]:
    """Where a row has a value for each tensor: a row for each kind of tensor, with a value per layer."""
    split = []
    for row in rows:
        kinds: dict[str, dict[str, float]] = {}
        for key, value in row.values.items():
            match = _TENSOR.fullmatch(key)
            kind = match[2].rsplit(".", 1)[-1] if match else group_name(key)
            kinds.setdefault(kind, {})[f"blocks.{match[1]}" if match else WHOLE] = value
        if not any("blocks." in key for values in kinds.values() for key in values) or len(rows) * len(kinds) > _MOST_ROWS:
            split.append([row])
            continue
        name = row.name.removesuffix(": weight")
        ordered = sorted(kinds.items(), key=lambda item: WHOLE in item[1])
        split.append([WeightRow(f"{name}: {kind}"[:48], values, row.source) for kind, values in ordered])
    return split


def _cell(weights: Weights, row: WeightRow, group: str, at: Spot, size: Spot) -> Mark:
    """A value, the stronger the larger it is; `size` is that of a cell in pixels."""
    value = row.at(group)
    if value is None:
        return Rect(at, (1, 1), "unused", inset=1.0)
    strength = abs(value) / weights.most[row.name]
    if value < 0:
        marks: list[Mark] = [Rect(at, (1, 1), "minus", inset=2.0, strength=0.25 + 0.75 * strength)]
    else:
        marks = [Rect(at, (1, 1), "plus", inset=1.0, strength=0.04 + 0.46 * strength)]  # words are read on it
    if size[0] >= 34:
        marks.append(Text(at, number(value, 2), anchor="middle", shift=(0, 4)))
    tip = f"{row.name}, {group_name(group)}: {number(value)}"
    return Group(marks, "cell", source_colour(row.source), tip)


def _across(weights: Weights, room: int) -> Scene:
    """Layer groups from left to right, below each other a source's rows under its name where it has many."""
    title, rows, groups, _, _ = weights
    blocks = [list(each) for _, each in groupby(rows, key=lambda row: row.source)]
    under = max(map(len, blocks)) > 3
    names = [row.parameter if under else row.name for row in rows]
    left = 14 + 7.2 * max(map(len, names))
    width, height = max(min((room - left - 12) / len(groups), 84.0), 14.0), 22.0 if under else 34.0
    count = len(rows) + len(blocks) * under
    axes = Axes(left, 34, left + width * len(groups), 34 + height * count, (-0.5, len(groups) - 0.5), (count - 0.5, -0.5))
    y, marks = 0, list[Mark]()
    for block in blocks:
        if under:
            words = block[0].name.split(": ", 1)[0]
            marks.append(Text((-0.5, y), words, "name", source_colour(block[0].source), shift=(0, 3)))
            y += 1
        for row in block:
            marks.append(Text((-0.5, y), row.parameter if under else row.name, anchor="end", shift=(-8, 4)))
            marks += [_cell(weights, row, group, (x, y), (width, height)) for x, group in enumerate(groups)]
            y += 1
    every = sparse(width, 7.5 * max(len(group_name(group)) for group in groups), (1, 2, 4, 8, 16, 4096))
    for x, group in enumerate(groups):
        if x % every == 0 or group in ("embed", "head"):
            marks.append(Text((x, count - 0.5), group_name(group), "tick", anchor="middle", shift=(0, 16)))
    marks.append(Text((-0.5, count - 0.5), "layer", "tick", shift=(0, 32)))
    return _scene(weights, axes, marks, [Text((4, 18), title, "title")], (axes.right + 12, axes.bottom + 42), room)


def _down(weights: Weights) -> Scene:
    """Layer groups from top to bottom, for phones."""
    title, rows, groups, _, _ = weights
    left = 14 + 7.2 * max(len(group_name(group)) for group in groups)
    width, top = max((NARROW - left - 6) / len(rows), 40.0), 42.0 + 16 * len(rows)
    axes = Axes(
        left, top, left + width * len(rows), top + 26.0 * len(groups), (-0.5, len(rows) - 0.5), (len(groups) - 0.5, -0.5)
    )
    above: list[Mark] = [Text((4, 18), title[:44], "title")]
    for x, row in enumerate(rows):
        begin = left + x * width
        above.append(Text((begin, 38 + 16 * x), row.name, "tick"))
        above.append(Line(((begin + 2, 42 + 16 * x), (begin + 2, top - 2)), "route"))
    marks: list[Mark] = []
    for y, group in enumerate(groups):
        marks.append(Text((-0.5, y), group_name(group), "tick", anchor="end", shift=(-8, 4)))
        marks += [_cell(weights, row, group, (x, y), (width, 26.0)) for x, row in enumerate(rows)]
    return _scene(weights, axes, marks, above, (axes.right + 4, axes.bottom + 8), NARROW)


def _scene(weights: Weights, axes: Axes, marks: list[Mark], above: list[Mark], size: Spot, room: int) -> Scene:
    label = f"Heat map: {weights.title}. Arrow keys go from cell to cell."
    panels = (Panel(axes, marks), Panel(PIXELS, above))
    return Scene(*size, panels, label, scrolls=size[0] > room + 4)
