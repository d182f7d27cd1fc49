"""The Space's pictures: every number is where it belongs, at any size, and no text becomes markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import charts
import pictures
import pytest
import views
from edits import Route
from evolution import best_line, generations, of_stage, opening, stages, winner, without_first
from published import Objective, Parent, Point, Published, Trial
from texts import Card, cards, message, table

from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.recipes.recipe import Recipe

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
EVIL = "<img src=x onerror=alert(1)>\"'&</svg>"


def _frames(html: str) -> list[ElementTree.Element]:
    """The pictures in a piece of HTML; fails where one is not well-formed."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, flags=re.S)]


class _Tags(HTMLParser):
    """The names of all tags and attributes, as a browser sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes.update(name for name, _ in attrs)


def _way(hops: int) -> Route:
    return Route(tuple(f"{k % 2}:{k % 32}" for k in range(hops)), tuple(0.5 + (k % 7) / 7 for k in range(hops)))


@pytest.mark.parametrize("hops", [1, 7, 130])
def test_a_path_picture_holds_every_hop_inside_its_frame(hops: int) -> None:
    """For one hop, seven or 130 there is a mark per hop with its words, inside the frame, whatever the width of the screen."""
    frames = _frames(pictures.path_picture(_way(hops), ["a", "b"], [32, 32]))
    assert len(frames) == 3
    for frame, most in zip(frames, (pictures.WIDE, None, None), strict=True):
        width, height = map(float, frame.attrib["viewBox"].split()[2:])
        marks = [node for node in frame.iter() if "data-tip" in node.attrib]
        assert [node.attrib["data-tip"].split(":")[0] for node in marks] == [f"Hop {k + 1}" for k in range(hops)]
        assert most is None or width <= most
        assert height < 900
        for shape in (node for node in frame.iter() if node.attrib.get("class") == "ev-markshape" and "cx" in node.attrib):
            assert 0 < float(shape.attrib["cx"]) < width
            assert 0 < float(shape.attrib["cy"]) < height


def test_layers_go_up_and_scales_are_sizes() -> None:
    """A later layer is drawn higher, a larger scale wider, a negative one hollow, and the selected hop is marked."""
    way = Route(("0:0", "0:1", "0:2"), (1.0, 0.5, -1.5), 1)
    frame = _frames(pictures.path_picture(way, ["a"], [3], select=True))[0]
    hops = [node for node in frame.iter() if "data-hop" in node.attrib]
    circles = [next(node for node in hop.iter() if node.tag == "circle") for hop in hops]
    heights = [float(circle.attrib["cy"]) for circle in circles]
    sizes = [float(circle.attrib["r"]) for circle in circles]
    assert heights[0] > heights[1] > heights[2]
    assert sizes[1] < sizes[0] < sizes[2]
    assert [("ev-negative" in hop.attrib["class"]) for hop in hops] == [False, False, True]
    assert [hop.attrib["aria-pressed"] for hop in hops] == ["false", "true", "false"]


def test_a_sum_has_a_mark_per_term() -> None:
    """A hop of two terms is one thing to press with a mark on each layer and its weights in the words."""
    frame = _frames(pictures.path_picture(Route(("0:0*0.25 + 1:1*-2",), (1.0,)), ["a", "b"], [2, 2]))[0]
    marks = [node for node in frame.iter() if "data-tip" in node.attrib]
    assert [node.attrib["data-tip"] for node in marks] == [
        f"Hop 1: a, layer 0 ({TIMES} 0.25) + b, layer 1 ({TIMES} {MINUS}2), scale 1, adds 0.14 + 1.1 of what its layers would"
    ]
    assert len([node for node in marks[0].iter() if node.attrib.get("class") == "ev-markshape"]) == 2


def test_a_line_is_as_wide_as_what_its_hop_adds() -> None:
    """Gates come back from the scales that they stand for, sums included, and are the widths of the lines, one for a term."""
    from hf_evomerge.routing.gates import gate_path

    slots = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    gates, hops = [0.8, 0.0, 0.5, 0.25, 0.4, 0.0], [0, 1, 2, 2, 3, 4]
    path = gate_path(slots, gates, hops)
    way = Route(tuple(map(str, path.hops)), tuple(path.scales))
    assert [[pytest.approx(gate) for gate in each] for each in ([0.8], [0.5, 0.25], [0.4])] == path.added(gated=True)
    frame = _frames(pictures.path_picture(way, ["a", "b"], [3, 3]))[0]
    lines = [node for node in frame.iter() if node.attrib.get("class", "").startswith("ev-flow ev-s")]
    widths = [float(line.attrib["stroke-width"]) for line in lines]
    assert widths == pytest.approx([4.0, 2.5, 1.2, 2.5, 1.2, 2.0], abs=0.06)
    assert [line.attrib["class"][-2:] for line in lines] == ["s0", "s0", "s1", "s0", "s1", "s0"]
    assert LayerPath.parse("0:0*2, 0:1", [0.5, -3.0]).added(gated=False) == [[1.0], [3.0]]
    assert LayerPath.parse("0:0-2", [1.0, 0.0, 2.0]).added(gated=True) == [[1.0], [0.0], [2.0]]


MERGE = {
    "method": "dare_ties",
    "options": {"lambda": 1.0, "t": {"blocks.0": 0.5}},
    "parameters": [
        {"weight": {"head": 0.25, "blocks.10": -0.5, "blocks.2": 1.5, "embed": 1}, "density": 0.3},
        {"weight": 0.75},
    ],
}


def test_a_heat_map_holds_every_number() -> None:
    """Each weight and density is one cell with its number, in the order of the layers, wide and narrow."""
    for frame in _frames(pictures.weights_picture(MERGE, ["a", "b"])):
        tips = [node.attrib["data-tip"] for node in frame.iter() if "data-tip" in node.attrib]
        row = [tip for tip in tips if tip.startswith("a: weight")]
        assert row == ["a: weight, embed: 1", "a: weight, 2: 1.5", f"a: weight, 10: {MINUS}0.5", "a: weight, head: 0.25"]
        assert "b: weight, 2: 0.75" in tips
        assert "a: density, head: 0.3" in tips
        assert "t, 0: 0.5" in tips


def test_densities_have_a_scale_of_their_own() -> None:
    """A density of 0.3 is as strong as the largest weight where it is the largest density."""
    frame = _frames(pictures.weights_picture({"parameters": [{"weight": 3.0, "density": 0.3}]}, ["a"]))[0]
    strength = [node.attrib["fill-opacity"] for node in frame.iter() if "fill-opacity" in node.attrib]
    assert strength == ["0.50", "0.50"]  # and no stronger than the page's text is readable on


def test_what_is_the_bases_is_said_and_not_drawn() -> None:
    """A weight of 0 for all tensors that no group names is a word in the title; any other is a row."""

    def rows(rest: float) -> tuple[str, bool]:
        merge = {"method": "ties", "parameters": [{"weight": {"blocks.0": 1.0, "default": rest}}]}
        said = [node.text for node in _frames(pictures.weights_picture(merge, ["a"]))[0].iter() if node.tag == "text"]
        return str(said[0]), "all others" in said

    assert rows(0.0) == ("ties: everything else is the base's", False)
    assert rows(0.5) == ("ties", True)


def test_the_best_value_keeps_off_dotted_lines() -> None:
    """The number at the end of one stage's line is not across another stage's line of accuracies."""
    accuracies = [0.0, 0.1, 0.35, 0.6, 0.9]  # of the random search, beside a best fitness that does not move
    for shared in accuracies:
        trials = [Trial("ps", k, k, -1.0 if k else -1.5, accuracy=0.0) for k in range(8)]
        trials += [Trial("random", k, 0, -2.0 + k / 10, accuracy=shared) for k in range(8)]
        for frame in _frames(charts.fitness_picture(trials, {})):
            dotted = [node.attrib["d"] for node in frame.iter() if node.attrib.get("class") == "ev-accuracy"]
            heights = [float(part) for line in dotted for part in re.findall(r"(?:,|V)([\d.]+)", line)]
            for node in frame.iter():
                if "ev-value" in node.attrib.get("class", ""):
                    base = float(node.attrib["y"])
                    assert not [y for y in heights if base - 10 < y < base], (shared, node.text)


def _trials() -> list[Trial]:
    fitness = [-5.0, -4.0, None, -6.0, -3.0, -3.5, -2.0, -90.0, -2.5]
    recipe = "{sources: [{model: a}], merge: {method: linear, parameters: [{weight: 1}]}}"
    evolved = [Trial("ps", k, k // 4, value, recipe=recipe) for k, value in enumerate(fitness)]
    return [*evolved, *(Trial("random", k, 0, -7.0 - k) for k in range(3))]


def test_generations_say_spread_and_best() -> None:
    """Quartiles, best trial, best so far and evaluations of each generation; a failed trial has no fitness."""
    grown = generations(of_stage(_trials(), "ps"))
    assert [one.fitness for one in grown] == [(-6.0, -5.0, -4.0), (-90.0, -3.5, -3.0, -2.0), (-2.5,)]
    assert [one.best.number for one in grown if one.best] == [1, 6, 8]
    assert [one.so_far for one in grown] == [-4.0, -2.0, -2.0]
    assert [one.evaluations for one in grown] == [4, 8, 9]
    assert grown[0].quantile(0.25) == -5.5
    assert stages(_trials()) == ["ps", "random"]
    assert best_line(of_stage(_trials(), "ps")) == [(1, -5.0), (2, -4.0), (5, -3.0), (7, -2.0), (9, -2.0)]


def test_the_best_of_batches_is_not_the_best() -> None:
    """The best so far is of trials on all examples, of batches only where there are no others, in lines and generations."""
    scored = [(-3.0, 16), (-1.0, 16), (-2.5, 128), (None, 0), (-0.5, 16), (-2.0, 128)]
    trials = [Trial("ps", k, k // 2, fitness, examples=examples) for k, (fitness, examples) in enumerate(scored)]
    assert best_line(trials) == [(3, -2.5), (6, -2.0), (6, -2.0)]
    grown = generations(trials)
    assert [one.so_far for one in grown] == [None, -2.5, -2.0]
    assert "best so far" in charts.spread_picture(grown, 0, (-3.0, 0.0), "ps")
    assert best_line(trials[:2]) == [(1, -3.0), (2, -1.0), (2, -1.0)]


def test_the_fitness_chart_holds_trials_levels_and_random_search() -> None:
    """There is a mark per trial, failed and far-off ones included, a line per stage, and a dashed line per parent."""
    for frame in _frames(charts.fitness_picture(_trials(), {"a": -4.5, "b": -8.0})):
        kinds = [node.attrib.get("class") for node in frame.iter()]
        tips = [node.attrib["data-tip"] for node in frame.iter() if node.attrib.get("data-tip", "").startswith("Trial")]
        assert len(tips) == 12
        assert kinds.count("ev-failed") == 1
        assert kinds.count("ev-below") >= 1
        assert kinds.count("ev-level") == 2
        said = "".join(frame.itertext())
        assert f"{MINUS}4.5" in said
        assert "random" in said


def test_generations_below_the_picture_are_marked() -> None:
    """A generation that reaches below the picture has a triangle there, and the words above the chart say what that is."""
    grown = generations(of_stage(_trials(), "ps"))
    for lowest, marks in ((-100.0, 0), (-7.0, 1), (-5.5, 2)):
        for frame in _frames(charts.spread_picture(grown, 0, (lowest, 0.0), "ps")):
            assert [node.attrib.get("class") for node in frame.iter()].count("ev-below") == marks
            assert ("below" in "".join(frame.itertext())) == (marks > 0)


def test_the_commands_of_a_local_model_name_its_folder(tmp_path: Path) -> None:
    """What is to be pasted names the model's own folder, also with a space in it, and promises no comparison or rebuild."""
    said = views.commands(Published("/x/my search/model", "my search"))
    assert 'from_pretrained("/x/my search/model")' in said
    assert "hf-evomerge merge '/x/my search/model/recipe.yaml' --out rebuilt" in said
    assert "compare" not in said
    published = Published("user/m", "user/m", revision="0" * 40, parents=(Parent("a", "user/a"),))
    assert "compare" in views.commands(published)
    unpublished = replace(published, parents=(*published.parents, Parent("b", "b", missing="not published")))
    assert "reproduce" not in views.commands(unpublished)
    assert "only its author can build it again: b cannot" in views.commands(unpublished)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "config.json").symlink_to(tmp_path / "model" / "config.json")
    assert f'from_pretrained("{tmp_path}/model")' in views.commands(Published(str(tmp_path / "links"), "links"))


