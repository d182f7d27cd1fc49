"""Tiny Llamas as GGUF files, written by llama.cpp's own package."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, TokenType, get_tensor_name_map, quants
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

TOKENS = ["<unk>", "<s>", "</s>", *bytes_to_unicode().values(), "he", "ll", "llo", "hello"]
MERGES = ["h e", "l l", "ll o", "he llo"]
Kind = GGMLQuantizationType


def tiny_llama(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random Llama whose rows are as long as a block of quantised numbers."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": len(TOKENS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **changes, "initializer_range": 0.3})).eval()


def write_gguf(
    model: PreTrainedModel,
    file: Path,
    kind: Kind = Kind.F32,
    *,
    without: str = "",
    keys: dict[str, int] | None = None,
    spare: int = 0,
) -> Path:
    """Write a Llama with matrices of a kind, `without` a tensor, with further `keys`, and a tensor of `spare` numbers."""
    config, writer = model.config, GGUFWriter(file, "llama")
    file.parent.mkdir(parents=True, exist_ok=True)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer)
    for key, value in (keys or {}).items():
        writer.kv_data[0].pop(key, None)
        writer.add_uint32(key, value)
    if spare:
        writer.add_tensor("spare.weight", np.zeros(spare, np.float32))
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name != without and not (name == "lm_head.weight" and config.tie_word_embeddings):
            array = value.numpy()
            if name.endswith(("q_proj.weight", "k_proj.weight")):  # neighbouring pairs are turned there, halves here
                array = array.reshape(-1, 2, config.head_dim // 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            stored = kind if array.ndim > 1 else Kind.F32
            there = names.get_name(name, try_suffixes=(".weight",))
            writer.add_tensor(there, quants.quantize(np.ascontiguousarray(array), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: GGUFWriter) -> None:
    """Byte-level BPE that knows one word."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
