"""Tiny random models of many architectures, for the tests of the merged model."""

from inspect import signature

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MambaForCausalLM

from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.routing.pool import LayerPool

VOCAB = 64
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD_DIM = {"head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SLIDING = {"sliding_window": 4}


def kinds(*names):
    """Kinds of layers in turn."""
    return lambda count: [names[layer % len(names)] for layer in range(count)]


_ALTERNATING = {"layer_types": kinds("sliding_attention", "full_attention")}

# Architecture: fields beside the common ones; a callable is given the number of layers.
ARCHITECTURES = {
    "llama": {},
    "mistral": {**_HEAD_DIM, **_SLIDING},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {**_HEAD_DIM, **_ALTERNATING, **_SLIDING, "use_sliding_window": True},
    "qwen3_moe": {
        **_HEAD_DIM,
        **_EXPERTS,
        "decoder_sparse_step": 1,
        "mlp_only_layers": lambda count: [1],
    },
    "qwen3_5_text": {
        **_HEAD_DIM,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": kinds("linear_attention", "full_attention"),
    },
    "gemma": _HEAD_DIM,
    "gemma2": {**_HEAD_DIM, **_SLIDING, **_ALTERNATING, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_HEAD_DIM, **_SLIDING, **_ALTERNATING, "query_pre_attn_scalar": 8},
    "phi": {},
    "phi3": {"pad_token_id": 0},
    "gpt2": {},
    "gpt_neo": {
        "attention_types": lambda count: [
            [["global", "local"], count // 2],
            [["global"], count % 2],
        ],
        "window_size": 4,
    },
    "gpt_neox": {},
    "gpt_oss": {
        **_HEAD_DIM,
        **_SLIDING,
        **_ALTERNATING,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "olmo2": {},
    "granite": {"residual_multiplier": 0.7, "embedding_multiplier": 2.0, "logits_scaling": 3.0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "cohere2": {**_HEAD_DIM, **_SLIDING, **_ALTERNATING},
    "stablelm": {},
    "starcoder2": {"sliding_window": None},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "bloom": {},
    "opt": {"ffn_dim": 40, "word_embed_proj_dim": 32},
    "lfm2": {
        "layer_types": kinds("conv", "full_attention"),
        "block_ff_dim": 40,
        "block_auto_adjust_ff_dim": False,
    },
    "exaone4": {**_SLIDING, **_ALTERNATING, "sliding_window_pattern": 2},
    "glm4": _HEAD_DIM,
    "smollm3": {
        "no_rope_layers": lambda count: [layer % 2 for layer in range(count)],
        "layer_types": None,
    },
    "mamba": {"state_size": 4, "conv_kernel": 4, "time_step_rank": 4},
}

# The families that every run of the tests has; the others are slow.
FAMILIES = ("llama", "gemma3_text", "gpt2", "mixtral", "qwen3_5_text")

# Mixtures of experts: fields beside these.
MIXTURES = {
    "mixtral": {},
    "qwen3_moe": {"mlp_only_layers": []},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
}

# Until the cache had one name for all architectures, generation chose it by the name of the model's
# class.
OLD_CACHE_NAMES = "cache" not in signature(MambaForCausalLM.forward).parameters
if OLD_CACHE_NAMES:
    del ARCHITECTURES["mamba"]


def tiny_model(architecture, layers=3, seed=0, **fields):
    """A random model of a few thousand parameters in eval mode; every call gives a new object with
    the same weights."""
    given = {**COMMON, "num_hidden_layers": layers, **ARCHITECTURES.get(architecture, {}), **fields}
    given = {name: value(layers) if callable(value) else value for name, value in given.items()}
    config = CONFIG_MAPPING[architecture](
        **{name: value for name, value in given.items() if value is not None}
    )

    def change(name, parameter):
        if "norm" in name:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        elif "A_log" not in name:
            parameter.normal_(std=0.2)

    return built(config, seed, change)


def built(config, seed, change):
    """A random model of a config in eval mode, each of whose parameters is changed."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (kind[0] if isinstance(kind, (tuple, list)) else kind)(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                change(name, parameter)
    return model


def token_ids():
    """Two sequences of nine tokens."""
    return torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(5))


def logits_of(model):
    """What a model computes of these tokens."""
    return model(token_ids()).logits


def path_model(models, hops, scales=None, *more, **fields):
    """The merged model of a path through resident models."""
    return LayerPool(models).model(LayerPath.parse(hops, scales), *more, **fields)