def test_what_runs_first_is_not_in_the_picture_of_all() -> None:
    """A stage that runs before another comes before it in the list, and its fitness, another one, stays out of the picture."""
    trials = [Trial("dfs", 0, 0, 0.5), Trial("ps-first", 0, 0, -3.0), Trial("ps", 0, 0, 0.25)]
    assert stages(trials) == ["ps-first", "ps", "dfs"]
    assert [trial.stage for trial in without_first(trials)] == ["dfs", "ps"]


def test_the_front_holds_trials_points_and_parents_where_their_values_are() -> None:
    """A mark per trial, a point per model of the front, a ring around the one on show, parents at one place under one name."""
    values = [(0.9, 12.0), (0.5, 6.0), (0.4, 9.0), (0.1, 7.0)]
    trials = [Trial("dfs", k, 0, fitness, others={"hops": hops}) for k, (fitness, hops) in enumerate(values)]
    trials += [Trial("random", 0, 0, 0.0, others={"hops": 20.0}), Trial("dfs", 4, 1, None), Trial("dfs", 5, 1, 0.3)]
    found = [{"fitness": fitness, "hops": hops} for fitness, hops in values]
    points = [Point(0, "dfs", 0, found[0], {}, False), Point(1, "dfs", 1, found[1], {"fitness": 0.25, "hops": 6.0}, True)]
    shown = (Objective("fitness", "share"), Objective("hops"))
    parents = {"a": found[3], "b": found[3], "c": {"fitness": 0.2}}
    for frame in _frames(charts.front_picture(trials, points, shown, parents)):
        tips = {node.attrib["data-tip"]: node for node in frame.iter() if "data-tip" in node.attrib}
        assert [tip for tip in tips if tip.startswith("Trial")] == [
            *(f"Trial {k}, generation 0: fitness {fitness}, hops {hops:g}" for k, (fitness, hops) in enumerate(values)),
            "Trial 0, generation 0: fitness 0, hops 20",
        ]
        words = "Point 1, trial 1 of data flow space: fitness 0.5, hops 6; held out: fitness 0.25, hops 6; this model"
        assert list(tips)[-2:] == ["Point 0, trial 0 of data flow space: fitness 0.9, hops 12", words]
        assert "a, b: fitness 0.1, hops 7" in tips
        circles = [[node for node in tips[tip].iter() if node.tag == "circle"] for tip in list(tips)[-2:]]
        assert [[node.attrib["class"] for node in each] for each in circles] == [["ev-point"], ["ev-chosen", "ev-point"]]
        (x0, y0), (x1, y1) = ([float(each[-1].attrib[key]) for key in ("cx", "cy")] for each in circles)
        assert x0 > x1
        assert y0 < y1
        first = next(node for tip, node in tips.items() if tip.startswith("Trial 0"))
        assert [float(first.attrib[key]) for key in ("cx", "cy")] == [x0, y0]
        said = [node.text for node in frame.iter() if node.tag == "text"]
        assert {"fitness (share)", "hops", "a, b"} <= set(said)
        width = float(frame.attrib["viewBox"].split()[2])
        assert all(0 < float(node.attrib["cx"]) < width for node in frame.iter() if node.tag == "circle")
    assert charts.front_picture(trials, points, (shown[0], Objective("tokens")), parents) == ""


