"""Pictures of a search and of its winner: fitness over evaluations, weights per layer group, the path through the layers.

Knows how things look and nothing of how they were found. matplotlib is imported where it is used, and without pyplot: nothing
is shown, no global state changes, and the same input gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import EvoMergeError
from .recipes.layer_groups import GroupKey, GroupValue, parse_key, per_group
from .recipes.layer_path import LayerPath
from .recipes.recipe import MergePart
from .search.config import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from .search.study import Trial

DPI = 160
# Okabe and Ito's colours without yellow, which is hard to see on white; the markers tell sources apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "v", "P", "D")
_KINDS = ("embed", "block", "head", "default")
_Column = tuple[int, int, int]  # index of the kind, first block, last block
INK, GREY, FAINT = "#222222", "#757575", "#EDEDED"
_STYLE = {
    "font.size": 9.0,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.0,
    "legend.frameon": False,
    "svg.hashsalt": "hf_evomerge",
    "text.color": INK,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Curve:
    """The trials of one stage, ready to be drawn.

    Attributes:
        label: The stage (``ps``, ``dfs``, ``random``) or any other name. ``random`` is grey: it is what one compares with.
        fitness: Fitness of each trial in order; None where it failed.
        generations: Generation of each trial.
        start: Evaluations spent before the first trial.
    """

    label: str
    fitness: tuple[float | None, ...]
    generations: tuple[int, ...]
    start: int = 0

    @classmethod
    def of_trials(cls, label: str, trials: Sequence[Trial], *, start: int = 0) -> Curve:
        """The curve of the trials of one stage, as `Study.trials` returns them."""
        return cls(label, tuple(trial.fitness for trial in trials), tuple(trial.generation for trial in trials), start)

    @property
    def x(self) -> NDArray[np.float64]:
        """Evaluations spent when each trial had finished, shape (n,)."""
        return self.start + np.arange(1.0, len(self.fitness) + 1)

    @property
    def values(self) -> NDArray[np.float64]:
        """Fitness, NaN where the trial failed, shape (n,)."""
        return np.array([np.nan if value is None else value for value in self.fitness], dtype=np.float64)

    @property
    def best(self) -> NDArray[np.float64]:
        """The best fitness so far, NaN until a trial succeeds, shape (n,)."""
        return np.fmax.accumulate(self.values) if self.fitness else self.values

    def generation_means(self, low: float = -np.inf) -> NDArray[np.float64]:
        """Middle on the x axis, mean and standard deviation of each generation's trials from `low` up; (generations, 3)."""
        values, generations, rows = self.values, np.array(self.generations), []
        for generation in dict.fromkeys(self.generations):
            here = generations == generation
            alive = values[here & np.isfinite(values) & (values >= low)]
            if alive.size:
                rows.append((self.x[here].mean(), alive.mean(), alive.std()))
        return np.array(rows, dtype=np.float64).reshape(-1, 3)


def stage_curves(trials: Sequence[Trial]) -> list[Curve]:
    """The curves of a study from all its trials: DFS goes on where PS ended; random search begins at 0, beside them."""
    by_stage = {stage: [trial for trial in trials if trial.stage == stage] for stage in STAGES}
    starts = {"dfs": len(by_stage["ps"])}
    return [Curve.of_trials(stage, found, start=starts.get(stage, 0)) for stage, found in by_stage.items() if found]


def plot_fitness(
    curves: Sequence[Curve], levels: Mapping[str, float], file: str | os.PathLike[str], *, ylabel: str = "fitness"
) -> None:
    """Draw fitness over evaluations: every trial, the best so far, the mean of each generation and its spread.

    Args:
        curves: One per stage; see `stage_curves`.
        levels: Fitness of models to compare with, such as base and parents, by name.
        file: A ``.png`` or ``.svg`` file.
        ylabel: Name of the fitness.

    Raises:
        EvoMergeError: No trial has a fitness, or the suffix is neither.
    """
    _save(fitness_figure(curves, levels, ylabel=ylabel), file)


