"""Scenes hold the numbers they were given: marks are where the data say, in the units of the axes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from hf_evomerge.pictures.fitness import fitness_range, fitness_scene, spread_scene, stage_colour
from hf_evomerge.pictures.front import front_scene
from hf_evomerge.pictures.marks import Group, Line, Mark, Rect, Symbol, Text
from hf_evomerge.pictures.path import path_scene
from hf_evomerge.pictures.scene import MIDDLE, NARROW, WIDE, Axes, Panel, Scene, ticks
from hf_evomerge.pictures.trials import Generation, Objective, Point, Trial, generations, of_stage
from hf_evomerge.pictures.weights import weights_of, weights_scene
from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.routing.gates import gate_path

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
WIDTHS = (WIDE, MIDDLE, NARROW)
HOPS = "0:0-2, 1:3, 0:3*0.6 + 1:4*0.4, 1:4, 0:5"
SCALES = [1.0, 0.9, 1.4, 0.5, 1.1, -0.7, 1.0]


def of_kind(marks: Scene | Group, kind: type, look: str = "") -> list[Any]:
    """The marks of a kind, of one look or of all."""
    every = marks.marks() if isinstance(marks, Scene) else marks.marks
    return [mark for mark in every if isinstance(mark, kind) and (not look or mark.look.split(" ")[0] == look)]


def words(scene: Scene) -> list[str]:
    """All that is written on a picture."""
    return [text.words for text in of_kind(scene, Text)]


def trials_of(*fitness: float | None, stage: str = "ps", population: int = 2) -> list[Trial]:
    """Trials in generations of `population`."""
    return [Trial(stage, k, k // population, value) for k, value in enumerate(fitness)]


SEARCH = [
    *trials_of(-5.0, -4.0, None, -6.0, -3.0, -3.5, -2.0, -90.0, -2.5, population=4),
    *(Trial("random", k, 0, -7.0 - k) for k in range(3)),
]


def test_the_bold_line_is_the_best_so_far() -> None:
    """The line never falls, passes over failed trials, begins with the first that succeeded and goes on to the last."""
    scene = fitness_scene(trials_of(None, -2.0, -3.0, None, -1.0, -1.5), {})
    line = of_kind(scene, Line, "best")[0]
    assert list(line.points) == [(2, -2.0), (5, -1.0), (6, -1.0)]
    assert list(line.corners) == [(2, -2.0), (5, -2.0), (5, -1.0), (6, -1.0), (6, -1.0)]


def test_stages_follow_each_other_and_a_random_search_runs_beside_them() -> None:
    """DFS begins where PS ended, a random search at 0; a trial of half the examples costs half an evaluation."""
    dear = [Trial("dfs", 0, 0, -0.5, cost=0.5), *trials_of(-2.0, None), Trial("random", 0, 0, -3.0)]
    best = {line.colour: list(line.points) for line in of_kind(fitness_scene(dear, {}), Line, "best") if line.tip}
    assert best == {"ps": [(1, -2.0), (1 + 1, -2.0)], "dfs": [(2.5, -0.5)] * 2, "grey": [(1, -3.0)] * 2}


def test_every_trial_is_a_mark() -> None:
    """A trial is a dot at its fitness, a failed one a cross on the axis, one below the picture a triangle there."""
    for width in WIDTHS:
        scene = fitness_scene(SEARCH, {"a": -4.5, "b": -8.0}, width=width)
        low, _ = fitness_range(SEARCH, {"a": -4.5, "b": -8.0})
        marks = {look: [mark.at for mark in of_kind(scene, Symbol, look)] for look in ("dot", "failed", "below")}
        assert marks["dot"] == [(1, -5), (2, -4), (4, -6), (5, -3), (6, -3.5), (7, -2), (9, -2.5), (1, -7), (2, -8)]
        assert marks["failed"] == [(3, low)]
        assert marks["below"] == [(8, low), (3, low)]
        tips = {mark.tip for mark in of_kind(scene, Symbol)}
        assert {"Trial 2: failed", f"Trial 7, generation 1: {MINUS}90"} <= tips


def test_a_catastrophic_trial_does_not_set_the_limits() -> None:
    """A trial at -50 leaves the limits as they are without it, and flat or short searches have limits around the best."""
    good = [-1.4, -1.2, -1.3, -1.1, -1.0, -1.05, -0.9, -0.95]
    spoilt = [*good[:5], -50.0, *good[6:]]
    assert fitness_range(trials_of(*good), {"base": -1.5}) == fitness_range(trials_of(*spoilt), {"base": -1.5})
    for fitness in ((-1.0,), (0.0, 0.0, 0.0), (-1.0, -50.0)):
        low, high = fitness_range(trials_of(*fitness), {})
        assert low < max(fitness) < high


def test_bands_are_quantiles_of_trials_that_follow_each_other() -> None:
    """The middle half of five trials is between their second and their fourth, in the middle of their evaluations."""
    scene = fitness_scene(trials_of(-5.0, -1.0, -2.0, -4.0, -3.0, -3.0, -2.5, -2.0, -1.5, -1.0), {})
    (middle,) = of_kind(scene, Line, "middle")
    assert list(middle.points) == [(3, -2.0), (8, -1.5), (8, -2.5), (3, -4.0)]


def test_levels_are_lines_and_their_names_are_apart() -> None:
    """Every level has a line at its value and its name beside it; names of near levels do not overlap."""
    levels = {"base": -3.0, "parent-a": -1.201, "parent-b": -1.2}
    for width in WIDTHS:
        scene = fitness_scene(trials_of(-1.4, -1.2, -1.0), levels, width=width)
        assert [line.points[0][1] for line in of_kind(scene, Line, "level")] == sorted(levels.values(), reverse=True)
        axes = scene.panels[0].axes
        low, high = axes.y_range
        assert low < -3.0 < -1.2 < high
        named = [text for text in of_kind(scene, Text) if text.words.split(" ")[0] in levels]
        heights = sorted(axes.y(text.at[1]) + text.shift[1] for text in named)
        assert len(heights) == 3
        assert all(after - before >= 14 for before, after in pairwise(heights))


def test_the_accuracy_of_the_best_has_an_axis_of_its_own() -> None:
    """The dotted line is the accuracy of the trials of the bold one, from 0 to 1; without accuracies there is none."""
    trials = [Trial("ps", k, k, -2.0 + k, accuracy=0.25 * k) for k in range(3)]
    scene = fitness_scene(trials, {})
    panel = next(panel for panel in scene.panels if any(mark.look == "accuracy" for mark in panel.marks))
    assert panel.axes.y_range == (0.0, 1.0)
    line = next(mark for mark in panel.marks if isinstance(mark, Line))
    assert list(line.points) == [(1, 0.0), (2, 0.25), (3, 0.5), (3, 0.5)]
    assert not of_kind(fitness_scene(trials_of(-1.0), {}), Line, "accuracy")


def test_the_best_value_keeps_off_dotted_lines() -> None:
    """The number at the end of one stage's line is not across another stage's line of accuracies."""
    for shared, width in ((shared, width) for shared in (0.0, 0.1, 0.35, 0.6, 0.9) for width in WIDTHS):
        trials = [Trial("ps", k, k, -1.0 if k else -1.5, accuracy=0.0) for k in range(8)]
        trials += [Trial("random", k, 0, -2.0 + k / 10, accuracy=shared) for k in range(8)]
        scene = fitness_scene(trials, {}, width=width)
        dotted = [
            panel.axes.y(y)
            for panel in scene.panels
            for mark in panel.marks
            if isinstance(mark, Line) and mark.look == "accuracy" and mark.tip
            for _, y in mark.corners
        ]
        axes = scene.panels[0].axes
        for text in of_kind(scene, Text, "value"):
            base = axes.y(text.at[1]) + text.shift[1]
            assert not [y for y in dotted if base - 10 < y < base], (shared, width, text.words)


def test_ten_thousand_trials_are_thinned_and_their_best_is_not() -> None:
    """A long search has at most 1,500 dots, and the whole line of the best."""
    trials = [Trial("dfs", k, k // 128, -1000.0 / (k + 1)) for k in range(10_000)]
    scene = fitness_scene(trials, {})
    assert 1000 < len([mark for mark in of_kind(scene, Symbol) if mark.look in ("dot", "below")]) <= 1500
    assert of_kind(scene, Line, "best")[0].points[-1] == (10_000, -0.1)


def test_a_spread_holds_quantiles_and_marks_a_generation() -> None:
    """All trials, their middle half, the median and the best so far are over the generation; a line marks one."""
    grown = [Generation(3, (-4.0, -2.0, 0.0), None, 0.0, 3.0), Generation(4, (-3.0, -1.0), None, 0.5, 5.0)]
    scene = spread_scene(grown, 4, (-5.0, 1.0), "dfs", chosen=3)
    assert list(of_kind(scene, Line, "all")[0].points) == [(3, 0.0), (4, -1.0), (4, -3.0), (3, -4.0)]
    assert list(of_kind(scene, Line, "middle")[0].points) == [(3, -1.0), (4, -1.5), (4, -2.5), (3, -3.0)]
    assert list(of_kind(scene, Line, "median")[0].points) == [(3, -2.0), (4, -2.0)]
    assert list(of_kind(scene, Line, "best")[0].points) == [(3, 0.0), (4, 0.5)]
    assert {x for x, _ in of_kind(scene, Line, "cursor")[0].points} == {4}
    assert {x for x, _ in of_kind(scene, Line, "level")[0].points} == {3}
    assert "the published model" in words(scene)
    assert [pad.tip.split(":")[0] for pad in of_kind(scene, Rect, "pad")] == ["Generation 3", "Generation 4"]


def test_generations_below_the_picture_are_marked() -> None:
    """A generation that reaches below the picture has a triangle there, and the words above the chart say what that is."""
    grown = generations(of_stage(SEARCH, "ps"))
    for lowest, marks in ((-100.0, 0), (-7.0, 1), (-5.5, 2)):
        for width in WIDTHS:
            scene = spread_scene(grown, 0, (lowest, 0.0), "ps", width=width)
            assert len(of_kind(scene, Symbol, "below")) == marks
            assert any("below" in said for said in words(scene)) == (marks > 0)


def test_a_search_in_steps_has_no_shades() -> None:
    """Where most generations are one trial only lines are drawn and named."""
    scene = spread_scene(generations(trials_of(-3.0, -2.0, -1.0, population=1)), 1, (-4.0, 0.0), "ps")
    assert not of_kind(scene, Line, "all")
    assert list(of_kind(scene, Line, "median")[0].points) == [(0, -3.0), (1, -2.0), (2, -1.0)]
    assert not any("median" in said for said in words(scene))


def test_no_stage_has_the_colour_of_a_source() -> None:
    """Each stage has a colour of its own, a random search is grey, and another name has one of the sources'."""
    assert [stage_colour(stage) for stage in ("ps", "dfs-first", "random", "mine")] == ["ps", "dfs-first", "grey", "s3"]


