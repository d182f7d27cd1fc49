"""The pictures show the numbers they were given: marks are where the data say, and the same data give the same bytes."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

from hf_evomerge.errors import EvoMergeError, PathError
from hf_evomerge.plots import (
    Curve,
    fitness_figure,
    path_figure,
    plot_fitness,
    plot_path,
    plot_weights,
    weights_figure,
)
from hf_evomerge.plots.style import COLOURS, GREY, STAGES
from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.recipes.recipe import MergePart
from hf_evomerge.routing.gates import gate_path

HOPS = "0:0-2, 1:3, 0:3*0.6 + 1:4*0.4, 1:4, 0:5"
SCALES = [1.0, 0.9, 1.4, 0.5, 1.1, -0.7, 1.0]


def find(figure: Figure, gid: str) -> Any:
    """The one artist of a figure with this gid."""
    found = figure.findobj(lambda artist: artist.get_gid() == gid)
    assert len(found) == 1, f"{len(found)} artists called {gid}"
    return found[0]


def curve(*fitness: float | None, label: str = "ps", population: int = 2, start: int = 0) -> Curve:
    """A curve of generations of `population` trials."""
    return Curve(label, fitness, tuple(i // population for i in range(len(fitness))), start)


def spots(figure: Figure, source: int) -> list[tuple[float, float]]:
    """Hop and height of each marker of a source."""
    return [(float(x), float(y)) for x, y in find(figure, f"terms:{source}").get_offsets()]


def row(figure: Figure, source: int, layer: int) -> float:
    """The height of a layer's row."""
    bar = find(figure, f"layer:{source}:{layer}")
    return bar.get_y() + bar.get_height() / 2


def test_the_bold_line_is_the_running_maximum() -> None:
    """The best-so-far line never falls, ignores failed trials and begins with the first that succeeded."""
    figure = fitness_figure([curve(None, -2.0, -3.0, None, -1.0, -1.5)], {})
    line = find(figure, "best:ps")
    assert line.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(line.get_ydata(), [np.nan, -2, -2, -2, -1, -1])


def test_every_trial_is_drawn_and_failed_ones_stand_on_the_axis() -> None:
    """A finished trial is a dot at its fitness, a failed one a mark at the bottom, both at the evaluation they were."""
    figure = fitness_figure([curve(-2.0, None, -1.5, -1.0)], {})
    dots = find(figure, "trials:ps").get_offsets()
    assert dots[~np.ma.getmaskarray(dots).any(axis=1) & np.isfinite(dots[:, 1])].tolist() == [[1, -2.0], [3, -1.5], [4, -1.0]]
    failed = find(figure, "failed:ps")
    assert failed.get_offsets()[:, 0].tolist() == [2]
    assert failed.get_offset_transform() == figure.axes[0].get_xaxis_transform()  # heights are fractions of the axis
    assert 0 < failed.get_offsets()[0, 1] < 0.05


def test_the_median_is_that_of_the_generation() -> None:
    """The thin line goes through each generation's median, in the middle of its evaluations, without failed trials."""
    line = find(fitness_figure([curve(-2.0, -1.0, -0.9, -0.5, None, -0.7, population=3)], {}), "median:ps")
    assert line.get_xdata().tolist() == [2.0, 5.0]
    np.testing.assert_allclose(line.get_ydata(), [-1.0, -0.6])
    np.testing.assert_allclose(curve(-2.0, -1.0).generation_quartiles(), [[1.5, -1.75, -1.5, -1.25]])


def test_a_stage_has_one_colour_everywhere() -> None:
    """DFS is as brown alone as after PS, and here as in the Space; no stage has the colour of a source."""
    alone = find(fitness_figure([curve(-2.0, -1.0, label="dfs")], {}), "best:dfs").get_color()
    both = fitness_figure([curve(-2.0, -1.0), curve(-1.0, -0.5, label="dfs", start=2)], {})
    assert alone == find(both, "best:dfs").get_color() != find(both, "best:ps").get_color()
    assert not set(STAGES.values()) & set(COLOURS)
    styles = (Path(__file__).parents[1] / "space_app" / "style.css").read_text(encoding="utf-8")
    for stage, colour in STAGES.items():
        if colour == GREY:
            continue
        assert f"--ev-{stage}: {colour.lower()};" in styles


def test_a_catastrophic_trial_does_not_set_the_limits() -> None:
    """A trial at -50 is marked below the scale and leaves the limits and the medians as they are without it."""
    good = [-1.4, -1.2, -1.3, -1.1, -1.0, -1.05, -0.9, -0.95]
    plain = fitness_figure([curve(*good, population=4)], {"base": -1.5})
    spoilt = fitness_figure([curve(*good[:5], -50.0, *good[6:], population=4)], {"base": -1.5})
    assert spoilt.axes[0].get_ylim() == plain.axes[0].get_ylim()
    assert find(spoilt, "below:ps").get_offsets()[:, 0].tolist() == [6]
    assert len(find(plain, "below:ps").get_offsets()) == 0
    assert find(spoilt, "median:ps").get_ydata()[1] == pytest.approx(np.median([-1.0, -0.9, -0.95]))


