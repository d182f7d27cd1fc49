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
from served import shown
from showcase import Edit
from texts import SpaceError

from hf_evomerge.errors import EvoMergeError
from hf_evomerge.recipes.recipe import Recipe

WAY = Route(("0:0", "0:1", "1:1", "0:2*0.5 + 1:2*-1.5"), (1.0, 0.9, 1.1, -0.5))
SOURCES = [{"model": "user/a"}, {"model": "user/b"}]
RECIPE = {
    "sources": SOURCES,
    "flow": {"path": list(WAY.hops), "scale_target": "mlp_delta"},
    "seed": 7,
}
MERGE = merge_of(*SOURCES, method="slerp")


def test_each_edit_changes_one_hop():
    """Drop, repeat, move and scale act on the selected hop and leave the others as they are."""
    at = WAY.select(1)
    assert at.drop() == Route(("0:0", "1:1", WAY.hops[3]), (1.0, 1.1, -0.5), 1)
    assert at.repeat() == Route(
        ("0:0", "0:1", "0:1", "1:1", WAY.hops[3]), (1.0, 0.9, 0.9, 1.1, -0.5), 2
    )
    assert at.move(1) == Route(("0:0", "1:1", "0:1", WAY.hops[3]), (1.0, 1.1, 0.9, -0.5), 2)
    assert at.move(-1) == Route(("0:1", "0:0", "1:1", WAY.hops[3]), (0.9, 1.0, 1.1, -0.5), 0)
    assert at.scale(1.5).scales == (1.0, 1.5, 1.1, -0.5)
    assert WAY.select(3).drop().selected == 2
    assert WAY.move(-1) == WAY


def test_what_cannot_be_edited_is_refused():
    """The last hop stays, a path has an end, and a hop or a scale that is none is explained."""
    with pytest.raises(SpaceError, match="at least one"):
        Route(("0:0",), (1.0,)).drop()
    with pytest.raises(SpaceError, match="at most"):
        Route(("0:0",) * edits.MAX_HOPS, (1.0,) * edits.MAX_HOPS).repeat()
    for index in (-1, 4, True, None, "1", float("nan"), [0]):
        with pytest.raises(SpaceError, match="no hop"):
            WAY.select(index)
    for scale in (float("nan"), float("inf"), 1e9, None, "1", True):
        with pytest.raises(SpaceError, match="scale of hop 1"):
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
    ["0:0*1e30"],
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
    assert recipe.flow.path == list(changed.hops)
    assert recipe.flow.scales == list(changed.scales)
    assert (recipe.flow.scale_target, recipe.flow.embedding_source, recipe.seed) == (
        "mlp_delta",
        1,
        7,
    )
    assert [ref.model for ref in recipe.sources] == ["user/a", "user/b"]
    assert recipe.built is None


def test_a_changed_model_without_recipe_is_exported_too():
    """Where the repository has no recipe, the sources come from the configuration."""
    config = {
        "sources": [
            {"model": "user/a", "layers": 3, "revision": None},
            {"model": "user/b", "layers": 3},
        ]
    }
    recipe = edits.changed_recipe(Published("m", "m", config=config), WAY)
    assert [ref.model for ref in recipe.sources] == ["user/a", "user/b"]


def test_the_difference_is_said():
    """A visitor reads which hop was changed and how, for each of three changes."""
    labels = ["ja", "maths"]

    def said(after):
        return edits.difference(WAY, after, labels)

    assert said(WAY.select(2)) == "The path is as published."
    assert said(WAY.drop()) == "Hop 1 (ja, layer 0) is dropped."
    assert said(WAY.repeat()) == "Hop 1 (ja, layer 0) runs twice."
    assert said(WAY.repeat().repeat()) == "Hop 1 (ja, layer 0) runs 3 times."
    assert said(WAY.select(2).move(-2)) == "Hop 3 (maths, layer 1) is now hop 1."
    assert said(WAY.scale(2)) == "Hop 1 (ja, layer 0) has scale 2, not 1."
    assert (
        said(WAY.drop().repeat())
        == "Hop 1 (ja, layer 0) is dropped. Hop 2 (ja, layer 1) runs twice."
    )
    assert said(Route(("1:7", *WAY.hops), (1.0, *WAY.scales))) == "Hop 1 (maths, layer 7) is new."
    every = Route(WAY.hops, tuple(scale + 1 for scale in WAY.scales))
    assert said(every).endswith(" And 1 more change.")


