"""Edits of a path: what each does, what is refused, and that the changed recipe is one that the
package reads."""

from urllib.parse import parse_qs, unquote

import edits
import mixing
import pytest
from actions import Actions
from edits import Route
from published import Published, PublishedParent
from recipes import merge_of
from refusals import refused
from served import shown
from showcase import Edit
from texts import SpaceError

from hf_evomerge import EvoMergeError, Recipe

WAY = Route(("0:0", "0:1", "1:1", "0:2*0.5 + 1:2*-1.5"), (1.0, 0.9, 1.1, -0.5))
SOURCES = [{"model": "user/a"}, {"model": "user/b"}]
RECIPE = {"sources": SOURCES, "flow": {"path": list(WAY.hops)}, "seed": 7}


PATH = Published(
    "m", "m", config={"model_type": "evo_merged", "path": ["0:0", "1:1"], "scales": [1.0, 0.5]}
)


def _merge(**fields):
    """A merge of two parents of two layers."""
    return Published(
        "m",
        "m",
        config={"num_hidden_layers": 2},
        recipe=merge_of(*SOURCES, **fields),
        parents=(PublishedParent("a", "a"), PublishedParent("b", "b")),
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


@pytest.mark.parametrize(
    ("group", "value", "said"),
    [
        (mixing.ALL, 99.0, "a number from 0 to 3."),
        (mixing.ALL, -3.0, "a number from 0 to 3."),
        (mixing.ALL, None, "a number from 0 to 3."),
        ("layer 2", 0.5, "no such layers"),
        (None, 0.5, "no such layers"),
        ({"a": 1}, 0.5, "no such layers"),
    ],
)
def test_weights_that_cannot_be_are_explained(group, value, said):
    """A number that no weight is multiplied by, or what is no group of this model's layers, is one
    line, and nothing else changes."""
    edit = Edit(factors=(("layer 1", (0.5, 2.0)),))
    do = Actions(shown(_merge()))
    kept, *_, words, _, undo, count = do.edit("mix 1", edit, (), 4, 1.0, group, 1.0, value)
    assert (kept, undo, count) == (edit, (), 4)
    assert said in words


def test_weights_are_undone_like_hops():
    """A slider on its way is one step to undo, another one a second; reset can be undone, and what
    is kept is a recipe."""
    do = Actions(shown(_merge(weights=[1, 2])))
    edit = Edit()
    undo = ()
    count = 0
    for at, values in ((0, (0.5, 1.0)), (0, (0.25, 1.0)), (1, (0.25, 2.0))):
        state = (edit, undo, count, 1.0, mixing.ALL)
        edit, *_, kept, undo, count = do.edit(f"mix {at}", *state, *values)
    assert edit.factors == ((mixing.ALL, (0.25, 2.0)),)
    assert count == 3
    (text,) = [unquote(part) for part in kept.split('"') if part.startswith("data:text/yaml")]
    recipe = Recipe.from_yaml(text.partition(",")[2])
    assert [part["weight"] for part in recipe.merge.parameters] == [0.25, 4.0]
    seen = []
    for action in ("reset", *["undo"] * 4):
        state = (edit, undo, count, 1.0, mixing.ALL)
        edit, _, _, _, *parts, _, _, undo, count = do.edit(action, *state, 1.0, 1.0)
        assert parts[:2] == list(dict(edit.factors).get(mixing.ALL, (1.0, 1.0)))
        seen.append(parts[:2])
    assert seen == [[1.0, 1.0], [0.25, 2.0], [0.25, 1.0], [1.0, 1.0], [1.0, 1.0]]


NO_LINKS = ["", "{", "[1,2]", "[[],[]]", '[["0:0"],["x"]]', '[["7:7"],[1]]', "[" * 99, None]
NO_FACTORS = ['["layer 2",[1,2]]', '["layer 1",[1]]', '["layer 1",[1,99]]', '["layer 1",[1,true]]']


@pytest.mark.parametrize(
    ("text", "published"),
    [
        *((text, PATH) for text in (*NO_LINKS, "x" * 40_000, '[[["layer 0",[1,1]]]]')),
        *((f"[[{text}]]", _merge()) for text in (*NO_FACTORS, "5")),
    ],
)
def test_a_link_of_somebody_else_is_checked(text, published):
    """What is no edit of this model is one friendly line."""
    with pytest.raises(EvoMergeError):
        Edit.of_link(text, published)


@pytest.mark.parametrize(
    ("edit", "published"),
    [
        (Edit(Route(("1:1", "0:0", "0:0"), (1 / 3, -1.5, 1.0))), PATH),
        (Edit(factors=(("layer 1", (0.5, 2.0)),)), _merge()),
    ],
)
def test_a_link_carries_an_edit(edit, published):
    """What a link says is what was edited, of a path and of a merge; so are those to begin with."""
    ideas = Edit.ideas(published)
    assert len(ideas) == 2
    for each in (edit, *ideas):
        (text,) = parse_qs(each.link[1:])["edit"]
        assert Edit.of_link(text, published).link == each.link
        assert each.changes(published)


def _edited(weights, *factors):
    """The weights of parents in a merge of three layers, times factors; None where it has none."""
    merge = {"method": "linear", "parameters": [{"weight": weight} for weight in weights]}
    changed = mixing.edited(merge, factors, 3)
    return changed and [item["weight"] for item in changed["parameters"]]


def test_the_picture_of_weights_follows_what_a_visitor_changes():
    """Factors multiply the weights of their parent and layers, whatever groups a recipe has;
    without any nothing changes."""
    names = ("model.layers.1.mlp.up_proj", "model.layers.2.mlp.up_proj", "lm_head")
    tensor = {f"{name}.weight": value for name, value in zip(names, (-0.5, 2.0, 1.0), strict=True)}
    weights = [tensor, {"blocks.0-2": 0.5, "head": 1}, 0.25]
    assert _edited(weights) == weights
    every = (mixing.ALL, (0.0, 2.0, 2.0))
    assert _edited(weights, every) == [
        dict.fromkeys(tensor, 0.0),
        {"blocks.0-2": 1.0, "head": 2},
        0.5,
    ]
    layer = ("layer 2", (3.0, 0.5, 0.0))
    first, second, third = _edited(weights, (mixing.ALL, (1.0, 2.0, 1.0)), layer)
    assert list(first.values()) == [-0.5, 6.0, 1.0]
    assert second == {"blocks.0": 1.0, "blocks.1": 1.0, "blocks.2": 0.5, "head": 2.0}
    assert list(third.items()) == [
        ("embed", 0.25), ("blocks.0", 0.25), ("blocks.1", 0.25), ("blocks.2", 0.0), ("head", 0.25),
    ]  # fmt: skip
    ramp = [[0.0, 1.0], {"default": 2}]
    assert _edited(ramp, (mixing.ALL, (2.0, 1.0))) == [[0.0, 2.0], {"default": 2.0}]
    split = _edited(ramp, ("layer 1", (4.0, 0.5)))
    assert [list(weight.values()) for weight in split] == [
        [0.0, 0.0, 2.0, 1.0, 0.0],
        [2.0, 2.0, 1.0, 2.0, 2.0],
    ]


@pytest.mark.parametrize("weights", [[], [{"*": 1.0}], [{"<b>": 1.0}]])
def test_weights_that_cannot_be_turned(weights):
    """A merge without weights of its parents, and keys that name more than some layers."""
    assert _edited(weights, ("layer 1", (2.0,))) is None
