"""The parameters of a merge: over the layer groups, or as bars where they hold for the whole model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EvoMergeError
from ..recipes.layer_groups import GroupKey, GroupValue, parse_key, per_group
from ..recipes.recipe import MergePart
from .style import DPI, FAINT, GREY, label_text, look, mark, number_text, project_style, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = ("embed", "block", "head", "pattern", "default")
_DASHES: dict[str, object] = {"attn": "-", "mlp": (0, (3, 2)), "router": (0, (1, 2)), "experts": (0, (5, 2, 1, 2))}
_Column = tuple[int, int, int, str]  # index of the kind, first block, last block, name pattern


def plot_weights(part: MergePart, labels: Sequence[str], file: str | os.PathLike[str]) -> None:
    """Draw the parameters of a merge: one panel per parameter, over the layer groups or, for the whole model, as bars.

    Args:
        part: The parameter-space part of a recipe.
        labels: Names of the sources that take part, in the order of ``part.parameters``.
        file: A ``.png``, ``.svg`` or ``.pdf`` file.

    Raises:
        EvoMergeError: The part has no number to draw, or the names are not one per source, or the suffix is none of them.
    """
    save(weights_figure(part, labels), file)


def weights_figure(part: MergePart, labels: Sequence[str]) -> Figure:
    """The figure of `plot_weights`. A line has the gid ``PARAMETER:SOURCE`` (``PARAMETER:SOURCE:attn`` for half a block)."""
    from matplotlib.figure import Figure

    if part.parameters and len(part.parameters) != len(labels):
        raise EvoMergeError(f"weights plot: {len(labels)} labels for {len(part.parameters)} sources; give one per source")
    panels: dict[str, dict[int, GroupValue]] = {}  # parameter -> source -> value; global options have source -1
    for index, mapping in enumerate(part.parameters):
        for name, value in mapping.items():
            panels.setdefault(name, {})[index] = per_group(value, name)
    panels |= {name: {-1: per_group(v, name)} for name, v in part.options.items() if isinstance(v, (dict, list))}
    numbers = {name: v for name, v in part.options.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    if not panels:
        panels, numbers = {name: {-1: value} for name, value in numbers.items()}, {}
    if not panels:
        raise EvoMergeError(f"weights plot: the {part.method} merge has no parameters; there is nothing to draw")
    title = part.method + "".join(f"   {name} = {number_text(value)}" for name, value in numbers.items())
    columns = _columns(value for panel in panels.values() for value in panel.values())
    with project_style():
        if columns:
            size = (max(6.0, 2.2 + 0.24 * len(columns)), 0.9 + 2.1 * len(panels))
            figure = Figure(figsize=size, dpi=DPI, layout="constrained")
            grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
            for axes, (name, panel) in zip(grid, panels.items(), strict=True):
                _draw_groups(axes, name, panel, columns)
            grid[-1].set_xlabel("layer group")
            _weights_legend(figure, panels, labels)
            grid[0].set_title(label_text(title, 80), loc="left", weight="bold")
        else:
            first, height = [*next(iter(panels.values()))], 0.9 + 0.34 * max(map(len, panels.values()))
            figure = Figure(figsize=(2.0 + 3.0 * len(panels), height), dpi=DPI, layout="constrained")
            grid = figure.subplots(1, len(panels), squeeze=False)[0]
            for axes, (name, panel) in zip(grid, panels.items(), strict=True):
                _draw_bars(axes, name, panel, labels if axes is grid[0] or [*panel] != first else [""] * len(labels))
            figure.suptitle(label_text(title, 80), x=0.01, ha="left", weight="bold", fontsize=10)
    return figure


def _columns(values: Iterator[GroupValue]) -> list[_Column]:
    """The layer groups and patterns that are named, in the order of the layers; none where all values are the whole model's."""
    keys = [parse_key(key) for value in values if isinstance(value, dict) for key in value]
    named = dict.fromkeys((_KINDS.index(key.kind), key.first, key.last, key.pattern) for key in keys)
    columns = sorted(named, key=lambda column: column[:3])  # patterns stay in the order of the recipe
    return [] if all(_KINDS[column[0]] == "default" for column in columns) else columns


