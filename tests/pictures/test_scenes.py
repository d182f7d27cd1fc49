"""Scenes hold the numbers they were given: marks are where the data say, in the units of the
axes."""

import subprocess
import sys
from itertools import pairwise

import pytest
from scenes import marks_of

from hf_evomerge.pictures.climb import climb_scene
from hf_evomerge.pictures.fitness import fitness_range, fitness_scene
from hf_evomerge.pictures.front import front_scene
from hf_evomerge.pictures.marks import Group, Line, Rect, Symbol, Text
from hf_evomerge.pictures.path import path_scene
from hf_evomerge.pictures.scene import MIDDLE, NARROW, WIDE, Axes, Panel, ticks
from hf_evomerge.pictures.trials import DrawnTrial, FrontPoint, Metric, Moment
from hf_evomerge.pictures.weights import spans, weights_of, weights_scene
from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.routing.gates import gate_path

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
NONE = "\N{EN DASH}"
WIDTHS = (WIDE, MIDDLE, NARROW)
every_width = pytest.mark.parametrize("width", WIDTHS)
HOPS = "0:0-2, 1:3, 0:3*0.6 + 1:4*0.4, 1:4, 0:5"
SCALES = [1.0, 0.9, 1.4, 0.5, 1.1, -0.7, 1.0]


def of_kind(marks, kind, look=""):
    """The marks of a kind, of one look or of all."""
    return [
        mark
        for mark in marks_of(marks)
        if isinstance(mark, kind) and (not look or mark.look.split(" ")[0] == look)
    ]


def words(scene):
    """All that is written on a picture."""
    return [text.words for text in of_kind(scene, Text)]


