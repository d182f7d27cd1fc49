"""A tiny random model of every type of causal language model in the installed transformers, from
its config's defaults."""

import dataclasses

import torch
from tiny_models import COMMON, VOCAB, built, kinds
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# What a config's field becomes, where it has the field.
_SMALL = {
    **COMMON,
    "sep_token_id": 3,
    "head_dim": 8,
    "is_decoder": True,
    "sliding_window": 4,
    "attention_chunk_size": 8,
    "local_attention": 8,
    # other names of widths
    "ffn_dim": 40,
    "dff": 40,
    "dim_ff": 40,
    "dim_head": 8,
    "embedding_size": 32,
    "intermediate_size_mlp": 40,
    "decoder_ffn_dim": 40,
    "encoder_ffn_dim": 40,
    "dense_intermediate_size": 40,
    "ffn_hidden_size": 40,
    "rotary_dim": 8,
    # experts
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16
    ),
    "expert_ffn_hidden_size": 16,
    "block_size": 8,
    **dict.fromkeys(
        ("first_k_dense_replace", "num_dense_layers", "n_group", "topk_group", "zero_expert_num"), 1
    ),
    # latent, indexed and further attentions
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "o_lora_rank": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 4,
    "query_pre_attn_scalar": 8,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    # recurrent layers
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "state_size": 8,
    "ssm_state_size": 8,
    "expand": 1,
    "n_groups": 1,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_d_ssm": 32,
    "mamba_expand": 1,
    "mamba_n_groups": 1,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "time_step_rank": 4,
    # per-layer embeddings
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
    "unpadded_vocab_size": VOCAB,
}


# Further fields of types that the above leaves large or wrong; a callable is given the number of
# layers.
_FIELDS = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": lambda count: [*range(1, count, 2)]},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4}
            for kind in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {
        "d_model": 32,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {
            "hidden_size": 32,
            "ffn_hidden_size": 40,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "dory": {
        "n_input_layers": 1,
        "n_recurrent_layers": lambda count: count - 2,
        "n_output_layers": 1,
    },
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0, "laurel_rank": 8},
    "gemma4_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": lambda count: [[["global"], count]], "window_size": 4},
    "granitemoehybrid": {"layer_types": kinds("linear_attention", "full_attention")},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": kinds("linear_attention", "full_attention")},
    "lfm2_moe": {"layer_types": kinds("conv", "full_attention")},
    "qwen3_5_text": {"layer_types": kinds("linear_attention", "full_attention")},
    "qwen3_5_moe_text": {"layer_types": kinds("linear_attention", "full_attention")},
    "qwen3_next": {"layer_types": kinds("linear_attention", "full_attention")},
    "longcat_flash": {"num_layers": lambda count: count, "num_hidden_layers": None},
    "mamba2": {"expand": 2, "num_heads": 8},
    "nemotron_h": {
        "layers_block_type": kinds("linear_attention", "full_attention", "moe", "mlp"),
        "moe_shared_expert_intermediate_size": 16,
    },
    "reformer": {
        "axial_pos_embds_dim": [8, 24],
        "axial_pos_shape": [4, 16],
        "num_hashes": 1,
        "feed_forward_size": 40,
    },
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 20,
        "shape_embed_dim": 8,
        "shape_vocab_size": 20,
    },
    "xlstm": {
        "hidden_size": 64,
        "num_heads": 4,
        "qk_dim_factor": 1.0,
        "ffn_round_up_to_multiple_of": 8,
    },
    "xmod": {"default_language": "en_XX"},
    "xlnet": {"d_head": 8, "d_inner": 40},
    "zamba": {"layers_block_type": kinds("linear_attention", "hybrid", "hybrid")},
    "zamba2": {"layers_block_type": kinds("linear_attention", "hybrid")},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 8},
}


def tiny_config(model_type, layers):
    """The config of a type with its own defaults, but few layers and small sizes."""
    kind = CONFIG_MAPPING[model_type]
    known = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map)
    fields = {
        name: value
        for name, value in {**_SMALL, "num_hidden_layers": layers}.items()
        if name in known
    }
    if "kv_lora_rank" in known:
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    fields |= {
        name: value(layers) if callable(value) else value
        for name, value in _FIELDS.get(model_type, {}).items()
    }
    return kind(**{name: value for name, value in fields.items() if value is not None})


def tiny_source(model_type, layers, seed=0):
    """A random model of a type, in eval mode, in which no two layers are alike."""

    def change(name, parameter):
        if parameter.dim() > 1 and "A_log" not in name:
            parameter.normal_(std=0.2)
        elif parameter.is_floating_point():
            parameter.add_(torch.randn_like(parameter) * 0.1)

    return built(tiny_config(model_type, layers), seed, change)