def _value_at(value: GroupValue, column: _Column, half: str) -> float:
    """The number of a layer group: its own, that of a group it is part of, or the default; NaN where there is none."""
    if not isinstance(value, dict):
        return value
    if _KINDS[column[0]] == "pattern":
        return value.get(column[3], np.nan)

    def covers(key: GroupKey) -> bool:
        inside = key.first <= column[1] and column[2] <= key.last
        return key.kind == _KINDS[column[0]] and inside and key.has_half(half or None)

    found = sorted((parse_key(key).half != half, number) for key, number in value.items() if covers(parse_key(key)))
    return found[0][1] if found else value.get("default", np.nan)


def _halves(values: Iterable[GroupValue]) -> list[str]:
    """The parts of a block that have numbers of their own: both halves, and routers or experts where a key names them."""
    named = {parse_key(key).half for value in values if isinstance(value, dict) for key in value} - {None}
    return [half for half in _DASHES if half in named or half in ("attn", "mlp")] if named else []


def _draw_groups(axes: Axes, name: str, panel: Mapping[int, GroupValue], columns: Sequence[_Column]) -> None:
    """One line per source (two where attention and MLP differ) over the blocks; embeddings, head and patterns stand apart."""
    axes.set_ylabel(label_text(name), weight="bold")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.axhline(0, color=GREY, linewidth=0.8)
    is_block = np.array([_KINDS[column[0]] == "block" for column in columns])
    apart = np.where(is_block, 0.0, [-0.4 if _KINDS[column[0]] == "embed" else 0.4 for column in columns])
    x = np.arange(len(columns)) + apart
    lowest = 0.0
    for source, value in panel.items():
        dodge = 0.16 * (source - (max(panel) + min(panel)) / 2)  # equal values stay visible
        colour, marker = look(source)
        for half in _halves([value]) or [""]:
            y = np.array([_value_at(value, column, half) for column in columns])
            lowest = float(np.fmin.reduce(y, initial=lowest))
            lines = axes.plot(x[is_block] + dodge, y[is_block], gid=f"{name}:{source}" + (f":{half}" if half else ""))
            if half not in ("", "attn"):
                lines[0].set(linestyle=_DASHES[half], markerfacecolor="white")
            else:
                lines += axes.plot(x[~is_block] + dodge, y[~is_block], linestyle="", gid=f"{name}:{source}:ends")
            for line in lines:
                line.set(color=colour, marker=marker, markersize=4.5, linewidth=1.2, zorder=3, clip_on=False)
    named = {"embed": "embed", "head": "head", "default": "others"}
    ticks = [
        label_text(pattern, 20) or named.get(_KINDS[kind], str(first) if first == last else f"{first}-{last}")
        for kind, first, last, pattern in columns
    ]
    crowded = sum(map(len, ticks)) > 1.9 * len(ticks) + 12
    axes.set_xticks(x, ticks, rotation=90 if crowded else 0)
    axes.set_xlim(x.min() - 0.6, x.max() + 0.6)
    axes.margins(y=0.12)
    if lowest >= 0:
        axes.set_ylim(bottom=0)


def _draw_bars(axes: Axes, name: str, panel: Mapping[int, GroupValue], labels: Sequence[str]) -> None:
    """One bar per source."""
    numbers = {source: value.get("default", np.nan) if isinstance(value, dict) else value for source, value in panel.items()}
    names = [label_text(labels[source]) if source >= 0 else "" for source in numbers]
    bars = axes.barh(range(len(numbers)), list(numbers.values()), height=0.62, color=[look(source)[0] for source in numbers])
    axes.bar_label(bars, [number_text(value) for value in numbers.values()], padding=3)
    axes.set_yticks(range(len(numbers)), names)
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_title(label_text(name), loc="left")
    axes.margins(x=0.16)


def _weights_legend(figure: Figure, panels: Mapping[str, Mapping[int, GroupValue]], labels: Sequence[str]) -> None:
    sources = sorted({source for panel in panels.values() for source in panel if source >= 0})
    handles = [mark(look(s)[1], 4.5, color=look(s)[0], linestyle="-") for s in sources]
    names = [label_text(labels[source]) for source in sources]
    for half in _halves(value for panel in panels.values() for value in panel.values()):
        handles.append(mark("o", 4.5, linestyle=_DASHES[half], **({} if half == "attn" else {"markerfacecolor": "white"})))
        names.append({"attn": "attention", "mlp": "MLP"}.get(half, half))
    if handles:
        figure.legend(handles, names, loc="outside upper left", ncols=min(len(handles), 4))