def fitness_figure(curves: Sequence[Curve], levels: Mapping[str, float], *, ylabel: str = "fitness") -> Figure:
    """The figure of `plot_fitness`. Its best-so-far lines have the gid ``best:LABEL``."""
    from matplotlib.figure import Figure

    low, high = _fitness_limits(curves, levels)
    with _style():
        figure = Figure(figsize=(8.5, 4.6), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        axes.set_ylim(low, high)
        axes.set_xlim(0, max(curve.start + len(curve.fitness) for curve in curves) * 1.01)
        axes.set_xlabel("evaluations")
        axes.set_ylabel(_text(ylabel, 60))
        palette = iter(COLOURS * len(curves))
        for curve in curves:
            _draw_curve(axes, curve, GREY if curve.label == "random" else next(palette))
        _draw_levels(axes, levels)
        _fitness_legend(axes, curves)
    return figure


def _fitness_limits(curves: Sequence[Curve], levels: Mapping[str, float]) -> tuple[float, float]:
    """Limits that show the levels and the best-so-far lines, and below them at most twice as much again of the other trials."""
    lines = [curve.best[np.isfinite(curve.best)] for curve in curves]
    lines = [line for line in lines if line.size]
    if not lines:
        raise EvoMergeError("fitness plot: no trial has a fitness; there is nothing to draw")
    values = np.concatenate([curve.values[np.isfinite(curve.values)] for curve in curves])
    core = [*levels.values(), *(line[-1] for line in lines), *(np.quantile(line, 0.1, method="higher") for line in lines)]
    top = max(core)
    span = (top - min(core)) or (top - float(np.median(values))) or abs(top) or 1.0
    bottom = min(*core, *values[values >= top - 3 * span])
    margin = 0.08 * ((top - bottom) or span)
    return bottom - margin, top + margin


def _draw_curve(axes: Axes, curve: Curve, colour: str) -> None:
    x, values, best = curve.x, curve.values, curve.best
    low = axes.get_ylim()[0]
    below, failed = values < low, np.isnan(values)
    size, alpha = (7, 0.25) if len(x) > 200 else (18, 0.6)
    axes.scatter(x, values, s=size, color=colour, alpha=alpha, linewidths=0, zorder=2, gid=f"trials:{curve.label}")
    edge = axes.get_xaxis_transform()  # y in fractions of the axis: these marks stand on its lower end
    for name, marked, marker, height, width in (("below", below, "v", 0.045, 0.0), ("failed", failed, "x", 0.015, 0.8)):
        marks = axes.scatter(x[marked], np.full(marked.sum(), height), s=14, marker=marker, color=colour, transform=edge)
        marks.set(alpha=0.7, linewidths=width, gid=f"{name}:{curve.label}")
    middle, mean, spread = curve.generation_means(low).T
    axes.fill_between(middle, mean - spread, mean + spread, color=colour, alpha=0.13, linewidth=0, zorder=1)
    axes.plot(middle, mean, color=colour, alpha=0.75, linewidth=0.9, zorder=3, gid=f"mean:{curve.label}")
    axes.plot(x, best, color=colour, linewidth=2.4, drawstyle="steps-post", zorder=4, gid=f"best:{curve.label}")
    if np.isfinite(best).any():
        note = axes.annotate(_number(best[-1]), (x[-1], best[-1]), (0, 3), textcoords="offset points", zorder=5)
        note.set(color=colour, weight="bold", ha="right", va="bottom")


def _draw_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    """Dashed lines, named on the right; names that would overlap are moved apart."""
    low, high = axes.get_ylim()
    gap, heights = 0.058, list[float]()
    ordered = sorted(levels.items(), key=lambda item: item[1])
    for _, value in ordered:
        heights.append(max((value - low) / (high - low), heights[-1] + gap if heights else 0.0))
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], 1 - gap * (len(heights) - 1 - index))
    right = axes.get_yaxis_transform()
    leader = {"arrowstyle": "-", "color": GREY, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)}
    for (name, value), height in zip(ordered, heights, strict=True):
        axes.axhline(value, color=GREY, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1.5, gid=f"level:{name}")
        text, end, place = f" {_text(name, 24)}  {_number(value)}", (1.0, value), (1.03, height)
        axes.annotate(text, end, place, xycoords=right, textcoords="axes fraction", va="center", arrowprops=leader)


