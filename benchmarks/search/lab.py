"""A problem that searches are compared on: the models, the examples, and held-out scores of
anything."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from specialists.language import problems
from specialists.texts import TextKind, write

from hf_evomerge import Example, Recipe, Scores, SearchConfig, SourceRef
from hf_evomerge.demo.quickstart import SPECIALISTS
from hf_evomerge.fitness import make_task
from hf_evomerge.search.evaluation.evaluator import Evaluator

SEARCH = 128
HELD_OUT = 500
OWN = 200
COSTS = (25, 50, 75, 100, 150, 200, 300, 400, 600)
WEIGHT = {"low": -0.5, "high": 2.0, "start": 0.5}


@dataclass
class Lab:
    """One problem.

    Attributes:
        problem: What it is called in results: the family of models, and what else sets it apart.
        draw: Which examples it has.
        settings: Of every search: sources, base, dtype, fitness.
        sections: What the search file's ``merge`` and ``path`` have in common for all methods.
        examples: ``search``, ``test``, and the parents' own tasks by name.
        rates: Learning rates that fine-tuning is tried with.
        batch: Examples of a step of it.
        costs: At which costs, below the budget of a run, the best candidate so far is scored on
            held-out examples.
        paired: Whether the held-out scores of each example are kept, so that methods can be
            compared on the same ones.
    """

    problem: str
    draw: int
    settings: Mapping[str, Any]
    sections: Mapping[str, Mapping[str, Any]]
    examples: Mapping[str, Sequence[Example]]
    rates: tuple[float, ...] = (1e-3, 3e-3, 3e-4)
    batch: int = 16
    costs: tuple[int, ...] = COSTS
    paired: bool = False

    def config(self, **more: Any) -> SearchConfig:
        """A search on this problem."""
        return SearchConfig.model_validate({**self.settings, **more})

    @property
    def own(self) -> list[str]:
        """The parents' own tasks."""
        return [name for name in self.examples if name not in ("search", "test")]

    @cached_property
    def evaluator(self) -> Evaluator:
        """What scores recipes and parents."""
        return Evaluator(self.config(space="ps"), examples=self.examples)

    def scores(self, target: Any, split: str) -> Scores:
        """Scores of a recipe, a parent, or a live model; raises the error of a candidate that has
        none."""
        if isinstance(target, Recipe | SourceRef):
            found = self.evaluator.evaluate(target, split)
        else:
            task = make_task(self.evaluator.config.fitness)
            task.prepare(self.examples[split], self.evaluator.sources[0].tokenizer())
            found = task.evaluate(target)
        if found.error is not None:
            raise RuntimeError(f"{self.problem}, {split}: {found.error}")
        return found

    def copy_of(self, target: Recipe | SourceRef) -> Any:
        """A live model of its own."""
        return deepcopy(self.evaluator.models.model(target))


def demo(family: str, draw: int, count: int = SEARCH) -> Lab:
    """The demo's task.

    Args:
        family: Of specialists: ``shipped``, or a folder with ``base``, ``japanese`` and ``maths``.
        draw: Which search examples.
        count: How many; held-out scores along the way are for the usual number alone.
    """
    folder = SPECIALISTS if family == "shipped" else Path(family)
    if not (folder / "japanese" / "config.json").exists():
        raise SystemExit(
            f"{family}: no family here; train one: python benchmarks/specialists --seed 1 "
            f"--out {family}"
        )
    rng = random.Random(0)
    recall = [write(TextKind("recall", "ja", "ja", "ja", 20), rng) for _ in range(OWN)]
    examples = {
        "search": _examples(problems("search", count, seed=draw)),
        "test": _examples(problems("test", HELD_OUT)),
        "japanese": [Example(prompt, answer) for prompt, answer in recall],
        "maths": _examples(problems("test", OWN, text="en", answer="en")),
    }
    settings = {
        "sources": [{"model": str(folder / name)} for name in ("japanese", "maths")],
        "base": {"model": str(folder / "base")},
        "fitness": {"task": "likelihood", "separator": " "},
        "output": {"dtype": "float32"},
    }
    sections: dict[str, dict[str, Any]] = {
        "merge": {"parameters": {"weight": WEIGHT}},
        "path": {"kind": "gates", "max_hops": 24},
    }
    name = "shipped" if family == "shipped" else folder.name
    whole = count == SEARCH
    return Lab(
        name if whole else f"{name}, {count}",
        draw,
        settings,
        sections,
        examples,
        costs=COSTS if whole else (),
    )


def _examples(rows: Sequence[Mapping[str, str]]) -> list[Example]:
    return [Example(row["prompt"], row["answer"], f"[{i}]") for i, row in enumerate(rows)]
