"""Both painters paint every mark, in the same place, and the same scenes give the same bytes."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from hf_evomerge import EvoMergeError, LayerPath
from hf_evomerge.pictures.marks import Group, Line, Rect, Symbol, Text
from hf_evomerge.pictures.matplotlib_painter import paint_figure, save_scenes
from hf_evomerge.pictures.path import path_scene
from hf_evomerge.pictures.scene import MIDDLE, WIDE, Axes, Panel, Scene
from hf_evomerge.pictures.style import COLOURS, LETTERS, SHAPES, style_sheet
from hf_evomerge.pictures.svg import paint_svg, responsive

ROOT = Path(__file__).parents[2]
AXES = Axes(10, 20, 110, 120, (0, 10), (0, 5))
SPOT = (5, 2.5)
MARKS = {
    "line": Line(((0, 0), (10, 5)), "median", "ps"),
    "steps": Line(((0, 0), (5, 5), (10, 1)), "best", "ps", steps=True),
    "wide line": Line(((0, 1), (10, 5)), "flow", "ps", width=7.0),
    "area": Line(((2, 4), (8, 4), (8, 1), (2, 1)), "plus", "ps"),
    "rectangle": Rect(SPOT, (6, 3), "plus", "ps", strength=0.5),
    **{shape: Symbol(SPOT, 12.0, "point", "ps", shape) for shape in SHAPES},
    "cross": Symbol(SPOT, 12.0, "failed", "ps", "cross"),
    "text": Text(SPOT, "words", "value", "ps"),
    "turned text": Text(SPOT, "words", "value", "ps", "middle", angle=-90),
    "group": Group((Symbol(SPOT, 12.0, "point"),), "cell", "ps", "a point"),
}


CORNERS = {  # in pixels, as AXES put them
    "line": "10.0,120.0 110.0,20.0",
    "area": "30.0,40.0 90.0,40.0 90.0,100.0 30.0,100.0",
    "up": "60.0,56.8 72.0,79.6 48.0,79.6",
}


def scene_of(*marks):
    """A picture of 120 x 140 pixels."""
    return Scene(120, 140, [Panel(AXES, marks)], "a picture")


def patches_of(mark):
    """The patches of a mark in a file."""
    return paint_figure([scene_of(mark)]).axes[0].patches


def svg(html):
    """The picture in a piece of HTML."""
    return ElementTree.fromstring(re.findall(r"<svg.*?</svg>", html, flags=re.S)[0])


@pytest.mark.parametrize("mark", MARKS.values(), ids=MARKS)
def test_every_mark_is_painted_by_both(mark):
    """Each mark is an element with the class of its colour on a page, and pixels of that colour
    inside its axes in a file."""
    (painted,) = svg(paint_svg(scene_of(mark)))
    assert "ev-ps" in painted.attrib["class"].split()
    canvas = FigureCanvasAgg(paint_figure([scene_of(mark)]))
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    inked = np.argwhere(pixels.sum(axis=-1) < 740)
    assert len(inked) > 20
    scale = pixels.shape[1] / 120
    assert (inked.min(axis=0) / scale >= (15, 6)).all()
    assert (inked.max(axis=0) / scale <= (122, 114)).all()
    red, green, blue = min(pixels[tuple(inked.T)], key=sum)
    assert green < min(red, blue)  # purple


@pytest.mark.parametrize("name", CORNERS)
def test_corners_are_where_the_axes_put_them(name):
    """Both painters join the same places."""
    (painted,) = svg(paint_svg(scene_of(MARKS[name])))
    assert painted.attrib["points"] == CORNERS[name]
    (patch,) = patches_of(MARKS[name])
    places = [tuple(map(float, spot.split(","))) for spot in CORNERS[name].split()]
    np.testing.assert_allclose(patch.get_path().vertices[: len(places)], places, atol=0.06)


def test_steps_have_the_corners_of_a_stair():
    """Both painters go across, then up or down."""
    (painted,) = svg(paint_svg(scene_of(MARKS["steps"])))
    assert painted.attrib["d"] == "M10.0,120.0H60.0V20.0H110.0V100.0"
    (patch,) = patches_of(MARKS["steps"])
    corners = [(10, 120), (60, 120), (60, 20), (110, 20), (110, 100)]
    np.testing.assert_allclose(patch.get_path().vertices[: len(corners)], corners)


def test_looks_are_the_same_on_pages():
    """The style sheet fills or draws what a look does, as wide, as dense and in its colour, which
    is that of files."""
    rules = dict(re.findall(r"(\S+) \{ (.*) \}", style_sheet()))
    assert "--ev-2: #00805e; " in rules[".gradio-container"]
    assert rules[".ev-s2"] == "--c: var(--ev-2);"
    route = "fill: none; stroke: var(--ev-grey); stroke-width: 1.2; stroke-opacity: 0.8;"
    assert rules[".ev-route"] == route
    assert rules[".ev-used"] == "fill: var(--c, var(--ev-grey)); fill-opacity: 0.16;"
    assert rules[".ev-pad"] == "fill: transparent;", "it can be pressed"
    assert rules[".ev-level"].endswith("stroke-dasharray: 5 4;")


@pytest.mark.parametrize(
    "mark", [Symbol(SPOT, 4.0, "point", "s2"), Group([Symbol(SPOT, 4.0, "point")], colour="s2")]
)
def test_a_mark_has_its_colour_or_that_of_its_group(mark):
    """In files as on pages."""
    (patch,) = patches_of(mark)
    assert to_hex(patch.get_facecolor()) == COLOURS["s2"]


def test_invisible_pads_are_on_pages_only():
    """A pad can be pressed and is not painted."""
    pad = Rect(SPOT, (1, 1), "pad", tip="here")
    assert svg(paint_svg(scene_of(pad)))[0].attrib["data-tip"] == "here"
    assert not patches_of(pad)


def test_a_page_can_read_and_press_hops():
    """A picture has a label; what has words has a role, a label and a tip; a hop that can be
    selected says which it is."""
    path = LayerPath.parse("0:0, 0:1, 0:2", [1.0, 0.5, -1.5])
    picture = svg(paint_svg(path_scene(path, ["a"], [3], selected=1)))
    assert picture.attrib["role"] == "group"
    label = "Path picture: 3 hops over 3 layers. Arrow keys go from hop to hop."
    assert picture.attrib["aria-label"] == label
    hops = [node.attrib for node in picture.iter() if "data-hop" in node.attrib]
    assert [hop["data-hop"] for hop in hops] == ["0", "1", "2"]
    assert [hop["aria-pressed"] for hop in hops] == ["false", "true", "false"]
    assert {hop["role"] for hop in hops} == {"button"}
    assert all(hop["aria-label"] == hop["data-tip"] for hop in hops)
    assert "ev-selected" in hops[1]["class"]
    assert "ev-negative" in hops[2]["class"]
    plain = [node.attrib for node in svg(paint_svg(path_scene(path, ["a"], [3]))).iter()]
    assert sum(node.get("role") == "img" for node in plain) == 3
    assert not any("data-hop" in node for node in plain)


@pytest.mark.parametrize(
    ("wide", "classes"),
    [
        (WIDE, {"ev-wide ev-large": WIDE, "ev-medium": MIDDLE, "ev-narrow": 348}),
        (MIDDLE, {"ev-wide": MIDDLE, "ev-narrow": 348}),
    ],
)
def test_there_is_a_picture_for_each_width_of_screens(wide, classes):
    """Wide screens, tablets and phones have one each; where the wide one is as narrow as a
    tablet's, one does for both."""
    html = responsive(lambda width: Scene(width, 10, [], "a picture"), wide)
    drawn = re.findall(r'<div class="(ev-[a-rt-z][^"]*)".*?viewBox="0 0 (\d+) ', html)
    assert {name: int(width) for name, width in drawn} == classes