def _fitness_legend(axes: Axes, curves: Sequence[Curve]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines = [line for line in axes.lines if str(line.get_gid()).startswith("best:")]
    names = [_text(STAGES.get(curve.label, curve.label)) + ": best so far" for curve in curves]
    entries: list[tuple[Any, str]] = list(zip(lines, names, strict=True))
    low = axes.get_ylim()[0]
    below = any((curve.values < low).any() for curve in curves)
    spread = (Patch(color=GREY, alpha=0.25, linewidth=0), Line2D([], [], color=GREY, lw=0.9))
    entries.append((_mark("o", 3), "one trial"))
    entries.append((spread, "generation: mean ± s.d." + (" of those on the scale" if below else "")))
    if below:
        entries.append((_mark("v", 4), "trial below the scale"))
    if any(np.isnan(curve.values).any() for curve in curves):
        entries.append((_mark("x", 4), "failed trial"))
    shape: dict[str, Any] = {"ncols": 3, "handlelength": 1.6, "columnspacing": 1.6, "borderaxespad": 0.2}
    axes.legend(*zip(*entries, strict=True), loc="lower left", bbox_to_anchor=(0.0, 1.0), **shape)


def plot_weights(part: MergePart, labels: Sequence[str], file: str | os.PathLike[str]) -> None:
    """Draw the parameters of a merge: one panel per parameter, over the layer groups or, for the whole model, as bars.

    Args:
        part: The parameter-space part of a recipe.
        labels: Names of the sources that take part, in the order of ``part.parameters``.
        file: A ``.png`` or ``.svg`` file.

    Raises:
        EvoMergeError: The part has no number to draw, or the names are not one per source, or the suffix is neither.
    """
    _save(weights_figure(part, labels), file)


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
    title = part.method + "".join(f"   {name} = {_number(value)}" for name, value in numbers.items())
    columns = _columns(value for panel in panels.values() for value in panel.values())
    with _style():
        if columns:
            size = (max(6.0, 2.2 + 0.24 * len(columns)), 0.9 + 2.1 * len(panels))
            figure = Figure(figsize=size, dpi=DPI, layout="constrained")
            grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
            for axes, (name, panel) in zip(grid, panels.items(), strict=True):
                _draw_groups(axes, name, panel, columns)
            grid[-1].set_xlabel("layer group")
            _weights_legend(figure, panels, labels)
            grid[0].set_title(_text(title, 80), loc="left", weight="bold")
        else:
            first, height = [*next(iter(panels.values()))], 0.9 + 0.34 * max(map(len, panels.values()))
            figure = Figure(figsize=(2.0 + 3.0 * len(panels), height), dpi=DPI, layout="constrained")
            grid = figure.subplots(1, len(panels), squeeze=False)[0]
            for axes, (name, panel) in zip(grid, panels.items(), strict=True):
                _draw_bars(axes, name, panel, labels if axes is grid[0] or [*panel] != first else [""] * len(labels))
            figure.suptitle(_text(title, 80), x=0.01, ha="left", weight="bold", fontsize=10)
    return figure


def _columns(values: Iterator[GroupValue]) -> list[_Column]:
    """The layer groups that are named, in the order of the layers; none where every value is for the whole model."""
    keys = [parse_key(key) for value in values if isinstance(value, dict) for key in value]
    columns = sorted({(_KINDS.index(key.kind), key.first, key.last) for key in keys})
    return [] if all(_KINDS[kind] == "default" for kind, _, _ in columns) else columns


def _value_at(value: GroupValue, column: _Column, half: str) -> float:
    """The number of a layer group: its own, that of a group it is part of, or the default; NaN where there is none."""
    if not isinstance(value, dict):
        return value

    def covers(key: GroupKey) -> bool:
        inside = key.first <= column[1] and column[2] <= key.last
        return key.kind == _KINDS[column[0]] and inside and key.half in (None, half)

    return next((number for key, number in value.items() if covers(parse_key(key))), value.get("default", np.nan))


def _draw_groups(axes: Axes, name: str, panel: Mapping[int, GroupValue], columns: Sequence[_Column]) -> None:
    """One line per source (two where attention and MLP differ) over the blocks; embeddings and head stand apart."""
    axes.set_ylabel(_text(name), weight="bold")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.axhline(0, color=GREY, linewidth=0.8)
    is_block = np.array([_KINDS[kind] == "block" for kind, _, _ in columns])
    apart = np.where(is_block, 0.0, [-0.4 if _KINDS[kind] == "embed" else 0.4 for kind, _, _ in columns])
    x = np.arange(len(columns)) + apart
    lowest = 0.0
    for source, value in panel.items():
        dodge = 0.16 * (source - (max(panel) + min(panel)) / 2)  # equal values stay visible
        split = isinstance(value, dict) and any(parse_key(key).half for key in value)
        colour, marker = _look(source)
        for half in ("attn", "mlp") if split else ("",):
            y = np.array([_value_at(value, column, half) for column in columns])
            lowest = float(np.fmin.reduce(y, initial=lowest))
            lines = axes.plot(x[is_block] + dodge, y[is_block], gid=f"{name}:{source}" + (f":{half}" if half else ""))
            if half == "mlp":
                lines[0].set(linestyle=(0, (3, 2)), markerfacecolor="white")
            else:
                lines += axes.plot(x[~is_block] + dodge, y[~is_block], linestyle="", gid=f"{name}:{source}:ends")
            for line in lines:
                line.set(color=colour, marker=marker, markersize=4.5, linewidth=1.2, zorder=3, clip_on=False)
    named = {"embed": "embed", "head": "head", "default": "others"}
    ticks = [named.get(_KINDS[kind], str(first) if first == last else f"{first}-{last}") for kind, first, last in columns]
    crowded = sum(map(len, ticks)) > 1.9 * len(ticks) + 12
    axes.set_xticks(x, ticks, rotation=90 if crowded else 0)
    axes.set_xlim(x.min() - 0.6, x.max() + 0.6)
    axes.margins(y=0.12)
    if lowest >= 0:
        axes.set_ylim(bottom=0)


def _draw_bars(axes: Axes, name: str, panel: Mapping[int, GroupValue], labels: Sequence[str]) -> None:
    """One bar per source."""
    numbers = {source: value.get("default", np.nan) if isinstance(value, dict) else value for source, value in panel.items()}
    names = [_text(labels[source]) if source >= 0 else "" for source in numbers]
    bars = axes.barh(range(len(numbers)), list(numbers.values()), height=0.62, color=[_look(source)[0] for source in numbers])
    axes.bar_label(bars, [_number(value) for value in numbers.values()], padding=3)
    axes.set_yticks(range(len(numbers)), names)
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_title(_text(name), loc="left")
    axes.margins(x=0.16)


def _weights_legend(figure: Figure, panels: Mapping[str, Mapping[int, GroupValue]], labels: Sequence[str]) -> None:
    sources = sorted({source for panel in panels.values() for source in panel if source >= 0})
    handles = [_mark(_look(s)[1], 4.5, color=_look(s)[0], linestyle="-") for s in sources]
    names = [_text(labels[source]) for source in sources]
    values = [value for panel in panels.values() for value in panel.values() if isinstance(value, dict)]
    if any(parse_key(key).half for value in values for key in value):
        handles += [_mark("o", 4.5, linestyle="-"), _mark("o", 4.5, linestyle=(0, (3, 2)), markerfacecolor="white")]
        names += ["attention", "MLP"]
    if handles:
        figure.legend(handles, names, loc="outside upper left", ncols=min(len(handles), 4))


def plot_path(path: LayerPath, layers_per_source: Sequence[int], labels: Sequence[str], file: str | os.PathLike[str]) -> None:
    """Draw the route of the hidden state, as arXiv:2403.13187 does: hops from left to right, layers from bottom to top.

    One block of rows per source; a marker per term, as wide as the scale of its hop (hollow where that is negative); a thin
    line from hop to hop. The rows of layers that the path leaves out are grey.

    Args:
        path: The path.
        layers_per_source: Number of layers of each source.
        labels: Name of each source.
        file: A ``.png`` or ``.svg`` file.

    Raises:
        EvoMergeError: The path names a layer that is not there, or the labels are not one per source, or the suffix is neither.
    """
    _save(path_figure(path, layers_per_source, labels), file)


def path_figure(path: LayerPath, layers_per_source: Sequence[int], labels: Sequence[str]) -> Figure:
    """The figure of `plot_path`. Its markers are one collection per source, gid ``terms:SOURCE``, with x = hop and y = row."""
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    path.check(layers_per_source)
    if len(labels) != len(layers_per_source):
        raise EvoMergeError(f"path plot: {len(labels)} labels for {len(layers_per_source)} sources; give one per source")
    rows = sum(layers_per_source)
    row, column = float(np.clip(7.5 / rows, 0.03, 0.3)), max(min(11.5 / len(path), 0.45), 3.6 / len(path))
    gap = 0.3 / row  # between the blocks of two sources, in rows: room for a name
    first_row = [sum(layers_per_source[:source]) + gap * source for source in range(len(labels))]
    height, width = row * (rows + gap * len(labels)), column * len(path)
    largest = 72 * float(np.clip(1.35 * min(row, column), 0.045, 0.25))  # points
    unit = largest / max(1.0, *map(abs, path.scales))  # diameter of scale 1
    with _style():
        size = (width + 0.75, height + 0.85)
        figure = Figure(figsize=size, dpi=DPI)
        axes = figure.add_axes((0.6 / size[0], 0.5 / size[1], width / size[0], height / size[1]))
        axes.set_xlim(0.4, len(path) + 0.6)
        axes.set_ylim(-0.6, first_row[-1] + layers_per_source[-1] - 0.4 + gap)
        _draw_layers(axes, path, layers_per_source, labels, first_row, row)
        spots = [[(k, first_row[term.source] + term.layer) for term in hop.terms] for k, hop in enumerate(path.hops, 1)]
        hops = [[a, b] for here, there in pairwise(spots) for a in here for b in there]
        route = LineCollection(hops, color=INK, alpha=0.55, linewidths=0.5 + min(0.5, 2 * row), zorder=2, gid="route")
        axes.add_collection(route, autolim=False)
        _draw_terms(axes, path, first_row, unit)
        _path_legend(figure, path, unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("hop")
        axes.spines[:].set_visible(False)
    return figure


def _draw_layers(
    axes: Axes, path: LayerPath, layers_per_source: Sequence[int], labels: Sequence[str], first_row: Sequence[float], row: float
) -> None:
    """A row per layer, tinted where the path visits it and grey where it does not, and a name over each source's rows."""
    right = axes.get_xlim()[1]
    used, ticks, names = set(path.unique_layers), list[float](), list[str]()
    every = next(step for step in (1, 2, 4, 8, 16, 32, 4096) if step * row >= 0.13)
    for source, layers in enumerate(layers_per_source):
        colour = _look(source)[0]
        for layer in range(layers):
            visited = (source, layer) in used
            bar = axes.barh(first_row[source] + layer, right - 0.5, left=0.5, height=0.86, linewidth=0, zorder=0)[0]
            bar.set(facecolor=colour if visited else FAINT, alpha=0.16 if visited else 0.8, gid=f"layer:{source}:{layer}")
        ticks += [first_row[source] + layer for layer in range(0, layers, every)]
        names += [str(layer) for layer in range(0, layers, every)]
        visits = sum(1 for s, _ in used if s == source)
        text = f"{_text(labels[source], 40)}   {visits} of {layers} layers"
        axes.text(0.5, first_row[source] + layers - 0.35, text, color=colour, weight="bold", va="bottom")
    axes.set_yticks(ticks, names)
    axes.tick_params(length=0, labelsize=8)
    axes.set_ylabel("layer")


def _draw_terms(axes: Axes, path: LayerPath, first_row: Sequence[float], unit: float) -> None:
    """A marker per term; the weight is written beside it where it is not 1 and there is room."""
    terms = [(k, hop.scale, term) for k, hop in enumerate(path.hops, 1) for term in hop.terms]
    for source in sorted({term.source for _, _, term in terms}):
        colour, marker = _look(source)
        mine = [(k, first_row[source] + term.layer, scale) for k, scale, term in terms if term.source == source]
        x, y, scales = map(np.array, zip(*mine, strict=True))
        faces = [colour if scale >= 0 else "white" for scale in scales]
        areas = np.maximum(np.abs(scales) * unit, 1.0) ** 2  # matplotlib's s is the square of the diameter in points
        marks = axes.scatter(x, y, s=areas, c=faces, marker=marker, edgecolors=colour, linewidths=0.8, zorder=3)
        marks.set_gid(f"terms:{source}")
    if len(path) <= 24:
        for k, scale, term in terms:
            if term.weight != 1:
                spot, beside = (k, first_row[term.source] + term.layer), (2 + abs(scale) * unit / 2, 0)
                text = f"\N{MULTIPLICATION SIGN}{_number(term.weight)}"
                note = axes.annotate(text, spot, beside, textcoords="offset points", va="center", fontsize=7, zorder=4)
                note.set_bbox({"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8})


def _path_legend(figure: Figure, path: LayerPath, unit: float) -> None:
    """The sizes of the least scale, 1 and the greatest; one line of text where all scales are 1."""
    sizes = sorted({1.0, *(round(scale, 2) for scale in (min(path.scales), max(path.scales)))})
    same = all(scale == 1 for scale in path.scales)
    hops = f"{len(path)} hops over {len(path.unique_layers)} layers" + (", every scale 1" if same else "")
    top = 1 - 0.18 / figure.get_figheight()
    figure.text(0.08 / figure.get_figwidth(), top, hops, weight="bold", va="center")
    if not same:
        handles = [_mark("o", abs(size) * unit, markerfacecolor=GREY if size >= 0 else "white") for size in sizes]
        width = max(handle.get_markersize() for handle in handles) / 9  # in font sizes
        style: dict[str, Any] = {"loc": "center right", "bbox_to_anchor": (1.0, top), "borderaxespad": 0.2, "borderpad": 0}
        style |= {"handlelength": width, "handleheight": width, "handletextpad": 0.3, "columnspacing": 0.8}
        names = [("scale " if size == sizes[0] else "") + _number(size) for size in sizes]
        figure.legend(handles, names, ncols=len(handles), **style)


def _mark(marker: str, size: float, **style: Any) -> Line2D:
    """A sample for a legend."""
    from matplotlib.lines import Line2D

    looks: dict[str, Any] = {"color": GREY, "linestyle": "", "linewidth": 1.2}
    return Line2D([], [], marker=marker, markersize=size, **looks | style)


def _look(source: int) -> tuple[str, str]:
    """Colour and marker of a source; ink for what belongs to none."""
    return (INK, "o") if source < 0 else (COLOURS[source % len(COLOURS)], MARKERS[source % len(MARKERS)])


def _number(value: float) -> str:
    """Three digits, and a proper minus."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _text(name: str, limit: int = 28) -> str:
    """A name as matplotlib shows it letter for letter, cut where it is long."""
    cut = name if len(name) <= limit else name[: limit - 1] + "…"
    return cut.replace("$", r"\$")


@contextmanager
def _style() -> Iterator[None]:
    """The project's look, whatever the user's matplotlibrc says, for as long as a figure is made or saved."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def _save(figure: Figure, file: str | os.PathLike[str]) -> None:
    """Write a figure without anything that differs from run to run."""
    suffix = Path(file).suffix.lower()
    if suffix not in (".png", ".svg"):
        raise EvoMergeError(f"{os.fspath(file)}: a picture is a .png or .svg file, not {suffix or 'one without a suffix'}")
    with _style():
        figure.savefig(file, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else {"Software": None})