def test_levels_are_inside_the_picture_and_named() -> None:
    """Every level has a line at its value, within the limits, and its name; names of near levels do not overlap."""
    levels = {"base": -3.0, "parent-a": -1.201, "parent-b": -1.2}
    figure = fitness_figure([curve(-1.4, -1.2, -1.0)], levels)
    low, high = figure.axes[0].get_ylim()
    for name, value in levels.items():
        assert find(figure, f"level:{name}").get_ydata()[0] == value
        assert low < value < high
    figure.draw_without_rendering()
    texts = [text for text in figure.axes[0].texts if any(name in text.get_text() for name in levels)]
    boxes = sorted(Text.get_window_extent(text).intervaly.tolist() for text in texts)  # without the line that leads to it
    assert len(boxes) == 3
    assert all(below[1] <= above[0] for below, above in pairwise(boxes))


def test_nothing_but_failures_is_an_error() -> None:
    """A study without one finished trial cannot be drawn, and the message says so."""
    with pytest.raises(EvoMergeError, match="no trial has a fitness"):
        fitness_figure([curve(None, None)], {"base": -1.0})


@pytest.mark.filterwarnings("error")  # matplotlib warns of limits that are equal, and widens them by itself
@pytest.mark.parametrize("fitness", [(-1.0,), (0.0, 0.0, 0.0), (-1.0, -50.0)])
def test_short_and_flat_curves_have_limits(fitness: tuple[float, ...]) -> None:
    """One trial, or trials that are all equal, still give limits around the best."""
    low, high = fitness_figure([curve(*fitness)], {}).axes[0].get_ylim()
    assert low < max(fitness) < high


def test_markers_are_the_terms_of_the_path() -> None:
    """Each term has a marker of its source at its hop and on its layer's row, a hop of two terms one in each source."""
    figure = path_figure(LayerPath.parse(HOPS, SCALES), [6, 6], ["a", "b"])
    assert spots(figure, 0) == [(h, row(figure, 0, layer)) for h, layer in [(1, 0), (2, 1), (3, 2), (5, 3), (7, 5)]]
    assert spots(figure, 1) == [(h, pytest.approx(row(figure, 1, layer))) for h, layer in [(4, 3), (5, 4), (6, 4)]]
    assert row(figure, 1, 0) > row(figure, 0, 5) + 1


def test_marker_width_is_proportional_to_the_scale() -> None:
    """Diameters go with the size of the scales, the same for all sources; a negative one is hollow."""
    figure = path_figure(LayerPath.parse(HOPS, SCALES), [6, 6], ["a", "b"])
    first, second = (np.sqrt(find(figure, f"terms:{source}").get_sizes()) for source in (0, 1))
    np.testing.assert_allclose(first / first[0], [1.0, 0.9, 1.4, 1.1, 1.0])
    np.testing.assert_allclose(second / first[0], [0.5, 1.1, 0.7])
    assert find(figure, "terms:1").get_facecolors()[:, :3].min(axis=1).tolist() == [0, 0, 1]


def test_the_legend_shows_the_sizes_that_are_drawn() -> None:
    """The legend's markers are as wide as markers of the scale they are named after."""
    figure = path_figure(LayerPath.parse(HOPS, SCALES), [6, 6], ["a", "b"])
    unit = np.sqrt(find(figure, "terms:0").get_sizes()[0])
    legend = figure.legends[0]
    sizes = [line.get_markersize() for line in legend.get_lines()]
    np.testing.assert_allclose(sizes, np.array([0.7, 1.0, 1.4]) * unit)
    assert [text.get_text() for text in legend.get_texts()] == ["scale \N{MINUS SIGN}0.7", "1", "1.4"]


def test_a_line_joins_every_hop_to_the_next() -> None:
    """Serial hops are joined by one segment, and both terms of a hop to both sides."""
    figure = path_figure(LayerPath.parse(HOPS), [6, 6], ["a", "b"])
    segments = [[(int(x), y) for x, y in segment] for segment in find(figure, "route").get_segments()]
    assert [(a[0], b[0]) for a, b in segments] == [(1, 2), (2, 3), (3, 4), (4, 5), (4, 5), (5, 6), (5, 6), (6, 7)]
    assert segments[0] == [(1, row(figure, 0, 0)), (2, row(figure, 0, 1))]


