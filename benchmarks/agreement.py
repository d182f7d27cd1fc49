"""Merging without labels, and keeping the parents' skills: the task `agreement` on a real
pretrained pair.

    # DIR as for real_models.py, which trains the pair
    python benchmarks/agreement.py run --work DIR --prompts 8 16
    python benchmarks/agreement.py table

One parent looks up and answers in JSON, the other calculates. `run` is given prompts of each parent
and no answers. A search costs 9 scores of 128 examples. Skills are accuracies on 50 held-out
problems of each parent; "both" are 100 problems that need both skills.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "search"))

from json_maths import SKILLS, draw
from lab import Lab
from real_models import FULL, MODELS, real_pair
from records import append

from hf_evomerge import Example, MergePart, Recipe, run_search
from hf_evomerge.search.spaces.space import uniform_average

PAIR = MODELS["smollm2"]
RESULTS = Path(__file__).parent / "results" / "search" / "agreement.jsonl"
BOTH = 100
EXAMPLES = 16
BATCH = 8
COST = 9
OWN = tuple(PAIR.courses)
HELD = {skill: draw(skill, 400, 0) for skill in SKILLS}
AVOID = frozenset(example.prompt for examples in HELD.values() for example in examples)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="without labels, and what needs no search")
    command.add_argument(
        "--work", type=Path, required=True, help="folder of the pair; studies are written there"
    )
    command.add_argument("--draws", type=int, nargs="+", default=[1], help="draws of the prompts")
    command.add_argument("--prompts", type=int, nargs="+", default=[8, 16], help="of each parent")
    command.add_argument(
        "--groups", default="tensor", help="as in a search file; tensor by default"
    )
    commands.add_parser("table", help="print the results as Markdown")
    arguments = parser.parse_args()
    if arguments.command == "table":
        print(table())
        return
    for number in arguments.draws:
        lab = real_pair(arguments.work, PAIR, EXAMPLES, number)
        own = {skill: lab.examples[skill] for skill in OWN}
        lab = replace(
            lab,
            examples={"search": lab.examples["search"], "both": lab.examples["test"][:BOTH], **own},
        )
        known(lab)
        for prompts in arguments.prompts:
            without_labels(lab, prompts, arguments.groups, arguments.work)


def known(lab: Lab) -> None:
    """Score what needs no search."""
    config = lab.config(space="ps")
    measure(lab, "base", config.base)
    for skill, ref in zip(OWN, config.sources, strict=True):
        measure(lab, f"parent {skill}", ref)
    measure(lab, "average", uniform_average(config))
    for weight in (0.3, 0.5, 0.7, 1.0):
        measure(
            lab, f"task arithmetic {weight}", merged(lab, "task_arithmetic", {"weight": weight})
        )
    measure(lab, "TIES, density 0.5", merged(lab, "ties", {"weight": 1.0, "density": 0.5}))


def merged(lab: Lab, method: str, numbers: dict[str, Any]) -> Recipe:
    """A merge with the same numbers for both parents."""
    return lab.config(space="ps").recipe(MergePart(method=method, parameters=[numbers] * len(OWN)))


def without_labels(lab: Lab, prompts: int, groups: str, folder: Path) -> None:
    """Search by agreement on prompts of each parent, and measure the winner."""
    name = f"agreement, {groups}"
    examples = [
        replace(each, answer="", source=skill)
        for skill in OWN
        for each in drawn(skill, prompts, lab.draw)
    ]
    evaluations = math.ceil(COST * FULL / len(examples))
    step = {"by": "gradient", "evaluations": evaluations, "batch": BATCH}
    config = lab.config(
        space="ps",
        fitness={"task": "agreement", "batch_size": 8},
        merge={**lab.sections["merge"], "groups": groups},
        optimize=[step],
        compute={"seed": lab.draw},
    )
    begin = time.perf_counter()
    processor = time.process_time()
    out = folder / "studies" / f"{name}-{prompts}-{lab.draw}".replace(", ", "-").replace(" ", "-")
    result = run_search(config, out, examples={"search": examples}, build=False)
    seconds = {
        "seconds": round(time.perf_counter() - begin),
        "cpu": round(time.process_time() - processor),
    }
    measure(lab, name, result.winner, prompts=prompts, cost=COST, **seconds)


def drawn(skill: Any, count: int, number: int) -> list[Example]:
    """Prompts of a skill that are in no other set; answers are there, and nobody looks at them."""
    return draw(skill, count, 100 + number, AVOID)


def measure(lab: Lab, name: str, target: Any, **more: Any) -> None:
    """Keep what a model scores on held-out problems."""
    scores = {split: lab.scores(target, split) for split in (*OWN, "both")}
    record = {
        "method": name,
        "draw": lab.draw,
        **more,
        **{split: found.accuracy for split, found in scores.items()},
    }
    record["both_loglik"] = round(scores["both"].mean or 0.0, 3)
    append(RESULTS, record)
    print(json.dumps(record), flush=True)


def table() -> str:
    """One line for each method and number of prompts."""
    lines = [
        "| | prompts of each | json | maths | both | both, nats |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines()):
        figures = (*(f"{row[split]:.2f}" for split in (*OWN, "both")), f"{row['both_loglik']:.2f}")
        lines.append(f"| {row['method']} | {row.get('prompts') or ''} | {' | '.join(figures)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
