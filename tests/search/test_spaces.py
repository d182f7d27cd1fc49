"""Search spaces: which genome is which recipe."""

import re

import numpy as np
import pytest
from method_cases import check_part
from refusals import refused
from searches import minimal
from slowly import slow_beyond

from hf_evomerge import EvoMergeError, LayerPath, MergePart, Recipe
from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.strict_yaml import parse_yaml
from hf_evomerge.search.spaces.flow import FlowSpace
from hf_evomerge.search.spaces.parameter import ParameterSpace
from hf_evomerge.search.spaces.space import uniform_average


def _config(sources=2, **more):
    names = [{"model": f"org/source-{i}"} for i in range(sources)]
    given = {"sources": names, "base": "{model: org/base}"}
    return minimal(**{**given, "compute": "{seed: 5}", **more})


def _space(sources=2, unchanged=(), blocks=2, **merge):
    return ParameterSpace(_config(sources, merge=merge), blocks, TENSORS, unchanged)


def _merge(space, genome):
    return space.decode(np.asarray(genome, dtype=float)).merge


NAMES = [
    f"model.layers.{block}.{part}.weight"
    for block in (0, 1)
    for part in ("self_attn.q_proj", "mlp.up_proj")
]
TENSORS = dict.fromkeys(["model.embed_tokens.weight", *NAMES, "lm_head.weight"], 96)  # rows
WEIGHT = {"low": 0.0, "high": 2.0, "elsewhere": 0.25}


def test_only_some_layers_are_searched():
    """The groups that are listed are evolved; everything else has one fixed number."""
    merge = {"groups": ["blocks.1.mlp"], "parameters": {"weight": WEIGHT}}
    assert _merge(_space(**merge), [0.5, 0.0]).parameters == [
        {"weight": {"blocks.1.mlp": 1.0, "default": 0.25}},
        {"weight": {"blocks.1.mlp": 0.0, "default": 0.25}},
    ]
    space = _space(unchanged=[{"model.layers.1.mlp.up_proj.weight"}, set()], **merge)
    assert _merge(space, [0.5]).parameters[0] == {"weight": {"default": 0.25}}


@pytest.mark.parametrize(
    "merge",
    [
        {"groups": "block"},
        {"groups": ["embed", "default"]},
        {"method": "dare_ties", "groups": ["embed"]},
    ],
)
def test_a_fixed_number_needs_what_is_in_no_group(merge):
    """Where every tensor is in a group, or another range says nothing of the rest, that is said."""
    with refused(SearchError, "elsewhere is the number of what is in no group"):
        _space(parameters={"weight": WEIGHT}, **merge)


@pytest.mark.parametrize(
    ("granularity", "groups"),
    [
        ({"groups": "model"}, 1),
        ({"groups": 1}, 3),
        ({}, 34),
        ({"groups": 4}, 6),
        ({"groups": "half"}, 66),
    ],
)
def test_dimension_follows_the_groups(granularity, groups):
    """The genome has one weight per source and group, and every granularity gives a recipe that the
    methods accept."""
    space = _space(3, blocks=32, method="task_arithmetic", **granularity)
    assert [each.parameter for each in space.coordinates] == ["weight"] * 3 * groups
    check_part(_merge(space, space.start().mean), sources=3, has_base=True, layer_count=32)


def test_a_range_is_begun_at_its_start_and_kept():
    """The first mean decodes to each parameter's start, or the middle of its range; the bounds to
    its low and high."""
    weight = {"low": -1, "high": 3, "start": 0.5}
    parameters = {"weight": weight, "density": {"low": 0.25, "high": 0.75}}
    space = _space(method="dare_ties", groups="model", parameters=parameters)
    start = space.start()
    assert start.sigma == pytest.approx(1 / 6)
    assert (start.lower.tolist(), start.upper.tolist()) == ([0.0] * 4, [1.0] * 4)
    for point, *numbers in (
        (start.mean, 0.5, 0.5),
        (start.lower, -1.0, 0.25),
        (start.upper, 3.0, 0.75),
    ):
        wanted = dict(zip(parameters, numbers, strict=True))
        assert _merge(space, point).parameters == [wanted] * 2


def test_each_coordinate_is_one_number_of_the_recipe():
    """Coordinates run over parameters, then sources, then groups from the embeddings to the head,
    each to its own place."""
    space = _space(method="linear", parameters={"weight": {"low": 0, "high": 8}})
    groups = ["embed", "blocks.0", "blocks.1", "head"]
    weights = [each["weight"] for each in _merge(space, np.arange(8) / 8).parameters]
    assert [list(each) for each in weights] == [groups] * 2
    assert [list(each.values()) for each in weights] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_no_two_genomes_share_a_recipe():
    """Changing any coordinate changes the recipe: nothing is folded or clamped on the way."""
    space = _space(3, method="dare_ties", groups="half")
    mean = space.start().mean
    steps = [sign * step for step in np.eye(mean.size) / 4 for sign in (-1, 1)]
    texts = {space.decode(mean + step).to_yaml() for step in [0 * mean, *steps]}
    assert len(texts) == 1 + 2 * mean.size