def test_with_gates_a_line_is_as_wide_as_what_its_hop_adds() -> None:
    """Widths go with the gates that the scales stand for, in the colour of the source that the line leads to."""
    path = gate_path([(0, 0), (1, 1), (0, 2), (1, 3)], [1.0, 0.5, 0.25, 2.0])
    route = find(path_figure(path, [6, 6], ["a", "b"], gated=True), "route")
    np.testing.assert_allclose(np.array(route.get_linewidths()) * 2.0 / 5.0, [0.5, 0.25, 2.0])
    assert [tuple(colour) for colour in route.get_colors()] == [to_rgba(COLOURS[source], 0.6) for source in (1, 0, 1)]


def test_skipped_layers_are_grey() -> None:
    """The rows of visited layers have their source's colour, those of the others none."""
    figure = path_figure(LayerPath.parse(HOPS), [6, 6], ["a", "b"])
    grey = {(s, i) for s in (0, 1) for i in range(6) if len(set(find(figure, f"layer:{s}:{i}").get_facecolor()[:3])) == 1}
    assert grey == {(0, 4), (1, 0), (1, 1), (1, 2), (1, 5)}


def test_long_paths_fit(tmp_path: Path) -> None:
    """130 hops over 96 layers, and the longest path there can be, give pictures of a sane size with a marker per hop."""
    for hops in (130, 4096):
        path = LayerPath.of([(k % 3, k * 7 % 32) for k in range(hops)], [0.4 + k % 11 / 10 for k in range(hops)])
        figure = path_figure(path, [32] * 3, ["a", "b", "c"])
        assert sum(len(spots(figure, source)) for source in range(3)) == hops
        assert max(figure.get_size_inches()) < 16
    plot_path(path, [32] * 3, ["a", "b", "c"], tmp_path / "path.png")
    assert (tmp_path / "path.png").stat().st_size > 10_000


def test_a_path_must_fit_its_sources() -> None:
    """A layer that is not there and a missing label are errors, not wrong pictures."""
    with pytest.raises(PathError, match="layer 9"):
        path_figure(LayerPath.parse("0:9"), [6], ["a"])
    with pytest.raises(EvoMergeError, match="1 labels for 2 sources"):
        path_figure(LayerPath.parse("0:1"), [6, 6], ["a"])


def test_weights_are_drawn_in_the_order_of_the_layers() -> None:
    """Each panel has a source's values from the first block to the last; a plain number or a default counts for every group."""
    weight = {"head": 0.9, "blocks.10": 0.3, "blocks.2-9": 0.2, "blocks.0-1": 0.1, "embed": 0.5}
    parameters: list[Any] = [{"weight": weight, "density": 0.7}, {"weight": {"default": 0.4, "embed": 0.6}, "density": 0.8}]
    figure = weights_figure(MergePart(method="ties", parameters=parameters), ["a", "b"])
    assert [axes.get_ylabel() for axes in figure.axes] == ["weight", "density"]
    assert find(figure, "weight:0").get_ydata().tolist() == [0.1, 0.2, 0.3]
    assert find(figure, "weight:0:ends").get_ydata()[:2].tolist() == [0.5, 0.9]
    assert find(figure, "weight:1").get_ydata().tolist() == [0.4, 0.4, 0.4]
    assert find(figure, "weight:1:ends").get_ydata()[:2].tolist() == [0.6, 0.4]
    assert find(figure, "density:1").get_ydata().tolist() == [0.8, 0.8, 0.8]
    labels = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    assert labels == ["embed", "0-1", "2-9", "10", "head", "others"]


def test_attention_and_mlp_have_a_line_each() -> None:
    """Halves of blocks share a place on the axis and are two lines, the MLP's dashed."""
    weight = {"embed": 0.5, "blocks.0.attn": 0.1, "blocks.0.mlp": 0.2, "blocks.1.attn": 0.3, "blocks.1.mlp": 0.4, "head": 0.5}
    figure = weights_figure(MergePart(method="linear", parameters=[{"weight": weight}]), ["a"])
    attention, mlp = find(figure, "weight:0:attn"), find(figure, "weight:0:mlp")
    assert attention.get_ydata().tolist() == [0.1, 0.3]
    assert mlp.get_ydata().tolist() == [0.2, 0.4]
    assert attention.get_xdata().tolist() == mlp.get_xdata().tolist()
    assert (attention.is_dashed(), mlp.is_dashed()) == (False, True)


def test_name_patterns_stand_apart() -> None:
    """Each pattern has a place of its own beside the blocks, in the order of the recipe, and no other source's number in it."""
    weight = {"embed": 0.5, "*self_attn*": 0.1, "*mlp*": 0.2, "blocks.0": 0.3, "default": 0.4}
    part = MergePart(method="linear", parameters=[{"weight": weight}, {"weight": {"*mlp*": 0.6, "default": 0.7}}])
    figure = weights_figure(part, ["a", "b"])
    labels = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    assert labels == ["embed", "0", "*self_attn*", "*mlp*", "others"]
    assert find(figure, "weight:0:ends").get_ydata().tolist() == [0.5, 0.1, 0.2, 0.4]
    assert find(figure, "weight:0").get_ydata().tolist() == [0.3]
    assert np.array_equal(find(figure, "weight:1:ends").get_ydata(), [0.7, np.nan, 0.6, 0.7], equal_nan=True)


