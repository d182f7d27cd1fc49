"""One model that keeps both parents' skills: what searches, averages and fine-tunes keep of them.

A cell is a pair, a number of examples of each skill, and a draw of them. The examples are the
parents' own: a Japanese parent's numbers in kanji, a maths parent's problems in English. Each skill
counts 1 over its gap, what the better parent has more than the base in nats, as `init a b --data
a.jsonl b.jsonl` writes it. The held-out problems are 100 of each skill, the same in all rows.

`PAIR:prompts` has the prompts alone, and no answers: each parent answers its own, by `fitness:
agreement`. `PAIR:varied` has as many more prompts, made of these by exchanging words, as there are
128 of each parent, as `init` writes it for such data.

    python benchmarks/specialists --out /tmp/family-1 --seed 1
    python benchmarks/skills.py run --work /tmp --pairs demo family-1 --examples 16 64
    python benchmarks/skills.py run --work /tmp --pairs demo:prompts --examples 128 --draws 1
    python benchmarks/skills.py run --work /tmp --pairs demo:varied --examples 16
    python benchmarks/skills.py table --into benchmarks/pages/skills.md

Results are appended as they come, one JSON line a cell; what is there is not run again.
"""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import evidence  # noqa: F401  where the other scripts are
from cells import command_line
from lab import demo
from pairs.__main__ import PAIRS, make_lab
from pairs.__main__ import problems as pair_problems
from specialists.language import problems
from specialists.texts import TextKind, write

from hf_evomerge import Example, Recipe, Scores, SearchConfig
from hf_evomerge.recipes.recipe import MergePart
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.run import run_search

RESULTS = Path(__file__).parent / "results" / "search" / "skills.jsonl"
HELD_OUT = 100  # problems of each skill
VALIDATION = 16  # of each skill
SWEEP = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
LIKELIHOOD = {"task": "likelihood", "separator": " ", "batch_size": 8}
AGREEMENT = {"task": "agreement", "separator": " ", "batch_size": 8}
TITLES = {
    "base": "base",
    "first": "first parent",
    "second": "second parent",
    "average": "plain average",
    "sweep": "one weight for all, the best of 8 by the examples",
    "ties": "TIES, density .2, weight 1",
    "dare": "DARE, density .1, weight .5",
    "agreement": "agreement with the parents, no answers",
    "lora": "LoRA, best start and rate",
    "together": "LoRA beside the merge",
    "both": "merge, likelihood and agreement",  # recorded, and not run any more
    "merge": "merge",
}
"""Rows of the table."""


@dataclass(frozen=True)
class Skills:
    """Two parents and what each of them can do.

    Attributes:
        settings: Sources, base and dtype, as in a search file.
        draw: Writes so many examples of a parent's skill from a seed; none is of `avoid`.
    """

    settings: Mapping[str, Any]
    draw: Callable[[int, int, int, frozenset[str]], list[Example]]


def specialists(family: str, work: Path) -> Skills:
    """The demo's specialists: numbers in kanji, and problems in English."""
    lab = demo("shipped" if family == "demo" else str(work / family), 0)

    def draw(parent: int, count: int, seed: int, avoid: frozenset[str]) -> list[Example]:
        rng = random.Random(f"{parent}/{seed}")
        found = dict[str, str]()
        while len(found) < count:
            if parent == 0:
                prompt, answer = write(TextKind("recall", "ja", "ja", "ja", 20), rng)
            else:
                (row,) = problems("search", 1, seed=rng.randrange(10**9), text="en", answer="en")
                prompt, answer = row["prompt"], row["answer"]
            if prompt not in avoid:
                found[prompt] = answer
        return [Example(prompt, answer) for prompt, answer in found.items()]

    return Skills(lab.settings, draw)


def adapters(name: str, work: Path) -> Skills:
    """A pair of `benchmarks/pairs`: two adapters of SmolLM2-135M."""
    pair = importlib.import_module(name)
    lab = make_lab(work / "pairs", name, 16, 0)

    def draw(parent: int, count: int, seed: int, avoid: frozenset[str]) -> list[Example]:
        return pair_problems(pair, pair.SKILLS[parent], count, seed, avoid)

    return Skills(lab.settings, draw)