def test_a_path_may_be_written_in_ranges():
    """Ranges, forwards and backwards, and repeats are those of recipes; too many hops are refused
    before they are made."""
    way = edits.route(["0:0-2", "1:3-2 x2", "0:1*0.5 + 1:1*0.5"])
    assert way.hops == ("0:0", "0:1", "0:2", "1:3", "1:2", "1:3", "1:2", "0:1*0.5 + 1:1*0.5")
    with pytest.raises(EvoMergeError, match="hops in all"):
        edits.route(["0:0-99999999 x99999"])


def _merge():
    """A merge of two parents on show, without its weights."""
    recipe = merge_of(*SOURCES, weights=[1, 2])
    parents = (PublishedParent("a", "a"), PublishedParent("b", "b"))
    return shown(
        Published("m", "m", config={"num_hidden_layers": 2}, recipe=recipe, parents=parents)
    )


@pytest.mark.parametrize("value", [99.0, -3.0, None])
def test_a_weight_out_of_range_is_explained(value):
    """A number that no weight is multiplied by, or none, is one line, and nothing else changes."""
    edit = Edit(factors=(("layer 1", (0.5, 2.0)),))
    kept, *_, said, _, undo, count = Actions(_merge()).edit(
        "mix 1", edit, (), 4, 1.0, mixing.ALL, 1.0, value, 1.0, 1.0
    )
    assert (kept, undo, count) == (edit, (), 4)
    assert "a number from 0 to 3." in said


@pytest.mark.parametrize("group", ["layer 2", None, {"a": 1}])
def test_layers_that_are_not_there_have_no_weights(group):
    """What is no group of this model's layers is one line, and no edit."""
    kept, *_, said, _, undo, count = Actions(_merge()).edit(
        "mix 0", Edit(), (), 4, 1.0, group, 0.5, 0.5
    )
    assert (kept, undo, count) == (Edit(), (), 4)
    assert "no such layers" in said


def test_weights_are_undone_like_hops():
    """A slider on its way is one step to undo, another one a second; reset can be undone, and what
    is kept is a recipe."""
    do = Actions(_merge())
    edit = Edit()
    undo = ()
    count = 0
    for at, values in ((0, (0.5, 1.0)), (0, (0.25, 1.0)), (1, (0.25, 2.0))):
        edit, *_, kept, undo, count = do.edit(
            f"mix {at}", edit, undo, count, 1.0, mixing.ALL, *values, 1.0, 1.0
        )
    assert edit.factors == ((mixing.ALL, (0.25, 2.0)),)
    assert count == 3
    (text,) = [unquote(part) for part in kept.split('"') if part.startswith("data:text/yaml")]
    recipe = Recipe.from_yaml(text.partition(",")[2])
    assert [part["weight"] for part in recipe.merge.parameters] == [0.25, 4.0]
    edit, *_, undo, count = do.edit("reset", edit, undo, count, 1.0, mixing.ALL, 1.0, 1.0)
    assert edit == Edit()
    seen = []
    for _ in range(4):
        edit, _, _, _, *parts, _, _, undo, count = do.edit(
            "undo", edit, undo, count, 1.0, mixing.ALL, 1.0, 1.0
        )
        seen.append((dict(edit.factors).get(mixing.ALL), parts[:2]))
    assert seen == [
        ((0.25, 2.0), [0.25, 2.0]),
        ((0.25, 1.0), [0.25, 1.0]),
        (None, [1.0, 1.0]),
        (None, [1.0, 1.0]),
    ]


BAD_LINKS = [
    "",
    "{",
    "[1,2]",
    "[[],[]]",
    '[["0:0"],["x"]]',
    '[["7:7"],[1]]',
    "[" * 99,
    "x" * 40_000,
    None,
]
BAD_LINKS += ['[[["layer 0",[1,1]]]]']


@pytest.mark.parametrize("text", BAD_LINKS)
def test_a_link_of_somebody_else_is_checked(text):
    """What is no edit of this model is one friendly line."""
    config = {"model_type": "evo_merged", "path": ["0:0", "1:1"], "scales": [1.0, 0.5]}
    with pytest.raises(EvoMergeError):
        Edit.of_link(text, Published("m", "m", config=config))