def test_a_whole_model_merge_is_bars() -> None:
    """Without layer groups every source is one bar, as long as its parameter, with its name beside it."""
    part = MergePart(method="ties", parameters=[{"weight": {"default": 0.6}, "density": 0.9}, {"weight": 0.7, "density": 0.3}])
    figure = weights_figure(part, ["a", "b"])
    assert [[bar.get_width() for bar in axes.patches] for axes in figure.axes] == [[0.6, 0.7], [0.9, 0.3]]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_an_option_per_layer_group_has_a_panel() -> None:
    """Slerp's t is drawn over the layers where it is given per group, and as one bar where it is a number."""
    per_group = MergePart(method="slerp", options={"t": {"embed": 0.1, "blocks.0": 0.2, "blocks.1": 0.3, "head": 0.4}})
    figure = weights_figure(per_group, ["a", "b"])
    assert find(figure, "t:-1").get_ydata().tolist() == [0.2, 0.3]
    whole = weights_figure(MergePart(method="slerp", options={"t": 0.25}), ["a", "b"])
    assert [bar.get_width() for bar in whole.axes[0].patches] == [0.25]


def test_a_merge_without_numbers_is_an_error() -> None:
    """A merge that has nothing to draw, and labels that are not one per source, are errors."""
    with pytest.raises(EvoMergeError, match="nothing to draw"):
        weights_figure(MergePart(method="linear", options={"normalize": True}), ["a"])
    with pytest.raises(EvoMergeError, match="1 labels for 2 sources"):
        weights_figure(MergePart(method="linear", parameters=[{"weight": 1.0}, {"weight": 1.0}]), ["a"])


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    """Pictures do not differ between processes with other hash seeds, other settings of matplotlib or another time."""
    program = (
        "import sys, matplotlib; matplotlib.rcParams['xtick.labelsize'] = float(sys.argv[2])\n"
        "from hf_evomerge.plots import *; from hf_evomerge.recipes.layer_path import LayerPath\n"
        "from hf_evomerge.recipes.recipe import MergePart\n"
        "out = sys.argv[1]\n"
        "for suffix in ('.png', '.svg', '.pdf'):\n"
        "    plot_fitness([Curve('ps', (-2., None, -1.), (0, 0, 1))], {'base': -3.}, out + '/fitness' + suffix)\n"
        "    plot_path(LayerPath.parse('0:0-3, 1:2', [1, .5, 1, 1.2, 1]), [4, 4], ['a', 'b'], out + '/path' + suffix)\n"
        "    part = MergePart(method='x', parameters=[{'w': {'embed': 1., 'default': .5}}])\n"
        "    plot_weights(part, ['a'], out + '/weights' + suffix)\n"
        "assert 'matplotlib.pyplot' not in sys.modules and matplotlib.rcParams['xtick.labelsize'] == float(sys.argv[2])\n"
    )
    for seed, size in (("1", "9"), ("2", "20")):
        (tmp_path / seed).mkdir()
        command = [sys.executable, "-c", program, str(tmp_path / seed), size]
        environment = {"PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": seed, "MPLCONFIGDIR": str(tmp_path)}
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[1])
    for name, (suffix, begin) in product(
        ("fitness", "path", "weights"), {".png": b"\x89PNG", ".svg": b"<?xm", ".pdf": b"%PDF"}.items()
    ):
        first, second = ((tmp_path / seed / f"{name}{suffix}").read_bytes() for seed in ("1", "2"))
        assert first == second
        assert first[:4] == begin


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    """A file that is neither .png nor .svg nor .pdf is an error that says what to write instead."""
    with pytest.raises(EvoMergeError, match=r"\.svg or \.pdf file, not \.jpg"):
        plot_fitness([curve(-1.0)], {}, tmp_path / "a.jpg")
    with pytest.raises(EvoMergeError, match="one without a suffix"):
        plot_weights(MergePart(method="x", parameters=[{"w": 1.0}]), ["a"], tmp_path / "a")


def test_names_are_shown_letter_for_letter() -> None:
    """A dollar sign in a name is a dollar sign, not the beginning of a formula."""
    figure = fitness_figure([curve(-1.0, -0.5)], {"a$b_c$": -1.0})
    figure.draw_without_rendering()
    assert any(r"a\$b_c\$" in text.get_text() for text in figure.axes[0].texts)