def trials_of(*fitness):
    """Trials in generations of two."""
    return [DrawnTrial("ps", k, k // 2, value) for k, value in enumerate(fitness)]


def test_the_bold_line_is_the_best_so_far():
    """The line never falls, passes over failed trials, begins with the first that succeeded and
    goes on to the last."""
    scene = fitness_scene(trials_of(None, -2.0, -3.0, None, -1.0, -1.5), {})
    line = of_kind(scene, Line, "best")[0]
    assert list(line.points) == [(2, -2.0), (5, -1.0), (6, -1.0)]
    assert list(line.corners) == [(2, -2.0), (5, -2.0), (5, -1.0), (6, -1.0), (6, -1.0)]


def test_stages_follow_each_other():
    """DFS begins where PS ended; a trial of half the examples costs half an evaluation."""
    half = DrawnTrial("dfs", 0, 0, -0.5, cost=0.5)
    trials = [half, *trials_of(-2.0, None)]
    scene = fitness_scene(trials, {"base": -3.0})
    lines = [line for line in of_kind(scene, Line, "best") if line.tip]
    assert {line.colour: list(line.points) for line in lines} == {
        "ps": [(1, -2.0), (2, -2.0)],
        "dfs": [(2.5, -0.5)] * 2,
    }


@every_width
def test_every_trial_is_a_mark(width):
    """A trial is a dot at its fitness, a failed one a cross on the axis, one below the picture a
    triangle there."""
    trials = trials_of(-3.0, None, -2.0, -90.0, -2.5)
    scene = fitness_scene(trials, {}, width=width)
    low, _ = fitness_range(trials, {})
    marks = of_kind(scene, Symbol)
    assert [(mark.at, mark.look) for mark in marks] == [
        ((1, -3), "dot"),
        ((2, low), "failed"),
        ((3, -2), "dot"),
        ((4, low), "below"),
        ((5, -2.5), "dot"),
    ]
    assert marks[1].tip == "Trial 1: failed"
    assert marks[3].tip == f"Trial 3, generation 1: {MINUS}90"


def test_a_catastrophic_trial_does_not_set_the_limits():
    """A trial at -50 leaves the limits as they are without it, and flat or short searches have
    limits around the best."""
    good = [-1.4, -1.2, -1.3, -1.1, -1.0, -1.05, -0.9, -0.95]
    spoilt = [*good[:5], -50.0, *good[6:]]
    levels = {"base": -1.5}
    limits = fitness_range(trials_of(*good), levels)
    assert fitness_range(trials_of(*spoilt), levels) == limits
    for fitness in ((-1.0,), (0.0, 0.0), (-1.0, -50.0)):
        low, high = fitness_range(trials_of(*fitness), {})
        assert low < max(fitness) < high


@every_width
def test_levels_are_lines_and_their_names_are_apart(width):
    """Every level has a line at its value and its name on it; names of near levels do not
    overlap."""
    levels = {"parent-b": -1.2, "parent-a": -1.201, "base": -3.0}
    scene = fitness_scene(trials_of(-1.4, -1.0), levels, width=width)
    lines = of_kind(scene, Line, "level")
    assert [line.points[0][1] for line in lines] == [*levels.values()]
    axes = scene.panels[0].axes
    names = [text for text in of_kind(scene, Text) if text.words.split(" ")[0] in levels]
    heights = [axes.y(text.at[1]) + text.shift[1] for text in names]
    assert len(heights) == 3
    assert all(after - before >= 14 for before, after in pairwise(heights))


def test_ten_thousand_trials_are_thinned_and_their_best_is_not():
    """A long search has at most 1,500 dots, and the whole line of the best."""
    scene = fitness_scene(trials_of(*(-1000.0 / (k + 1) for k in range(10_000))), {})
    assert 1000 < len(of_kind(scene, Symbol)) <= 1500
    assert of_kind(scene, Line, "best")[0].points[-1] == (10_000, -0.1)


@every_width
def test_a_climb_is_a_bar_for_each_moment(width):
    """Bars end at the heights, those after the moment that is shown are pale, and its own value
    stands over it."""
    steps = [Moment(DrawnTrial("ps", k, k, -1.0), k / 4, 1.0 + k) for k in range(4)]
    scene = climb_scene(steps, 2, "ps", accurate=True, width=width, problems=500)
    bars = of_kind(scene, Rect)
    assert [max(y for _, y in bar.corners) for bar in bars] == [0.0, 0.25, 0.5, 0.75]
    assert [bar.strength > 0.5 for bar in bars] == [True, True, True, False]
    assert {"50 %", "100 %", "500", "1,500", "problems read"} <= set(words(scene))
    assert [(text.at, text.words) for text in of_kind(scene, Text, "name")] == [((2, 0.5), "50 %")]
    flat = climb_scene(steps[:1], 0, "ps", accurate=False, width=width)
    assert len(of_kind(flat, Rect)) == 1


METRICS = (Metric("fitness", "share"), Metric("hops"))
VALUES = [(0.9, 12.0), (0.5, 6.0), (0.4, 9.0)]


@every_width
def test_the_front_holds_trials_points_and_parents_where_their_values_are(width):
    """A mark per trial, a point per model of the front, a ring around the one on show, parents at
    one place under one name."""
    known = [{"fitness": fitness, "hops": hops} for fitness, hops in VALUES]
    trials = [DrawnTrial("dfs", k, 0, each["fitness"], others=each) for k, each in enumerate(known)]
    trials += [DrawnTrial("dfs", 4, 1, None), DrawnTrial("dfs", 5, 1, 0.3)]
    points = [
        FrontPoint(0, "dfs", 0, known[0], {}, False),
        FrontPoint(1, "dfs", 1, known[1], {"fitness": 0.25, "hops": 6.0}, True),
    ]
    parents = {"a": known[2], "b": known[2], "c": {"fitness": 0.2}}
    scene = front_scene(trials, points, METRICS, parents, width)
    drawn = [mark for mark in of_kind(scene, Symbol) if mark.tip.startswith("Trial")]
    assert [(mark.at, mark.look) for mark in drawn] == [
        ((hops, fitness), "dot") for fitness, hops in VALUES
    ]
    assert drawn[0].tip == "Trial 0, generation 0: fitness 0.9, hops 12"
    first, second = of_kind(scene, Group, "cell")
    assert first.tip == "Point 0, trial 0 of data flow space: fitness 0.9, hops 12"
    assert second.tip.endswith("hops 6; held out: fitness 0.25, hops 6; this model")
    assert [(mark.at, mark.look) for mark in of_kind(first, Symbol)] == [((12.0, 0.9), "point")]
    assert [mark.look for mark in of_kind(second, Symbol)] == ["chosen", "point"]
    assert list(of_kind(scene, Line, "median")[0].points) == [(6.0, 0.5), (12.0, 0.9)]
    (parent,) = of_kind(scene, Symbol, "parent")
    assert (parent.at, parent.tip) == ((9.0, 0.4), "a, b: fitness 0.4, hops 9")
    assert {"fitness (share)", "hops", "a, b"} <= set(words(scene))


@every_width
def test_numbers_of_the_front_have_room(width):
    """The model on show has its name, other points a number where it is on no other name; none is
    cut off at the right."""
    values = [{"fitness": -0.01 * k, "hops": 12.0 + 0.01 * k} for k in range(9)]
    values.append({"fitness": -3.0, "hops": 1.0})
    points = [FrontPoint(k, "dfs", k, value, {}, k == 8) for k, value in enumerate(values)]
    scene = front_scene(trials_of(-1.0), points, METRICS, {}, width)
    shown = {text.words: text for text in of_kind(scene, Text, "value")}
    assert {"8, this model", "9"} <= set(shown)
    assert len(shown) < 10
    for text in shown.values():
        left, _ = scene.panels[0].axes.spot(text.at, text.shift)
        assert left + 7 * len(text.words) * (text.anchor == "start") < scene.width


def test_there_is_no_half_hop():
    """Below a picture of paths of nearly the same length stand whole numbers only."""
    trials = [DrawnTrial("dfs", k, 0, -1.0 - k, others={"hops": 7.0 + k}) for k in range(3)]
    points = [FrontPoint(0, "dfs", 0, {"fitness": -1.0, "hops": 7.0}, {}, True)]
    texts = of_kind(front_scene(trials, points, METRICS, {}), Text)
    assert [text.words for text in texts if text.shift == (0, 17)] == ["7", "8", "9"]


def test_ticks_are_round_and_inside():
    """Axis labels are round numbers within the range."""
    assert ticks(-11.3, 0.2, 6) == [-10.0, -8.0, -6.0, -4.0, -2.0, 0.0]
    assert ticks(0, 600, 8) == [0, 100, 200, 300, 400, 500, 600]
    assert ticks(1.0, 1.0, 5)


def rows_of(scene):
    """The row of the lowest layer of each source, by the bars of its layers."""
    sources = [mark for mark in of_kind(scene, Group) if mark.colour]
    return [min(bar.at[1] for bar in of_kind(source, Rect)) for source in sources]


def test_symbols_are_the_terms_of_the_path():
    """Each term has a symbol of its source at its hop and on its layer's row, as wide as the scale,
    hollow below 0."""
    scene = path_scene(LayerPath.parse(HOPS, SCALES), ["a", "b"], [6, 6])
    low, high = rows_of(scene)
    assert high > low + 6
    hops = of_kind(scene, Group, "hop")
    assert [hop.tip.split(":")[0] for hop in hops] == [f"Hop {k}" for k in range(1, 8)]
    marks = [mark for hop in hops for mark in of_kind(hop, Symbol)]
    assert [(mark.colour, mark.at) for mark in marks] == [
        ("s0", (1, low)),
        ("s0", (2, low + 1)),
        ("s0", (3, low + 2)),
        ("s1", (4, high + 3)),
        ("s0", (5, low + 3)),
        ("s1", (5, high + 4)),
        ("s1", (6, high + 4)),
        ("s0", (7, low + 5)),
    ]
    assert all((mark.shape == "square") == (mark.colour == "s1") for mark in marks)
    sizes = [mark.size / marks[0].size for mark in marks]
    assert sizes == pytest.approx([1.0, 0.9, 1.4, 0.5, 1.1, 1.1, 0.7, 1.0])
    assert [mark.look for mark in marks].index("markshape hollow") == 6


def test_a_sum_says_its_terms():
    """A hop of two terms is one thing to press with a symbol on each layer and its weights in the
    words."""
    scene = path_scene(LayerPath.parse(["0:0*0.25 + 1:1*-2"]), ["a", "b"], [2, 2], selected=0)
    (hop,) = of_kind(scene, Group, "hop")
    assert hop.tip == (
        f"Hop 1: a, layer 0 ({TIMES} 0.25) + b, layer 1 ({TIMES} {MINUS}2), scale 1, its "
        "layers' changes count 0.14 + 1.1 times"
    )
    assert len(of_kind(hop, Symbol)) == 2
    assert (hop.hop, hop.selected) == (0, True)
    assert of_kind(path_scene(LayerPath.parse("0:0"), ["a"], [1]), Group, "hop")[0].hop is None


def test_a_line_is_as_wide_as_what_its_hop_adds():
    """Gates come back from the scales that they stand for, sums included, and are the widths of the
    lines, one for a term."""
    slots = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    path = gate_path(slots, [0.8, 0.0, 0.5, 0.25, 0.4, 0.0], [0, 1, 2, 2, 3, 4])
    assert path.added(gated=True) == [pytest.approx([0.8]), pytest.approx([0.5, 0.25]), [0.4]]
    lines = of_kind(path_scene(path, ["a", "b"], [3, 3]), Line, "flow")
    assert [line.width for line in lines] == pytest.approx([4.0, 2.5, 1.25, 2.5, 1.25, 2.0])
    assert [line.colour for line in lines] == ["s0", "s0", "s1", "s0", "s1", "s0"]
    assert LayerPath.parse("0:0*2, 0:1", [0.5, -3.0]).added(gated=False) == [[1.0], [3.0]]
    assert LayerPath.parse("0:0-2", [1.0, 0.0, 2.0]).added(gated=True) == [[1.0], [0.0], [2.0]]


def test_lines_lead_from_hop_to_hop():
    """A serial hop is joined to the one before; the lanes of a sum meet half way to the next
    hop."""
    scene = path_scene(LayerPath.parse("0:0, 0:1 + 1:0, 0:2"), ["a", "b"], [3, 1])
    (_, row) = rows_of(scene)
    join = (2.5, (1 + row) / 2)
    assert [list(line.points) for line in of_kind(scene, Line, "flow")] == [
        [(0.5, 0), (1, 0)],
        [(1, 0), (2, 1)],
        [(1, 0), (2, row)],
        [(2, 1), join],
        [(2, row), join],
        [join, (3, 2)],
    ]


def test_skipped_layers_are_grey_and_unused_sources_are_named():
    """The rows of visited layers have their source's colour, those of the others none; a source
    without any is only named."""
    scene = path_scene(LayerPath.parse(HOPS), ["a", "b", "c"], [6, 6, 4])
    (_, row) = rows_of(scene)
    unused = [bar.at[1] for bar in of_kind(scene, Rect, "unused")]
    assert unused == pytest.approx([4, row, row + 1, row + 2, row + 5])
    assert {"a   5 of 6 layers", "b   2 of 6 layers", "not on the path: c"} <= set(words(scene))


@pytest.mark.parametrize("width", [*WIDTHS, None])
@pytest.mark.parametrize("hops", [1, 7, 130, 4096])
def test_a_path_holds_every_hop_inside_its_frame(hops, width):
    """However many hops there are, each is a group inside the frame, whatever the width of the
    screen; in a file, where nothing scrolls, it is as wide as the picture."""
    path = LayerPath.of(
        [(k % 2, k % 32) for k in range(hops)], [0.5 + (k % 7) / 7 for k in range(hops)]
    )
    scene = path_scene(path, ["a", "b"], [32, 32], width=width)
    assert scene.height < 900
    assert scene.width <= (width or WIDE) or (scene.scrolls and width)
    axes = scene.panels[0].axes
    groups = of_kind(scene, Group, "hop")
    assert len(groups) == hops
    for mark in of_kind(Panel(axes, groups), Symbol):
        assert mark.size < axes.x(mark.at[0]) < scene.width - mark.size
        assert mark.size < axes.y(mark.at[1]) < scene.height - mark.size


def merged(*weights):
    """A weighted sum of sources."""
    parameters = [{"weight": weight} for weight in weights]
    return weights_of({"method": "linear", "parameters": parameters}, "abc"[: len(weights)])


def tips(weights, width=WIDE):
    """What the layers of a picture of weights say."""
    return [cell.tip for cell in of_kind(weights_scene(weights, width), Group, "cell")]


@every_width
def test_a_strip_holds_every_parent_in_every_layer(width):
    """Each parameter has a strip: the embeddings, the layers and the head, with a number of each
    source that has one."""
    own = {"weight": {"head": 0.25, "blocks.1": -0.5, "embed": 1}, "density": 0.3}
    options = {"lambda": 1.0, "t": {"blocks.0": 0.5}}
    merge = {"method": "ties", "options": options, "parameters": [own, {"weight": 0.75}]}
    assert tips(weights_of(merge, "ab"), width) == [
        "embed: a 1, b 0.75",
        f"layer 0: a {NONE}, b 0.75",
        f"layer 1: a {MINUS}0.5, b 0.75",
        "head: a 0.25, b 0.75",
        *(f"{name}: a: density 0.3" for name in ("embed", "layer 0", "layer 1", "head")),
        f"embed: t {NONE}",
        "layer 0: t 0.5",
        *(f"{name}: t {NONE}" for name in ("layer 1", "head")),
    ]


@pytest.mark.parametrize("layers", [12, 13])
def test_a_phone_shows_twelve_layers_without_scrolling(layers):
    """Twelve layers, embeddings and head fit, without numbers that would lie on bars; more layers
    scroll."""
    weight = {"embed": 1, "head": 1} | {f"blocks.{layer}": 0.98 for layer in range(layers)}
    scene = weights_scene(merged(weight, 0.5), NARROW)
    assert (scene.width > NARROW, scene.scrolls) == (layers > 12,) * 2
    assert "0.98" not in words(scene)
    wide = weights_scene(merged(weight, 0.5), WIDE)
    assert (wide.width, "0.98" in words(wide)) == (WIDE, True)


def test_merges_that_share_axes_have_bars_of_one_scale():
    """A bar is as high as in the merge with the greatest number, whichever is drawn."""
    small = merged(0.5)
    great = merged(-2.0)
    among = spans([small, great])
    assert among == {"weight": (-2.0, 0.5)}
    first, second = (weights_scene(each, among=among).panels[0].axes for each in (small, great))
    assert first == second


def test_bars_begin_at_0_and_end_at_their_value():
    """A bar is of its source's colour and beside the other source's; a negative one goes down."""
    scene = weights_scene(merged({"blocks.0": -0.5}, 2.0))
    bars = {bar.colour: bar for bar in of_kind(scene, Rect, "plus")}
    assert sorted(y for _, y in bars["s0"].corners) == [-0.5, 0.0]
    assert sorted(y for _, y in bars["s1"].corners) == [0.0, 2.0]
    assert max(x for x, _ in bars["s0"].corners) < min(x for x, _ in bars["s1"].corners)
    assert scene.panels[0].axes.y_range == (-0.75, 2.0), "room for the number below"
    assert weights_scene(merged(2.0)).panels[0].axes.y_range == (0.0, 2.0)


def test_a_layer_has_the_mean_of_its_matrices():
    """Of weights for tensors the mean of a layer is drawn, without norms; of halves that of both;
    patterns count too."""
    parts = {"mlp.up_proj": 1.0, "self_attn.q_proj": 2.0, "input_layernorm": 90.0}
    tensors = {f"model.layers.1.{name}.weight": value for name, value in parts.items()}
    halves = {"blocks.0-1.attn": 1.0, "blocks.0-1.mlp": 2.0, "default": 0.5}
    assert tips(merged(tensors, halves, {"*up_proj*": 3.0, "default": 1.0})) == [
        f"embed: a {NONE}, b 0.5, c 1",
        f"layer 0: a {NONE}, b 1.5, c 2",
        "layer 1: a 1.5, b 1.5, c 2",
        f"head: a {NONE}, b 0.5, c 1",
    ]


def test_a_group_takes_the_value_of_a_wider_group_or_of_all_others():
    """Where sources are cut into other groups, each line of the table still has the number that
    counts there."""
    weights = merged(
        {"embed": 0.5, "blocks.0-3": 0.1, "default": 0.9},
        {"blocks.0-1.attn": 0.2, "blocks.2-3": 0.3},
    )
    assert weights.groups == ["embed", "blocks.0-1.attn", "blocks.0-3", "blocks.2-3", "default"]
    assert [weights.rows[0].at(group) for group in weights.groups] == [0.5, 0.1, 0.1, 0.1, 0.9]
    assert [weights.rows[1].at(group) for group in weights.groups] == [None, 0.2, None, 0.3, None]


def test_a_whole_model_merge_is_one_column():
    """A number for the whole model, or a default alone, is one column, also slerp's t; switches
    have none."""
    assert tips(merged({"default": 0.6}, 0.7)) == ["all layers: a 0.6, b 0.7"]
    slerp = weights_of({"method": "slerp", "options": {"t": 0.25}}, "ab")
    assert tips(slerp) == ["all layers: t 0.25"]
    assert weights_of({"method": "linear", "options": {"normalize": True}}, ["a"]).rows == []


def test_axes_put_numbers_between_their_edges():
    """The ends of a range are at the edges, whichever way it goes, and an empty range is no
    error."""
    axes = Axes(10, 20, 110, 220, (0, 4), (2, -2))
    assert axes.spot((0, 2)) == (10, 220)
    assert axes.spot((4, -2)) == (110, 20)
    assert axes.spot((1, 0)) == (35, 120)
    assert Axes(0, 0, 1, 1, (3, 3), (3, 3)).spot((3, 3)) == (0, 1)


def test_scenes_need_no_painter():
    """Making a scene imports neither matplotlib nor numpy."""
    program = (
        "import sys; from hf_evomerge.pictures import fitness, front, path, svg, weights\n"
        "print({'matplotlib', 'numpy', 'torch', 'gradio'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
