"""Fitness over evaluations: every trial, the best so far, the median of each generation and its middle half."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EvoMergeError
from .style import DPI, GREY, label_text, mark, number_text, project_style, save, stage_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """The trials of one stage, ready to be drawn.

    Attributes:
        label: The stage (``ps``, ``dfs``, ``joint``, ``random``) or any other name. ``random`` is grey: what one compares with.
        fitness: Fitness of each trial in order; None where it failed.
        generations: Generation of each trial.
        start: Evaluations spent before the first trial.
        title: What the legend calls it; the label where empty.
        costs: What each trial cost, in evaluations; 1 where empty.
        whole: Whether each was scored on all examples; all were where empty. The best of batches is the luckiest, not the best.
    """

    label: str
    fitness: tuple[float | None, ...]
    generations: tuple[int, ...]
    start: float = 0
    title: str = ""
    costs: tuple[float, ...] = ()
    whole: tuple[bool, ...] = ()

    @property
    def x(self) -> NDArray[np.float64]:
        """Evaluations spent when each trial had finished, shape (n,)."""
        return self.start + np.cumsum(self.costs or [1.0] * len(self.fitness))

    @property
    def values(self) -> NDArray[np.float64]:
        """Fitness, NaN where the trial failed, shape (n,)."""
        return np.array([np.nan if value is None else value for value in self.fitness], dtype=np.float64)

    @property
    def best(self) -> NDArray[np.float64]:
        """The best fitness so far of those scored on all examples, NaN until one succeeds, shape (n,)."""
        values = np.where(self.whole or [True] * len(self.fitness), self.values, np.nan)
        return np.fmax.accumulate(values) if self.fitness else values

    def generation_quartiles(self, low: float = -np.inf) -> NDArray[np.float64]:
        """Middle on the x axis, and quartiles of each generation's trials from `low` up; shape (generations, 4)."""
        values, generations, rows = self.values, np.array(self.generations), []
        for generation in dict.fromkeys(self.generations):
            here = generations == generation
            alive = values[here & np.isfinite(values) & (values >= low)]
            if alive.size:
                rows.append((self.x[here].mean(), *np.quantile(alive, (0.25, 0.5, 0.75))))
        return np.array(rows, dtype=np.float64).reshape(-1, 4)


def plot_fitness(
    curves: Sequence[Curve], levels: Mapping[str, float], file: str | os.PathLike[str], *, ylabel: str = "fitness"
) -> None:
    """Draw fitness over evaluations: every trial, the best so far, the median of each generation and its middle half.

    Args:
        curves: One per stage.
        levels: Fitness of models to compare with, such as base and parents, by name.
        file: A ``.png``, ``.svg`` or ``.pdf`` file.
        ylabel: Name of the fitness.

    Raises:
        EvoMergeError: No trial has a fitness, or the suffix is none of them.
    """
    save(fitness_figure(curves, levels, ylabel=ylabel), file)


def fitness_figure(curves: Sequence[Curve], levels: Mapping[str, float], *, ylabel: str = "fitness") -> Figure:
    """The figure of `plot_fitness`. Its best-so-far lines have the gid ``best:LABEL``."""
    from matplotlib.figure import Figure

    low, high = _fitness_limits(curves, levels)
    with project_style():
        figure = Figure(figsize=(8.5, 4.6), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        axes.set_ylim(low, high)
        axes.set_xlim(0, max(curve.x.max(initial=0) for curve in curves) * 1.01)
        axes.set_xlabel("evaluations")
        axes.set_ylabel(label_text(ylabel, 60))
        colours = stage_colours([curve.label for curve in curves])
        for curve in curves:
            _draw_curve(axes, curve, colours[curve.label])
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
    middle, lower, median, upper = curve.generation_quartiles(low).T
    axes.fill_between(middle, lower, upper, color=colour, alpha=0.18, linewidth=0, zorder=1)
    axes.plot(middle, median, color=colour, alpha=0.75, linewidth=0.9, zorder=3, gid=f"median:{curve.label}")
    axes.plot(x, best, color=colour, linewidth=2.4, drawstyle="steps-post", zorder=4, gid=f"best:{curve.label}")
    if np.isfinite(best).any():
        note = axes.annotate(number_text(best[-1]), (x[-1], best[-1]), (0, 3), textcoords="offset points", zorder=5)
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
        text, end, place = f" {label_text(name, 24)}  {number_text(value)}", (1.0, value), (1.03, height)
        axes.annotate(text, end, place, xycoords=right, textcoords="axes fraction", va="center", arrowprops=leader)


def _fitness_legend(axes: Axes, curves: Sequence[Curve]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines = [line for line in axes.lines if str(line.get_gid()).startswith("best:")]
    names = [label_text(curve.title or curve.label) + ": best so far" for curve in curves]
    entries: list[tuple[Any, str]] = list(zip(lines, names, strict=True))
    low = axes.get_ylim()[0]
    below = any((curve.values < low).any() for curve in curves)
    spread = (Patch(color=GREY, alpha=0.25, linewidth=0), Line2D([], [], color=GREY, lw=0.9))
    entries.append((mark("o", 3), "one trial"))
    entries.append((spread, "generation: median, middle half" + (" of those on the scale" if below else "")))
    if below:
        entries.append((mark("v", 4), "trial below the scale"))
    if any(np.isnan(curve.values).any() for curve in curves):
        entries.append((mark("x", 4), "failed trial"))
    shape: dict[str, Any] = {"ncols": 3, "handlelength": 1.6, "columnspacing": 1.6, "borderaxespad": 0.2}
    axes.legend(*zip(*entries, strict=True), loc="lower left", bbox_to_anchor=(0.0, 1.0), **shape)