def test_a_link_carries_an_edit():
    """What a link says is what was edited, of a path and of a merge."""
    path = Published(
        "m", "m", config={"model_type": "evo_merged", "path": ["0:0", "1:1"], "scales": [1.0, 0.1]}
    )
    edit = Edit(edits.Route(("1:1", "0:0", "0:0"), (1 / 3, -1.5, 1.0)))
    (text,) = parse_qs(edit.link[1:])["edit"]
    assert Edit.of_link(text, path) == edit
    parents = (PublishedParent("a", "a"), PublishedParent("b", "b"))
    merge = Published("m", "m", config={"num_hidden_layers": 2}, recipe=MERGE, parents=parents)
    edit = Edit(factors=mixing.with_factors((), "layer 1", [0.5, 2.0]))
    (text,) = parse_qs(edit.link[1:])["edit"]
    assert Edit.of_link(text, merge) == edit
    for bad in (
        '[[["layer 2",[1,2]]]]',
        '[[["layer 1",[1]]]]',
        '[[["layer 1",[1,99]]]]',
        '[[["layer 1",[1,true]]]]',
        "[[5]]",
    ):
        with pytest.raises(SpaceError, match="cannot be read"):
            Edit.of_link(bad, merge)
    for published in (path, merge):
        assert len(ideas := Edit.ideas(published)) == 2
        assert all(idea.changes(published) for idea in ideas)
        assert all(
            Edit.of_link(parse_qs(idea.link[1:])["edit"][0], published).link == idea.link
            for idea in ideas
        )


def test_the_picture_of_weights_follows_what_a_visitor_changes():
    """Factors multiply the weights of their parent and layers, whatever groups a recipe has;
    without any nothing changes."""
    tensor = {
        "model.layers.1.mlp.up_proj.weight": -0.5,
        "model.layers.2.mlp.up_proj.weight": 2.0,
        "lm_head.weight": 1.0,
    }
    merge = {
        "method": "linear",
        "parameters": [
            {"weight": tensor},
            {"weight": {"blocks.0-2": 0.5, "head": 1}},
            {"weight": 0.25},
        ],
    }

    def weights(*factors):
        changed = mixing.edited(merge, factors, 3)
        return [item["weight"] for item in changed["parameters"]]

    assert weights() == [item["weight"] for item in merge["parameters"]]
    assert weights((mixing.ALL, (0.0, 2.0, 2.0))) == [
        dict.fromkeys(tensor, 0.0),
        {"blocks.0-2": 1.0, "head": 2},
        0.5,
    ]
    first, second, third = weights((mixing.ALL, (1.0, 2.0, 1.0)), ("layer 2", (3.0, 0.5, 0.0)))
    assert list(first.values()) == [-0.5, 6.0, 1.0]
    assert second == {"blocks.0": 1.0, "blocks.1": 1.0, "blocks.2": 0.5, "head": 2.0}
    assert third == {
        "embed": 0.25,
        "blocks.0": 0.25,
        "blocks.1": 0.25,
        "blocks.2": 0.0,
        "head": 0.25,
    }
    ramp = {"method": "linear", "parameters": [{"weight": [0.0, 1.0]}, {"weight": {"default": 2}}]}
    once = mixing.edited(ramp, ((mixing.ALL, (2.0, 1.0)),), 3)
    assert once["parameters"] == [{"weight": [0.0, 2.0]}, {"weight": {"default": 2.0}}]
    split = mixing.edited(ramp, (("layer 1", (4.0, 0.5)),), 3)["parameters"]
    assert [list(item["weight"].values()) for item in split] == [
        [0.0, 0.0, 2.0, 1.0, 0.0],
        [2.0, 2.0, 1.0, 2.0, 2.0],
    ]
    pattern = {"method": "linear", "parameters": [{"weight": {"*": 1.0}}]}
    unknown = {"method": "linear", "parameters": [{"weight": {"<b>": 1.0}}]}
    for other in ({"method": "slerp", "options": {"t": 0.5}}, pattern, unknown):
        assert mixing.edited(other, (("layer 1", (2.0,)),), 3) is None
