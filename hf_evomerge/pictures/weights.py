"""The parameters of a merge: how much of each source is in each layer, and every number in the
order of the layers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple

from ..errors import RecipeError
from ..recipes.layer_groups import GroupKey, classify, parse_key, select_key
from .marks import Group, Mark, Rect, Spot, Text
from .path import name_of
from .scene import (
    NARROW,
    WIDE,
    Axes,
    Panel,
    Scene,
    number,
    source_colour,
    sparse,
    ticks,
    value_lines,
)

_KINDS = ("embed", "block", "head", "default", "pattern")
_VECTOR = re.compile(r"norm|bias|ln_")
_FIT = 12  # layers, beside embeddings and head
WHOLE = "all"  # the group of a value for the whole model


class WeightRow(NamedTuple):
    """The name of a row of numbers, its value per layer group, and whose it is; -1 where it is no
    source's."""

    name: str
    values: Mapping[str, float]
    source: int = -1

    @property
    def parameter(self) -> str:
        """Name of the values' parameter."""
        return self.name.rsplit(": ", 1)[-1]

    def at(self, group: str) -> float | None:
        """The value of a group: its own, that of a group it is part of, or that for all others;
        None where there is none."""
        key = _key(group)
        if group in self.values:
            return self.values[group]
        if key.kind == "block":
            around = (each for each in self.values if _covers(_key(each), key))
            if (wider := next(around, None)) is not None:
                return self.values[wider]
        return self.values.get(WHOLE, self.values.get("default"))

    def mean(self, layer: str) -> float | None:
        """The value of a layer, such as ``blocks.3``: the mean over its tensors but norms and
        biases; None where none is."""
        wanted = _key(layer)
        place = (wanted.kind, wanted.first if wanted.kind == "block" else None)
        named = [
            key for key in self.values if _key(key).kind == "pattern" and classify(key)[:2] == place
        ]
        own = [self.values[key] for key in named if "*" not in key and not _VECTOR.search(key)]
        # Where keys name single tensors of the layer, their mean is shown, without norms and
        # biases, which are small. Else a weight of each half of a layer is asked for as a merge
        # would ask, and both halves are averaged.
        probes = {"embed": ["model.embed_tokens.weight"], "head": ["lm_head.weight"]}.get(
            wanted.kind,
            [
                f"model.layers.{wanted.first}.{part}.weight"
                for part in ("self_attn.q_proj", "mlp.up_proj")
            ],
        )
        with suppress(RecipeError):  # no key names it
            selected = (select_key(tuple(self.values), probe) for probe in probes)
            own = own or [self.values[key] for key in selected]
        return sum(own) / len(own) if own else self.values.get(WHOLE)


class Weights(NamedTuple):
    """A merge, ready to be drawn: what it is, its rows, and its layer groups in order."""

    title: str
    rows: list[WeightRow]
    groups: list[str]

    @property
    def layers(self) -> list[str]:
        """The embeddings, every layer and the head, as far as numbers name them."""
        blocks = range(1 + max((_last_block(key) for key in self.groups), default=-1))
        if not blocks:
            return [WHOLE]
        layers = ["embed", *(f"blocks.{block}" for block in blocks), "head"]
        # The ends are shown where they have a number of their own.
        for end in (0, -1):
            if not any(row.mean(layers[end]) for row in self.rows):
                del layers[end]
        return layers


def weights_of(merge: Mapping[str, Any], labels: Sequence[str]) -> Weights:
    """Read the numbers of a recipe's `merge`, as plain data; labels are the names of the
    sources."""
    rows = _rows(merge, labels)
    numbers = {
        name: value
        for name, value in (merge.get("options") or {}).items()
        if not isinstance(value, dict)
    }
    notes = [f"{name} = {value}" for name, value in numbers.items()]
    if not rows:
        for name, value in numbers.items():
            if values := _group_values(value):
                rows.append(WeightRow(str(name)[:48], values))
    title = f"{str(merge.get('method', ''))[:40]}{': ' if notes else ''}{', '.join(notes)}"
    groups = sorted({group for row in rows for group in row.values} - {WHOLE}, key=_order) or [
        WHOLE
    ]
    return Weights(title, rows, groups)


def spans(several: Iterable[Weights]) -> dict[str, Spot]:
    """The least and the greatest number of each parameter in the layers of some merges, or 0."""
    values: dict[str, list[float]] = {}
    for weights in several:
        for row in weights.rows:
            values.setdefault(row.parameter, [0.0]).extend(
                _value(row, column) or 0.0 for column in weights.layers
            )
    return {name: (min(own), max(own)) for name, own in values.items()}


def weights_scene(
    weights: Weights, width: int = WIDE, among: Mapping[str, Spot] | None = None
) -> Scene:
    """Draw a bar for each source in each layer, beside each other; one strip for each parameter.

    The width is in pixels; a phone shows `_FIT` layers without scrolling. `among` are the `spans`
    of the merges that share these axes.
    """
    columns = weights.layers
    own = among or spans([weights])
    strips = [list(rows) for _, rows in groupby(weights.rows, key=lambda row: row.parameter)]
    least = 0.0
    if width > NARROW:
        least = 10.0 * max(map(len, strips))
    elif len(columns) > _FIT + 2:
        least = 44.0
    pitch = max(min((width - 50) / len(columns), 180.0), least)
    top = 0.0
    right = 40 + pitch * len(columns)
    panels = list[Panel]()
    for rows in strips:
        low, high = own[rows[0].parameter]
        low -= 0.1 * (high - low) if low < 0 else 0.0  # room for its number
        top += 44.0
        axes = Axes(
            40,
            top,
            right,
            top + 150,
            (-0.5, len(columns) - 0.5),
            (low, high if high > low else 1.0),
        )
        panels.append(Panel(axes, _strip(axes, columns, rows)))
        top += 176.0
    label = (
        f"{weights.title}: how much of each source is in each layer. Arrow keys go from layer to "
        "layer."
    )
    return Scene(right + 10, top, panels, label, right + 10 > width + 4)