OBJECTIVES = (Objective("fitness", "share"), Objective("hops"))
VALUES = [(0.9, 12.0), (0.5, 6.0), (0.4, 9.0), (0.1, 7.0)]


def front_of(width: int = WIDE) -> Scene:
    """A front of two points among trials, some without all values, and parents of which two are at one place."""
    trials = [Trial("dfs", k, 0, fitness, others={"hops": hops}) for k, (fitness, hops) in enumerate(VALUES)]
    trials += [Trial("random", 0, 0, 0.0, others={"hops": 20.0}), Trial("dfs", 4, 1, None), Trial("dfs", 5, 1, 0.3)]
    known = [{"fitness": fitness, "hops": hops} for fitness, hops in VALUES]
    points = [Point(0, "dfs", 0, known[0], {}, False), Point(1, "dfs", 1, known[1], {"fitness": 0.25, "hops": 6.0}, True)]
    parents = {"a": known[3], "b": known[3], "c": {"fitness": 0.2}}
    return front_scene(trials, points, OBJECTIVES, parents, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_front_holds_trials_points_and_parents_where_their_values_are(width: int) -> None:
    """A mark per trial, a point per model of the front, a ring around the one on show, parents at one place under one name."""
    scene = front_of(width)
    drawn = [mark for mark in of_kind(scene, Symbol) if mark.tip.startswith("Trial")]
    assert [(mark.at, mark.look) for mark in drawn] == [
        *(((hops, fitness), "dot") for fitness, hops in VALUES),
        ((20.0, 0.0), "failed"),  # of a random search: a cross
    ]
    assert drawn[0].tip == "Trial 0, generation 0: fitness 0.9, hops 12"
    points = of_kind(scene, Group, "cell")
    assert [point.tip for point in points] == [
        "Point 0, trial 0 of data flow space: fitness 0.9, hops 12",
        "Point 1, trial 1 of data flow space: fitness 0.5, hops 6; held out: fitness 0.25, hops 6; this model",
    ]
    assert [[mark.look for mark in of_kind(point, Symbol)] for point in points] == [["point"], ["chosen", "point"]]
    assert [of_kind(point, Symbol)[-1].at for point in points] == [(12.0, 0.9), (6.0, 0.5)]
    assert list(of_kind(scene, Line, "median")[0].points) == [(6.0, 0.5), (12.0, 0.9)]
    (parent, *_) = of_kind(scene, Symbol, "parent")
    assert (parent.at, parent.tip) == ((7.0, 0.1), "a, b: fitness 0.1, hops 7")
    assert {"fitness (share)", "hops", "a, b"} <= set(words(scene))


def test_there_is_no_half_generation_or_hop() -> None:
    """Below a picture of few generations, or of paths of nearly the same length, stand whole numbers only."""
    trials = [Trial("dfs", k, 0, -1.0 - k, others={"hops": 7.0 + k}) for k in range(3)]
    points = [Point(0, "dfs", 0, {"fitness": -1.0, "hops": 7.0}, {}, True)]
    spread = spread_scene(generations(of_stage(SEARCH, "ps")), 0, (-7.0, 0.0), "ps")
    for scene, expected in ((spread, ["0", "1", "2"]), (front_scene(trials, points, OBJECTIVES, {}), ["7", "8", "9"])):
        below = [text.words for text in of_kind(scene, Text) if text.anchor == "middle" and text.shift == (0, 17)]
        assert below == expected


def test_ticks_are_round_and_inside() -> None:
    """Axis labels are round numbers within the range."""
    assert ticks(-11.3, 0.2, 6) == [-10.0, -8.0, -6.0, -4.0, -2.0, 0.0]
    assert ticks(0, 600, 8) == [0, 100, 200, 300, 400, 500, 600]
    assert ticks(1.0, 1.0, 5)


def rows_of(scene: Scene) -> dict[int, float]:
    """The row of the lowest layer of each source, by the bars of its layers."""
    groups = [mark for mark in of_kind(scene, Group) if of_kind(mark, Rect, "used") + of_kind(mark, Rect, "unused")]
    return {int(group.colour[1:]): min(bar.at[1] for bar in of_kind(group, Rect)) for group in groups}


def test_symbols_are_the_terms_of_the_path() -> None:
    """Each term has a symbol of its source at its hop and on its layer's row, as wide as the scale, hollow below 0."""
    scene = path_scene(LayerPath.parse(HOPS, SCALES), ["a", "b"], [6, 6])
    rows = rows_of(scene)
    assert rows[1] > rows[0] + 6
    hops = of_kind(scene, Group, "hop")
    assert [hop.tip.split(":")[0] for hop in hops] == [f"Hop {k}" for k in range(1, 8)]
    marks = {source: [m for hop in hops for m in of_kind(hop, Symbol) if m.colour == f"s{source}"] for source in (0, 1)}
    assert [m.at for m in marks[0]] == [(h, rows[0] + layer) for h, layer in [(1, 0), (2, 1), (3, 2), (5, 3), (7, 5)]]
    assert [m.at for m in marks[1]] == [(h, rows[1] + layer) for h, layer in [(4, 3), (5, 4), (6, 4)]]
    assert {m.shape for m in marks[0]} == {"circle"}
    assert {m.shape for m in marks[1]} == {"square"}
    assert [m.size / marks[0][0].size for m in marks[0]] == pytest.approx([1.0, 0.9, 1.4, 1.1, 1.0])
    assert [m.size / marks[0][0].size for m in marks[1]] == pytest.approx([0.5, 1.1, 0.7])
    assert [m.look for m in marks[1]] == ["markshape", "markshape", "markshape hollow"]


def test_a_sum_says_its_terms() -> None:
    """A hop of two terms is one thing to press with a symbol on each layer and its weights in the words."""
    scene = path_scene(LayerPath.parse(["0:0*0.25 + 1:1*-2"]), ["a", "b"], [2, 2], selected=0)
    (hop,) = of_kind(scene, Group, "hop")
    assert hop.tip == (
        f"Hop 1: a, layer 0 ({TIMES} 0.25) + b, layer 1 ({TIMES} {MINUS}2), scale 1, adds 0.14 + 1.1 of what its layers would"
    )
    assert len(of_kind(hop, Symbol)) == 2
    assert (hop.hop, hop.selected) == (0, True)
    assert of_kind(path_scene(LayerPath.parse("0:0"), ["a"], [1]), Group, "hop")[0].hop is None


def test_a_line_is_as_wide_as_what_its_hop_adds() -> None:
    """Gates come back from the scales that they stand for, sums included, and are the widths of the lines, one for a term."""
    slots = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    path = gate_path(slots, [0.8, 0.0, 0.5, 0.25, 0.4, 0.0], [0, 1, 2, 2, 3, 4])
    assert [[pytest.approx(gate) for gate in each] for each in ([0.8], [0.5, 0.25], [0.4])] == path.added(gated=True)
    lines = of_kind(path_scene(path, ["a", "b"], [3, 3]), Line, "flow")
    lines = [line for line in lines if line.colour != "grey"]  # those of the legend
    assert [line.width for line in lines] == pytest.approx([4.0, 2.5, 1.25, 2.5, 1.25, 2.0])
    assert [line.colour for line in lines] == ["s0", "s0", "s1", "s0", "s1", "s0"]
    assert LayerPath.parse("0:0*2, 0:1", [0.5, -3.0]).added(gated=False) == [[1.0], [3.0]]
    assert LayerPath.parse("0:0-2", [1.0, 0.0, 2.0]).added(gated=True) == [[1.0], [0.0], [2.0]]


def test_lines_lead_from_hop_to_hop() -> None:
    """A serial hop is joined to the one before; the lanes of a sum meet half way to the next hop."""
    scene = path_scene(LayerPath.parse("0:0, 0:1 + 1:0, 0:2"), ["a", "b"], [3, 1])
    rows, lanes = rows_of(scene), [list(line.points) for line in of_kind(scene, Line, "flow") if line.colour != "grey"]
    join = (2.5, (1 + rows[1]) / 2)
    assert lanes == [
        [(0.5, 0), (1, 0)],
        [(1, 0), (2, 1)],
        [(1, 0), (2, rows[1])],
        [(2, 1), join],
        [(2, rows[1]), join],
        [join, (3, 2)],
    ]


def test_skipped_layers_are_grey_and_unused_sources_are_named() -> None:
    """The rows of visited layers have their source's colour, those of the others none; a source without any is only named."""
    scene = path_scene(LayerPath.parse(HOPS), ["a", "b", "c"], [6, 6, 4])
    rows = rows_of(scene)
    assert [bar.at[1] - rows[0] for bar in of_kind(scene, Rect, "unused") if bar.at[1] < rows[1]] == [4]
    assert [bar.at[1] - rows[1] for bar in of_kind(scene, Rect, "unused") if bar.at[1] >= rows[1]] == pytest.approx(
        [0, 1, 2, 5]
    )
    assert {"a   5 of 6 layers", "b   2 of 6 layers", "not on the path: c"} <= set(words(scene))


def test_the_legend_shows_the_sizes_that_are_drawn() -> None:
    """The legend's symbols are as wide as those of the scale they are named after."""
    scene = path_scene(LayerPath.parse(HOPS, SCALES), ["a", "b"], [6, 6], gated=False)
    one = of_kind(of_kind(scene, Group, "hop")[0], Symbol)[0].size
    legend = [mark for mark in scene.panels[-1].marks if isinstance(mark, Symbol)]
    assert [mark.size / one for mark in legend] == pytest.approx([1.4, 1.0, 0.7])
    assert legend[-1].look == "markshape hollow"
    assert {"1.4", "1", f"{MINUS}0.7", "scale"} <= set(words(scene))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("hops", [1, 7, 130])
def test_a_path_holds_every_hop_inside_its_frame(hops: int, width: int) -> None:
    """For one hop, seven or 130 there is a group per hop inside the frame, whatever the width of the screen."""
    path = LayerPath.of([(k % 2, k % 32) for k in range(hops)], [0.5 + (k % 7) / 7 for k in range(hops)])
    scene = path_scene(path, ["a", "b"], [32, 32], width=width)
    assert len(of_kind(scene, Group, "hop")) == hops
    assert scene.height < 900
    assert scene.width <= width or scene.scrolls
    axes = scene.panels[0].axes
    for hop in of_kind(scene, Group, "hop"):
        for mark in of_kind(hop, Symbol):
            assert mark.size < axes.x(mark.at[0]) < scene.width - mark.size
            assert mark.size < axes.y(mark.at[1]) < scene.height - mark.size


def test_the_longest_path_fits_a_file() -> None:
    """Where nothing scrolls, 4,096 hops are as wide as the picture."""
    path = LayerPath.of([(k % 3, k * 7 % 32) for k in range(4096)])
    scene = path_scene(path, ["a", "b", "c"], [32] * 3, width=None)
    assert scene.width <= WIDE
    assert len(of_kind(scene, Group, "hop")) == 4096


MERGE = {
    "method": "dare_ties",
    "options": {"lambda": 1.0, "t": {"blocks.0": 0.5}},
    "parameters": [
        {"weight": {"head": 0.25, "blocks.10": -0.5, "blocks.2": 1.5, "embed": 1}, "density": 0.3},
        {"weight": 0.75},
    ],
}


def heat(merge: Any, labels: Sequence[str] = ("a", "b"), width: int = WIDE) -> Scene:
    """The heat map of a merge."""
    return weights_scene(weights_of(merge, labels), width)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_heat_map_holds_every_number(width: int) -> None:
    """Each weight and density is one cell with its number, in the order of the layers, wide and narrow."""
    tips = [cell.tip for cell in of_kind(heat(MERGE, width=width), Group, "cell")]
    row = [tip for tip in tips if tip.startswith("a: weight")]
    assert row == ["a: weight, embed: 1", "a: weight, 2: 1.5", f"a: weight, 10: {MINUS}0.5", "a: weight, head: 0.25"]
    assert {"b: weight, 2: 0.75", "a: density, head: 0.3", "t, 0: 0.5"} <= set(tips)


def test_cells_are_in_the_row_of_their_source_and_the_column_of_their_group() -> None:
    """Columns go in the order of the layers; a negative value is outlined; the strength goes with the size of the value."""
    cells = of_kind(heat(MERGE), Group, "cell")
    (minus,) = (rect for cell in cells for rect in of_kind(cell, Rect, "minus"))
    assert minus.at == (3, 0)  # embed, 0, 2, 10, head
    assert minus.strength == pytest.approx(0.25 + 0.75 / 3)
    strengths = {cell.tip: of_kind(cell, Rect)[0].strength for cell in cells}
    assert strengths["a: weight, 2: 1.5"] == strengths["a: density, 2: 0.3"] == pytest.approx(0.5)  # text is readable on it
    assert {cell.colour for cell in cells if cell.tip.startswith("b: ")} == {"s1"}


def test_a_group_takes_the_value_of_a_wider_group_or_of_all_others() -> None:
    """Where sources are cut into other groups, each column still has the number that counts there."""
    wide = {"weight": {"embed": 0.5, "blocks.0-3": 0.1, "default": 0.9}}
    fine = {"weight": {"blocks.0-1.attn": 0.2, "blocks.2-3": 0.3}}
    weights = weights_of({"method": "linear", "parameters": [wide, fine]}, ["a", "b"])
    assert weights.groups == ["embed", "blocks.0-1.attn", "blocks.0-3", "blocks.2-3", "default"]
    assert [weights.rows[0].at(group) for group in weights.groups] == [0.5, 0.1, 0.1, 0.1, 0.9]
    assert [weights.rows[1].at(group) for group in weights.groups] == [None, 0.2, None, 0.3, None]


def test_a_whole_model_merge_is_a_cell_per_source() -> None:
    """A number for the whole model, or a default alone, is one column; a global number such as slerp's t is a row."""
    part = {"method": "ties", "parameters": [{"weight": {"default": 0.6}}, {"weight": 0.7}]}
    assert [cell.tip for cell in of_kind(heat(part), Group, "cell")] == [
        "a: weight, all layers: 0.6",
        "b: weight, all layers: 0.7",
    ]
    assert [cell.tip for cell in of_kind(heat({"method": "slerp", "options": {"t": 0.25}}), Group, "cell")] == [
        "t, all layers: 0.25"
    ]
    assert weights_of({"method": "linear", "options": {"normalize": True}}, ["a"]).rows == []


def test_values_per_tensor_are_a_row_for_each_kind_of_tensor() -> None:
    """Where each tensor has a weight, rows are kinds of tensors and columns layers."""
    tensors = {
        f"model.layers.{k}.{name}.weight": k + shift for k in (0, 1) for name, shift in (("mlp.up_proj", 0.5), ("q_proj", 1))
    }
    weights = weights_of({"method": "linear", "parameters": [{"weight": tensors}]}, ["a"])
    assert [(row.name, dict(row.values)) for row in weights.rows] == [
        ("a: up_proj", {"blocks.0": 0.5, "blocks.1": 1.5}),
        ("a: q_proj", {"blocks.0": 1, "blocks.1": 2}),
    ]
    assert set(weights.most.values()) == {2.0}


def test_what_is_the_bases_is_said_and_not_drawn() -> None:
    """A weight of 0 for all tensors that no group names is a word in the title; any other is a column."""

    def shown(rest: float) -> tuple[str, bool]:
        said = words(heat({"method": "ties", "parameters": [{"weight": {"blocks.0": 1.0, "default": rest}}]}, ["a"]))
        return next(text for text in said if "ties" in text), "all others" in said

    assert shown(0.0) == ("ties: everything else is the base's", False)
    assert shown(0.5) == ("ties", True)


def test_axes_put_numbers_between_their_edges() -> None:
    """The ends of a range are at the edges, whichever way it goes, and an empty range is no error."""
    axes = Axes(10, 20, 110, 220, (0, 4), (2, -2))
    assert axes.spot((0, 2)) == (10, 220)
    assert axes.spot((4, -2)) == (110, 20)
    assert axes.spot((1, 0)) == (35, 120)
    assert Axes(0, 0, 1, 1, (3, 3), (3, 3)).spot((3, 3)) == (0, 1)


def test_marks_of_a_scene_are_walked_in_the_order_of_painting() -> None:
    """Groups come before their marks, the marks of later panels last."""
    inner: list[Mark] = [Text((0, 0), "a"), Text((0, 0), "b")]
    axes = Axes(0, 0, 1, 1, (0, 1), (0, 1))
    scene = Scene(1, 1, [Panel(axes, [Group(inner)]), Panel(axes, [Text((0, 0), "c")])], "")
    assert [mark.words if isinstance(mark, Text) else "group" for mark in scene.marks()] == ["group", "a", "b", "c"]


def test_scenes_need_no_painter() -> None:
    """Making a scene imports neither matplotlib nor numpy."""
    program = (
        "import sys; from hf_evomerge.pictures import fitness, front, path, svg, weights\n"
        "print({'matplotlib', 'numpy', 'torch', 'gradio'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
