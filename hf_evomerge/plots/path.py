"""The route of the hidden state through the layers of the sources, as arXiv:2403.13187 draws it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EvoMergeError
from ..recipes.layer_path import LayerPath
from .style import DPI, FAINT, GREY, INK, label_text, look, mark, number_text, project_style, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_path(
    path: LayerPath,
    layers_per_source: Sequence[int],
    labels: Sequence[str],
    file: str | os.PathLike[str],
    *,
    gated: bool = False,
) -> None:
    """Draw the route of the hidden state, as arXiv:2403.13187 does: hops from left to right, layers from bottom to top.

    One block of rows per source; a marker per term, as wide as the scale of its hop (hollow where that is negative); a line
    from hop to hop, with gates as wide as what the hop at its end adds. The rows of layers that the path leaves out are grey.

    Args:
        path: The path.
        layers_per_source: Number of layers of each source.
        labels: Name of each source.
        file: A ``.png``, ``.svg`` or ``.pdf`` file.
        gated: Whether the scales stand for gates; see `hf_evomerge.routing.gates.gate_path`.

    Raises:
        EvoMergeError: The path names a layer that is not there, the labels are not one per source, or the suffix is none of
            them.
    """
    save(path_figure(path, layers_per_source, labels, gated=gated), file)


def path_figure(path: LayerPath, layers_per_source: Sequence[int], labels: Sequence[str], *, gated: bool = False) -> Figure:
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
    with project_style():
        size = (width + 0.75, height + 0.85)
        figure = Figure(figsize=size, dpi=DPI)
        axes = figure.add_axes((0.6 / size[0], 0.5 / size[1], width / size[0], height / size[1]))
        axes.set_xlim(0.4, len(path) + 0.6)
        axes.set_ylim(-0.6, first_row[-1] + layers_per_source[-1] - 0.4 + gap)
        _draw_layers(axes, path, layers_per_source, labels, first_row, row)
        spots = [[(k, first_row[term.source] + term.layer) for term in hop.terms] for k, hop in enumerate(path.hops, 1)]
        hops = [[a, b] for here, there in pairwise(spots) for a in here for b in there]
        added = _added(path) if gated else []
        widest = 5.0 / max([1.0, *(gate for each in added for gate in each)])
        widths = [gate * widest for here, there in pairwise(added) for _ in here for gate in there]
        ends = [look(term.source)[0] for here, there in pairwise(path.hops) for _ in here.terms for term in there.terms]
        shape: dict[str, Any] = {"colors": ends, "alpha": 0.6, "linewidths": widths} if gated else {"color": INK, "alpha": 0.55}
        route = LineCollection(hops, zorder=2, gid="route", **{"linewidths": 0.5 + min(0.5, 2 * row), **shape})
        axes.add_collection(route, autolim=False)
        _draw_terms(axes, path, first_row, unit)
        _path_legend(figure, path, unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        gates = [gate for each in added for gate in each]
        said = f"; width of a line: what the hop adds, {number_text(min(gates))} to {number_text(max(gates))}" if gates else ""
        axes.set_xlabel(f"hop{said}")
        axes.spines[:].set_visible(False)
    return figure


def _added(path: LayerPath) -> list[list[float]]:
    """The gates that the scales and the weights of sums stand for; space_app/hops.py has the same."""
    found, size = list[list[float]](), 1.0
    for hop in path.hops:
        size *= hop.scale * sum(term.weight for term in hop.terms)
        found.append([abs(term.weight / size) if 1e-9 < abs(size) < 1e9 else 1.0 for term in hop.terms])
    return found


def _draw_layers(
    axes: Axes, path: LayerPath, layers_per_source: Sequence[int], labels: Sequence[str], first_row: Sequence[float], row: float
) -> None:
    """A row per layer, tinted where the path visits it and grey where it does not, and a name over each source's rows."""
    from matplotlib.patheffects import withStroke

    right = axes.get_xlim()[1]
    used, ticks, names = set(path.unique_layers), list[float](), list[str]()
    every = next(step for step in (1, 2, 4, 8, 16, 32, 4096) if step * row >= 0.13)
    for source, layers in enumerate(layers_per_source):
        colour = look(source)[0]
        for layer in range(layers):
            visited = (source, layer) in used
            bar = axes.barh(first_row[source] + layer, right - 0.5, left=0.5, height=0.86, linewidth=0, zorder=0)[0]
            bar.set(facecolor=colour if visited else FAINT, alpha=0.16 if visited else 0.8, gid=f"layer:{source}:{layer}")
        ticks += [first_row[source] + layer for layer in range(0, layers, every)]
        names += [str(layer) for layer in range(0, layers, every)]
        visits = sum(1 for s, _ in used if s == source)
        text = f"{label_text(labels[source], 40)}   {visits} of {layers} layers"
        name = axes.text(0.5, first_row[source] + layers - 0.35, text, color=colour, weight="bold", va="bottom", zorder=4)
        name.set_path_effects([withStroke(linewidth=3, foreground="white")])
    axes.set_yticks(ticks, names)
    axes.tick_params(length=0, labelsize=8)
    axes.set_ylabel("layer")


def _draw_terms(axes: Axes, path: LayerPath, first_row: Sequence[float], unit: float) -> None:
    """A marker per term; the weight is written beside it where it is not 1 and there is room."""
    terms = [(k, hop.scale, term) for k, hop in enumerate(path.hops, 1) for term in hop.terms]
    for source in sorted({term.source for _, _, term in terms}):
        colour, marker = look(source)
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
                text = f"\N{MULTIPLICATION SIGN}{number_text(term.weight)}"
                note = axes.annotate(text, spot, beside, textcoords="offset points", va="center", fontsize=7, zorder=4)
                note.set_bbox({"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8})


def _path_legend(figure: Figure, path: LayerPath, unit: float) -> None:
    """The sizes of the least scale, 1 and the greatest; one line of text where all scales are 1."""
    sizes = sorted({1.0, *(round(scale, 2) for scale in (min(path.scales), max(path.scales)))})
    same = all(scale == 1 for scale in path.scales)
    hops = f"{len(path)} hop{'s' if len(path) != 1 else ''} over {len(path.unique_layers)} layers"
    hops += ", every scale 1" if same else ""
    top = 1 - 0.18 / figure.get_figheight()
    figure.text(0.08 / figure.get_figwidth(), top, hops, weight="bold", va="center")
    if not same:
        handles = [mark("o", abs(size) * unit, markerfacecolor=GREY if size >= 0 else "white") for size in sizes]
        width = max(handle.get_markersize() for handle in handles) / 9  # in font sizes
        shape: dict[str, Any] = {"loc": "center right", "bbox_to_anchor": (1.0, top), "borderaxespad": 0.2, "borderpad": 0}
        shape |= {"handlelength": width, "handleheight": width, "handletextpad": 0.3, "columnspacing": 0.8}
        names = [("scale " if size == sizes[0] else "") + number_text(size) for size in sizes]
        figure.legend(handles, names, ncols=len(handles), **shape)
