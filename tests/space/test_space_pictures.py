"""The Space's pictures: every number is where it belongs, at any size, and no text becomes
markup."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import combinations
from xml.etree import ElementTree

import model_pictures
import pytest
import views
from edits import Route
from published import DrawnTrial, Published, PublishedParent
from reading import read
from texts import Card, cards, message, table

from hf_evomerge.fitness.comparison import Comparison
from hf_evomerge.hub.card import CardFacts, render_card
from hf_evomerge.hub.licenses import ParentLicense, decide_license
from hf_evomerge.pictures.weights import weights_of
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.record import Problem, Record, Results, Row, Settings, StageSummary

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
EVIL = "<img src=x onerror=alert(1)>\"'&</svg>"


def _frames(html):
    """The pictures in a piece of HTML; fails where one is not well-formed."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, flags=re.S)]


class _Tags(HTMLParser):
    """The names of all tags and attributes, as a browser sees them."""

    def __init__(self):
        super().__init__()
        self.names = set()
        self.attributes = set()

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes.update(name for name, _ in attrs)


def _cells(html):
    """The cells of a table."""
    return re.findall(r"<t[dh](?: scope=.\w+.)?>(.*?)</t[dh]>", html)


def test_a_picture_of_a_path_has_a_table_that_says_the_same():
    """There is a picture for each width of screens, and a row per hop with its layers, its scale
    and what it adds."""
    way = Route(("0:0", "0:1 + 1:0*-2"), (1.0, -0.5))
    html = model_pictures.path_picture(way, ["a", "b"], [2, 2])
    labels = [frame.attrib["aria-label"].split(".")[0] for frame in _frames(html)]
    assert labels == ["Path picture: 2 hops over 3 layers"] * 3
    first = ["1", "a, layer 0", "1", "1"]
    layers = f"a, layer 1 + b, layer 0 ({TIMES} {MINUS}2)"
    assert _cells(html)[4:] == [*first, "2", layers, f"{MINUS}0.5", "2 + 4"]
    assert "<table" not in model_pictures.path_picture(way, ["a", "b"], [2, 3], listed=False)


def test_a_merge_has_a_table_that_says_the_same():
    """Each layer group is a row with the numbers of each source; a merge without numbers is
    words."""
    parameters = [{"weight": {"embed": 1, "blocks.0": -0.5}}, {"weight": 0.75}]
    weights = weights_of({"method": "ties", "parameters": parameters}, ["a", "b"])
    html = model_pictures.weights_picture(weights)
    assert len(_frames(html)) == 3
    assert _cells(html)[3:] == ["embed", "1", "0.75", "0", f"{MINUS}0.5", "0.75"]
    assert "<table" not in model_pictures.weights_picture(weights, listed=False)
    none = weights_of({"method": "linear"}, ["a"])
    assert "no numbers to draw" in model_pictures.weights_picture(none)


def test_the_commands_of_a_local_model_name_its_folder(tmp_path):
    """What is to be pasted names the model's own folder, also with a space in it, and promises no
    comparison or rebuild."""
    said = views.commands(Published("/x/my search/model", "my search"))
    assert 'from_pretrained("/x/my search/model")' in said
    assert "hf-evomerge merge '/x/my search/model/recipe.yaml' --out rebuilt" in said
    assert "compare" not in said
    parents = (PublishedParent("a", "user/a"),)
    published = Published("user/m", "user/m", revision="0" * 40, parents=parents)
    assert "compare" in views.commands(published)
    parents = (*parents, PublishedParent("b", "b", missing="not published"))
    unpublished = views.commands(replace(published, parents=parents))
    assert "reproduce" not in unpublished
    assert "only its author can build it again: b cannot" in unpublished
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "config.json").symlink_to(tmp_path / "model" / "config.json")
    linked = views.commands(Published(str(tmp_path / "links"), "links"))
    assert f'from_pretrained("{tmp_path}/model")' in linked


