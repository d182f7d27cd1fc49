"""Compares models in llama.cpp with the same models in transformers: greedy answers, and
log-probabilities on the way.

A model folder is folded where it has a path, and written in float32 by llama.cpp's converter
(docs/serving.md); llama.cpp runs on the CPU, its cache in float32.

    pip install xllamacpp
    python benchmarks/fold_gguf.py my-search/model --converter llama.cpp/convert_hf_to_gguf.py
    python benchmarks/fold_gguf.py my-search/model --test my-search --prompts 50
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import xllamacpp
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from hf_evomerge import Example, fold, open_source
from hf_evomerge.fitness import load_examples
from hf_evomerge.fitness.text.encoding import encode_prompt
from hf_evomerge.search.study.paths import settings_in

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
        text: The greedy answer, without special tokens.
        tokens: Its tokens.
        logprobs: Of the likeliest tokens at each step, their log-probabilities.
    """

    text: str
    tokens: list[int]
    logprobs: list[dict[int, float]]


def run_llama_cpp(file: Path, prompts: list[list[int]], new: int) -> Iterator[Answer]:
    """The answers of llama.cpp to prompts that are given as tokens."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx = 256
    parameters.n_parallel = 1
    parameters.verbosity = -1
    parameters.warmup = parameters.cache_prompt = False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(parameters)
    for prompt in prompts:
        asked = {"prompt": prompt, "max_tokens": new, "temperature": 0, "logprobs": TOP}
        said = server.handle_completions(asked)
        choice = (json.loads(said) if isinstance(said, (str, bytes)) else said)["choices"][0]
        steps = (choice.get("logprobs") or {}).get("content") or []
        tops = [{top["id"]: top["logprob"] for top in step["top_logprobs"]} for step in steps]
        yield Answer(choice["text"], [step["id"] for step in steps], tops)


def run_transformers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], new: int
) -> list[Answer]:
    """The answers of transformers; all log-probabilities."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            text = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=False,
                trust_remote_code=False,
            )
            steps = model(text).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        tokens = text[0, len(prompt) :].tolist()
        said = tokenizer.decode(tokens, skip_special_tokens=True)
        found.append(Answer(said, tokens, [dict(enumerate(step.tolist())) for step in steps]))
    return found


def largest_difference(ours: Answer, theirs: Answer) -> float:
    """Of a log-probability, as long as the tokens are the same: characters of several tokens may be
    reported otherwise."""
    largest = 0.0
    for mine, other, known, tops in zip(
        ours.tokens, theirs.tokens, ours.logprobs, theirs.logprobs, strict=False
    ):
        if mine != other:
            break
        largest = max([largest, *(abs(known[token] - value) for token, value in tops.items())])
    return largest


def main() -> None:
    """Print how a model does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model's folder")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many prompts")
    parser.add_argument(
        "--test", type=Path, help="a search's folder, whose test problems are the prompts"
    )
    parser.add_argument("--converter", default="convert_hf_to_gguf.py", help="llama.cpp's")
    parser.add_argument("--new", type=int, default=12, help="tokens of each answer")
    options = parser.parse_args()
    source = open_source(options.model)
    source.download()
    model = AutoModelForCausalLM.from_pretrained(
        source.folder, dtype=torch.float32, trust_remote_code=False
    ).eval()
    tokenizer = source.tokenizer()
    problems = [Example(text, "") for text in PROMPTS]
    if options.test:
        problems = load_examples(settings_in(options.test).data["test"])
    del problems[options.prompts :]
    prompts = [encode_prompt(problem, tokenizer) for problem in problems]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.gguf")
        plain = source.folder
        if source.config.model_type == "evo_merged":
            plain = fold(options.model, Path(folder, "plain"))
        named = ["--outfile", str(file), "--outtype", "f32"]
        subprocess.run([sys.executable, options.converter, str(plain), *named], check=True)
        answers = list(run_llama_cpp(file, prompts, options.new))
    own = run_transformers(model, tokenizer, prompts, options.new)
    for problem, mine, other in zip(problems, own, answers, strict=True):
        print(
            f"{problem.prompt!r}: "
            f"{mine.text!r}{'' if mine.text == other.text else f', llama.cpp {other.text!r}'}"
        )
    if options.test:
        for name, they in (("transformers", own), ("llama.cpp", answers)):
            right = sum(
                problem.answer == said.text.strip()
                for problem, said in zip(problems, they, strict=True)
            )
            print(f"{name}: {right} of {len(problems)} answers are right")
    same = sum(mine.text == other.text for mine, other in zip(own, answers, strict=True))
    print(
        f"{options.model}: {same} of {len(own)} greedy answers of at most {options.new} "
        "tokens are the same,"
    )
    largest = max(largest_difference(mine, other) for mine, other in zip(own, answers, strict=True))
    print(f"max abs difference of the {TOP} largest log-probabilities {largest:.1e}")


if __name__ == "__main__":
    main()