def test_the_front_is_shown_where_there_are_several_objectives() -> None:
    """Each further objective has a picture, the points a table in which the one on show stands out; one objective has none."""
    names = ("fitness", "hops", "tokens")
    front = [{"number": k, "stage": "dfs", "trial": k, "winner": k == 1, "search": dict.fromkeys(names, k)} for k in range(3)]
    study: dict[str, object] = {
        "objectives": [{"name": name, "unit": "u", "better": "more"} for name in names],
        "results": {"split": "test", "front": [*front, {"number": "4"}, None, {**front[2], "judged": {"hops": "x"}}]},
    }
    trials = (Trial("dfs", 0, 0, 0.0, others={"hops": 0.0, "tokens": 0.0}),)
    found = Published(model="m", name="m", study=study, trials=trials)
    assert [point.number for point in found.front] == [0, 1, 2, 2]
    assert found.front[-1].judged == {}
    html = views.front_view(found)
    labels = [frame.attrib["aria-label"].split(":")[0] for frame in _frames(html)]
    assert labels == ["fitness over hops"] * 3 + ["fitness over tokens"] * 3
    assert '<th scope="col">hops, test</th>' in html
    assert "<tr class=ev-mark><td>1</td>" in html
    assert views.front_view(Published(model="m", name="m", study={**study, "objectives": []}, trials=trials)) == ""


