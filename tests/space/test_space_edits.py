"""Edits of a path: what each does, what is refused, and that the changed recipe is one that the
package reads."""

from urllib.parse import parse_qs, unquote

import edits
import pytest
from actions import Actions
from edits import Route
from published import Published
from refusals import refused
from served import shown
from texts import SpaceError

from hf_evomerge import EvoMergeError, Recipe

WAY = Route(("0:0", "0:1", "1:1", "0:2*0.5 + 1:2*-1.5"), (1.0, 0.9, 1.1, -0.5))
SOURCES = [{"model": "user/a"}, {"model": "user/b"}]
RECIPE = {"sources": SOURCES, "flow": {"path": list(WAY.hops)}, "seed": 7}
PATH = Published(
    "m",
    "m",
    config={
        "model_type": "evo_merged",
        "sources": SOURCES,
        "path": ["0:0", "1:1"],
        "scales": [1.0, 0.5],
    },
)


def test_each_edit_changes_one_hop():
    """Drop, repeat, move and scale act on the selected hop and leave the others as they are."""
    at = WAY.select(1)
    last = WAY.hops[3]
    assert at.drop() == Route(("0:0", "1:1", last), (1.0, 1.1, -0.5), 1)
    twice = Route(("0:0", "0:1", "0:1", "1:1", last), (1.0, 0.9, 0.9, 1.1, -0.5), 2)
    assert at.repeat() == twice
    assert at.move(1) == Route(("0:0", "1:1", "0:1", last), (1.0, 1.1, 0.9, -0.5), 2)
    assert at.move(-1) == Route(("0:1", "0:0", "1:1", last), (0.9, 1.0, 1.1, -0.5), 0)
    assert at.scale(1.5).scales == (1.0, 1.5, 1.1, -0.5)
    assert WAY.select(3).drop().selected == 2
    assert WAY.move(-1) == WAY


def test_what_cannot_be_edited_is_refused():
    """The last hop stays, a path has an end, and a hop or a scale that is none is explained."""
    with refused(SpaceError, "at least one"):
        Route(("0:0",), (1.0,)).drop()
    with refused(SpaceError, "at most"):
        Route(("0:0",) * edits.MAX_HOPS, (1.0,) * edits.MAX_HOPS).repeat()
    for index in (-1, 4, True, None, "1", float("nan"), [0]):
        with refused(SpaceError, "no hop"):
            WAY.select(index)
    for scale in (float("nan"), float("inf"), 1e9, None, "1", True):
        with refused(SpaceError, "scale of hop 1"):
            WAY.scale(scale)


NO_PATHS = [
    "0:0",
    [],
    None,
    {"a": 1},
    [1, 2],
    ["0:x"],
    ["0:7"],
    ["-1:0"],
    ["0:0*nan"],
    [None],
    [""],
]


NO_PATHS += [["0:0 + " * 3000 + "0:0"], ["0:0"] * 100_000, ["0:0*" + "9" * 390]]
NO_PATHS += [[" + ".join(["0:0"] * 8)] * 65]
NO_SCALES = [[1, 2], "1", [None], [1e300]]


@pytest.mark.parametrize(
    ("hops", "scales"),
    [*((hops, None) for hops in NO_PATHS), *((["0:0"], scales) for scales in NO_SCALES)],
)
def test_a_path_from_outside_is_checked(hops, scales):
    """Whatever comes through the API is a path through layers that are there, or one line that says
    what is wrong."""
    with pytest.raises(EvoMergeError) as caught:
        edits.route(hops, scales, holds=WAY.hops)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_changed_recipe_loads():
    """The exported YAML is a recipe with the changed path and scales, and everything else as it
    was."""
    changed = WAY.select(0).repeat().scale(0.25)
    published = Recipe.model_validate({**RECIPE, "built": {"tensors": "all"}})
    config = {"scale_target": "mlp_delta", "embedding_source": 1}
    before = Published("m", "m", config=config, recipe=published)
    recipe = Recipe.from_yaml(edits.changed_recipe(before, changed).to_yaml())
    flow = {**config, "path": list(changed.hops), "scales": list(changed.scales)}
    assert recipe == Recipe.model_validate({**RECIPE, "flow": flow})