def test_the_same_scenes_give_the_same_bytes(tmp_path):
    """Files do not differ between processes with other hash seeds, other settings of matplotlib or
    another time."""
    program = (
        "import sys, matplotlib; matplotlib.rcParams['font.size'] = float(sys.argv[2])\n"
        "matplotlib.rcParams['text.color'] = 'red'; matplotlib.rcParams['savefig.facecolor'] "
        "= 'red'\n"
        "from hf_evomerge.pictures.fitness import *; from hf_evomerge.pictures.path import *\n"
        "from hf_evomerge.pictures.matplotlib_painter import save_scenes\n"
        "trials = [DrawnTrial('ps', k, k // 2, value) for k, value in enumerate([-2, None, -1])]\n"
        "path = LayerPath.parse('0:0-3, 1:2', [1, .5, 1, 1.2, 1])\n"
        "scenes = [fitness_scene(trials, {'base': -3.}), path_scene(path, ['a', 'b'], [4, 4])]\n"
        "save_scenes(scenes, sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules and matplotlib.rcParams['font.size'] "
        "== float(sys.argv[2])\n"
    )
    for seed, size in (("1", "9"), ("2", "20")):
        environment = {
            "PYTHONHASHSEED": seed,
            "SOURCE_DATE_EPOCH": seed,
            "MPLCONFIGDIR": str(tmp_path),
        }
        command = [sys.executable, "-c", program, str(tmp_path / f"{seed}.png"), size]
        subprocess.run(command, check=True, env=environment, cwd=ROOT)
    first, second = ((tmp_path / f"{seed}.png").read_bytes() for seed in ("1", "2"))
    assert first == second
    assert first[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.jpg", r"a picture is a \.png file, not \.jpg"), ("a", "one without a suffix")],
)
def test_other_suffixes_are_refused(tmp_path, name, said):
    """A file that is no .png is an error that says what to write instead."""
    with pytest.raises(EvoMergeError, match=said):
        save_scenes([scene_of()], tmp_path / name)


def test_words_are_shown_letter_for_letter():
    """A dollar sign in a name is a dollar sign, not the beginning of a formula; every look of words
    can be painted."""
    texts = [Text(SPOT, "a$b_c$", look) for look in (*LETTERS, "tick halo")]
    figure = paint_figure([scene_of(*texts)])
    figure.draw_without_rendering()
    assert {text.get_text() for text in figure.axes[0].texts} == {r"a\$b_c\$"}
