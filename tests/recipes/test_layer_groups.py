"""Layer groups, name patterns and gradients: which tensor belongs where, and which value applies to
it."""

import pytest
import yaml
from refusals import refused
from tiny_models import tiny_model

from hf_evomerge.errors import RecipeError
from hf_evomerge.recipes.layer_groups import (
    check_keys,
    classify,
    expand,
    group_keys,
    has_post_norms,
    parse_key,
    resolve,
)

NAMES = {
    ("embed", None, None): """
        model.embed_tokens.weight
        wte.weight
        transformer.wpe.weight
        gpt_neox.embed_in.weight
        transformer.word_embeddings.weight
        transformer.word_embeddings_layernorm.bias
        model.decoder.embed_positions.weight
    """,
    ("head", None, None): """
        model.norm.weight
        lm_head.weight
        transformer.ln_f.bias
        embed_out.weight
        gpt_neox.final_layer_norm.weight
        model.final_layernorm.weight
        model.decoder.final_layer_norm.weight
    """,
    ("block", 3, "attn"): """
        model.layers.3.self_attn.q_proj.weight
        model.layers.3.input_layernorm.weight
        h.3.attn.c_attn.weight
        transformer.h.3.ln_1.bias
        gpt_neox.layers.3.attention.query_key_value.weight
        transformer.h.3.self_attention.dense.weight
        transformer.h.3.ln_attn.weight
        model.decoder.layers.3.self_attn_layer_norm.weight
        model.layers.3.self_attn.q_norm.weight
        backbone.layers.3.mixer.in_proj.weight
        model.layers.3.temporal_block.linear_x.weight
        model.layers.3.temporal_pre_norm.weight
    """,
    ("block", 12, "mlp"): """
        model.layers.12.mlp.down_proj.weight
        model.layers.12.post_attention_layernorm.weight
        transformer.h.12.ln_2.weight
        transformer.h.12.mlp.c_fc.weight
        model.layers.12.mlp.gate_proj.weight
        model.layers.12.shared_mlp.input_linear.weight
        model.layers.12.pre_feedforward_layernorm.weight
        model.decoder.layers.12.fc1.weight
        model.decoder.layers.12.final_layer_norm.weight
        gpt_neox.layers.12.mlp.dense_h_to_4h.bias
        transformer.h.12.ln_mlp.weight
        model.layers.12.pre_ff_layernorm.weight
        model.layers.12.channel_pre_norm.weight
        model.layers.12.mlp_block.down_proj.bias
    """,
    ("block", 12, "router"): """
        model.layers.12.block_sparse_moe.gate.weight
        model.layers.12.block_sparse_moe.router.layer.weight
        model.layers.12.mlp.gate.weight
        model.layers.12.mlp.gate.e_score_correction_bias
        model.layers.12.mlp.router.bias
        model.layers.12.mlp.shared_expert_gate.weight
        model.layers.12.feed_forward.router.weight
        transformer.blocks.12.ffn.router.layer.weight
    """,
    ("block", 12, "experts"): """
        model.layers.12.block_sparse_moe.experts.3.w1.weight
        model.layers.12.block_sparse_moe.input_linear.weight
        model.layers.12.mlp.experts.7.up_proj.weight
        model.layers.12.mlp.experts.7.gate_proj.weight
        model.layers.12.mlp.experts.gate_up_proj_bias
        model.layers.12.mlp.shared_expert.gate_proj.weight
        model.layers.12.feed_forward.experts.down_proj
    """,
}


@pytest.mark.parametrize(
    ("place", "name"), [(place, name) for place, names in NAMES.items() for name in names.split()]
)
def test_classify(place, name):
    """Tensors of all common architectures are found in the embeddings, the halves of the blocks, or
    the head."""
    assert classify(name) == place


POST_NORMS = ("gemma3_text", "olmo2", "exaone4")


