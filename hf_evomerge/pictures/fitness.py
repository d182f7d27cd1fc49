"""Fitness over evaluations, and the spread of each generation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from ..recipes.stage_names import STAGES
from .marks import Group, Line, Mark, Rect, Spot, Symbol, Text
from .scene import NARROW, PIXELS, WIDE, Axes, Panel, Scene, grid, legend, number
from .style import COLOURS
from .trials import Generation, Trial, best_so_far, in_steps, of_stage, quantile, spent, stages

MOST_DOTS = 1500
_BINS = 24


def stage_colour(stage: str) -> str:
    """The colour of a stage, the same in every picture."""
    return "grey" if stage == "random" else stage if stage in COLOURS else "s3"


def fitness_name(unit: str) -> str:
    """What the axis of the fitness is called."""
    return f"fitness ({unit})" if unit else "fitness"


def fitness_range(trials: Sequence[Trial], levels: Mapping[str, float]) -> Spot:
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


def chart_axes(width: int, height: int, x_range: Spot, y_range: Spot, right: float = 14.0) -> Axes:
    """The axes of a chart, with room at the right for as many pixels."""
    return Axes(52.0, 46.0, width - right, height - 40.0, x_range, y_range)


def dot(axes: Axes, at: Spot, words: str) -> Symbol:
    """The mark of a trial: a dot, or where it is below the picture a triangle."""
    if at[1] < axes.y_range[0]:
        return Symbol((at[0], axes.y_range[0]), 3.0, "below", shape="down", tip=words, shift=(0, -4))
    return Symbol(at, 2.4, "dot", tip=words)


def shows_accuracy(trials: Sequence[Trial]) -> bool:
    """Whether the trials have an accuracy beside their fitness that is not the same number."""
    return any(
        trial.accuracy is not None and trial.fitness is not None and abs(trial.accuracy - trial.fitness) > 1e-9
        for trial in trials
    )


def fitness_scene(trials: Sequence[Trial], levels: Mapping[str, float], name: str = "fitness", width: int = WIDE) -> Scene:
    """Draw every trial, bands of quantiles, the best so far of each stage with its accuracy, and levels as dashed lines.

    Args:
        trials: Trials of all stages; there is at least one.
        levels: Fitness of models to compare with, such as base and parents, by name.
        name: What the fitness is called.
        width: The width in pixels that there is.
    """
    narrow = width == NARROW
    of = {stage: of_stage(trials, stage) for stage in stages(trials)}
    starts, count = dict[str, float](), 0.0
    for stage, own in of.items():  # a random search has the same budget and stands beside; the other stages follow each other
        starts[stage] = 0.0 if stage == "random" else count
        count += 0.0 if stage == "random" else sum(trial.cost for trial in own)
    most = max(count, sum(trial.cost for trial in of.get("random", ())), 1.0)
    accurate = shows_accuracy(trials)
    room = 26.0 if accurate else 0.0
    beside = 14.0 if narrow else max(60.0, 30 + 6.4 * max((len(_level(*each)) for each in levels.items()), default=0))
    axes = chart_axes(width, 330 if narrow else 430, (0.0, most), fitness_range(trials, levels), beside + room)
    right = replace(axes, y_range=(0.0, 1.0))
    x_name = "evaluations, each a score of all search examples" if any(trial.cost != 1 for trial in trials) else "evaluations"
    marks = grid(axes, x_name=x_name, y_name=name, x_ticks=4 if narrow else 8)
    best_of = {stage: best_so_far(own, starts[stage]) for stage, own in of.items()}
    lines = {stage: _best(stage, points, axes.y_range[0]) for stage, points in best_of.items() if points}
    leads = [lead for stage, points in best_of.items() if accurate and (lead := _accuracy(stage, points)).points]
    words = _Words(axes)
    for line in lines.values():
        words.keep_off(map(axes.spot, line.corners))
    for lead in leads:
        words.keep_off(map(right.spot, lead.corners))
    named = _levels(axes, levels, words, narrow, 4.0 + room)
    for stage, own in of.items():
        placed = list(zip(spent(own, starts[stage]), own, strict=True))
        bands = [] if stage == "random" else _bands(placed, axes.y_range[0])
        thin = max(1, math.ceil(len(trials) / MOST_DOTS))
        dots = [_trial(axes, at, trial) for nth, (at, trial) in enumerate(placed, 1) if nth % thin == 0]
        marks.append(Group((*bands, *dots), colour=stage_colour(stage)))
    marks += [*named, *lines.values()]
    values = [_value(axes, line, words) for line in lines.values()]
    entries = [(replace(lines[stage], tip=""), *_names(stage)) for stage in lines]
    if accurate:
        entries.append((Line((), "accuracy", "grey"), "accuracy of the best", "accuracy"))
    above = legend(4.0 if narrow else axes.left, width, entries)
    lead_marks = [*leads, *(_accuracy_axis(most, narrow) if accurate else ())]
    panels = (
        Panel(axes, tuple(marks)),
        Panel(right, tuple(lead_marks)),
        Panel(axes, tuple(values)),
        Panel(PIXELS, tuple(above)),
    )
    return Scene(width, axes.bottom + 40, panels, _summary(of, best_of))


def _names(stage: str) -> tuple[str, str]:
    return f"{STAGES.get(stage, stage)}, best so far", stage if stage == "random" else stage.upper()


def _best(stage: str, points: Sequence[tuple[float, Trial]], floor: float) -> Line:
    """The best so far of a stage; no lower than the picture."""
    tip = f"{STAGES.get(stage, stage)}: best {number(points[-1][1].fitness)}"
    spots = tuple((at, max(trial.fitness or 0.0, floor)) for at, trial in points)
    return Line(spots, "best", stage_colour(stage), tip, steps=True)


def _accuracy(stage: str, points: Sequence[tuple[float, Trial]]) -> Line:
    """The accuracy of the best trials so far, as far as it is known."""
    known = tuple((at, min(max(trial.accuracy, 0.0), 1.0)) for at, trial in points if trial.accuracy is not None)
    tip = f"{STAGES.get(stage, stage)}: accuracy of the best {number(known[-1][1] if known else None)}"
    return Line(known, "accuracy", stage_colour(stage), tip, steps=True)


def _accuracy_axis(end: float, narrow: bool) -> list[Mark]:
    """The axis on the right, from 0 to 1."""
    marks: list[Mark] = [Text((end, at), number(at), "tick", shift=(5, 4)) for at in (0.0, 0.25, 0.5, 0.75, 1.0)]
    name = "accuracy" if narrow else "accuracy (share right, dotted)"
    return [*marks, Text((end, 1), name, "tick", anchor="end", shift=(28, -8))]


def _trial(axes: Axes, at: float, trial: Trial) -> Symbol:
    if trial.fitness is None:
        floor = (at, axes.y_range[0])
        return Symbol(floor, 3.0, "failed", shape="cross", tip=f"Trial {trial.number}: failed", shift=(0, -4))
    tip = f"Trial {trial.number}, generation {trial.generation}: {number(trial.fitness)}"
    tip += f", accuracy {number(trial.accuracy)}" if trial.accuracy is not None else ""
    return dot(axes, (at, trial.fitness), tip)


def _bands(placed: Sequence[tuple[float, Trial]], floor: float) -> list[Mark]:
    """Where 80 % and half of the trials are that follow each other; nothing where they are too few for that."""
    scored = [(at, trial.fitness) for at, trial in placed if trial.fitness is not None]
    size = max(math.ceil(len(scored) / _BINS), 5)
    bins = [scored[at : at + size] for at in range(0, len(scored) - size + 1, size)]
    middles = [sum(at for at, _ in each) / len(each) for each in bins]
    ordered = [sorted(value for _, value in each) for each in bins]
    return shades(middles, ordered, ((0.1, 0.9, "all"), (0.25, 0.75, "middle")), floor) if len(bins) > 1 else []


def shades(
    middles: Sequence[float], ordered: Sequence[Sequence[float]], shares: Sequence[tuple[float, float, str]], floor: float
) -> list[Mark]:
    """Bands between quantiles of numbers in order, one after the other; no lower than the picture."""
    bands: list[Mark] = []
    for low, high, look in shares:
        lower, upper = (
            tuple((x, max(quantile(values, share), floor)) for x, values in zip(middles, ordered, strict=True))
            for share in (low, high)
        )
        bands.append(Line(upper + lower[::-1], look))
    return bands


class _Words:
    """Where words are on a chart, in pixels, so that others go above or below them."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.taken: list[tuple[float, float, float, float]] = []  # left, right, base line, how near to it others may come

    def keep_off(self, line: Sequence[Spot] | map[Spot]) -> None:
        """No words across a line of steps."""
        for (x, y), (after, then) in pairwise(line):
            for height in (y, *(min(y, then) + step for step in range(0, int(abs(then - y)), 8))):
                self.taken.append((x - 1, after + 1, height + 4, 8.0))

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
        spot = next(free, y)
        self.taken.append((left, right, spot, 14.0))
        return spot