PROMPTS = 128  # of each parent, with those that are made
KINDS = {
    "": "examples of each skill",
    "prompts": "prompts of each, no answers",
    "varied": f"prompts of each, no answers, and more made of them, {PROMPTS} in all",
}
MAKERS = {
    **dict.fromkeys(("demo", "family-1", "family-2"), specialists),
    **dict.fromkeys(PAIRS, adapters),
}


def examples_of(
    skills: Skills, names: Sequence[str], count: int, draw: int
) -> dict[str, list[Example]]:
    """Examples by split, those of the first skill at even places and of the second at odd ones."""
    of_skill = list[dict[str, list[Example]]]()
    for parent, name in enumerate(names):
        held = skills.draw(parent, HELD_OUT, 0, frozenset())
        seen = frozenset(example.prompt for example in held)
        drawn = skills.draw(parent, count + VALIDATION, draw, seen)
        splits = {"search": drawn[:count], "validation": drawn[count:], "test": held}
        of_skill.append(
            {
                split: [
                    replace(example, id=f"{name}[{number}]", source=name)
                    for number, example in enumerate(rows)
                ]
                for split, rows in splits.items()
            }
        )
    return {
        split: [each for two in zip(*(one[split] for one in of_skill), strict=True) for each in two]
        for split in ("search", "validation", "test")
    }


def run_cell(name: str, count: int, draw: int, work: Path) -> dict[str, Any]:
    """Score every row of a cell, and return the line of the results."""
    pair, _, kind = name.partition(":")
    skills = MAKERS[pair](pair, work)
    config = SearchConfig.model_validate({**skills.settings, "space": "ps"})
    names = [config.source_names[number] for number in config.merge_sources]
    examples = examples_of(skills, names, count, draw)
    folder = work / "skills" / f"{name.replace(':', '-')}-{count}-{draw}"
    begin = time.process_time()
    evaluator = Evaluator(
        SearchConfig.model_validate({**skills.settings, "space": "ps", "fitness": LIKELIHOOD}),
        examples=examples,
    )
    targets: dict[str, Any] = {
        "base": config.base,
        "first": config.sources[0],
        "second": config.sources[1],
        "average": _plain(config, "task_arithmetic", 0.5),
        "ties": _plain(config, "ties", 1.0, density=0.2),
        "dare": _plain(config, "dare_linear", 0.5, density=0.1),
    }
    rows = {key: evaluator.evaluate(target, "test") for key, target in targets.items()}
    seconds = dict[str, float]()

    def search(key: str, fitness: Any, baselines: Sequence[str], given: Any) -> None:
        settings = {
            **skills.settings,
            "space": "ps",
            "optimize": "quick",
            "fitness": fitness,
            "compute": {"seed": draw},
            "compare": {"baselines": list(baselines)},
        }
        result = run_search(
            SearchConfig.model_validate(settings), folder / key, examples=given, build=False
        )
        for row in result.rows:
            stage = key if row.stage == "ps" else row.stage
            if stage in (key, "lora", "together"):
                seconds[stage] = round(row.seconds, 1)
                rows[stage] = evaluator.evaluate(row.target, "test")

    def line() -> dict[str, Any]:
        return {
            "pair": name,
            "examples": count,
            "draw": draw,
            "rows": {key: _line(rows[key]) for key in TITLES if key in rows},
            "seconds": seconds,
            "cpu": round(time.process_time() - begin),
        }

    if kind:
        unanswered = {
            split: [replace(each, answer="") for each in given] for split, given in examples.items()
        }
        vary = PROMPTS - count if kind == "varied" else 0
        search("merge", {**AGREEMENT, "vary": vary}, ["lora", "merge+lora"], unanswered)
        return line()
    weighted = {split: list(rows) for split, rows in examples.items()}
    for parent in (0, 1):
        own = [evaluator.evaluate(targets[row], "search") for row in ("base", "first", "second")]
        base, *parents = (float(scores.values[parent::2].mean()) for scores in own)
        gap = max(*parents, base + 0.01) - base
        for split in ("search", "validation"):
            weighted[split][parent::2] = [
                replace(example, weight=1 / gap) for example in weighted[split][parent::2]
            ]
    swept = [_plain(config, "task_arithmetic", weight) for weight in SWEEP]
    weights = [example.weight for example in weighted["search"]]
    best = max(
        swept, key=lambda recipe: float(evaluator.evaluate(recipe, "search").values @ weights)
    )
    rows["sweep"] = evaluator.evaluate(best, "test")
    search("merge", LIKELIHOOD, ["lora", "merge+lora"], weighted)
    search("agreement", AGREEMENT, [], examples)
    return line()