def test_there_is_no_half_generation_or_hop() -> None:
    """Below a picture of few generations, or of paths of nearly the same length, stand whole numbers only."""
    grown = generations(of_stage(_trials(), "ps"))
    trials = [Trial("dfs", k, 0, -1.0 - k, others={"hops": 7.0 + k}) for k in range(3)]
    points = [Point(0, "dfs", 0, {"fitness": -1.0, "hops": 7.0}, {}, True)]
    html = charts.spread_picture(grown, 0, (-7.0, 0.0), "ps")
    html += charts.front_picture(trials, points, (Objective("fitness"), Objective("hops")), {})
    for frame in _frames(html):
        below = [node.text for node in frame.iter() if node.attrib.get("text-anchor") == "middle" and node.tag == "text"]
        assert [words for words in below if words not in ("generation", "hops")] in (["0", "1", "2"], ["7", "8", "9"])


def test_ticks_are_round_and_inside() -> None:
    """Axis labels are round numbers within the range."""
    assert charts.ticks(-11.3, 0.2, 6) == [-10.0, -8.0, -6.0, -4.0, -2.0, 0.0]
    assert charts.ticks(0, 600, 8) == [0, 100, 200, 300, 400, 500, 600]
    assert charts.ticks(1.0, 1.0, 5)


