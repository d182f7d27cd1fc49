"""The front of a search by several metrics: every trial, and the models that nothing beats."""

import math
from collections.abc import Mapping, Sequence

from ..recipes.stage_names import STAGES
from .fitness import MOST_DOTS, chart_axes, dot, fitness_range, stage_colour
from .marks import Group, Line, Mark, Symbol, Text
from .scene import WIDE, Axes, Panel, Scene, grid, number
from .trials import DrawnTrial, FrontPoint, Metric


def front_scene(
    trials: Sequence[DrawnTrial],
    points: Sequence[FrontPoint],
    metrics: tuple[Metric, Metric],
    parents: Mapping[str, Mapping[str, float]],
    width: int = WIDE,
) -> Scene:
    """Draw one metric over another: every trial, the models that no other beats, the one on
    show, and the parents.

    The front has at least one point; a line joins its points where there are no other metrics.
    The first metric goes up, the second to the right. Parents have their values by metric, by
    name. The width is in pixels.
    """
    names = [metric.name for metric in metrics]
    up, right = names
    known = {
        name: (values[right], values[up])
        for name, values in parents.items()
        if right in values and up in values
    }
    alive = []
    for trial in trials:
        x = trial.value(right)
        y = trial.value(up)
        if x is not None and y is not None:
            alive.append((trial, x, y))
    levels = {name: y for name, (_, y) in known.items()}
    levels |= {f"point {point.number}": point.search[up] for point in points}
    across = [x for _, x, _ in alive] + [x for x, _ in known.values()]
    across += [point.search[right] for point in points]
    margin = 0.05 * ((max(across) - min(across)) or 1.0)
    x_range = (min(across) - margin, max(across) + margin)
    count = min(max(width // 70, 4), 10)
    if all(x == int(x) for x in across):  # hops: no marks between them
        count = min(count, math.ceil(x_range[1] - x_range[0]))
    axes = chart_axes(width, x_range, fitness_range(trials, levels))
    marks = grid(axes, x_name=str(metrics[1]), y_name=str(metrics[0]), x_ticks=count)
    for trial, x, y in alive[:: max(1, math.ceil(len(alive) / MOST_DOTS))]:
        said = _listed({up: y, right: x})
        words = f"Trial {trial.number}, generation {trial.generation}: {said}"
        mark = dot(axes, (x, y), words)
        marks.append(Group((mark,), colour=stage_colour(trial.stage)))
    marks += [*_parents(axes, known, names), *_points(axes, points, names)]
    label = f"{up} over {right}: {len(trials)} trials, of which {len(points)} are on the front. "
    return Scene(
        width, axes.bottom + 40, [Panel(axes, marks)], f"{label}Arrow keys go from point to point."
    )


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number(value, 4)}" for name, value in values.items())


def _parents(
    axes: Axes, known: Mapping[str, tuple[float, float]], metrics: Sequence[str]
) -> list[Mark]:
    names = dict[tuple[float, float], str]()
    marks = list[Mark]()
    for name, place in known.items():  # those at one place have one mark
        names[place] = f"{names[place]}, {name}" if place in names else name
    for place, name in names.items():
        tip = f"{name}: {_listed(dict(zip(metrics, place[::-1], strict=True)))}"
        marks.append(Symbol(place, 6.5, "parent", shape="diamond", tip=tip))
        end = axes.x(place[0]) > (axes.left + axes.right) / 2
        label = name[: int(axes.right) // 16]
        marks.append(
            Text(
                place,
                label,
                "tick halo",
                anchor="end" if end else "start",
                shift=(-9 if end else 9, 15),
            )
        )
    return marks


def _points(axes: Axes, points: Sequence[FrontPoint], metrics: Sequence[str]) -> list[Mark]:
    up, right = metrics
    places = [(point.search[right], point.search[up]) for point in points]
    marks: list[Mark] = []
    if all(len(point.search) == 2 for point in points):
        marks.append(Line(tuple(sorted(places, key=lambda place: place[0])), "median", "s0"))
    names = dict[int, Text]()
    boxes = list[tuple[float, float, float]]()
    # The model that was chosen comes first, so that its number is never left out for lack of room.
    for at in sorted(
        range(len(points)), key=lambda at: not points[at].winner
    ):  # numbers, where there is room
        x, y = axes.spot(places[at])
        name = f"{points[at].number}{', this model' * points[at].winner}"
        half = 3.8 * len(name) + 2
        side = 1 if x + 6 + 2 * half <= axes.right else -1
        x += side * (6 + half)
        if all(
            abs(x - middle) > half + wide or abs(y - height) > 14 for middle, height, wide in boxes
        ):
            boxes.append((x, y, half))
            names[at] = Text(
                places[at],
                name,
                "value halo",
                anchor="start" if side > 0 else "end",
                shift=(8 * side, -8),
            )
    for at, (point, place) in enumerate(zip(points, places, strict=True)):
        words = (
            f"Point {point.number}, trial {point.trial} of {STAGES.get(point.stage, point.stage)}: "
        )
        words += _listed(point.search) + (
            f"; held out: {_listed(point.judged)}" if point.judged else ""
        )
        own: list[Mark] = [Symbol(place, 9.0, "chosen")] if point.winner else []
        own.append(Symbol(place, 4.5, "point"))
        own += [names[at]] if at in names else []
        marks.append(Group(own, "cell", "s0", words + ("; this model" if point.winner else "")))
    return marks
