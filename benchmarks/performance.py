"""Measure costs beside mergekit, a plain loop, a plain model and a score; write
pages/performance.md.

Everything is measured as pairs, one after the other and in turns, so that what else the machine
does falls on both; a ratio is the geometric mean of the pairs' ratios, with a 95 % interval by
bootstrap. CPU time, one thread; where nothing else runs:

    python benchmarks/performance.py --write            # an hour
    python benchmarks/performance.py --sizes 470M       # the same for larger models, longer
    python benchmarks/performance.py --pairs 2 --quick  # does it work?
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import merge as merges
import numpy as np
import torch
from parity import MERGEKIT, install

PAGE = Path(__file__).parent / "pages" / "performance.md"
BEGIN = "<!-- bench: begin -->"
END = "<!-- bench: end -->"
LIVE = (
    merges.MEASURE
    + """
from transformers import AutoModelForCausalLM
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.merging.live import LiveMerger
from hf_evomerge.recipes.recipe import Recipe
recipe = Recipe.from_yaml(json.loads(sys.argv[1])[1])
sources = [open_source(each.model) for each in recipe.sources]
base = open_source(recipe.base.model) if recipe.base else None
model = AutoModelForCausalLM.from_pretrained(recipe.sources[0].model)
merger = LiveMerger(sources, base, recipe.merge.method, recipe.merge.options, 0, model)
merger.apply(recipe.merge.parameters)
measure(lambda: merger.apply(recipe.merge.parameters))
"""
)
Figures = dict[str, float]


def paired(
    first: Callable[[], Figures], second: Callable[[], Figures], pairs: int
) -> tuple[list[Figures], list[Figures]]:
    """Run both in turns, once each for nothing and then so many times; which of them begins changes
    from pair to pair."""
    found: tuple[list[Figures], list[Figures]] = [], []
    for number in range(pairs + 1):
        order = (0, 1) if number % 2 else (1, 0)
        figures = {which: (first, second)[which]() for which in order}
        for which in order if number else ():
            found[which].append(figures[which])
    return found


def ratio(above: Sequence[Figures], below: Sequence[Figures], key: str = "cpu") -> str:
    """The ratio of two lists of figures, pair by pair: ``3.1 (2.9 to 3.4)``."""
    logs = np.log([a[key] / b[key] for a, b in zip(above, below, strict=True)])
    means = np.random.default_rng(0).choice(logs, (4000, logs.size)).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{math.exp(logs.mean()):.2f} ({math.exp(low):.2f} to {math.exp(high):.2f})"


def table(head: str, rows: Iterator[list[str]]) -> Iterator[str]:
    """The lines of a table, as its rows are measured."""
    yield f"| {head} |"
    yield "| --- " * (head.count("|") + 1) + "|"
    for row in rows:
        print("|".join(row), file=sys.stderr, flush=True)
        yield f"| {' | '.join(row)} |"


def merging(work: Path, options: argparse.Namespace, mergekit: str) -> Iterator[list[str]]:
    """From disk to disk, here beside a plain loop and mergekit beside here; mergekit's beside a
    candidate in memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    programs = {"here": (sys.executable, merges.OURS), "plain": (sys.executable, merges.PLAIN)}
    programs |= {"mergekit": (mergekit, merges.THEIRS), "live": (sys.executable, LIVE)}

    def runner(who: str, size: str, method: str) -> Callable[[], Figures]:
        python, program = programs[who]
        texts = [
            merges.text_of("here" if who == "live" else who, work / name, method)
            for name in ("tiny", size)
        ]
        return lambda: merges.run(python, program, texts, work / "out", environment)

    for size in options.sizes:
        for method in options.methods:
            here, plain = paired(
                runner("here", size, method), runner("plain", size, method), options.pairs
            )
            theirs, ours = paired(
                runner("mergekit", size, method), runner("here", size, method), options.pairs
            )
            disk, live = paired(
                runner("mergekit", size, method), runner("live", size, method), options.pairs
            )
            memory = (
                f"{median(each['memory'] for each in ours):.0f} MB, "
                f"{median(each['memory'] for each in theirs):.0f} MB"
            )
            yield [
                f"`{method}`, {size}",
                ratio(here, plain),
                ratio(theirs, ours),
                memory,
                ratio(disk, live),
            ]