def test_ten_thousand_trials_stay_light() -> None:
    """A long search is thinned for the picture, but its best line is not."""
    trials = [Trial("dfs", k, k // 128, -1000.0 / (k + 1)) for k in range(10_000)]
    picture = charts.fitness_picture(trials, {})
    assert len(picture) < 900_000
    assert f"best {MINUS}0.1" in picture


def test_no_text_of_a_repository_becomes_markup() -> None:
    """Names, labels, errors, answers and keys from outside are text in every view."""
    from published import Parent

    trials = (
        Trial("ps", 0, 0, -1.0, recipe=f"{{sources: [{{model: a}}], merge: {{method: '{EVIL[:20]}'}}}}"),
        Trial(EVIL, 1, 0, -1.0, path=("0:0",), scales=(1.0,)),
    )
    point = {"number": 0, "stage": EVIL, "trial": 0, "winner": True, "search": {"fitness": 1, EVIL[:40]: 1}}
    study = {
        "levels": {EVIL: -1.0},
        "objectives": [{"name": "fitness", "unit": EVIL}, {"name": EVIL, "unit": EVIL}],
        "parents": {EVIL: {"fitness": 1.0, EVIL[:40]: 2.0}},
        "results": {
            "front": [{**point, "judged": {EVIL: 1.0}}],
            "split": EVIL,
            "examples": EVIL,
            "rows": [{"model": EVIL, "winner": True, "evaluations": EVIL, "accuracy": 0.5}],
        },
    }
    merge = {"method": EVIL, "options": {EVIL: EVIL}, "parameters": [{EVIL: {EVIL: 1.0}}]}
    found = Published(
        model=EVIL,
        name=EVIL,
        revision=EVIL,
        config={"model_type": "evo_merged", "path": ["0:0", "1:0"], "scale_target": EVIL},
        recipe=Recipe.model_validate({"sources": [{"model": EVIL}], "merge": merge}),
        study=study,
        trials=trials,
        card={"license": EVIL},
        parents=(Parent(EVIL, EVIL, EVIL, license=EVIL), Parent(EVIL, EVIL, missing=EVIL)),
        notes=(EVIL,),
    )
    html = views.heading(found) + views.path_view(found) + views.fitness_view(found) + views.licenses(found)
    html += "".join(part for stage in ("ps", EVIL) for part in views.generation_view(found, stage, 0))
    html += (
        cards([Card(EVIL, EVIL, state="error", text=EVIL, note=EVIL)]) + message(EVIL) + table([EVIL], [[EVIL]], caption=EVIL)
    )
    html += pictures.path_picture(_way(3), [EVIL, EVIL], [2, 2], select=True)
    assert "<img" not in html
    tags = _Tags()
    tags.feed(html)
    assert "img" not in tags.names
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert "&lt;img" in html
    assert "of &lt;img" in html  # the front is there too
    _frames(html)


@pytest.mark.parametrize("select", [True, False])
@pytest.mark.parametrize("hops", [1, 2, 5, 13, 130])
def test_the_words_above_a_path_are_not_on_each_other(hops: int, select: bool) -> None:
    """Title, legend, the hint to scroll and the names of the sources each have a place of their own."""
    for scales in ((1.0,) * hops, (0.25, *(1.0,) * hops, 2.77)[:hops]):
        way = Route(tuple(f"{k % 2}:{k % 8}" for k in range(hops)), scales)
        for frame in _frames(pictures.path_picture(way, ["japanese", "maths"], [8, 8], select=select)):
            spots = []
            for node in frame.iter():
                if node.tag == "text" and float(node.attrib["y"]) < 96:
                    size = 6.0 * len(node.text or "")
                    x = float(node.attrib["x"]) - {"end": size, "middle": size / 2}.get(node.attrib["text-anchor"], 0.0)
                    spots.append((x, x + size, float(node.attrib["y"]), node.text))
            for at, (left, right, y, _) in enumerate(spots):
                assert not [one for one in spots[:at] if one[0] < right and left < one[1] and abs(one[2] - y) < 10], spots
            band = min(float(node.attrib["y"]) for node in frame.iter() if node.attrib.get("class") in ("ev-used", "ev-unused"))
            legend = [node for node in frame.iter() if node.attrib.get("class", "").startswith("ev-legend")]
            lowest = [float(one[0].attrib["cy"]) + float(one[0].attrib["r"]) for one in legend]
            assert max(lowest, default=0.0) < band
            said = "".join(frame.itertext())
            assert "tokens" in said
            assert "answer" in said


@pytest.mark.parametrize("path", [(), ("0:0", "1:1")])
def test_the_replay_opens_on_the_published_model(path: tuple[str, ...]) -> None:
    """It is found by its recipe, whatever its sources are called; its generation is marked, and so is another stage's."""

    def recipe(weight: float, source: str) -> str:
        return f"sources:\n- model: {source}\nmerge:\n  parameters:\n  - weight: {weight}\n"

    trials = [Trial("ps", k, k, -1.0 / (k + 1), recipe=recipe(k, "a"), examples=16 if k > 3 else 8) for k in range(8)]
    trials += [Trial("dfs", k, k // 2, -1.0 / (k + 1), path=path, scales=(1.0, k)) for k in range(8) if path]
    stage = "dfs" if path else "ps"
    config = {"model_type": "evo_merged", "path": list(path), "scales": [1.0, 5.0]}
    study = {"splits": {"validation": 9}, "results": {"rows": [{"stage": stage, "winner": True}]}}
    shown = Published(
        "m", "m", config=config, recipe_text=recipe(5, "user/a") + "built:\n  tensors: 3\n", study=study, trials=tuple(trials)
    )
    found = winner(shown)
    assert found is not None
    assert (found.stage, found.number) == (stage, 5)
    assert opening(shown, stage) == found.generation == (2 if path else 5)
    spread, best = views.generation_view(shown, stage, found.generation)
    assert all("the published model" in "".join(frame.itertext()) for frame in _frames(spread))
    assert "validation problems" in spread
    assert "The published model" in best
    assert "Trial 5;" in best
    assert "scored on 8 of 16 examples" in views.generation_view(shown, "ps", 3)[1]
    if path:
        assert opening(shown, "ps") == 7
        spread = views.generation_view(shown, "ps", 7)[0]
        assert "another stage, data flow space" in spread
    unknown = Published("m", "m", study={"results": {"rows": [{"stage": "ps", "winner": True}]}}, trials=tuple(trials))
    assert winner(unknown) is None


def test_a_search_in_steps_has_no_shades_and_a_wild_start_does_not_flatten_it() -> None:
    """Where most generations are one trial only lines are drawn and named, at the height of what the steps reach."""
    trials = [Trial("dfs", k, 0, -20.0 + k / 9) for k in range(20)]
    trials += [Trial("dfs", 20 + k, 1 + k, -0.5 + k / 100) for k in range(30)]
    spread, _ = views.generation_view(Published("m", "m", trials=tuple(trials)), "dfs", 3)
    for frame in _frames(spread):
        assert not [node for node in frame.iter() if node.tag == "polygon"]
        assert "median" not in "".join(node.text or "" for node in frame.iter() if node.tag == "text")
        step = next(node for node in frame.iter() if node.attrib.get("class") == "ev-median")
        heights = [float(spot.split(",")[1]) for spot in step.attrib["points"].split()][1:]
        assert max(heights) - min(heights) > 100
