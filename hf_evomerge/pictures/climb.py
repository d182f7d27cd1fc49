"""The moments at which a search got better, as bars: the film of a search, of which one moment is
shown."""

import math
from collections.abc import Sequence

from ..recipes.stage_names import STAGES
from .fitness import chart_axes, stage_colour
from .marks import Group, Rect, Text
from .scene import PIXELS, WIDE, Panel, Scene, number, sparse, value_lines
from .trials import Moment


def score_text(step: Moment, accurate: bool) -> str:
    """The value of a moment, in percent where it is an accuracy."""
    return _percent(step.value) if accurate else number(step.value)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def climb_scene(
    steps: Sequence[Moment],
    at: int,
    stage: str,
    accurate: bool,
    width: int = WIDE,
    *,
    problems: int = 1,
) -> Scene:
    """Draw a bar for each moment, as high as the search had come: those after the one that is shown
    are pale.

    There is at least one moment; `at` is the one that is shown, from 0. The colour is that of the
    stage. With `accurate` heights are accuracies. The width is in pixels; `problems` are those of
    an evaluation.
    """
    # where progress is seen: the accuracy, else the logarithm of what the fitness lacks to 0
    heights = [
        step.value if accurate or step.value >= 0 else -math.log10(max(-step.value, 1e-6))
        for step in steps
    ]
    low, high = (0.0, 1.0) if accurate else (min(heights), max(heights))
    floor = low - 0.02 * ((high - low) or 1.0)  # the lowest bar is seen as well
    axes = chart_axes(width, (-0.5, len(steps) - 0.5), (floor, high), heights=(170, 220))
    pitch = (axes.right - axes.left) / len(steps)
    marks = value_lines(axes, (0.0, 0.5, 1.0), _percent) if accurate else []
    for place, step in enumerate(steps):
        read = f"{round(step.evaluations * problems):,}"
        tip = f"Moment {place + 1}: {score_text(step, accurate)} after {read} problems"
        size = (min(0.8, 60 / pitch), heights[place] - floor)
        bar = Rect(
            (place, (heights[place] + floor) / 2),
            size,
            "plus",
            strength=0.85 if place <= at else 0.18,
        )
        marks.append(Group([bar], "cell", stage_colour(stage), tip))
        if place % sparse(pitch, 44) == 0:
            marks.append(Text((place, floor), read, "tick", anchor="middle", shift=(0, 17)))
    marks.append(
        Text(
            (at, heights[at]),
            score_text(steps[at], accurate),
            "name halo",
            stage_colour(stage),
            "middle",
            (0, -6),
        )
    )
    marks.append(Text((-0.5, floor), "problems read", "tick", shift=(0, 34)))
    words = (
        f"{'Right answers' if accurate else 'Fitness, by what it lacks to 0,'} whenever the "
        "search got better"
    )
    label = (
        f"The search gets better, {STAGES.get(stage, stage)}: {len(steps)} moments; {at + 1} is "
        "shown."
    )
    return Scene(
        width,
        axes.bottom + 40,
        [Panel(axes, marks), Panel(PIXELS, [Text((4, 18), words, "tick")])],
        label,
    )