def test_fixed_parameters_and_options():
    """A number in the file is fixed and takes no coordinate; a range among the options takes one
    for the whole model."""
    options = {"normalize": True, "lambda": {"low": 0.5, "high": 1.5}}
    space = _space(method="dare_ties", groups=1, parameters={"density": 0.25}, options=options)
    assert space.start().mean.size == 2 * 3 + 1
    merge = _merge(space, [0.5] * 6 + [0.25])
    assert merge.options == {"normalize": True, "lambda": 0.75}
    assert [mapping["density"] for mapping in merge.parameters] == [0.25, 0.25]


def test_groups_as_fine_as_one_wants():
    """One number per tensor, or per key of a list, gives recipes with these keys, which the methods
    accept."""
    merge = _merge(_space(groups="tensor"), np.arange(12) / 12)
    assert [list(mapping["weight"]) for mapping in merge.parameters] == [sorted(TENSORS)] * 2
    check_part(merge, sources=2, has_base=True, layer_count=2, names=list(TENSORS))
    keys = ["*mlp*", "blocks.1", "model.embed_tokens.weight", "default"]
    weights = _merge(_space(groups=keys), np.arange(8) / 8).parameters[1]["weight"]
    assert list(weights.items()) == list(zip(keys, [0.5, 0.625, 0.75, 0.875], strict=True))


@pytest.mark.parametrize("sources", slow_beyond([2, 50], [2, 12, 50]))
def test_the_recipe_of_many_sources_can_be_read(sources):
    """Runs of rows are longer where there are many sources: every genome is a recipe within the
    limits of files."""
    large = {
        f"model.layers.{block}.mlp.{name}_proj.weight": 18_944
        for block in range(28)
        for name in ("up", "gate", "down")
    }

    def space_of(**merge):
        return ParameterSpace(_config(sources, merge={"groups": "rows", **merge}), 28, large)

    space = space_of()
    assert 5_000 < len(space.coordinates) <= 20_000
    recipe = space.decode(np.linspace(0.123456, 0.987654, len(space.coordinates)))
    assert parse_yaml(Recipe, recipe.to_yaml(), SearchError) == recipe
    with refused(SearchError, "more than the 28000 numbers and names of a recipe; ta"):
        space_of(rows_per_group=8)


FROZEN = [frozenset({next(iter(TENSORS)), list(TENSORS)[-1]}), frozenset(list(TENSORS)[:3])]


@pytest.mark.parametrize("method", ["task_arithmetic", "dare_ties"])
def test_numbers_that_change_nothing_leave_the_genome(method):
    """Where a source's task vectors are 0 it has no numbers, its default is 0, and the reason is
    said."""
    space = _space(unchanged=FROZEN, method=method)
    groups = [(each.source, each.group) for each in space.coordinates if each.parameter == "weight"]
    assert groups == [(0, "blocks.0"), (0, "blocks.1"), (1, "blocks.1"), (1, "head")]
    merge = _merge(space, space.start().mean)
    check_part(merge, sources=2, has_base=True, layer_count=2, names=list(TENSORS))
    for name in {each.parameter for each in space.coordinates}:
        assert merge.parameters[1][name] == {"blocks.1": 0.5, "head": 0.5, "default": 0.0}
    assert space.notes() == [
        "ps: nothing of source-0 is evolved in embed, head: the tensors are the base's there",
        "ps: nothing of source-1 is evolved in embed, blocks.0: the tensors are the base's there",
    ]


def test_what_is_not_evolved_is_said_once():
    """Adapters of the same layers share a line."""
    (line,) = _space(unchanged=FROZEN[:1] * 2).notes()
    assert line.startswith("ps: nothing of source-0, source-1 is evolved in embed, head: ")


def test_a_normalised_weight_counts_without_a_task_vector():
    """With normalize a weight scales the other sources' task vectors, so it is evolved unless all
    of them are 0."""
    normalised = _space(unchanged=FROZEN, options={"normalize": True})
    assert {each.group for each in normalised.idle} == {"embed"}
    assert not _space(unchanged=FROZEN, method="linear").idle


