"""Pictures of a search and of its winner, as files. Knows how things look and nothing of how they were found."""

from __future__ import annotations

from .fitness import Curve, fitness_figure, plot_fitness
from .front import Front, front_figure, plot_front
from .path import path_figure, plot_path
from .weights import plot_weights, weights_figure

__all__ = [
    "Curve",
    "Front",
    "fitness_figure",
    "front_figure",
    "path_figure",
    "plot_fitness",
    "plot_front",
    "plot_path",
    "plot_weights",
    "weights_figure",
]
