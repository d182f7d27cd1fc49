"""Folding, checked for one architecture: the merged model, the folded checkpoint, and by how much
they differ."""

import torch
from tiny_models import ARCHITECTURES, logits_of, tiny_model, token_ids
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from hf_evomerge import LayerPath, LayerPool, fold

HOPS = "0:0, 1:1, 1:3, 0:1, 1:2, 0:0, 1:3, 0:2"  # 0:0 and 1:3 run twice
SCALES = [0.8, 0.9, 1.1, 1.0, -1.2, 1.0, -0.8, -1.3]  # the last product is negative
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
}
# Beside the architectures of the other tests, and variants of them that are built differently.
VARIANTS = {
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, "decoder_sparse_step": 1}),
    "qwen3_next": (
        "qwen3_next",
        {**ARCHITECTURES["qwen3_5_text"], **EXPERTS, "decoder_sparse_step": 1},
    ),
    "olmo3": (
        "olmo3",
        {"sliding_window": 4, "layer_types": ARCHITECTURES["exaone4"]["layer_types"]},
    ),
    "cohere": ("cohere", {"use_qk_norm": True}),
    "olmoe": ("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "llama with biases": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "olmo2 with biases": ("olmo2", {"attention_bias": True}),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "stablelm, side by side": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "falcon, old": (
        "falcon",
        {"new_decoder_architecture": False, "parallel_attn": True, "bias": True},
    ),
    "falcon, one after the other": (
        "falcon",
        {"new_decoder_architecture": False, "parallel_attn": False, "alibi": True},
    ),
    **{
        name: (name, {})
        for name in (
            "arcee",
            "ernie4_5",
            "seed_oss",
            "apertus",
            "nemotron",
            "persimmon",
            "flex_olmo",
        )
    },
    **{name: (name, {"head_dim": 8}) for name in ("helium", "hunyuan_v1_dense", "ministral")},
    "cwm": (
        "cwm",
        {"head_dim": 8, "layer_types": ARCHITECTURES["gemma2"]["layer_types"], "sliding_window": 4},
    ),
    "vaultgemma": ("vaultgemma", ARCHITECTURES["gemma2"]),
    "gemma2, untied": ("gemma2", {**ARCHITECTURES["gemma2"], "tie_word_embeddings": False}),
}
# OPT's epsilon cannot be set; the state of linear attention amplifies rounding
TOLERANCE = {"opt": 2e-3, "qwen3_5_text": 1e-3, "qwen3_next": 1e-3}
NO_MLP = ("mamba",)  # blocks of one branch
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")


def pool_of(architecture, **fields):
    """A source of three layers and one of four, whose norms have hardly any epsilon."""
    known = vars(CONFIG_MAPPING[architecture]())
    fields = {**{name: 1e-12 for name in EPSILONS if name in known}, **fields}
    return LayerPool(
        [tiny_model(architecture, 3, **fields), tiny_model(architecture, 4, seed=1, **fields)]
    )


def folded(model, folder, **options):
    """Save, fold and load; nothing may be missing or left over."""
    model.save_pretrained(folder / "merged")
    fold(folder / "merged", folder / "plain", **options)
    plain, info = AutoModelForCausalLM.from_pretrained(folder / "plain", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return plain


def fold_error(architecture, fields, scale_target, folder):
    """The largest difference of the logits, whose size is about 1; it must be small, and the greedy
    tokens equal.

    The path repeats layers and its scales are negative too; without an MLP of its own only the
    embeddings are scaled.
    """
    pool = pool_of(architecture, **fields)
    scales = (
        SCALES if architecture not in NO_MLP or scale_target == "stream" else [-0.5] + [1.0] * 7
    )
    model = pool.model(LayerPath.parse(HOPS, scales), scale_target)
    plain = folded(model, folder)
    assert type(plain) is type(pool.models[0])
    assert plain.config.num_hidden_layers == len(SCALES)
    assert getattr(plain.config, "layer_types", None) == getattr(
        model.config.text_config, "layer_types", None
    )
    wanted = logits_of(model)
    given = logits_of(plain)
    error = float((wanted - given).abs().max())
    assert error <= TOLERANCE.get(architecture, 5e-5)
    assert torch.equal(_greedy(plain), _greedy(model))
    unscaled = logits_of(pool.model(LayerPath.parse(HOPS)))
    assert (wanted - unscaled).abs().max() > 0.05
    return error


def _greedy(model):
    """Six greedy tokens after two prompts."""
    return model.generate(
        token_ids(), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
    )