def test_one_group_is_idle_as_a_whole():
    """With one group a source that equals the base has the fixed weight 0."""
    space = _space(unchanged=[frozenset(TENSORS), frozenset()], groups="model")
    assert _merge(space, [0.75]).parameters == [{"weight": 0.0}, {"weight": 0.75}]


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ({"parameters": {"density": 2.0}}, "merge.parameters.density: 2.0 is out of range"),
        ({"options": {"normalize": 0.5}}, "merge.options.normalize: 0.5 is not true or false"),
        ({"groups": ["*mpl*", "default"]}, "the pattern '*mpl*' names no tensor"),
        ({"groups": ["embed"]}, "no layer group names"),
    ],
)
def test_refusals(merge, message):
    """What the method does not have or allow, and groups without a tensor, are refused with the key
    before anything is loaded."""
    with refused(EvoMergeError, re.escape(message)):
        _space(method="dare_ties", **merge)


def test_flow_space_begins_at_a():
    """The first mean of a data-flow search is A as it is; embeddings are A's, and scales of 1 are
    not written down."""
    config = _config(space="dfs", path="{kind: gates, order: [1, 0], repetitions: 2}")
    space = FlowSpace(config, [4, 3])
    flow = space.decode(space.start().mean).flow
    assert flow.path == LayerPath.parse("1:0-2").as_text()
    assert (flow.scales, flow.embedding_source, flow.scale_target) == (None, 1, "stream")
    assert space.start().sigma == 0.2


def test_flow_space_passes_its_settings_on():
    """Scales, their bounds and target, the number of passes and the hop limit are those of the
    file."""
    path = (
        "{kind: paper, scales: slot, scale_bounds: [0.5, 2], scale_target: mlp_delta, "
        "repetitions: 3, max_hops: 4}"
    )
    space = FlowSpace(_config(space="dfs", path=path, optimize="[{sigma: 0.3}]"), [2, 2])
    start = space.start()
    assert (start.mean.size, start.sigma) == (24, 0.3)
    assert start.mean[:2].tolist() == [0.6, 0.6]
    assert (start.lower[12:].tolist(), start.upper[12:].tolist()) == ([-0.5] * 12, [1.0] * 12)
    flow = space.decode(np.repeat([1.0, 0.25], 12)).flow
    assert (len(flow.path), flow.scales, flow.scale_target) == (4, [1.25] * 4, "mlp_delta")


def test_after_a_merge_the_merged_model_comes_first():
    """In a hybrid search the merged model is A by default, alone the first path that is tried, and
    part of every recipe."""
    merge = MergePart(method="linear", parameters=[{"weight": 0.25}, {"weight": 0.75}])
    space = FlowSpace(_config(space="hybrid"), [4, 4, 4], merge)
    start = space.start()
    recipe = space.decode(start.mean)
    assert (recipe.merge, recipe.flow.embedding_source) == (merge, 2)
    assert recipe.flow.path == ["2:0", "2:1", "2:2", "2:3"]
    assert len(space.genome.layout) == 24
    assert space.decode(start.candidates[0]).key == recipe.key
    assert start.names[:3] == ("the merged model", "source-0's layers", "source-1's layers")
    assert len(start.names) == len(start.candidates)


def test_uniform_average():
    """The plain average gives every source the same weight and normalises, whatever the search
    evolves."""
    merge = uniform_average(_config(3)).merge
    assert (merge.method, merge.parameters) == ("linear", [{"weight": 1.0}] * 3)
    method = check_part(merge, sources=3, has_base=True)
    assert {option.name: option.default for option in method.options}["normalize"] is True


def test_a_search_of_one_source_begins_at_the_base_too():
    """What a search of two sources reaches by the other source alone, one of a single source
    reaches from the base: so the two compare."""
    one, two = (_space(sources, starts=["sum", "sources"]) for sources in (1, 2))
    start = one.start()
    of_base = start.candidates[start.names.index("the base")]
    assert set(_merge(one, of_base).parameters[0]["weight"].values()) == {0.0}
    assert "the base" not in two.start().names


def test_starts_of_closed_form():
    """Beside its own start a search may try the average and the sum of the task vectors, inside the
    bounds."""
    weight = {"low": 0.0, "high": 0.5, "start": 0.1}
    given = {"method": "dare_ties", "groups": "model"}
    parameters = {"weight": weight, "density": {"low": 0.2, "high": 1.0}}
    space = _space(3, parameters=parameters, starts=["average", "sum"], **given)
    start = space.start()
    for candidate, wanted in zip(start.candidates, (0.1, 1 / 3, 0.5), strict=True):
        numbers = {"weight": pytest.approx(wanted), "density": pytest.approx(0.6)}
        assert _merge(space, candidate).parameters == [numbers] * 3
    assert start.candidates[0].tolist() == start.mean.tolist()
    known = {"weight": {"low": 0.0, "high": 1.0, "start": 1 / 3}}
    assert _space(3, parameters=known, starts=["average"], **given).start().candidates == ()
