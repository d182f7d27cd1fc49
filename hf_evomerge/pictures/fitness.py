"""Fitness over evaluations."""

import math
from collections.abc import Mapping, Sequence

from ..recipes.stage_names import STAGES
from .marks import Group, Line, Mark, Spot, Symbol, Text
from .scene import NARROW, WIDE, Axes, Panel, Scene, grid, number
from .style import COLOURS
from .trials import DrawnTrial, best_so_far, of_stage, spent, stages

MOST_DOTS = 1500


def stage_colour(stage: str) -> str:
    """The colour of a stage, the same in every picture."""
    return stage if stage in COLOURS else "s3"


def fitness_range(trials: Sequence[DrawnTrial], levels: Mapping[str, float]) -> Spot:
    """The fitness that is worth showing: without the far tail of bad trials, which would flatten
    all others."""
    found = [trial.fitness for trial in trials if trial.fitness is not None]
    values = sorted(found or levels.values()) or [0.0, 1.0]
    # The lower end: as far below the median as the best is above it, but no lower than the worst,
    # and no higher than needed to show nine in ten. Triangles at the edge stand for what is below.
    middle = values[len(values) // 2]
    best = values[-1]
    low = max(
        values[0],
        min(middle - (best - middle), values[min((len(values) + 9) // 10, len(values) - 1)]),
    )
    low = min([low, *levels.values()])
    high = max([best, *levels.values()])
    margin = 0.06 * ((high - low) or 1.0)
    return low - margin, high + margin


def chart_axes(
    width: int, x_range: Spot, y_range: Spot, heights: tuple[int, int] = (330, 430)
) -> Axes:
    """The axes of a chart, whose height is less on phones."""
    height = heights[width != NARROW]
    return Axes(52.0, 46.0, width - 14.0, height - 40.0, x_range, y_range)


def dot(axes: Axes, at: Spot, words: str) -> Symbol:
    """The mark of a trial: a dot, or where it is below the picture a triangle."""
    if at[1] < axes.y_range[0]:
        return Symbol(
            (at[0], axes.y_range[0]), 3.0, "below", shape="down", tip=words, shift=(0, -4)
        )
    return Symbol(at, 2.4, "dot", tip=words)


def fitness_scene(
    trials: Sequence[DrawnTrial],
    levels: Mapping[str, float],
    name: str = "fitness",
    width: int = WIDE,
) -> Scene:
    """Draw every trial, the best so far of each stage, and levels as dashed lines.

    There is at least one trial. `levels` are the fitness of models to compare with, such as base
    and parents, by name; `name` is what the fitness is called. The width is in pixels.
    """
    of = {stage: of_stage(trials, stage) for stage in stages(trials)}
    starts = dict[str, float]()
    count = 0.0
    for stage, own in of.items():
        starts[stage] = count
        count += sum(trial.cost for trial in own)
    axes = chart_axes(width, (0.0, max(count, 1.0)), fitness_range(trials, levels))
    x_name = (
        "evaluations, each a score of all search examples"
        if any(trial.cost != 1 for trial in trials)
        else "evaluations"
    )
    marks = grid(axes, x_name=x_name, y_name=name, x_ticks=4 if width == NARROW else 8)
    best_of = {stage: best_so_far(own, starts[stage]) for stage, own in of.items()}
    lines = {
        stage: _best(stage, points, axes.y_range[0]) for stage, points in best_of.items() if points
    }
    for stage, own in of.items():
        placed = list(zip(spent(own, starts[stage]), own, strict=True))
        thin = max(1, math.ceil(len(trials) / MOST_DOTS))
        dots = [
            _trial(axes, at, trial) for nth, (at, trial) in enumerate(placed, 1) if nth % thin == 0
        ]
        marks.append(Group(dots, colour=stage_colour(stage)))
    marks += [*_levels(axes, levels), *lines.values(), *(_value(*each) for each in lines.items())]
    return Scene(width, axes.bottom + 40, [Panel(axes, marks)], _summary(of, best_of))


def _best(stage: str, points: Sequence[tuple[float, DrawnTrial]], floor: float) -> Line:
    """The best so far of a stage; no lower than the picture."""
    tip = f"{STAGES.get(stage, stage)}: best {number(points[-1][1].fitness)}"
    spots = tuple((at, max(trial.fitness or 0.0, floor)) for at, trial in points)
    return Line(spots, "best", stage_colour(stage), tip, steps=True)


def _trial(axes: Axes, at: float, trial: DrawnTrial) -> Symbol:
    if trial.fitness is None:
        floor = (at, axes.y_range[0])
        return Symbol(
            floor, 3.0, "failed", shape="cross", tip=f"Trial {trial.number}: failed", shift=(0, -4)
        )
    tip = f"Trial {trial.number}, generation {trial.generation}: {number(trial.fitness)}"
    tip += f", accuracy {number(trial.accuracy)}" if trial.accuracy is not None else ""
    return dot(axes, (at, trial.fitness), tip)


def _value(stage: str, line: Line) -> Text:
    """The last value of a line, with the name of its stage."""
    words = f"{stage.upper()} {number(line.points[-1][1])}"
    return Text(line.points[-1], words, "value halo", line.colour, anchor="end", shift=(-2, -7))


def _levels(axes: Axes, levels: Mapping[str, float]) -> list[Mark]:
    """Dashed lines with their names on them; names that would overlap are moved apart."""
    marks: list[Mark] = []
    left, right = axes.x_range
    last = -math.inf
    for name, value in sorted(levels.items(), key=lambda item: -item[1]):
        y = axes.y(value)
        label = f"{name[:20]} {number(value)}"
        marks.append(Line(((left, value), (right, value)), "level"))
        # From the highest value down, so pixels grow: a name stands 4 pixels above its line, or 15
        # below the name before it.
        last = max(y - 4, last + 15)
        marks.append(Text((right, value), label, "tick halo", anchor="end", shift=(-2, last - y)))
    return marks


def _summary(
    of: Mapping[str, Sequence[DrawnTrial]],
    best_of: Mapping[str, Sequence[tuple[float, DrawnTrial]]],
) -> str:
    words = []
    for stage, own in of.items():
        best = number(best_of[stage][-1][1].fitness) if best_of[stage] else "none"
        words.append(f"{STAGES.get(stage, stage)}: {len(own)} trials, best fitness {best}")
    return f"Fitness over evaluations. {'; '.join(words)}."