def test_the_front_is_shown_where_there_are_several_objectives():
    """Each further objective has a picture with its points; one objective has none."""
    names = ("fitness", "hops", "tokens")
    search = dict.fromkeys(names, 1)
    point = {"number": 0, "stage": "dfs", "trial": 0, "search": search, "judged": {}}
    fields = {
        "objectives": [{"name": name, "unit": "u"} for name in names],
        "results": {"split": "test", "front": [{**point, "winner": True}]},
    }
    trials = (DrawnTrial("dfs", 0, 0, 0.0, others={"hops": 0.0, "tokens": 0.0}),)
    found = Published("m", "m", record=Record.model_validate(fields), trials=trials)
    frames = _frames(views.front_view(found))
    labels = [frame.attrib["aria-label"].split(":")[0] for frame in frames]
    assert labels == ["fitness over hops"] * 3 + ["fitness over tokens"] * 3
    del fields["objectives"]
    assert views.front_view(replace(found, record=Record.model_validate(fields))) == ""


def test_no_text_of_a_repository_becomes_markup():
    """Names, labels, errors, answers and keys from outside are text in every view."""
    recipe = f"{{sources: [{{model: a}}], merge: {{method: '{EVIL[:20]}'}}}}"
    trials = (
        DrawnTrial("ps", 0, 0, -1.0, recipe=recipe),
        DrawnTrial(EVIL, 1, 0, -1.0, path=("0:0",), scales=(1.0,)),
    )
    values = {"fitness": 1, EVIL[:40]: 1}
    point = {"number": 0, "stage": EVIL, "trial": 0, "winner": True}
    study = {
        "levels": {EVIL: -1.0},
        "licenses": {EVIL: EVIL},
        "objectives": [{"name": "fitness", "unit": EVIL}, {"name": EVIL, "unit": EVIL}],
        "parents": {EVIL: values},
        "results": {
            "front": [{**point, "search": values, "judged": {EVIL: 1.0}}],
            "split": EVIL,
            "verdict": [EVIL],
            "rows": [{"model": EVIL, "winner": True, "accuracy": 0.5}],
        },
    }
    merge = {"method": EVIL, "options": {EVIL: EVIL}, "parameters": [{EVIL: {EVIL: 1.0}}]}
    found = Published(
        model=EVIL,
        name=EVIL,
        revision=EVIL,
        config={"model_type": "evo_merged", "path": ["0:0", "1:0"], "scale_target": EVIL},
        recipe=Recipe.model_validate({"sources": [{"model": EVIL}], "merge": merge}),
        record=Record.model_validate(study),
        trials=trials,
        card={"license": EVIL},
        parents=(PublishedParent(EVIL, EVIL, EVIL), PublishedParent(EVIL, EVIL, missing=EVIL)),
        notes=(EVIL,),
    )
    shown = [views.heading, views.path_view, views.fitness_view, views.licenses]
    html = "".join(view(found) for view in shown)
    for trial in trials:
        html += "".join(views.film_view(replace(found, trials=(trial,)), 0))
    html += cards([Card(EVIL, EVIL, state="error", text=EVIL, note=EVIL)])
    html += message(EVIL) + table([EVIL], [[EVIL]], caption=EVIL)
    way = Route(("0:0", "1:1"), (1.0, 1.0))
    html += model_pictures.path_picture(way, [EVIL, EVIL], [2, 2], select=True)
    tags = _Tags()
    tags.feed(html)
    assert "img" not in tags.names
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert "of &lt;img" in html  # the front is there too
    _frames(html)