def test_a_changed_model_without_recipe_is_exported_too():
    """Where the repository has no recipe, the sources come from the configuration."""
    sources = [{"model": "user/a", "layers": 3, "revision": None}, {"model": "user/b"}]
    recipe = edits.changed_recipe(Published("m", "m", config={"sources": sources}), WAY)
    assert [ref.model for ref in recipe.sources] == ["user/a", "user/b"]


EVERY = Route(WAY.hops, tuple(scale + 1 for scale in WAY.scales))


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (WAY.select(2), "The path is as published."),
        (WAY.drop(), "Hop 1 (ja, layer 0) is dropped."),
        (WAY.repeat(), "Hop 1 (ja, layer 0) runs twice."),
        (WAY.repeat().repeat(), "Hop 1 (ja, layer 0) runs 3 times."),
        (WAY.select(2).move(-2), "Hop 3 (maths, layer 1) is now hop 1."),
        (WAY.scale(2), "Hop 1 (ja, layer 0) has scale 2, not 1."),
        (WAY.drop().repeat(), "Hop 1 (ja, layer 0) is dropped. Hop 2 (ja, layer 1) runs twice."),
        (Route(("1:7", *WAY.hops), (1.0, *WAY.scales)), "Hop 1 (maths, layer 7) is new."),
        (EVERY, " And 1 more change."),
    ],
)
def test_the_difference_is_said(after, said):
    """A visitor reads which hop was changed and how, for each of three changes."""
    words = edits.difference(WAY, after, ["ja", "maths"])
    assert words.endswith(said) if after is EVERY else words == said


def test_a_path_may_be_written_in_ranges():
    """Ranges, forwards and backwards, and repeats are those of recipes; too many hops are refused
    before they are made."""
    way = edits.route(["0:0-2", "1:3-2 x2", "0:1*0.5 + 1:1*0.5"])
    assert way.hops == ("0:0", "0:1", "0:2", "1:3", "1:2", "1:3", "1:2", "0:1*0.5 + 1:1*0.5")
    with refused(EvoMergeError, "hops in all"):
        edits.route(["0:0-99999999 x99999"])


def test_edits_are_undone():
    """A slider on its way is one step to undo, that of another hop a second one; reset can be
    undone, and what is kept is a recipe."""
    do = Actions(shown(PATH))
    way = Route.of(PATH)
    undo = ()
    count = 0
    for hop, scale in ((0, 0.5), (0, 0.25), (1, 2.0)):
        way, *_, kept, undo, count = do.edit("scale", way.select(hop), undo, count, scale)
    assert count == 3
    (text,) = [unquote(part) for part in kept.split('"') if part.startswith("data:text/yaml")]
    recipe = Recipe.from_yaml(text.partition(",")[2])
    assert tuple(recipe.flow.scales) == way.scales == (0.25, 2.0)
    seen = []
    for action in ("reset", *["undo"] * 4):
        way, *_, undo, count = do.edit(action, way, undo, count, 1.0)
        seen.append(way.scales)
    assert seen == [(1.0, 0.5), (0.25, 2.0), (0.25, 0.5), (1.0, 0.5), (1.0, 0.5)]


def test_a_model_without_a_path_is_not_edited():
    """Whatever is pressed, nothing changes."""
    do = Actions(shown(Published("m", "m")))
    for action in ("drop", "repeat", "earlier", "later", "scale", "undo", "reset"):
        assert do.edit(action, Route(), (), 0, 1.0)[0] == Route()
    assert do.choose_listed(Route(), 0)[0] == Route()


NO_LINKS = ["", "{", "5", "[1,2]", "[[],[]]", '[["0:0"],["x"]]', '[["7:7"],[1]]', "[" * 99]


@pytest.mark.parametrize("text", [*NO_LINKS, "x" * 40_000, '[[["layer 0",[1,1]]]]'])
def test_a_link_of_somebody_else_is_checked(text):
    """What is no edit of this model is one friendly line."""
    with pytest.raises(EvoMergeError):
        edits.of_link(text, PATH)


def test_a_link_carries_an_edit():
    """What a link says is what was edited; so are the edits to begin with."""
    ideas = edits.ideas(PATH)
    assert len(ideas) == 2
    for each in (Route(("1:1", "0:0", "0:0"), (1 / 3, -1.5, 1.0)), *ideas):
        (text,) = parse_qs(each.link[1:])["edit"]
        assert edits.of_link(text, PATH).link == each.link
        assert each.changes(PATH)