def _value(row: WeightRow, column: str) -> float | None:
    return row.at(column) if column == WHOLE else row.mean(column)


def _strip(axes: Axes, columns: Sequence[str], rows: Sequence[WeightRow]) -> list[Mark]:
    """The bars of a parameter, with the names of the rows above them."""
    marks = list[Mark]()
    low, high = axes.y_range
    x = 4.0 - axes.left
    for row in rows:
        name = row.name.removesuffix(": weight")
        marks.append(Text((-0.5, high), name, "name", source_colour(row.source), shift=(x, -26)))
        x += 18 + 8.2 * len(name)
    marks += value_lines(axes, ticks(low, high, 4))
    pitch = (axes.right - axes.left) / len(columns)
    thick = 0.8 / len(rows)
    every = sparse(pitch, 34, (1, 2, 4, 8, 16, 4096))
    for at, column in enumerate(columns):
        bars: list[Mark] = [Rect((at, (low + high) / 2), (1, high - low), "pad")]
        for place, row in enumerate(rows):
            if (value := _value(row, column)) is not None:
                spot = at + (place - (len(rows) - 1) / 2) * thick
                size = (thick * 0.9, abs(value))
                bars.append(
                    Rect((spot, value / 2), size, "plus", source_colour(row.source), strength=0.75)
                )
                if pitch * thick >= 26:
                    shift = (0.0, -4.0 if value >= 0 else 13.0)
                    bars.append(
                        Text((spot, value), number(value, 2), "tick halo", "", "middle", shift)
                    )
        is_block = column.startswith("blocks.")
        said = ", ".join(
            f"{row.name.removesuffix(': weight')} {number(_value(row, column))}" for row in rows
        )
        tip = f"{'layer ' if is_block else ''}{group_name(column)}: {said}"
        marks.append(Group(bars, "cell", tip=tip))
        if at % every == 0 or not is_block:
            marks.append(
                Text((at, low), group_name(column), "tick", anchor="middle", shift=(0, 17))
            )
    return marks


def _rows(merge: Mapping[str, Any], labels: Sequence[str]) -> list[WeightRow]:
    """Make one row per parameter and source, and one per option that differs from layer to
    layer."""
    parameters = merge.get("parameters") or []
    taking_part = merge.get("sources") or range(len(parameters))
    names = dict.fromkeys(name for item in parameters for name in item)
    rows = [
        WeightRow(f"{name_of(labels, source)}: {name}"[:48], _group_values(item[name]), source)
        for name in names
        for source, item in zip(taking_part, parameters, strict=False)
        if name in item
    ]
    options = {
        name: value
        for name, value in (merge.get("options") or {}).items()
        if isinstance(value, dict)
    }
    rows += [WeightRow(str(name)[:48], _group_values(value)) for name, value in options.items()]
    return [row for row in rows if row.values]


def group_name(group: str) -> str:
    """A layer group as pictures and tables call it."""
    return {WHOLE: "all layers", "default": "all others"}.get(group, group.removeprefix("blocks."))[
        :80
    ]


def _group_values(value: object) -> dict[str, float]:
    """The numbers of a parameter per layer group, the mean over a tensor's rows; a gradient over
    the layers has none."""
    given = value if isinstance(value, dict) else {WHOLE: value}
    items = {
        str(key): _over_rows(str(key), item)
        for key, item in given.items()
        if not isinstance(item, bool)
    }
    numbers = {key: float(item) for key, item in items.items() if isinstance(item, (int, float))}
    return {WHOLE: numbers["default"]} if list(numbers) == ["default"] else numbers


def _over_rows(key: str, value: object) -> object:
    """The mean of a list of numbers under the name of a tensor; other values as they are."""
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(item, (int, float)) for item in value)
    ):
        return value
    return sum(value) / len(value) if _key(key).kind == "pattern" and "*" not in key else value


def _key(group: str) -> GroupKey:
    """A group as the recipe reads it; what it cannot read is a name."""
    try:
        return parse_key(group)
    except RecipeError:
        return GroupKey("pattern", pattern=group)


def _covers(wide: GroupKey, key: GroupKey) -> bool:
    return (
        wide.kind == "block"
        and wide.first <= key.first
        and key.last <= wide.last
        and wide.has_half(key.half)
    )


def _order(group: str) -> tuple[int, int, int, str]:
    """Return the sort key of a group: the embeddings, layers in their order, then the head."""
    key = _key(group)
    if key.kind != "pattern" or "*" in group:
        return _KINDS.index(key.kind), key.first, key.last, key.half or key.pattern
    kind, block, _ = classify(group)
    return _KINDS.index(kind), block or 0, block or 0, group


def _last_block(group: str) -> int:
    """The last layer that a group names; -1 where it names none."""
    key = _key(group)
    if key.kind == "block":
        return key.last
    block = classify(group)[1] if key.kind == "pattern" else None
    return -1 if block is None else block