def _plain(config: SearchConfig, method: str, weight: float, **options: float) -> Recipe:
    """A merge with the same weight for all sources."""
    parameters = [{"weight": weight, **options}] * len(config.sources)
    return Recipe(
        sources=config.sources,
        base=config.base,
        merge=MergePart(method=method, parameters=parameters),
        dtype="float32",
    )


def _line(scores: Scores) -> dict[str, Any]:
    assert scores.correct is not None
    right = "".join(str(int(each)) for each in scores.correct)
    values = [round(float(value), 3) for value in scores.values]
    return {"right": right, "values": values}


def shares(row: Mapping[str, Any], rows: Mapping[str, Any]) -> list[float]:
    """Share of the better parent's accuracy that a row keeps, of the first and the second skill."""
    kept = []
    for skill in (0, 1):
        best = max(rows[parent]["right"][skill::2].count("1") for parent in ("first", "second"))
        kept.append(row["right"][skill::2].count("1") / best)
    return kept


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """One table a number of examples: a column for each pair, a row for each kind of model.

    A cell has the accuracy in both skills, the least and the mean share kept of the better parent's
    accuracy, and the log-likelihood; means over draws.
    """
    texts = []
    for kind, what in KINDS.items():
        of_kind = [line for line in lines if line["pair"].partition(":")[2] == kind]
        for count in sorted({line["examples"] for line in of_kind}):
            there = [line for line in of_kind if line["examples"] == count]
            texts.append(f"{count} {what}:\n\n{_table(there)}")
    return "\n\n".join(texts)


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table of one number of examples."""
    of_pair = {
        name: found
        for name in MAKERS
        if (found := [line for line in lines if line["pair"].partition(":")[0] == name])
    }
    rows = [["", *of_pair]]
    for key, title in TITLES.items():
        if all(key in line["rows"] for line in lines):
            rows.append([title, *(_cell(found, key) for found in of_pair.values())])
    rows.append(["draws", *(str(len(found)) for found in of_pair.values())])
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    rule = f"|{' --- |' * len(rows[0])}"
    return "\n".join([head, rule, *body])


def _cell(lines: Sequence[Mapping[str, Any]], key: str) -> str:
    rows = [line["rows"][key] for line in lines]
    first, second = (
        _mean([row["right"][skill::2].count("1") / HELD_OUT for row in rows]) for skill in (0, 1)
    )
    kept = [shares(line["rows"][key], line["rows"]) for line in lines]
    nats = _mean([_mean(row["values"]) for row in rows])
    least = _mean([min(each) for each in kept])
    mean = _mean([sum(each) / 2 for each in kept])
    return f"{first:.2f}, {second:.2f}; keeps {least:.2f}, mean {mean:.2f}; {nats:.2f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    """Command line."""
    command_line(
        __doc__,
        results=RESULTS,
        pairs=[f"{name}:{kind}".rstrip(":") for kind in KINDS for name in MAKERS],
        counts=[16, 64],
        run_cell=run_cell,
        told=lambda line: table([line]),
        table=table,
    )


if __name__ == "__main__":
    main()
