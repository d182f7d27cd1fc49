"""The front of a search for several objectives: every trial, the models that nothing beats, and how the front grew."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import EvoMergeError
from .style import COLOURS, DPI, FAINT, GREY, INK, label_text, mark, project_style, save, stage_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 12  # points of the front that have their number beside them


@dataclass(frozen=True)
class Front:
    """A front, ready to be drawn. Values are as people read them, one column per objective; the fitness is the first.

    Attributes:
        names: The objectives.
        trials: Every trial of the search, shape (n, objectives).
        points: The front, in the order of its numbers, shape (m, objectives).
        winner: Number of the point that the search ended with; None where it is not on the front.
        parents: What to compare with, by name.
        random: Trials of a random search, shape (k, objectives).
        volumes: Hypervolume over evaluations, per stage.
        units: What the objectives are measured in, by name, where that is known.
    """

    names: tuple[str, ...]
    trials: NDArray[np.float64]
    points: NDArray[np.float64]
    winner: int | None = None
    parents: Mapping[str, Sequence[float]] = field(default_factory=dict)
    random: NDArray[np.float64] | None = None
    volumes: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)

    def label(self, name: str) -> str:
        """An objective's name, with what it is measured in."""
        unit = self.units.get(name)
        return f"{name} ({unit})" if unit else name


def plot_front(front: Front, file: str | os.PathLike[str]) -> None:
    """Draw the fitness over each other objective, with the front, and hypervolume over evaluations.

    Args:
        front: What to draw.
        file: A ``.png``, ``.svg`` or ``.pdf`` file.

    Raises:
        EvoMergeError: The front has no points, or the suffix is none of them.
    """
    save(front_figure(front), file)


def front_figure(front: Front) -> Figure:
    """The figure of `plot_front`. The points of the front have the gid ``front:NAME`` in the panel of an objective."""
    from matplotlib.figure import Figure

    if not len(front.points):
        raise EvoMergeError("front plot: there is no point; no trial has a fitness")
    others = front.names[1:]
    with project_style():
        panels = len(others) + bool(front.volumes)
        figure = Figure(figsize=(4.6 * panels, 4.4), dpi=DPI, layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for column, name in enumerate(others, 1):
            _draw_panel(axes[column - 1], front, column, name)
        if front.volumes:
            _draw_volumes(axes[-1], front.volumes)
        entries = [(mark("o", 3, color=FAINT, markeredgecolor=GREY), "one trial"), (mark("o", 6, color=COLOURS[0]), "front")]
        if front.random is not None and len(front.random):
            entries.insert(1, (mark("x", 4), "random search"))
        entries.append((mark("o", 10, color="none", markeredgecolor=COLOURS[1], markeredgewidth=1.6), "winner"))
        if front.parents:
            entries.append((mark("D", 5, color=INK), "parents"))
        figure.legend(*zip(*entries, strict=True), loc="outside upper left", ncols=len(entries))
    return figure


def _draw_panel(axes: Axes, front: Front, column: int, name: str) -> None:
    trials, points = front.trials, front.points
    if front.random is not None and len(front.random):
        axes.scatter(front.random[:, column], front.random[:, 0], s=14, marker="x", color=GREY, linewidths=0.7, zorder=1)
    axes.scatter(trials[:, column], trials[:, 0], s=12, color=FAINT, edgecolors=GREY, linewidths=0.4, zorder=2)
    order = np.argsort(points[:, column], kind="stable")
    if len(front.names) == 2:
        axes.plot(points[order, column], points[order, 0], color=COLOURS[0], linewidth=1.0, zorder=3)
    axes.scatter(points[:, column], points[:, 0], s=36, color=COLOURS[0], linewidths=0, zorder=4, gid=f"front:{name}")
    named = set(np.linspace(0, len(points) - 1, min(_NAMED, len(points))).round().astype(int).tolist())
    for number in sorted(named):
        axes.annotate(
            str(number),
            (points[number, column], points[number, 0]),
            (4, 4),
            textcoords="offset points",
            color=COLOURS[0],
            zorder=6,
        )
    if front.winner is not None:
        x, y = points[front.winner, [column, 0]]
        axes.scatter([x], [y], s=130, facecolors="none", edgecolors=COLOURS[1], linewidths=1.6, zorder=5)
    for parent, values in front.parents.items():
        axes.scatter([values[column]], [values[0]], s=28, marker="D", color=INK, zorder=5)
        left = values[column] > np.mean(axes.get_xlim())  # its name stays inside
        place, side = ((-6, 6), "right") if left else ((6, 6), "left")
        label = label_text(parent, 20)
        axes.annotate(label, (values[column], values[0]), place, textcoords="offset points", color=INK, ha=side)
    axes.set_xlabel(label_text(front.label(name), 60))
    axes.set_ylabel(front.label(front.names[0]))
    axes.margins(0.08)


def _draw_volumes(axes: Axes, volumes: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    colours = stage_colours(list(volumes))
    for stage, curve in volumes.items():
        x, y = np.array(curve).T
        colour = colours[stage]
        axes.plot(x, y, color=colour, linewidth=2.0, drawstyle="steps-post", gid=f"volume:{stage}")
        axes.annotate(label_text(stage), (x[-1], y[-1]), (-2, 4), textcoords="offset points", color=colour, ha="right")
    axes.set_xlabel("evaluations")
    axes.set_ylabel("hypervolume (share of the box between worst and best)")