@pytest.mark.parametrize(
    ("architecture", "half"),
    [("llama", "mlp"), ("glm4", "mlp"), *((name, "attn") for name in POST_NORMS)],
)
def test_a_norm_behind_attention_counts_with_it(architecture, half):
    """`post_attention_layernorm` is attention's where the MLP has norms of other names, and else
    the MLP's."""
    names = list(tiny_model(architecture, 2).state_dict())
    norm = "model.layers.1.post_attention_layernorm.weight"
    assert norm in names
    assert classify(norm, has_post_norms(names)) == ("block", 1, half)
    groups = {"embed": "", "blocks.0-1.attn": "attn", "blocks.0-1.mlp": "mlp", "head": ""}
    assert resolve(expand(groups, 0, 1, names), norm) == half


@pytest.mark.parametrize(
    ("groups", "keys"),
    [
        ("block", "embed blocks.0 blocks.1 head"),
        ("half", "embed blocks.0.attn blocks.0.mlp blocks.1.attn blocks.1.mlp head"),
        (1, "embed blocks.0-1 head"),
        (2, "embed blocks.0 blocks.1 head"),
        (5, "embed blocks.0 blocks.1 head"),
        ("model", "default"),
    ],
)
def test_grouping(groups, keys):
    """Groups are named in the order of the layers; a number says into how many the blocks are
    divided."""
    assert group_keys(groups, 2) == keys.split()
    assert group_keys(2, 3) == ["embed", "blocks.0-1", "blocks.2", "head"]


@pytest.mark.parametrize("groups", [1, 2, 3, 5, "block", "half", "model"])
def test_every_tensor_has_one_group(groups):
    """Any grouping covers a whole model, each tensor once."""
    values = {key: key for key in group_keys(groups, 13)}
    check_keys(values, 13)
    for name in " ".join(NAMES.values()).split():
        covering = [key for key in values if key == "default" or parse_key(key).covers(name)]
        assert covering == [resolve(values, name)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "embed: 1",
            r"no layer group names model.layers.4.mlp.x \(found embed\); add its group, or default",
        ),
        (
            "{blocks.4: 1, blocks.4.mlp: 1}",
            "layer groups blocks.4 and blocks.4.mlp both name model.layers.4.mlp.x",
        ),
        (
            "blocks.4-3: 1",
            "'blocks.4-3': the first block of a layer group comes first; write blocks.3-4",
        ),
        ("blocks: 1", "'blocks' is not a layer group; write embed, head, default"),
        ("head.mlp: 1", "'head.mlp' is not a layer group"),
    ],
)
def test_values_that_do_not_fit_are_refused(value, message):
    """A tensor without a value, or with two, is named together with the groups."""
    with refused(RecipeError, message):
        resolve(yaml.safe_load(value), "model.layers.4.mlp.x")


def test_keys_are_read_whole():
    """A group key without a star is not a pattern: nothing may follow it."""
    for key in ("blocks.1 ", "embeds", "blocks.01x", "blocks.1-", "", "blocks.1\n"):
        with refused(RecipeError, "is not a layer group"):
            parse_key(key)


UP, DOWN, NORM = (
    f"model.layers.4.{part}.weight" for part in ("mlp.up_proj", "mlp.down_proj", "input_layernorm")
)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*down_proj*", [DOWN]),
        ("*", [UP, DOWN, NORM]),
        ("*.mlp.*.weight", [UP, DOWN]),
        ("model.layers.4.input_layernorm.weight*", [NORM]),
        ("model.*.4.*up*", [UP]),
        ("down_proj*", []),
        ("*down_proj", []),
        ("*weight*weight*", []),
        ("*.4.*.4.*", []),
        ("**mlp**", [UP, DOWN]),
    ],
)
def test_a_pattern_names_whole_names(pattern, names):
    """A star stands for any text, none included, and everything else for itself; the whole name
    must follow the pattern."""
    assert [name for name in (UP, DOWN, NORM) if parse_key(pattern).covers(name)] == names


def test_a_long_pattern_takes_no_time():
    """A pattern of many stars is answered at once, whatever the name."""
    assert not parse_key("*a" * 500 + "*b").covers("a" * 5000)


