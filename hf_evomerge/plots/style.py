"""How pictures look: colours, markers, names and numbers, and how a figure is written to a file.

matplotlib is imported where it is used, and without pyplot: nothing is shown, no global state changes, and the same input gives
the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EvoMergeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

DPI = 160
# Okabe and Ito's colours without yellow, which is hard to see on white; the markers tell sources apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "v", "P", "D")
INK, GREY, FAINT = "#222222", "#757575", "#EDEDED"
# of the stages of a search, no source's; space_app/style.css has the same
STAGES = {
    "ps": "#7B3FBF",
    "dfs": "#6B4E00",
    "joint": "#4A2A80",
    "dfs-first": "#8F6400",
    "ps-first": "#B0327A",
    "random": GREY,
}
_STYLE = {
    "font.size": 9.0,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.0,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # letters as letters
    "svg.hashsalt": "hf_evomerge",
    "text.color": INK,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
}


def mark(marker: str, size: float, **style: Any) -> Line2D:
    """A sample for a legend."""
    from matplotlib.lines import Line2D

    looks: dict[str, Any] = {"color": GREY, "linestyle": "", "linewidth": 1.2}
    return Line2D([], [], marker=marker, markersize=size, **looks | style)


def look(source: int) -> tuple[str, str]:
    """Colour and marker of a source; ink for what belongs to none."""
    return (INK, "o") if source < 0 else (COLOURS[source % len(COLOURS)], MARKERS[source % len(MARKERS)])


def stage_colours(labels: Sequence[str]) -> dict[str, str]:
    """The colour of each stage, the same in every picture; those of other names in turn."""
    others = [label for label in labels if label not in STAGES]
    return {**STAGES, **{label: COLOURS[at % len(COLOURS)] for at, label in enumerate(others)}}


def number_text(value: float) -> str:
    """Three digits, and a proper minus."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def label_text(name: str, limit: int = 28) -> str:
    """A name as matplotlib shows it letter for letter, cut where it is long."""
    cut = name if len(name) <= limit else name[: limit - 1] + "…"
    return cut.replace("$", r"\$")


@contextmanager
def project_style() -> Iterator[None]:
    """The project's look, whatever the user's matplotlibrc says, for as long as a figure is made or saved."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def save(figure: Figure, file: str | os.PathLike[str]) -> None:
    """Write a figure without anything that differs from run to run."""
    suffix = Path(file).suffix.lower()
    metadata = {
        ".png": {"Software": None},
        ".svg": {"Date": None},
        ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    }
    if suffix not in metadata:
        kind = suffix or "one without a suffix"
        raise EvoMergeError(f"{os.fspath(file)}: a picture is a .png, .svg or .pdf file, not {kind}")
    with project_style():
        figure.savefig(file, format=suffix[1:], metadata=metadata[suffix])
