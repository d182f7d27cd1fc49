"""Tiny parents on disk: a base, and fine-tunes of it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_config(**changes):
    """A Llama of two blocks."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    return LlamaConfig(**{**sizes, **heads, **changes})


def save_family(folder, config, dtype, count=3):
    """Save a base and fine-tunes of it that differ from it by noise."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(config).to(dtype)
    base.save_pretrained(folder / "base")
    for index in range(count):
        tuned = LlamaForCausalLM(config).to(dtype)
        tuned.load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        tuned.save_pretrained(folder / f"source{index}")
    return folder
