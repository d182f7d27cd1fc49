"""Layer groups: which tensor belongs where, and which value applies to it."""

from __future__ import annotations

import pytest

from hf_evomerge.errors import RecipeError
from hf_evomerge.merging.groups import Grouping, check_groups, classify, parse_key, resolve

NAMES = {
    ("embed", None, None): [
        "model.embed_tokens.weight",
        "wte.weight",
        "transformer.wpe.weight",
        "gpt_neox.embed_in.weight",
        "transformer.word_embeddings.weight",
        "transformer.word_embeddings_layernorm.bias",
        "model.decoder.embed_positions.weight",
    ],
    ("head", None, None): [
        "model.norm.weight",
        "lm_head.weight",
        "transformer.ln_f.bias",
        "embed_out.weight",
        "gpt_neox.final_layer_norm.weight",
        "model.final_layernorm.weight",
        "model.decoder.final_layer_norm.weight",
    ],
    ("block", 3, "attn"): [
        "model.layers.3.self_attn.q_proj.weight",
        "model.layers.3.input_layernorm.weight",
        "h.3.attn.c_attn.weight",
        "transformer.h.3.ln_1.bias",
        "gpt_neox.layers.3.attention.query_key_value.weight",
        "transformer.h.3.self_attention.dense.weight",
        "transformer.h.3.ln_attn.weight",
        "model.decoder.layers.3.self_attn_layer_norm.weight",
        "model.layers.3.self_attn.q_norm.weight",
        "backbone.layers.3.mixer.in_proj.weight",
    ],
    ("block", 12, "mlp"): [
        "model.layers.12.mlp.down_proj.weight",
        "model.layers.12.post_attention_layernorm.weight",
        "transformer.h.12.ln_2.weight",
        "transformer.h.12.mlp.c_fc.weight",
        "model.layers.12.block_sparse_moe.experts.3.w1.weight",
        "model.layers.12.block_sparse_moe.gate.weight",
        "model.layers.12.mlp.experts.7.up_proj.weight",
        "model.layers.12.pre_feedforward_layernorm.weight",
        "model.decoder.layers.12.fc1.weight",
        "model.decoder.layers.12.final_layer_norm.weight",
        "gpt_neox.layers.12.mlp.dense_h_to_4h.bias",
        "transformer.h.12.ln_mlp.weight",
    ],
}


@pytest.mark.parametrize(("place", "name"), [(place, name) for place, names in NAMES.items() for name in names])
def test_classify(place, name):
    """Tensors of all common architectures are found in the embeddings, the halves of the blocks, or the head."""
    assert classify(name) == place


@pytest.mark.parametrize(
    ("size", "split", "keys"),
    [
        (1, False, ["embed", "blocks.0", "blocks.1", "blocks.2", "head"]),
        (2, False, ["embed", "blocks.0-1", "blocks.2", "head"]),
        (2, True, ["embed", "blocks.0-1.attn", "blocks.0-1.mlp", "blocks.2.attn", "blocks.2.mlp", "head"]),
        (5, False, ["embed", "blocks.0-2", "head"]),
        ("all", False, ["embed", "blocks.0-2", "head"]),
        ("all", True, ["embed", "blocks.0-2.attn", "blocks.0-2.mlp", "head"]),
        ("model", False, ["default"]),
        ("model", True, ["default"]),
    ],
)
def test_grouping(size, split, keys):
    """A grouping names its groups in the order of the layers."""
    assert Grouping(size, split, 3).keys == list(Grouping(size, split, 3)) == keys


def test_every_tensor_has_one_group():
    """Any grouping covers a whole model, each tensor once."""
    for size in (1, 2, 3, "all", "model"):
        for split in (False, True):
            grouping = Grouping(size, split, 13)
            values = {key: float(position) for position, key in enumerate(grouping.keys)}
            check_groups(values, 13)
            for name in (name for names in NAMES.values() for name in names):
                assert values[grouping.key_of(name)] == resolve(values, name)


def test_resolve():
    """A number counts for all, a group for its tensors, and default for the rest."""
    name = "model.layers.4.mlp.up_proj.weight"
    assert resolve(0.5, name) == 0.5
    assert resolve({"embed": 1, "blocks.4.attn": 2, "blocks.4.mlp": 3, "default": 4}, name) == 3
    assert resolve({"embed": 1, "blocks.0-3": 2, "default": 4}, name) == 4
    assert resolve({"blocks.0-10": 2}, name) == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"embed": 1}, r"no layer group names model.layers.4.mlp.x \(found embed\); add its group, or default"),
        ({"blocks.4": 1, "blocks.4.mlp": 1}, "layer groups blocks.4 and blocks.4.mlp both name model.layers.4.mlp.x"),
        ({"blocks.4-3": 1}, "'blocks.4-3': the first block of a layer group comes first; write blocks.3-4"),
        ({"blocks": 1}, "'blocks' is not a layer group; write embed, head, default"),
        ({"head.mlp": 1}, "'head.mlp' is not a layer group"),
    ],
)
def test_values_that_do_not_fit_are_refused(value, message):
    """A tensor without a value, or with two, is named together with the groups."""
    with pytest.raises(RecipeError, match=message):
        resolve(value, "model.layers.4.mlp.x")


@pytest.mark.parametrize(("size", "count"), [(0, 3), (-1, 3), ("half", 3), (True, 3), (1.5, 3), (1, 0)])
def test_a_grouping_that_cannot_be_is_refused(size, count):
    """A group has at least one block, and so has a model."""
    with pytest.raises(RecipeError, match=r"blocks_per_group|layer_count"):
        Grouping(size, False, count)


def test_keys_are_read_whole():
    """A group key is not a pattern: nothing may follow it."""
    for key in ("blocks.1 ", "embeds", "blocks.01x", "blocks.1-", "", "blocks.1\n"):
        with pytest.raises(RecipeError, match="is not a layer group"):
            parse_key(key)
