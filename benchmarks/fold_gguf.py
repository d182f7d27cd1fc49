"""Compares folded models in llama.cpp with the merged models in transformers, in float32: logits and greedy tokens.

For each architecture: two small random sources, a path with repeats and scales (negative ones too), the merged model folded,
written as GGUF, and run by llama.cpp on the CPU. llama.cpp has its own arithmetic, so the difference for a path without scales
is shown beside.

    pip install gguf llama-cpp-python
    python benchmarks/fold_gguf.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hf_evomerge import LayerPool, fold
from hf_evomerge import Path as LayerPath

# even and odd layers stay in even and odd places: llama.cpp takes Gemma 2 to alternate between sliding and full attention
PATH = "0:0, 1:1, 1:2, 0:3, 1:2, 1:1, 0:2, 0:3"
# with mlp_delta a first scale other than 1 unties the head of Gemma, for which GGUF has no name
SCALES = [1.0, 0.9, 1.1, -1.2, 1.0, -0.8, 0.7, -1.3]
VOCAB, PROMPT, NEW = 64, 9, 8
COMMON: dict[str, Any] = {
    **{"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "max_position_embeddings": 256},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "attn_implementation": "eager"},
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 16},
    "olmo2": {},
}


def sources(architecture: str) -> list[PreTrainedModel]:
    """Two random models of four layers."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **COMMON, **ARCHITECTURES[architecture]))
        for name, parameter in model.named_parameters():
            parameter.data = torch.randn_like(parameter) * 0.1 + (parameter.data if "norm" in name else 0)
        found.append(model.eval())
    return found


def write_gguf(folder: Path, file: Path) -> None:
    """Write a checkpoint as llama.cpp's converter does, without a vocabulary."""
    config = json.loads((folder / "config.json").read_text())
    kind, layers = config["model_type"], config["num_hidden_layers"]
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    writer = gguf.GGUFWriter(file, kind)
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(COMMON["head_dim"])
    writer.add_value_length(COMMON["head_dim"])
    writer.add_rope_dimension_count(COMMON["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
        writer.add_sliding_window(config["sliding_window"])
    names = gguf.get_tensor_name_map(architecture, layers)
    for name, tensor in load_file(folder / "model.safetensors").items():
        there = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if kind == "gemma2" and "norm" in name:
            tensor = tensor + 1
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = _interleave(tensor, tensor.shape[0] // COMMON["head_dim"])
        writer.add_tensor(there, np.ascontiguousarray(tensor, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp turns neighbouring pairs of Llama's queries and keys, transformers turns halves."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def run_llama_cpp(file: Path, prompt: list[int]) -> tuple[np.ndarray, list[int]]:
    """The logits of the prompt, and greedy tokens after it."""
    model = llama_cpp.Llama(
        str(file),
        n_ctx=64,
        logits_all=True,
        n_threads=1,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    model.eval(prompt)
    logits, tokens = model.scores[: len(prompt)].copy(), []
    for _ in range(NEW):
        tokens.append(int(model.scores[model.n_tokens - 1].argmax()))
        model.eval(tokens[-1:])
    model.close()
    return logits, tokens


def compare(architecture: str, scales: list[float], scale_target: str) -> tuple[float, bool]:
    """The largest difference of the logits, and whether the greedy tokens are the same."""
    merged = LayerPool(sources(architecture)).model(LayerPath.parse(PATH, scales), scale_target)
    ids = torch.randint(3, VOCAB, (1, PROMPT), generator=torch.Generator().manual_seed(5))
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        merged.save_pretrained(folder / "merged")
        fold(folder / "merged", folder / "plain", progress=False)
        write_gguf(folder / "plain", folder / "plain.gguf")
        logits, tokens = run_llama_cpp(folder / "plain.gguf", ids[0].tolist())
        wanted = merged(ids).logits[0].numpy()
        text = merged.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)[0, PROMPT:]
    return float(np.abs(logits - wanted).max()), text.tolist() == tokens


def main() -> None:
    """Print one row per architecture and scale target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=ARCHITECTURES, nargs="*", default=list(ARCHITECTURES), help="architectures")
    print("| architecture | scales | max abs difference of logits | greedy tokens equal |\n| --- | --- | --- | --- |")
    for architecture in parser.parse_args().only:
        for label, scales, target in (
            ("none", [1.0] * len(SCALES), "stream"),
            ("stream", [0.8, *SCALES[1:]], "stream"),
            ("mlp_delta", SCALES, "mlp_delta"),
        ):
            difference, equal = compare(architecture, scales, target)
            print(f"| {architecture} | {label} | {difference:.1e} | {'yes' if equal else 'NO'} |", flush=True)


if __name__ == "__main__":
    main()
