"""Fitness over evaluations, the spread of each generation, and the front, as inline SVG themed by style.css."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from evolution import Generation, best_line, best_so_far, in_steps, of_stage, quantile, spent, stages
from pictures import NARROW, WIDE, both, svg, text
from published import Objective, Point, Trial
from texts import escape, number

from hf_evomerge.recipes.stage_names import STAGES

_MOST_DOTS = 1500
_NAMED = {True: 5, False: 12}  # points of a front that have their number beside them, on phones and on wide screens
_COLOURS = {stage: "ev-grey" if stage == "random" else f"ev-{stage}" for stage in STAGES}


@dataclass(frozen=True)
class _Axes:
    """Where numbers are on a chart."""

    left: float
    right: float
    top: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / ((high - low) or 1) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (max(value, low) - low) / ((high - low) or 1) * (self.bottom - self.top)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between two numbers."""
    span = (high - low) or 1.0
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def fitness_range(trials: Sequence[Trial], levels: Mapping[str, float]) -> tuple[float, float]:
    """The fitness that is worth showing: without the far tail of bad trials, which would flatten all others.

    A random search is mostly tail; only its best is sure to be shown.
    """
    values = sorted(trial.fitness for trial in trials if trial.fitness is not None and trial.stage != "random")
    chance = [trial.fitness for trial in trials if trial.fitness is not None and trial.stage == "random"]
    values = values or sorted(chance)
    if not values:
        values = sorted(levels.values()) or [0.0, 1.0]
    middle, best = values[len(values) // 2], values[-1]
    low = max(values[0], min(middle - (best - middle), values[min((len(values) + 9) // 10, len(values) - 1)]))
    shown = [*levels.values(), max(chance, default=best)]
    low, high = min([low, *shown]), max([best, *shown])
    margin = 0.06 * ((high - low) or 1.0)
    return low - margin, high + margin


def fitness_picture(trials: Sequence[Trial], levels: Mapping[str, float], unit: str = "") -> str:
    """Every trial, bands of quantiles, the best so far of each stage with its accuracy, and the parents as dashed lines."""
    if not trials:
        return ""
    return both(lambda width: _fitness(trials, levels, unit, width))


def _fitness_name(unit: str) -> str:
    return f"fitness ({unit})" if unit else "fitness"


def _frame(width: int, height: int, x_range: tuple[float, float], y_range: tuple[float, float], *, right: float) -> _Axes:
    return _Axes(52.0, width - right, 46.0, height - 40.0, x_range, y_range)


def _grid(axes: _Axes, *, x_name: str, y_name: str, x_ticks: int) -> str:
    parts = []
    for value in ticks(*axes.y_range, 6):
        y = axes.y(value)
        parts.append(f'<path class="ev-gridline" d="M{axes.left:.1f},{y:.1f}H{axes.right:.1f}"/>')
        parts.append(text(axes.left - 6, y + 4, number(value), anchor="end", kind="ev-tick"))
    for value in ticks(*axes.x_range, x_ticks):
        if value >= axes.x_range[0]:
            parts.append(text(axes.x(value), axes.bottom + 17, number(value, 6), anchor="middle", kind="ev-tick"))
    parts.append(text((axes.left + axes.right) / 2, axes.bottom + 34, x_name, anchor="middle", kind="ev-tick"))
    parts.append(text(4, axes.top - 8, y_name, kind="ev-tick"))
    return "".join(parts)


def _fitness(trials: Sequence[Trial], levels: Mapping[str, float], unit: str, width: int) -> str:
    narrow = width == NARROW
    order = stages(trials)
    parts_of = {stage: of_stage(trials, stage) for stage in order}
    starts, count = {}, 0.0
    for stage in order:  # a random search has the same budget and stands beside; the other stages follow each other
        starts[stage] = 0.0 if stage == "random" else count
        count += 0.0 if stage == "random" else sum(trial.cost for trial in parts_of[stage])
    most = max(count, sum(trial.cost for trial in parts_of.get("random", ())), 1.0)
    height = 330 if narrow else 430
    accurate = shows_accuracy(trials)
    right = (14.0 if narrow else 190.0) + (26.0 if accurate else 0.0)
    axes = _frame(width, height, (0.0, most), fitness_range(trials, levels), right=right)
    x_name = "evaluations, each a score of all search examples" if any(trial.cost != 1 for trial in trials) else "evaluations"
    parts = [_grid(axes, x_name=x_name, y_name=_fitness_name(unit), x_ticks=4 if narrow else 8)]
    parts += [_accuracy_axis(axes, narrow)] if accurate else []
    names = _Names(axes)
    best_of = {stage: best_so_far(parts_of[stage], starts[stage]) for stage in order}
    for points in best_of.values():
        names.keep_off(_heights(axes, points))
        names.keep_off(_accuracies(axes, points) if accurate else [])
    levels_drawn = _levels(axes, levels, names, narrow, room=30.0 if accurate else 0.0)
    thin = max(1, math.ceil(len(trials) / _MOST_DOTS))
    for stage in order:
        placed = list(zip(spent(parts_of[stage], starts[stage]), parts_of[stage], strict=True))
        if stage != "random":
            parts.append(f'<g class="{_COLOURS.get(stage, "ev-s3")}">{_bands(axes, placed)}</g>')
        dots = [_dot(axes, trial, x) for at, (x, trial) in enumerate(placed, 1) if at % thin == 0]
        parts.append(f'<g class="{_COLOURS.get(stage, "ev-s3")}"><g class="ev-dots">{"".join(dots)}</g></g>')
    parts.append(levels_drawn)
    parts += [_best(axes, stage, points, names, accurate) for stage, points in best_of.items()]
    parts.append(_legend(order, axes.left, width < WIDE, accurate))
    return svg(width, height, "".join(parts), label=_summary(order, parts_of))


def _dot(axes: _Axes, trial: Trial, at: float) -> str:
    if trial.fitness is None:
        x, y = axes.x(at), axes.bottom - 4
        return f'<path class="ev-failed" d="M{x - 3:.1f},{y - 3:.1f}l6,6m0,-6l-6,6" data-tip="Trial {trial.number}: failed"/>'
    y = axes.y(trial.fitness)
    tip = f"Trial {trial.number}, generation {trial.generation}: {number(trial.fitness)}"
    tip += f", accuracy {number(trial.accuracy)}" if trial.accuracy is not None else ""
    if trial.fitness < axes.y_range[0]:
        return _below(axes, axes.x(at), tip)
    return f'<circle cx="{axes.x(at):.1f}" cy="{y:.1f}" r="2.4" data-tip="{escape(tip)}"/>'


def _below(axes: _Axes, x: float, tip: str) -> str:
    """The mark of what lies below the picture."""
    return f'<path class="ev-below" d="M{x - 3:.1f},{axes.bottom - 6:.1f}h6l-3,5z" data-tip="{escape(tip)}"/>'


class _Names:
    """Where words are on a chart, so that others go above or below them."""

    def __init__(self, axes: _Axes) -> None:
        self.axes = axes
        self.taken: list[tuple[float, float, float, float]] = []  # left, right, base line, how near to it others may come

    def keep_off(self, line: Sequence[tuple[float, float]]) -> None:
        """No words across a line of steps."""
        for (x, y), (after, then) in pairwise(line):
            heights = [y, *(min(y, then) + step for step in range(0, int(abs(then - y)), 8))]
            self.taken += [(x if at == 0 else after - 1, after + 1, height + 4, 8.0) for at, height in enumerate(heights)]

    def place(self, right: float, y: float, words: str) -> float:
        """The base line for words that end at `right`: as near to `y` as there is room."""
        left = right - 7.0 * len(words)
        steps = [0.0, *(sign * step for step in range(7, 400, 7) for sign in (1, -1))]
        inside = [y + step for step in steps if self.axes.top + 9 <= y + step <= self.axes.bottom - 3]
        free = (
            spot
            for spot in inside
            if not any(left < there and begin < right and abs(spot - line) < near for begin, there, line, near in self.taken)
        )
        found = next(free, y)
        self.taken.append((left, right, found, 14.0))
        return found


_BINS = 24


def _bands(axes: _Axes, placed: Sequence[tuple[float, Trial]]) -> str:
    """Where 80 % and half of the trials are that follow each other; nothing where they are too few for that."""
    scored = [(at, trial.fitness) for at, trial in placed if trial.fitness is not None]
    size = max(math.ceil(len(scored) / _BINS), 5)
    bins = [scored[at : at + size] for at in range(0, len(scored) - size + 1, size)]
    if len(bins) < 2:
        return ""
    middles = [axes.x(sum(at for at, _ in one) / len(one)) for one in bins]
    ordered = [sorted(value for _, value in one) for one in bins]
    parts = []
    for low, high, kind in ((0.1, 0.9, "ev-all"), (0.25, 0.75, "ev-middle")):
        upper = [f"{x:.1f},{axes.y(quantile(one, high)):.1f}" for x, one in zip(middles, ordered, strict=True)]
        lower = [f"{x:.1f},{axes.y(quantile(one, low)):.1f}" for x, one in zip(middles, ordered, strict=True)]
        parts.append(f'<polygon class="{kind}" points="{" ".join(upper + lower[::-1])}"/>')
    return "".join(parts)


def shows_accuracy(trials: Sequence[Trial]) -> bool:
    """Whether the trials have an accuracy beside their fitness that is not the same number."""
    return any(
        trial.accuracy is not None and trial.fitness is not None and abs(trial.accuracy - trial.fitness) > 1e-9
        for trial in trials
    )


def _accuracy_axis(axes: _Axes, narrow: bool) -> str:
    """The axis on the right, from 0 to 1."""
    marks = [0.0, 0.25, 0.5, 0.75, 1.0]
    parts = [text(axes.right + 5, _accuracy_y(axes, mark) + 4, number(mark), kind="ev-tick") for mark in marks]
    name = "accuracy" if narrow else "accuracy (share right, dotted)"
    return "".join([*parts, text(axes.right + 28, axes.top - 8, name, anchor="end", kind="ev-tick")])


def _accuracy_y(axes: _Axes, accuracy: float) -> float:
    return axes.bottom - min(max(accuracy, 0.0), 1.0) * (axes.bottom - axes.top)


def _best(axes: _Axes, stage: str, points: Sequence[tuple[float, Trial]], names: _Names, accurate: bool) -> str:
    """The line of a stage with its last value, and a dotted one of the accuracy of the same trials."""
    if not points:
        return ""
    x, best = axes.x(points[-1][0]), points[-1][1].fitness or 0.0
    words = number(best)
    right = _accuracies(axes, points)
    place = names.place(x - 2, axes.y(best) - 7, words)
    tip = f"{STAGES.get(stage, stage)}: best {words}"
    line = _steps(_heights(axes, points))
    drawn = f'<path class="ev-best" d="{line}" data-tip="{escape(tip)}"/>'
    if accurate and right:
        tip = f"{STAGES.get(stage, stage)}: accuracy of the best {number(points[-1][1].accuracy)}"
        drawn += f'<path class="ev-accuracy" d="{_steps(right)}" data-tip="{escape(tip)}"/>'
    drawn += text(x - 2, place, words, anchor="end", kind="ev-value ev-halo")
    return f'<g class="{_COLOURS.get(stage, "ev-s3")}">{drawn}</g>'


def _heights(axes: _Axes, points: Sequence[tuple[float, Trial]]) -> list[tuple[float, float]]:
    """Where the fitness of trials is."""
    return [(axes.x(at), axes.y(trial.fitness or 0.0)) for at, trial in points]


def _accuracies(axes: _Axes, points: Sequence[tuple[float, Trial]]) -> list[tuple[float, float]]:
    """Where the accuracy of trials is."""
    return [(axes.x(at), _accuracy_y(axes, trial.accuracy)) for at, trial in points if trial.accuracy is not None]


def _steps(points: Sequence[tuple[float, float]]) -> str:
    (x, y), *others = points
    return f"M{x:.1f},{y:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in others)


def _levels(axes: _Axes, levels: Mapping[str, float], names: _Names, narrow: bool, *, room: float) -> str:
    """Dashed lines with names; names that would overlap are moved apart."""
    parts: list[str] = []
    last = math.inf
    for name, value in sorted(levels.items(), key=lambda item: -item[1]):
        y = axes.y(value)
        label = f"{name[:20]} {number(value)}"
        parts.append(f'<path class="ev-level" d="M{axes.left:.1f},{y:.1f}H{axes.right:.1f}"/>')
        if narrow:
            spot = names.place(axes.right - 2, y - 4, label)
            parts.append(text(axes.right - 2, spot, label, anchor="end", kind="ev-tick ev-halo"))
        else:
            spot = y + 4 if math.isinf(last) else max(y + 4, last + 15)
            last = spot
            begin = axes.right + room
            parts.append(f'<path class="ev-leader" d="M{begin:.1f},{y:.1f}L{begin + 14:.1f},{spot - 4:.1f}"/>')
            parts.append(text(begin + 18, spot, label, kind="ev-tick"))
    return "".join(parts)


def _legend(order: Sequence[str], left: float, narrow: bool, accurate: bool) -> str:
    """A line per stage, and a dotted one; on phones in short words."""
    entries = [
        (_COLOURS.get(stage, "ev-s3"), "ev-best", stage if stage == "random" else stage.upper())
        if narrow
        else (_COLOURS.get(stage, "ev-s3"), "ev-best", f"{STAGES.get(stage, stage)}, best so far")
        for stage in order
    ]
    entries += [("ev-grey", "ev-accuracy", "accuracy" if narrow else "accuracy of the best")] if accurate else []
    x, parts = 4.0 if narrow else left, []
    for colour, kind, words in entries:
        parts.append(f'<g class="{colour}"><path class="{kind}" d="M{x},15h20"/></g>')
        parts.append(text(x + 26, 19, words, kind="ev-tick"))
        x += 42 + 6.4 * len(words)
    return "".join(parts)


def _summary(order: Sequence[str], parts_of: Mapping[str, Sequence[Trial]]) -> str:
    said = []
    for stage in order:
        line = best_line(parts_of[stage])
        best = number(line[-1][1]) if line else "none"
        said.append(f"{STAGES.get(stage, stage)}: {len(parts_of[stage])} trials, best fitness {best}")
    return f"Fitness over evaluations. {'; '.join(said)}."


def spread_picture(
    grown: Sequence[Generation],
    at: int,
    y_range: tuple[float, float],
    stage: str,
    unit: str = "",
    chosen: int | None = None,
) -> str:
    """The fitness of each generation: all of it, its middle half, its median and the best so far; one generation is marked.

    Args:
        grown: The generations of a stage.
        at: The generation that is marked, as a place in `grown`.
        y_range: The least and the greatest fitness that are shown.
        stage: Whose colour is used.
        unit: What the fitness is measured in.
        chosen: The number of the published model's generation, where it is known and one of these.
    """
    scored = [generation for generation in grown if generation.fitness]
    if not scored:
        return ""
    return both(lambda width: _spread(scored, grown[at].number, y_range, stage, unit, width, chosen))


def _spread(
    scored: Sequence[Generation],
    marked: int,
    y_range: tuple[float, float],
    stage: str,
    unit: str,
    width: int,
    chosen: int | None,
) -> str:
    narrow = width == NARROW
    height = 260 if narrow else 300
    x_range = (scored[0].number - 0.5, scored[-1].number + 0.5)
    axes = _frame(width, height, x_range, y_range, right=14.0)
    bands: list[str] = []
    shades = () if in_steps(scored) else ((0.0, 1.0, "ev-all"), (0.25, 0.75, "ev-middle"))
    for low, high, kind in shades:
        upper = [f"{axes.x(one.number):.1f},{axes.y(one.quantile(high)):.1f}" for one in scored]
        lower = [f"{axes.x(one.number):.1f},{axes.y(one.quantile(low)):.1f}" for one in reversed(scored)]
        bands.append(f'<polygon class="{kind}" points="{" ".join(upper + lower)}"/>')
    median = " ".join(f"{axes.x(one.number):.1f},{axes.y(one.quantile(0.5)):.1f}" for one in scored)
    best = " ".join(f"{axes.x(one.number):.1f},{axes.y(one.so_far):.1f}" for one in scored if one.so_far is not None)
    column = (axes.right - axes.left) / len(scored)
    pads, cut = [], []
    for one in scored:
        worst, top = number(one.fitness[0]), number(one.fitness[-1])
        so_far = f"; best so far {number(one.so_far)}" if one.so_far is not None else ""
        tip = f"Generation {one.number}: {worst} to {top}, median {number(one.quantile(0.5))}{so_far}"
        pads.append(
            f'<rect class="ev-pad" x="{axes.x(one.number) - column / 2:.1f}" y="{axes.top:.1f}" width="{column:.1f}" '
            f'height="{axes.bottom - axes.top:.1f}" data-tip="{escape(tip)}"/>'
        )
        if one.fitness[0] < y_range[0]:
            cut.append(_below(axes, axes.x(one.number), tip))
    cursor = f'<path class="ev-cursor" d="M{axes.x(marked):.1f},{axes.top:.1f}V{axes.bottom:.1f}"/>'
    if chosen is not None:
        x, left = axes.x(chosen), 2 * chosen > sum(x_range)
        name = text(
            x - 5 if left else x + 5, axes.bottom - 14, "the published model", anchor="end" if left else "start", kind="ev-halo"
        )
        cursor = f'<path class="ev-level" d="M{x:.1f},{axes.top:.1f}V{axes.bottom:.1f}"/>{cursor}{name}'
    if not shades:
        words, short = "thin line: each step; thick line: the best so far on all examples", "each step, best"
    else:
        words = "shades: all trials, and their middle half; thin line: median; thick line: best so far"
        short = "all, middle half, median, best"
    if cut:
        words, short = (f"{said}; \N{BLACK DOWN-POINTING TRIANGLE}: below" for said in (words, short))
    notes = text(axes.left + 24, 19, short if narrow else words, kind="ev-tick")
    content = "".join(
        [
            _grid(axes, x_name="generation", y_name=_fitness_name(unit), x_ticks=min(4 if narrow else 10, len(scored))),
            f'<g class="{_COLOURS.get(stage, "ev-s3")}">{"".join(bands)}<polyline class="ev-median" points="{median}"/>',
            f'{"".join(cut)}<polyline class="ev-best" points="{best}"/></g>{cursor}{notes}{"".join(pads)}',
        ]
    )
    label = f"Spread of the population, {STAGES.get(stage, stage)}: {len(scored)} generations; generation {marked} is marked."
    return svg(width, height, content, label=label)


def front_picture(
    trials: Sequence[Trial],
    points: Sequence[Point],
    objectives: tuple[Objective, Objective],
    parents: Mapping[str, Mapping[str, float]],
) -> str:
    """One objective over another: every trial, the models that no other beats, the one on show, and the parents.

    Args:
        trials: The trials.
        points: The front; a line joins its points where there are no other objectives.
        objectives: What goes up, and what goes to the right.
        parents: Their values by objective, by name.
    """
    shown = [point for point in points if all(objective.name in point.search for objective in objectives)]
    if not shown:
        return ""
    return both(lambda width: _front(trials, shown, objectives, parents, width))


def _front(
    trials: Sequence[Trial],
    points: Sequence[Point],
    objectives: tuple[Objective, Objective],
    parents: Mapping[str, Mapping[str, float]],
    width: int,
) -> str:
    narrow = width == NARROW
    up, right = (objective.name for objective in objectives)
    known = {name: (found[right], found[up]) for name, found in parents.items() if right in found and up in found}
    alive = [(trial, x, y) for trial in trials if (x := trial.value(right)) is not None and (y := trial.value(up)) is not None]
    levels = {name: y for name, (_, y) in known.items()} | {f"point {point.number}": point.search[up] for point in points}
    across = [x for _, x, _ in alive] + [x for x, _ in known.values()] + [point.search[right] for point in points]
    margin = 0.05 * ((max(across) - min(across)) or 1.0)
    x_range = (min(across) - margin, max(across) + margin)
    height, marks = (330, 4) if narrow else (430, 10)
    if all(x == int(x) for x in across):  # hops: no marks between them
        marks = min(marks, math.ceil(x_range[1] - x_range[0]))
    axes = _frame(width, height, x_range, fitness_range(trials, levels), right=14.0)
    thin = max(1, math.ceil(len(alive) / _MOST_DOTS))
    parts = [_grid(axes, x_name=str(objectives[1]), y_name=str(objectives[0]), x_ticks=marks)]
    for trial, x, y in alive[::thin]:
        words = f"Trial {trial.number}, generation {trial.generation}: {_values(objectives, (y, x))}"
        parts.append(f'<g class="ev-dots {_COLOURS.get(trial.stage, "ev-s3")}">{_mark(axes, x, y, words)}</g>')
    return svg(
        width,
        height,
        "".join([*parts, _parents(axes, known, objectives, narrow), _points(axes, points, objectives, narrow)])
        + _front_legend(axes.left, trials, narrow),
        label=f"{objectives[0].name} over {objectives[1].name}: {len(trials)} trials, of which {len(points)} are on the front. "
        "Arrow keys go from point to point.",
    )


def _values(objectives: Sequence[Objective], found: Sequence[float]) -> str:
    return ", ".join(f"{objective.name} {number(value, 4)}" for objective, value in zip(objectives, found, strict=True))


def _mark(axes: _Axes, x: float, y: float, words: str) -> str:
    """A dot, or where it is below the picture a mark that says so."""
    if y < axes.y_range[0]:
        return _below(axes, axes.x(x), words)
    return f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="2.4" data-tip="{escape(words)}"/>'


def _parents(
    axes: _Axes, known: Mapping[str, tuple[float, float]], objectives: tuple[Objective, Objective], narrow: bool
) -> str:
    parts, names = [], dict[tuple[float, float], str]()
    for name, place in known.items():  # those at one place have one mark
        names[place] = f"{names[place]}, {name}" if place in names else name
    for (right, up), name in names.items():
        x, y = axes.x(right), axes.y(up)
        tip = escape(f"{name}: {_values(objectives, (up, right))}")
        parts.append(f'<path class="ev-parent" d="M{x:.1f},{y - 5:.1f}l5,5l-5,5l-5,-5z" data-tip="{tip}"/>')
        left = x > (axes.left + axes.right) / 2
        label = name[: 24 if narrow else 60]
        parts.append(text(x - 9 if left else x + 9, y - 6, label, anchor="end" if left else "start", kind="ev-tick ev-halo"))
    return "".join(parts)


def _points(axes: _Axes, points: Sequence[Point], objectives: tuple[Objective, Objective], narrow: bool) -> str:
    up, right = (objective.name for objective in objectives)
    placed = [(point, axes.x(point.search[right]), axes.y(point.search[up])) for point in points]
    parts = []
    if all(len(point.search) == 2 for point in points):
        way = " ".join(f"{x:.1f},{y:.1f}" for _, x, y in sorted(placed, key=lambda each: each[1]))
        parts.append(f'<polyline class="ev-median" points="{way}"/>')
    count = min(_NAMED[narrow], len(points))
    named = {round(at * (len(points) - 1) / max(count - 1, 1)) for at in range(count)}
    for at, (point, x, y) in enumerate(placed):
        stage = STAGES.get(point.stage, point.stage)
        words = f"Point {point.number}, trial {point.trial} of {stage}: {_listed(point.search)}"
        words += f"; held out: {_listed(point.judged)}" if point.judged else ""
        words += "; this model" if point.winner else ""
        ring = f'<circle class="ev-chosen" cx="{x:.1f}" cy="{y:.1f}" r="9"/>' if point.winner else ""
        label = text(x + 8, y - 8, point.number, kind="ev-value ev-halo") if at in named or point.winner else ""
        parts.append(
            f'<g class="ev-cell" role="img" tabindex="-1" data-tip="{escape(words)}" aria-label="{escape(words)}">{ring}'
            f'<circle class="ev-point" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>{label}</g>'
        )
    return f'<g class="ev-s0">{"".join(parts)}</g>'


def _listed(found: Mapping[str, float]) -> str:
    return _values([Objective(name) for name in found], list(found.values()))


def _front_legend(left: float, trials: Sequence[Trial], narrow: bool) -> str:
    order = [stage for stage in stages(trials) if stage != "random"]
    words_of = {stage: stage.upper()[:8] if len(order) > 1 else "trials" for stage in order}
    entries = [(f'class="{_COLOURS.get(stage, "ev-s3")} ev-dots"', 2.4, words) for stage, words in words_of.items()]
    if any(trial.stage == "random" for trial in trials):
        entries.append(('class="ev-grey ev-dots"', 2.4, "random" if narrow else "random search"))
    entries += [('class="ev-s0"', 4.5, "front"), ("", 9.0, "this model")]
    x, parts = left + 24, []
    for kind, radius, words in entries:
        shape = {4.5: ' class="ev-point"', 9.0: ' class="ev-chosen"'}.get(radius, "")
        parts.append(f'<g {kind}><circle{shape} cx="{x:.1f}" cy="15" r="{min(radius, 6.0)}"/></g>')
        parts.append(text(x + 11, 19, words, kind="ev-tick"))
        x += 32 + 6.2 * len(words)
    return "".join(parts)
