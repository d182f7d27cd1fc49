"""Compares folded models in llama.cpp with the merged models in transformers, in float32: logits and greedy tokens.

For each architecture: two small random sources, a path with repeats and scales (negative ones too), the merged model folded,
written as GGUF, and run by llama.cpp on the CPU. llama.cpp has its own arithmetic, so the difference for a path without scales
is shown beside.

    pip install gguf llama-cpp-python
    python benchmarks/fold_gguf.py
    python benchmarks/fold_gguf.py --model evomerge-demo/dfs/model     # a model of Llamas, on the demo's problems
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import gguf
import llama_cpp
import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_evomerge import LayerPath as LayerPath
from hf_evomerge import LayerPool, fold
from hf_evomerge.demo.language import problems

# even and odd layers stay in even and odd places: llama.cpp takes Gemma 2 to alternate between sliding and full attention
PATH = "0:0, 1:1, 1:2, 0:3, 1:2, 1:1, 0:2, 0:3"
# with mlp_delta a first scale other than 1 unties the head of Gemma, for which GGUF has no name
SCALES = [1.0, 0.9, 1.1, -1.2, 1.0, -0.8, 0.7, -1.3]
VOCAB, PROMPT, NEW, PROBLEMS = 64, 9, 8, 100
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
        config = AutoConfig.for_model(architecture, **COMMON, **ARCHITECTURES[architecture])
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        for name, parameter in model.named_parameters():
            parameter.data = torch.randn_like(parameter) * 0.1 + (parameter.data if "norm" in name else 0)
        found.append(model.eval())
    return found


def write_gguf(folder: LayerPath, file: LayerPath) -> None:
    """Write a checkpoint as llama.cpp's converter does, without a vocabulary."""
    config = json.loads((folder / "config.json").read_text())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    kind, layers = config["model_type"], config["num_hidden_layers"]
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    writer = gguf.GGUFWriter(file, kind)
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
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
            tensor = _interleave(tensor, tensor.shape[0] // head_dim)
        writer.add_tensor(there, np.ascontiguousarray(tensor, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp turns neighbouring pairs of Llama's queries and keys, transformers turns halves."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def run_llama_cpp(file: LayerPath, prompts: list[list[int]]) -> Iterator[tuple[np.ndarray, list[int]]]:
    """For each prompt its logits, and greedy tokens after it."""
    model = llama_cpp.Llama(
        str(file),
        n_ctx=128,
        logits_all=True,
        n_threads=1,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    for prompt in prompts:
        model.reset()
        model.eval(prompt)
        logits, tokens = model.scores[: len(prompt)].copy(), []
        for _ in range(NEW):
            tokens.append(int(model.scores[model.n_tokens - 1].argmax()))
            model.eval(tokens[-1:])
        yield logits, tokens
    model.close()


class Found(NamedTuple):
    """What llama.cpp does with a prompt, against the merged model.

    Attributes:
        difference: The largest difference of a logit.
        folding: How much of it is there without llama.cpp: that of the folded model in transformers.
        equal: Whether the greedy tokens are the same.
    """

    difference: float
    folding: float
    equal: bool


def compare(architecture: str, scales: list[float], scale_target: str) -> Found:
    """Compare a path through random sources."""
    merged = LayerPool(sources(architecture)).model(LayerPath.parse(PATH, scales), scale_target)
    ids = torch.randint(3, VOCAB, (1, PROMPT), generator=torch.Generator().manual_seed(5))
    with tempfile.TemporaryDirectory() as name:
        merged.save_pretrained(f"{name}/merged")
        return compare_prompts(merged, LayerPath(name) / "merged", [ids[0].tolist()])[0]


def compare_prompts(merged: PreTrainedModel, folder: LayerPath, prompts: list[list[int]]) -> list[Found]:
    """Fold a saved model, and compare it for each prompt."""
    found = []
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        fold(folder, LayerPath(name) / "plain", progress=False)
        plain = AutoModelForCausalLM.from_pretrained(f"{name}/plain", attn_implementation="eager", trust_remote_code=False)
        write_gguf(LayerPath(name) / "plain", LayerPath(name) / "plain.gguf")
        for prompt, (logits, tokens) in zip(prompts, run_llama_cpp(LayerPath(name) / "plain.gguf", prompts), strict=True):
            ids = torch.tensor([prompt])
            wanted, folded = merged(ids).logits[0].numpy(), plain(ids).logits[0].numpy()
            text = merged.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
            largest = [float(np.abs(other - wanted).max()) for other in (logits, folded)]
            found.append(Found(*largest, text[0, len(prompt) :].tolist() == tokens))
    return found


def compare_saved(folder: LayerPath) -> None:
    """Print how a saved model of the demo does."""
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    prompts = [tokenizer(problem["prompt"])["input_ids"] for problem in problems("test", PROBLEMS)]
    found = compare_prompts(merged, folder, prompts)
    largest, folding = (max(values) for values in zip(*((one.difference, one.folding) for one in found), strict=True))
    print(f"{folder}: {len(found)} prompts, max abs difference of logits {largest:.1e} (by folding {folding:.1e}),")
    print(f"greedy tokens equal in {sum(one.equal for one in found)}")


def main() -> None:
    """Print one row per architecture and scale target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=ARCHITECTURES, nargs="*", default=list(ARCHITECTURES), help="architectures")
    parser.add_argument("--model", type=LayerPath, help="a model of Llamas with the demo's vocabulary, instead of random ones")
    options = parser.parse_args()
    if options.model is not None:
        compare_saved(options.model)
        return
    print("| architecture | scales | max abs difference of logits | by folding | greedy tokens equal |")
    print("| --- | --- | --- | --- | --- |")
    for architecture in options.only:
        for label, scales, target in (
            ("none", [1.0] * len(SCALES), "stream"),
            ("stream", [0.8, *SCALES[1:]], "stream"),
            ("mlp_delta", SCALES, "mlp_delta"),
        ):
            one = compare(architecture, scales, target)
            equal = "yes" if one.equal else "NO"
            print(f"| {architecture} | {label} | {one.difference:.1e} | {one.folding:.1e} | {equal} |", flush=True)


if __name__ == "__main__":
    main()