@pytest.mark.parametrize("select", [True, False])
@pytest.mark.parametrize("hops", [1, 2, 5, 13, 130])
@pytest.mark.parametrize("ends", [(1.0, 1.0), (0.25, 2.77)])
def test_the_words_above_a_path_are_not_on_each_other(hops, select, ends):
    """Title, the ends of the route and the names of the sources each have a place of their own."""
    scales = (ends[0], *[1.0] * (hops - 2), ends[1])[:hops]
    way = Route(tuple(f"{k % 2}:{k % 8}" for k in range(hops)), scales)
    html = model_pictures.path_picture(way, ["japanese", "maths"], [8, 8], select=select)
    for frame in _frames(html):
        spots = []
        for node in frame.iter("text"):
            size = 6.0 * len(node.text or "")
            moved = {"end": size, "middle": size / 2}.get(node.attrib["text-anchor"], 0.0)
            left = float(node.attrib["x"]) - moved
            spots.append((left, left + size, float(node.attrib["y"])))
        spots = [spot for spot in spots if spot[2] < 96]
        for one, other in combinations(spots, 2):
            apart = one[1] <= other[0] or other[1] <= one[0] or abs(one[2] - other[2]) >= 10
            assert apart, spots
        said = "".join(frame.itertext())
        assert "tokens" in said
        assert "answer" in said


@pytest.mark.parametrize("path", [(), ("0:0", "1:1")])
def test_the_film_ends_on_the_published_model(path):
    """The record names its trial, which is the last moment of its stage; a stage that hardly moves
    gives way to another."""
    trials = [DrawnTrial("ps", k, k, -1.0 / (k + 1), examples=16 if k > 3 else 8) for k in range(8)]
    stage = "dfs" if path else "ps"
    if path:
        scales = (1.0, 2.0)
        way = {"path": path, "scales": scales}
        trials += [DrawnTrial("dfs", k, k, -1.0 / (k + 1), **way) for k in range(8)]
    results = Results(rows=[Row(stage=stage, winner=True)])
    record = Record(splits={"search": 16}, results=results, trial=5)
    shown = Published("m", "m", record=record, trials=tuple(trials))
    found = shown.winner
    assert (found.stage, found.number) == (stage, 5)
    replayed, steps = shown.film
    assert (replayed, steps[-1].trial) == (stage, found)
    film, best = views.film_view(shown, len(steps) - 1)
    for frame in _frames(film):
        assert frame.attrib["aria-label"].endswith(f"{len(steps)} is shown.")
    assert "<b>The published model</b>" in best
    assert f" on the {'16 ' * (not path)}search problems." in best
    assert "ev-runs" in views.film_view(shown, 0, runs=True)[0]
    part = replace(shown, trials=(DrawnTrial("ps", 0, 0, -1.0, examples=8),))
    assert "on the last batches of 8 search problems." in views.film_view(part, 0)[1]
    if path:
        first = record.model_copy(update={"trial": 1})
        still = replace(shown, trials=tuple(trials[:10]), record=first)
        assert (still.film[0], still.film[1][-1].trial.number) == ("ps", 7)
        assert "<b>Trial 7</b>" in views.film_view(still, 99)[1]
    assert replace(shown, record=Record(results=results)).winner is None


def _with(record, given):
    results = record.results.model_copy(update={"contributions": given})
    return record.model_copy(update={"results": results})


def test_what_each_source_gives_is_published(ps):
    """Record, page and card have a row per source, in the same words."""
    record = Record.load(ps / "study.json")
    first, second = record.results.contributions
    assert (first.source, second.source) == ("a", "b")
    idle = Comparison("fitness", -0.25, -0.5, -0.125, 0.01, 9)
    second = second.model_copy(update={"source": EVIL, "left_out": idle})
    record = _with(record, [first, second])
    title = "What each source gives"
    html = views.fitness_view(replace(read(str(ps)), record=record)).partition(title)[2]
    cells = [unescape(cell) for cell in _cells(html)[:6]]
    words = [str(first.left_out), "-0.250 (-0.500 to -0.125), p = 0.01"]
    shown = [text.replace("-", MINUS) for text in words]
    assert cells == ["source", "fitness lost without it", "a", shown[0], EVIL, shown[1]]
    license = decide_license([ParentLicense("a", "mit")])
    card = render_card(replace(CardFacts.of_folder(ps), study=record), "u/m", license)
    lines = [line for line in card.partition(title)[2].splitlines() if line.startswith("|")][:4]
    assert lines[0] == "| source | fitness lost without it |"
    assert lines[2].startswith(f"| a | {words[0]} |")
    assert lines[3].endswith(f" | {words[1]} |")
    assert "<img" not in html + lines[3]
    without = Published("m", "m", record=_with(record, []))
    assert title not in views.results_table(without)


