"""Stacks of slices: which layers become which, with whose parameters, and what cannot be
stacked."""

import pytest
import torch
import yaml
from classes import read_json, tensors_of
from families import save_family, tiny_config
from recipes import merge_of
from refused import refused
from tiny_models import tiny_model
from transformers import LlamaForCausalLM

from hf_evomerge.building.build import build_model, check_recipe
from hf_evomerge.errors import EvoMergeError


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A base and three sources of four layers, with a head of their own."""
    config = tiny_config(num_hidden_layers=4, tie_word_embeddings=False)
    return save_family(tmp_path_factory.mktemp("deep"), config, torch.float32)


@pytest.fixture
def stack(deep, tmp_path):
    """Builds slices, which are YAML, and gives the tensors of the result and of the parents."""

    def build(slices, method="passthrough", base=None, **options):
        merge = {"slices": yaml.safe_load(slices), "options": options}
        sources = [deep / f"source{index}" for index in range(3)]
        out = build_model(
            merge_of(*sources, method=method, base=base, merge=merge), tmp_path / "out"
        )
        parents = {folder.name: tensors_of(folder) for folder in deep.iterdir()}
        return tensors_of(out), parents, out

    return build


def layer_of(tensors, number):
    """The tensors of one layer, by their names within it."""
    prefix = f"model.layers.{number}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def same(left, right):
    """Whether two layers hold the same tensors."""
    return left.keys() == right.keys() and all(map(torch.equal, left.values(), right.values()))


def test_layers_are_stacked_in_order(stack, load):
    """Each layer is that of its source; embeddings come from the first slice, norm and head from
    the last; the model runs."""
    merged, parents, out = stack("[layers: ['0:0-1'], layers: ['1:3'], layers: ['2:1-2']]")
    for number, (source, layer) in enumerate([(0, 0), (0, 1), (1, 3), (2, 1), (2, 2)]):
        assert same(layer_of(merged, number), layer_of(parents[f"source{source}"], layer))
    for name, source in (("model.embed_tokens", 0), ("model.norm", 2), ("lm_head", 2)):
        assert torch.equal(merged[f"{name}.weight"], parents[f"source{source}"][f"{name}.weight"])
    model = load(out)
    assert type(model) is LlamaForCausalLM
    assert model.config.num_hidden_layers == 5
    assert len(merged) == 5 * 9 + 3
    assert model(torch.arange(8)[None]).logits.isfinite().all()


def test_layers_of_one_source_are_no_strangers(stack, caplog):
    """Different layers may be merged with each other, and nobody asks for their ancestor."""
    stack("[layers: ['0:0', '0:1', '0:2', '0:3', '1:3', '2:3']]", method="linear", normalize=True)
    assert "common ancestor" not in caplog.text


def test_repeated_and_scaled_layers(stack):
    """A layer may be stacked again, backwards as well, and a pattern scales tensors of its own
    slice alone."""
    merged, parents, _ = stack("""
        - layers: ["0:0 x2"]
        - layers: ["0:3-2"]
          parameters: [{scale: {"*o_proj*": 0.0, "*down_proj*": [0.5, 0.1], default: 1}}]
    """)
    first = layer_of(parents["source0"], 0)
    assert same(layer_of(merged, 0), first)
    assert same(layer_of(merged, 1), first)
    for number, layer, factor in ((2, 3, 0.5), (3, 2, 0.1)):
        there = layer_of(parents["source0"], layer)
        here = layer_of(merged, number)
        assert not here["self_attn.o_proj.weight"].any()
        assert torch.equal(here["mlp.down_proj.weight"], there["mlp.down_proj.weight"] * factor)
        assert torch.equal(here["mlp.up_proj.weight"], there["mlp.up_proj.weight"])


def test_a_slice_merges_different_layers(stack):
    """The layers of a slice are merged one by one, each source with its own, with gradients over
    the slice."""
    slices = """
        - {layers: ["0:0-1", "1:2-3"], parameters: [{weight: [1, 0.5]}, {weight: 1}]}
        - layers: ["2:3"]
    """
    merged, parents, _ = stack(slices, "linear", normalize=False)
    for number, weight in ((0, 1.0), (1, 0.5)):
        here = layer_of(merged, number)
        low = layer_of(parents["source0"], number)
        high = layer_of(parents["source1"], number + 2)
        assert all(torch.equal(here[name], low[name] * weight + high[name]) for name in here)
    name = "model.embed_tokens.weight"
    assert torch.equal(merged[name], parents["source0"][name] + parents["source1"][name])
    assert torch.equal(merged["lm_head.weight"], parents["source2"]["lm_head.weight"])


def test_a_slice_has_its_own_base_and_options(stack, deep):
    """Task vectors are taken from the base's layers that the slice names, and a slice's options
    count there alone."""
    slices = """
        - {layers: ["0:1-2"], base: "0-1", options: {lambda: 0.5}}
        - layers: ["1:3"]
    """
    merged, parents, _ = stack(slices, "task_arithmetic", deep / "base", **{"lambda": 2})
    for number, (source, layer, below, factor) in enumerate(
        [(0, 1, 0, 0.5), (0, 2, 1, 0.5), (1, 3, 3, 2)]
    ):
        here = layer_of(merged, number)
        there = layer_of(parents[f"source{source}"], layer)
        base = layer_of(parents["base"], below)
        for name in here:
            assert torch.equal(here[name], base[name] + (there[name] - base[name]) * factor)


def test_patterns_see_the_sources_names(stack):
    """A per-source pattern is about the source's own names, also where the layer has another number
    in the result."""
    merged, parents, _ = stack("""
        - layers: ["0:0"]
        - {layers: ["0:3"], parameters: [{scale: {"*layers.3.*": 2, default: 1}}]}
    """)
    assert all(
        torch.equal(tensor, layer_of(parents["source0"], 3)[name] * 2)
        for name, tensor in layer_of(merged, 1).items()
    )


def test_one_whole_slice_is_the_plain_merge(stack, make_recipe, deep, built):
    """A single slice of all layers gives the bytes of the merge without slices, config included."""
    values = "[weight: [0.1, 0.9], weight: {'*mlp*': 0.3, default: 0.6}]"
    _, _, out = stack(f"[{{layers: ['0:0-3', '1:0-3'], parameters: {values}}}]", "linear")
    plain = built(make_recipe(deep, "linear", yaml.safe_load(values), base=False), "plain")
    left, right = ({f.name: f.read_bytes() for f in folder.iterdir()} for folder in (out, plain))
    assert {name for name, data in left.items() if right.pop(name) != data} <= {
        "recipe.yaml",
        "build.json",
    }
    assert not right


def test_lists_with_an_entry_per_layer_follow(built, tmp_path):
    """What the config says of each layer is said of the same layer in the stack."""
    model = tiny_model("qwen3", 3)
    model.save_pretrained(tmp_path / "mixed")
    merge = {"slices": [{"layers": ["0:1-2"]}, {"layers": ["0:1"]}]}
    recipe = merge_of(tmp_path / "mixed", method="passthrough", merge=merge)
    out = built(recipe, "stacked")
    kinds = model.config.layer_types
    assert kinds[1] != kinds[2]
    assert read_json(out / "config.json")["layer_types"] == [*kinds[1:], kinds[1]]


@pytest.mark.parametrize(
    ("piece", "message"),
    {
        "layers: ['0:0-4']": r": layer 4 of .*source0, which has 4 layers",
        "layers: ['0:0', '1:0']": r"merge.sources: passthrough merges 1 model \(found 2\)",
        "{layers: ['0:0'], parameters: [{scale: {blocks.0: 1, default: 2}}]}": (
            ": scale.blocks.0: slices name the layers themselves"
        ),
        "{layers: ['0:0'], parameters: [{scale: {'*nothing*': 1, default: 2}}]}": (
            r": .*\[0\].scale: the pattern '\*nothing\*' names no tensor"
        ),
    }.items(),
)
def test_what_cannot_be_stacked_is_refused(stack, tmp_path, piece, message):
    """A missing layer, too many sources, groups of blocks and empty patterns are refused before
    anything is written."""
    with refused(message if "merge" in message else rf"merge.slices\[0\]{message}", EvoMergeError):
        stack(f"[{piece}]")
    assert list(tmp_path.iterdir()) == []


def test_a_stack_is_checked_and_built(deep, built, load):
    """The check says how many layers there will be, and a path may run through the stack."""
    recipe = merge_of(
        deep / "source0",
        deep / "source1",
        method="passthrough",
        merge={"slices": [{"layers": ["0:0-3"]}, {"layers": ["1:2-3"]}]},
        flow={"path": ["2:0-5", "2:5"], "embedding_source": 2},
    )
    wanted = (
        "fine: passthrough of 2 sources, stacked to 6 layers, then a path of 7 hops over 6 "
        "distinct layers, as "
    )
    assert str(check_recipe(recipe)).startswith(wanted)
    assert len(load(built(recipe)).config.path) == 7
