"""Compares models in llama.cpp with the same models in transformers: greedy answers, and log-probabilities on the way.

A model folder is written by `hf-evomerge fold --gguf` first, in float32, which needs llama.cpp's converter (docs/serving.md); a
GGUF file is taken as it is, and transformers runs what it is dequantised to. llama.cpp runs on the CPU, its cache in float32.

    pip install xllamacpp
    python benchmarks/fold_gguf.py my-search/model
    python benchmarks/fold_gguf.py SmolLM2-135M-Instruct.Q4_1.gguf --prompts 5
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import xllamacpp
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_evomerge import Source, write_gguf

TOP = 10
PROMPTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time there was a little girl who",
    "def add(a, b):\n    return",
    "Three apples and four apples are",
    "The opposite of hot is",
    "In 1969, two men walked",
    "List three colours:",
    "私の名前は",
    "The sun rises in the",
]


class Answer(NamedTuple):
    """What follows a prompt.

    Attributes:
        tokens: The greedy tokens.
        logprobs: Of the likeliest tokens at each step, their log-probabilities.
    """

    tokens: list[int]
    logprobs: list[dict[int, float]]


def run_llama_cpp(file: Path, prompts: list[list[int]], new: int) -> Iterator[Answer]:
    """The answers of llama.cpp to prompts that are given as tokens."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.n_parallel, parameters.verbosity = 256, 1, -1
    parameters.warmup = parameters.cache_prompt = False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(parameters)
    for prompt in prompts:
        asked = {"prompt": prompt, "max_tokens": new, "temperature": 0, "logprobs": TOP, "ignore_eos": True}
        said = server.handle_completions(asked)
        said = json.loads(said) if isinstance(said, (str, bytes)) else said
        steps = said["choices"][0]["logprobs"]["content"]
        yield Answer(
            [step["id"] for step in steps], [{top["id"]: top["logprob"] for top in step["top_logprobs"]} for step in steps]
        )


def compare(model: PreTrainedModel, prompt: list[int], theirs: Answer) -> tuple[bool, float, float]:
    """Whether the tokens are equal; the largest difference of a log-probability; how far the first other token was behind."""
    ids = torch.tensor([prompt + theirs.tokens])
    with torch.no_grad():
        steps = model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    largest, ours = 0.0, steps.argmax(-1).tolist()
    for step, tops in zip(steps, theirs.logprobs, strict=True):
        largest = max([largest, *(abs(float(step[token]) - value) for token, value in tops.items())])
    for step, mine, other in zip(steps, ours, theirs.tokens, strict=True):
        if mine != other:
            return False, largest, float(step[mine] - step[other])
    return True, largest, 0.0


def main() -> None:
    """Print how a model does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model's folder, or a GGUF file")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many prompts")
    parser.add_argument("--new", type=int, default=12, help="tokens of each answer")
    options = parser.parse_args()
    source = Source.open(options.model)
    source.download()
    model = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32, trust_remote_code=False).eval()
    tokenizer = source.tokenizer()
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS[: options.prompts]]
    with tempfile.TemporaryDirectory() as folder:
        file = source.gguf.file if source.gguf else write_gguf(options.model, f"{folder}/model.gguf", kind="f32")
        answers = list(run_llama_cpp(file, prompts, options.new))
    found = [compare(model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    for (equal, _, behind), answer, text in zip(found, answers, PROMPTS, strict=False):
        print(f"{text!r}: {tokenizer.decode(answer.tokens)!r}{'' if equal else f' (other; behind by {behind:.3f})'}")
    print(f"{options.model}: {sum(equal for equal, *_ in found)} of {len(found)} greedy answers of {options.new} tokens equal,")
    print(f"max abs difference of the {TOP} largest log-probabilities {max(largest for _, largest, _ in found):.1e}")


if __name__ == "__main__":
    main()
