"""Looks of the benchmarks' charts: colours, markers, and files that are the same bytes from run to
run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 160
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # Okabe and Ito's, without yellow
MARKERS = ("o", "s", "^", "v", "P", "D")
INK = "#222222"
GREY = "#757575"
_STYLE = {
    "font.size": 9.0,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.0,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
}


@contextmanager
def project_style() -> Iterator[None]:
    """Draw in one style, whatever the user's matplotlibrc says."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def save(figure: Figure, file: str | Path) -> None:
    """Write a figure as PNG."""
    with project_style():
        figure.savefig(file, format="png", metadata={"Software": None})