def _value(axes: Axes, line: Line, words: _Words) -> Text:
    """The last value of a line, where it is not across others."""
    at, said = line.points[-1], number(line.points[-1][1])
    spot = words.place(axes.x(at[0]) - 2, axes.y(at[1]) - 7, said)
    return Text(at, said, "value halo", line.colour, anchor="end", shift=(-2, spot - axes.y(at[1])))


def _levels(axes: Axes, levels: Mapping[str, float], words: _Words, narrow: bool, room: float) -> list[Mark]:
    """Dashed lines with names; names that would overlap are moved apart."""
    marks: list[Mark] = []
    (left, right), last = axes.x_range, -math.inf
    for name, value in sorted(levels.items(), key=lambda item: -item[1]):
        y, label = axes.y(value), _level(name, value)
        marks.append(Line(((left, value), (right, value)), "level"))
        if narrow:
            spot = words.place(axes.right - 2, y - 4, label)
            marks.append(Text((right, value), label, "tick halo", anchor="end", shift=(-2, spot - y)))
            continue
        last = max(y + 4, last + 15)
        per_pixel = (right - left) / (axes.right - axes.left)
        height = (axes.y_range[1] - axes.y_range[0]) / (axes.bottom - axes.top)
        begin, end = right + room * per_pixel, right + (room + 14) * per_pixel
        marks.append(Line(((begin, value), (end, value - (last - 4 - y) * height)), "leader"))
        marks.append(Text((right, value), label, "tick", shift=(room + 18, last - y)))
    return marks