PATTERNS = "{default: 1, blocks.4.mlp: 2, '*up_proj*': 3, '*mlp*': 4, '*norm*': 5}"
NAMED = "{'*down_proj*': 1, default: 0, blocks.4: 2, model.layers.4.mlp.down_proj.weight: 3}"
OTHER = "model.layers.5.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("value", "name", "number"),
    [
        ("0.5", UP, 0.5),
        ("{embed: 1, blocks.4.attn: 2, blocks.4.mlp: 3, default: 4}", UP, 3),
        ("{embed: 1, blocks.0-3: 2, default: 4}", UP, 4),
        ("blocks.0-10: 2", UP, 2),
        # the first pattern counts, then its group, then default
        (PATTERNS, UP, 3),
        (PATTERNS, DOWN, 4),
        (PATTERNS, NORM, 5),
        (PATTERNS, OTHER, 3),
        ("{'*mlp*': 4, '*up_proj*': 3, default: 0}", UP, 4),
        ("{'*x*': 4, blocks.4.mlp: 2, default: 0}", UP, 2),
        ("{'*x*': 4, default: 0}", "lm_head.weight", 0),
        # a whole name counts before all of these
        (NAMED, DOWN, 3),
        (NAMED, DOWN.replace("4", "3"), 1),
        (NAMED, UP, 2),
    ],
)
def test_what_counts_for_a_tensor(value, name, number):
    """A number counts for all; of keys the tensor's own name, the first pattern, its group, and
    default for the rest."""
    assert resolve(yaml.safe_load(value), name) == number


def _over_blocks(value, count):
    names = [
        "model.embed_tokens.weight",
        *(f"model.layers.{i}.mlp.x" for i in range(count)),
        "lm_head.weight",
    ]
    return [resolve(expand(value, 0, count - 1), name) for name in names]


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        ("[0.0, 1.0]", [0, 0, 0.25, 0.5, 0.75, 1, 0]),
        ("[1.0, 0.0, 4.0]", [1, 1, 0.5, 0, 2, 4, 1]),
        ("[0.3]", [0.3] * 7),
        ("[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]", [1, 1, 3, 5, 7, 9, 1]),
        ("{default: [0.0, 1.0], head: 9.0, embed: 8.0}", [8, 0, 0.25, 0.5, 0.75, 1, 9]),
        ("{blocks.1-3: [0.0, 1.0], default: 5.0}", [5, 5, 0, 0.5, 1, 5, 5]),
        ("{blocks.2: [3.0, 7.0], default: [0.0, 1.0]}", [0, 0, 0.25, 7, 0.75, 1, 0]),
        ("{'*mlp*': [0.0, 1.0], default: 5.0}", [5, 0, 0.25, 0.5, 0.75, 1, 5]),
    ],
)
def test_a_gradient_runs_over_the_blocks(value, numbers):
    """A list runs over all blocks, or those it stands under; its first number counts elsewhere, its
    last in one block."""
    assert _over_blocks(yaml.safe_load(value), 5) == pytest.approx(numbers, abs=1e-12)
    assert _over_blocks([2.0, 5.0], 1) == [2, 5, 2]


MODEL = ["model.embed_tokens.weight", UP, DOWN, NORM]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "{'*mpl*': 1, default: 0}",
            r"pattern '\*mpl\*' names no tensor; the names are like .*embed.*, .*layers.4.mlp.up",
        ),
        (
            "{model.layers.4.mlp.dwon_proj.weight: 1, default: 0}",
            r"dwon_proj\.weight' names no tensor",
        ),
        ("{embed: 0, '*mlp*': 1}", "no layer group names model.layers.4.input_layernorm.weight"),
        ("{default: 0, blocks.5: 1}", "layer group blocks.5: there are 5 blocks, 0 to 4"),
        (
            "{default: 0, blocks.4: 1, blocks.4.mlp: 1}",
            "layer groups blocks.4 and blocks.4.mlp both name",
        ),
    ],
)
def test_keys_are_checked_against_the_tensors(value, message):
    """A pattern that names nothing and a tensor without a value, or with two, are refused once the
    names are known."""
    with refused(RecipeError, message):
        check_keys(yaml.safe_load(value), 5, MODEL)


def test_a_pattern_that_may_name_nothing():
    """A tied head may be named, and patterns wait where the tensors' names are not known."""
    check_keys({"*lm_head*": 0, "default": 1}, 5, MODEL)
    check_keys(yaml.safe_load(NAMED), 5, MODEL)
    check_keys({"*mpl*": 1}, 5)
