"""Compares the cost of a merge with a plain loop's and mergekit's: CPU time, wall time and memory,
from disk to disk.

Makes Llamas of 110 million to 1.35 billion parameters with random weights in bfloat16, a base and
two fine-tunes of each, and merges them here (checks and summary included, but without the record of
a build, whose sha256 of the result takes 0.6 seconds for each GB), by the loop in
``plain_merge.py``, and with mergekit's Python API, each merge in a process of its own that has
merged a tiny model before, so that imports do not count. Memory is the largest anonymous memory
above that at the start: files that are mapped do not count, because the system may drop them. CPU
time is what other programs change least.

    python benchmarks/merge.py --venv /tmp/mergekit-venv --sizes 110M
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from parity import install
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
    },
    "110M": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "470M": {
        "hidden_size": 1280,
        "intermediate_size": 3456,
        "num_hidden_layers": 22,
        "num_attention_heads": 20,
    },
    "1.35B": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 25,
        "num_attention_heads": 16,
    },
}
METHODS = {
    "linear": {"weight": 0.5},
    "task_arithmetic": {"weight": 0.6},
    "ties": {"weight": 0.6, "density": 0.5},
    "dare_ties": {"weight": 0.6, "density": 0.5},
    "slerp": {},
}
MEASURE = """
import json, sys, threading, time
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1000
def measure(work):
    start, peak, stop = anonymous(), [0.0], threading.Event()
    def watch():
        while not stop.wait(0.005):
            peak[0] = max(peak[0], anonymous() - start)
    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    stop.set()
    watcher.join()
    print(json.dumps({"cpu": cpu, "wall": wall, "memory": peak[0]}))
"""
OURS = (
    MEASURE
    + """
from hf_evomerge.building.build import open_recipe
from hf_evomerge.checkpoints.writer import write_checkpoint
from hf_evomerge.recipes.recipe import Recipe
def merge(text, out):
    write_checkpoint(open_recipe(Recipe.from_yaml(text)), out)
tiny, recipe, out = json.loads(sys.argv[1])
merge(tiny, out + "-tiny")
measure(lambda: merge(recipe, out))
"""
)
PLAIN = (
    MEASURE
    + f"""
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import plain_merge
def merge(text, out):
    method, folders, base = json.loads(text)
    plain_merge.merge(method, [Path(folder) for folder in folders], base and Path(base), Path(out))
tiny, recipe, out = json.loads(sys.argv[1])
merge(tiny, out + "-tiny")
measure(lambda: merge(recipe, out))
"""
)
THEIRS = (
    MEASURE
    + """
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
import yaml
def merge(text, out):
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), out_path=out, options=options)
tiny, recipe, out = json.loads(sys.argv[1])
merge(tiny, out + "-tiny")
measure(lambda: merge(recipe, out))
"""  # noqa: E501
)


def main() -> None:
    """Merge with each, and print figures and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--venv", type=Path, default=Path(tempfile.gettempdir()) / "hf-evomerge-mergekit"
    )
    parser.add_argument("--sizes", nargs="+", choices=[*SIZES][1:], default=["110M"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--threads", type=int, default=1, help="threads that torch may use, in both"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="the medians of so many runs, after one more, are printed",
    )
    parser.add_argument(
        "--without-mergekit", action="store_true", help="compare with the plain loop alone"
    )
    options = parser.parse_args()
    pythons = {"here": (sys.executable, OURS), "plain": (sys.executable, PLAIN)}
    if not options.without_mergekit:
        pythons["mergekit"] = (str(install(options.venv)), THEIRS)
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for size in ("tiny", *options.sizes):
            save_family(work / size, SIZES[size])
        os.sync()  # else the first merges wait for these files to be written
        print(
            f"{', '.join(pythons):22} {'CPU s':>26} {'wall s':>26} {'memory MB':>26}   CPU "
            "time: of plain, less than mergekit"
        )
        for size in options.sizes:
            for method in options.methods:
                found = {}
                for who, (python, program) in pythons.items():
                    texts = [text_of(who, work / name, method) for name in ("tiny", size)]
                    runs = [
                        run(python, program, texts, work / "out", environment)
                        for _ in range(options.repeats + 1)
                    ]
                    found[who] = runs[
                        1:
                    ]  # the first pays for memory that the system hands out for the first time
                print(line(f"{size} {method}", found), flush=True)


def save_family(folder: Path, settings: dict[str, Any]) -> None:
    """A base and two fine-tunes in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(**{"vocab_size": 32000, "tie_word_embeddings": True, **settings})
    base = LlamaForCausalLM(config).to(torch.bfloat16)
    base.save_pretrained(folder / "base")
    for name in ("a", "b"):
        tuned = LlamaForCausalLM(config).to(torch.bfloat16)
        with torch.no_grad():
            for parameter, origin in zip(tuned.parameters(), base.parameters(), strict=True):
                parameter.copy_(origin + 0.002 * torch.randn_like(origin))
        tuned.save_pretrained(folder / name)


def text_of(who: str, folder: Path, method: str) -> str:
    """The merge as a recipe, as arguments of the plain loop, or as a mergekit file; JSON is
    YAML."""
    names = [str(folder / name) for name in ("a", "b")]
    if who == "plain":
        return json.dumps(
            [method, names, None if method in ("linear", "slerp") else str(folder / "base")]
        )
    values = METHODS[method]
    merge = {
        "method": method,
        "parameters": [values, values],
        "options": {"t": 0.4} if method == "slerp" else {},
    }
    data: dict[str, Any] = {
        "sources": [{"model": name} for name in names],
        "merge": merge,
        "dtype": "bfloat16",
    }
    if who == "mergekit":
        models = [{"model": name, "parameters": values} for name in names]
        data = {
            "merge_method": method,
            "models": models,
            "dtype": "bfloat16",
            "parameters": merge["options"],
        }
    if method not in ("linear", "slerp"):
        data["base_model" if who == "mergekit" else "base"] = (
            str(folder / "base") if who == "mergekit" else {"model": str(folder / "base")}
        )
    elif method == "slerp" and who == "mergekit":
        data["base_model"] = names[0]
    return json.dumps(data)


def run(
    python: str, program: str, texts: list[str], out: Path, environment: dict[str, str]
) -> dict[str, float]:
    """One merge in a process of its own."""
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        words = [python, "-c", program, json.dumps([*texts, f"{scratch}/out"])]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{python}: {done.stderr[-2000:]}")
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found


def line(name: str, found: dict[str, list[dict[str, float]]]) -> str:
    """One row of the table."""

    def middle(who: str, key: str) -> float:
        return median(figures[key] for figures in found[who])

    columns = [("cpu", 2), ("wall", 2), ("memory", 0)]
    cells = [
        " ".join(f"{middle(who, key):8.{digits}f}" for who in found).rjust(26)
        for key, digits in columns
    ]
    ratios = f"{middle('here', 'cpu') / middle('plain', 'cpu'):5.2f}"
    if "mergekit" in found:
        ratios += f" {middle('mergekit', 'cpu') / middle('here', 'cpu'):5.1f}"
    return f"{name:22} {' '.join(cells)}   {ratios}"


if __name__ == "__main__":
    main()