def _level(name: str, value: float) -> str:
    return f"{name[:20]} {number(value)}"


def _summary(of: Mapping[str, Sequence[Trial]], best_of: Mapping[str, Sequence[tuple[float, Trial]]]) -> str:
    words = []
    for stage, own in of.items():
        best = number(best_of[stage][-1][1].fitness) if best_of[stage] else "none"
        words.append(f"{STAGES.get(stage, stage)}: {len(own)} trials, best fitness {best}")
    return f"Fitness over evaluations. {'; '.join(words)}."


def spread_scene(
    grown: Sequence[Generation],
    marked: int,
    y_range: Spot,
    stage: str,
    name: str = "fitness",
    chosen: int | None = None,
    width: int = WIDE,
) -> Scene:
    """Draw the fitness of each generation: all of it, its middle half, its median and the best so far.

    Args:
        grown: Generations of a stage, of which at least one has scored.
        marked: The number of the generation that is marked.
        y_range: The least and the greatest fitness that are shown.
        stage: Whose colour is used.
        name: What the fitness is called.
        chosen: The number of the published model's generation, where it is known and one of these.
        width: The width in pixels that there is.
    """
    scored = [generation for generation in grown if generation.fitness]
    narrow, floor = width == NARROW, y_range[0]
    x_range = (scored[0].number - 0.5, scored[-1].number + 0.5)
    axes = chart_axes(width, 260 if narrow else 300, x_range, y_range)
    numbers, steps = [one.number for one in scored], in_steps(scored)
    shares = () if steps else ((0.0, 1.0, "all"), (0.25, 0.75, "middle"))
    lines: list[Mark] = shades(numbers, [one.fitness for one in scored], shares, floor)
    lines.append(Line(tuple((one.number, max(one.quantile(0.5), floor)) for one in scored), "median"))
    tips = [_generation(one) for one in scored]
    cut = [dot(axes, (one.number, floor - 1), tip) for one, tip in zip(scored, tips, strict=True) if one.fitness[0] < floor]
    best = tuple((one.number, max(one.so_far, floor)) for one in scored if one.so_far is not None)
    marks = grid(axes, x_name="generation", y_name=name, x_ticks=min(4 if narrow else 10, len(scored)))
    marks.append(Group((*lines, *cut, Line(best, "best")), colour=stage_colour(stage)))
    if chosen is not None:
        marks.append(Line(((chosen, floor), (chosen, y_range[1])), "level"))
    marks.append(Line(((marked, floor), (marked, y_range[1])), "cursor"))
    if chosen is not None:
        left = 2 * chosen > sum(x_range)
        words = Text((chosen, floor), "the published model", "halo", shift=(-5 if left else 5, -14))
        marks.append(replace(words, anchor="end") if left else words)
    middle, height = sum(y_range) / 2, y_range[1] - floor
    width_of = (x_range[1] - x_range[0]) / len(scored)
    marks += [Rect((one.number, middle), (width_of, height), "pad", tip=tip) for one, tip in zip(scored, tips, strict=True)]
    above = Text((axes.left + 24, 19), _explained(narrow, steps, bool(cut)), "tick")
    label = f"Spread of the population, {STAGES.get(stage, stage)}: {len(scored)} generations; "
    panels = (Panel(axes, marks), Panel(PIXELS, [above]))
    return Scene(width, axes.bottom + 40, panels, f"{label}generation {marked} is marked.")


def _generation(one: Generation) -> str:
    so_far = f"; best so far {number(one.so_far)}" if one.so_far is not None else ""
    spread = f"{number(one.fitness[0])} to {number(one.fitness[-1])}, median {number(one.quantile(0.5))}"
    return f"Generation {one.number}: {spread}{so_far}"


def _explained(narrow: bool, steps: bool, cut: bool) -> str:
    """What the lines and the shades of a spread are."""
    if steps:
        words = "each step, best" if narrow else "thin line: each step; thick line: the best so far on all examples"
    else:
        long = "shades: all trials, and their middle half; thin line: median; thick line: best so far"
        words = "all, middle half, median, best" if narrow else long
    return f"{words}; \N{BLACK DOWN-POINTING TRIANGLE}: below" if cut else words