def test_a_card_says_what_its_model_solves():
    """How many problems, with a bar; what is less needed is in a tip; who was not asked says so."""
    answer = Card("m", "evolved", state="known", text="10", tokens=4, seconds=2.0, wanted="11")
    shown = cards([replace(answer, solved=(486, 500, "unseen problems"))])
    assert "<b>486</b> of 500 unseen problems" in shown
    assert "width:97.2%" in shown
    (tip,) = re.findall(r'data-tip="(.*?)"', shown)
    assert tip == "right would be “11”; 4 tokens in 2.00 s, 2 a second; answered in advance"
    assert "not asked" in cards([Card("m", state="unasked")])


@pytest.mark.parametrize(
    ("right", "algorithm", "verdict"),
    [
        (50, "cma", "You beat evolution by 1 of 50 unseen problems."),
        (49, "cma", "A draw: both solve 49 of 50 unseen problems."),
        (2, "cma", "Evolution leads by 47 of 50 unseen problems."),
        (2, "gradient", "The search leads by 47 of 50 unseen problems."),
    ],
)
def test_a_visitors_score_stands_beside_the_searchs(right, algorithm, verdict):
    """Both numbers are there while it is counted; at the end a sentence says who leads."""
    problems = [Problem(prompt=str(k), answer="1") for k in range(50)]
    record = Record(examples=problems, stages=[StageSummary(stage="ps", algorithm=algorithm)])
    published = Published("m", "m", record=record)
    assert verdict in views.scores(published, 50, right, 49)
    counting = views.scores(published, 25, 20, 24)
    assert "of 25 problems …" in counting
    assert counting.count("of 25</span>") == 2


@pytest.mark.parametrize("accuracy", [0.9, 1.0])
def test_a_perfect_score_is_no_dare(accuracy):
    """Where the model solved every unseen problem, nobody is asked to do better."""
    record = Record(
        examples=[Problem(prompt="q", answer="1")],
        results=Results(examples=144, rows=[Row(stage="ps", accuracy=accuracy, winner=True)]),
        settings=Settings(fitness={"task": "generation", "extract": "all"}),
    )
    said = views.dare(Published("m", "m", record=record))
    assert ("Can you do better?" in said) == (accuracy < 1)


def test_a_moment_says_how_many_problems_were_read():
    """The film counts problems, not parts of an evaluation."""
    trials = tuple(DrawnTrial("ps", k, k, -1.0 / (k + 1), cost=0.61, examples=8) for k in range(3))
    published = Published("m", "m", record=Record(splits={"search": 256}), trials=trials)
    assert "<b>Trial 2</b>: 468 problems read so far" in views.film_view(published, 2)[1]


def test_the_problem_that_only_the_merge_solves_says_so():
    """Its gloss, and how many there are of its kind; another prompt has nothing."""
    problems = [
        Problem(prompt=prompt, answer="1", gloss="What?", right={"evolved": True, "base": right})
        for prompt, right in (("q", True), ("telling", False))
    ]
    record = Record(examples=problems, alone=3, results=Results(examples=9))
    shown = Published("m", "m", record=record)
    assert [example.prompt for example in shown.examples] == ["telling", "q"]
    said = "Only the merge solves this one, and 2 more of 9 unseen problems."
    assert said in views.gloss(shown, "telling")
    assert "Only" not in views.gloss(shown, "q")
    assert views.gloss(shown, "other") == ""