def model_class(work: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """The merged model with the path of its only source beside that source as it is."""
    from transformers import AutoModelForCausalLM

    from hf_evomerge import LayerPath, LayerPool

    torch.set_num_threads(1)
    folder = work / options.sizes[0] / "a"
    plain = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    merged = LayerPool([plain]).model(LayerPath.parse(f"0:0-{plain.config.num_hidden_layers - 1}"))
    tokens = torch.randint(
        3, plain.config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(0)
    )
    made = {"do_sample": False, "max_new_tokens": 16, "min_new_tokens": 16, "pad_token_id": 0}
    works: dict[str, Callable[[Any], Any]] = {
        "forward, 64 tokens": lambda model: model(tokens),
        "16 greedy tokens with a cache": lambda model: model.generate(
            tokens, trust_remote_code=False, **made
        ),
    }

    def timed(work: Callable[[Any], Any], model: Any) -> Callable[[], Figures]:
        def once() -> Figures:
            begin = time.process_time()
            with torch.inference_mode():
                work(model)
            return {"cpu": time.process_time() - begin}

        return once

    for name, each in works.items():
        yield [name, ratio(*paired(timed(each, merged), timed(each, plain), 4 * options.pairs))]


def gradients(work: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """A step along the gradient beside a score of the same examples, at the shape of
    SmolLM2-135M."""
    program = Path(__file__).parent / "gradient_memory.py"
    examples = ("2", "16") if options.quick else ("8", "64")
    words = [
        sys.executable,
        str(program),
        "--work",
        str(work / "smol"),
        "--examples",
        examples[0],
        "--tokens",
        examples[1],
    ]
    import gradient_memory

    sizes = gradient_memory.SHAPES["135M"]
    gradient_memory.make_family(work / "smol" / "135M-float32", "float32", sizes, ["a", "b"])
    for name in ("weights", "gates")[: 1 if options.quick else 2]:
        found = []
        for _ in range(options.pairs):
            done = subprocess.run(
                [*words, "--child", name, "kept"], check=True, capture_output=True, text=True
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
        memory = median(each["step"]["memory"] / each["score"]["memory"] for each in found)
        yield [
            name,
            ratio([each["step"] for each in found], [each["score"] for each in found]),
            f"{memory:.2f}",
        ]


def shared_prefixes(options: argparse.Namespace) -> Iterator[list[str]]:
    """Scores and gradients of 16 prompts of 64 tokens that begin with the same ones, beside the
    same with every row run whole, at the shape of SmolLM2-135M."""
    from gradient_memory import SHAPES
    from transformers import LlamaConfig, LlamaForCausalLM

    from hf_evomerge.fitness import Example
    from hf_evomerge.fitness.text import prefix
    from hf_evomerge.fitness.text.pairs import Pairs

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPES["135M"]))
    units = ([1.0] * 16, 16)
    least = prefix.LEAST_SAVED

    def passes(shared: int, least_saved: float, mean_of: Any) -> Callable[[], Figures]:
        ids = torch.randint(model.config.vocab_size, (16, 64))
        ids[:, :shared] = ids[0, :shared]
        pairs = [(row[:60], row[60:]) for row in ids.tolist()]
        prefix.LEAST_SAVED = least_saved
        scorer = Pairs(pairs, [Example("", "", str(i)) for i in range(16)], 8, None)
        prefix.LEAST_SAVED = least

        def once() -> Figures:
            begin = time.process_time()
            scorer.score(model, mean_of)
            return {"cpu": time.process_time() - begin}

        return once

    for shared in (16, 32, 48)[1 if options.quick else 0 :]:
        found = [
            ratio(*paired(passes(shared, 0.0, of), passes(shared, 1.0, of), options.pairs))
            for of in (None, units)
        ]
        yield [f"{shared} of 64", *found]


def starting(work: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """Commands beside the import of torch and transformers alone."""
    model = str(work / "tiny" / "a")
    recipe = work / "recipe.yaml"
    recipe.write_text(merges.text_of("here", work / "tiny", "linear"), encoding="utf-8")
    commands = {
        "`inspect`": ["-m", "hf_evomerge", "inspect", model],
        "`merge --dry-run`": [
            "-m",
            "hf_evomerge",
            "merge",
            str(recipe),
            "--out",
            str(work / "none"),
            "--dry-run",
        ],
    }

    def child(words: list[str]) -> Callable[[], Figures]:
        def once() -> Figures:
            before = os.times()
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            after = os.times()
            user = after.children_user - before.children_user
            system = after.children_system - before.children_system
            return {"cpu": user + system}

        return once

    plain = child(["-c", "import torch; from transformers import AutoModelForCausalLM"])
    for name, words in commands.items():
        here, imports = paired(child(words), plain, options.pairs)
        yield [name, f"{median(each['cpu'] for each in here):.1f}", ratio(here, imports)]


def machine() -> str:
    """Where and with what it was measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return (
        f"{datetime.now(UTC):%d %B %Y}, {names[0] if names else platform.processor()}, "
        f"{os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {libraries}, {MERGEKIT.replace('==', ' ')}"
    )


def report(options: argparse.Namespace) -> Iterator[str]:
    """The tables of the page."""
    mergekit = str(install(options.venv))
    yield f"Measured on {machine()}; {options.pairs} pairs each, in brackets an interval of 95 %.\n"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for size in dict.fromkeys(("tiny", *options.sizes)):
            merges.save_family(work / size, merges.SIZES[size])
        os.sync()
        yield "## Merging\n"
        head = (
            "two sources | CPU time: here / a plain loop | CPU time: mergekit / here | memory: "
            "here, mergekit"
        )
        head += " | CPU time: mergekit, on disk / a candidate, in memory"
        yield from table(head, merging(work, options, mergekit))
        yield "\n## The model class\n"
        yield from table("float32 | CPU time: a path / the plain model", model_class(work, options))
        yield "\n## A step along the gradient\n"
        head = "gradient of | CPU time: a step / a score | memory: a step / a score"
        yield from table(head, gradients(work, options))
        yield "\n## A shared prefix\n"
        head = "tokens that all prompts begin with | CPU time of a score: once / in every row"
        yield from table(f"{head} | CPU time of a step", shared_prefixes(options))
        yield "\n## Starting\n"
        yield from table(
            (
                "command, on a tiny model | CPU seconds | CPU time: command / the import of "
                "torch and transformers"
            ),
            starting(work, options),
        )


def main() -> None:
    """Measure, print, and write the page where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--venv", type=Path, default=Path(tempfile.gettempdir()) / "hf-evomerge-mergekit"
    )
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--sizes", nargs="+", choices=[*merges.SIZES][1:], default=["110M"])
    parser.add_argument(
        "--methods", nargs="+", choices=merges.METHODS, default=list(merges.METHODS)
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one method on tiny models, one gradient: to see that it works",
    )
    parser.add_argument(
        "--write", action="store_true", help="put the tables into benchmarks/pages/performance.md"
    )
    options = parser.parse_args()
    if options.quick:
        options.sizes = ["tiny"]
        options.methods = options.methods[:1]
    text = "\n".join(report(options))
    print(text)
    if options.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
