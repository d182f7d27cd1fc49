"""Soups of a run's checkpoints, beside the same run with a decay of its learning rate: does
averaging replace the decay?

The demo's base learns to calculate in its own language at a constant rate, and leaves 20
checkpoints. From where the first begins, a second run of as many steps has the same texts at a rate
that falls by minus-sqrt. Seeds decide texts and problems. Results of `wsm` and `greedy` are from
former versions, which had these averages.

    python benchmarks/soups.py train --out runs            # about ten minutes on one core
    python benchmarks/soups.py run --out runs              # about ten minutes on one core
    python benchmarks/soups.py table
    # peak memory of a build against the number of sources
    python benchmarks/soups.py memory --out /tmp/sources
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from itertools import islice
from math import sqrt
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "search"))

import numpy as np
import torch
from report import write_into
from safetensors.torch import load_file, save_file
from specialists.language import problems
from specialists.texts import Example, TextKind, build_tokenizer, mixture
from specialists.train import backward

from hf_evomerge.building.build import build_model
from hf_evomerge.recipes.recipe import Recipe, SourceRef
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.run import run_search

BASE = Path(__file__).parents[1] / "hf_evomerge" / "demo" / "specialists" / "base"
RESULTS = Path(__file__).parent / "results" / "soups.jsonl"
TEXTS = ((2.0, TextKind("solve", "ja", "ja", "ja")), (1.0, TextKind("solve", "en", "en", "en")))
SEEDS = (0, 1, 2)
RATE = 1e-3
BEFORE = 140
WINDOW = 200
EVERY = 10
BATCH = 32
SIZES = {"search": 128, "validation": 128, "test": 400}
Texts = Iterator[Example]


def steps(
    model: Any, optimizer: Any, texts: Texts, count: int, rate: Callable[[int], float]
) -> Iterator[int]:
    """Train, and yield the number of steps done after each."""
    model.train()
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate(step)
        optimizer.zero_grad()
        backward(model, list(islice(texts, BATCH)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield step + 1


def train(out: Path, seed: int) -> None:
    """Write the checkpoints of the constant run, and the end of the one that decays."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32, trust_remote_code=False)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    for _ in steps(
        model,
        optimizer,
        mixture(TEXTS, random.Random(seed)),
        BEFORE,
        lambda step: min(1.0, (step + 1) / 20),
    ):
        pass
    for name, rate in (
        ("constant", lambda step: 1.0),
        ("decayed", lambda step: 1 - sqrt(step / WINDOW)),
    ):
        own, own_optimizer = deepcopy((model, optimizer))
        texts = islice(mixture(TEXTS, random.Random(seed)), BEFORE * BATCH, None)
        for step in steps(own, own_optimizer, texts, WINDOW, rate):
            if step == WINDOW or (name == "constant" and step % EVERY == 0):
                folder = out / f"{seed}" / name / f"checkpoint-{BEFORE + step}"
                own.save_pretrained(folder)
                build_tokenizer().save_pretrained(folder)


def config_of(out: Path, seed: int, by: str) -> SearchConfig:
    """The search over a seed's checkpoints, one weight each."""
    for split, count in SIZES.items():
        _write(out / f"{seed}" / f"{split}.jsonl", problems(split, count, seed=seed))  # type: ignore[arg-type]
    settings = {
        "space": "ps",
        "sources": {"run": str(out / f"{seed}" / "constant")},
        "merge": {"method": "linear", "groups": "model", "starts": ["average", "last"]},
        "optimize": [{"by": by, "evaluations": 60, **({"batch": 32} if by == "cma" else {})}],
        "output": {"dtype": "float32"},
        "compare": {"baselines": []},
        "fitness": {"task": "likelihood", "separator": " ", "batch_size": 64},
        "data": {split: {"jsonl": str(out / f"{seed}" / f"{split}.jsonl")} for split in SIZES},
    }
    return validate(SearchConfig, settings, ValueError)


def run(out: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Score every kind of soup on held-out problems."""
    config = config_of(out, seed, "gradient")
    folder = out / f"{seed}"
    evaluator = Evaluator(config)
    refs = config.sources
    validation = [evaluator.evaluate(ref, "validation").values.mean() for ref in refs]

    def average(last: int) -> Recipe:
        return _average(folder / "constant", last)

    targets: dict[str, Callable[[], Recipe | SourceRef]] = {
        "last, constant rate": lambda: refs[-1],
        "last, decayed rate": lambda: SourceRef(model=str(next((folder / "decayed").iterdir()))),
        "best by validation": lambda: refs[int(np.argmax(validation))],
        **{f"uniform, last {last}": partial(average, last) for last in (5, 10, 20)},
        "searched by gradient": lambda: run_search(config, folder / "gradient", build=False).winner,
        "searched by CMA-ES": lambda: (
            run_search(config_of(out, seed, "cma"), folder / "cma", build=False).winner
        ),
    }
    for name, target in targets.items():
        begin = time.process_time()
        found = target()
        if isinstance(found, Recipe) and list(found.sources) != list(
            refs
        ):  # of some of the checkpoints
            found = SourceRef(
                model=str(build_model(found, folder / name.replace(" ", "-"), overwrite=True))
            )
        spent = time.process_time() - begin
        scores = evaluator.evaluate(found, "test")
        assert scores.correct is not None, scores.error
        right = "".join(str(int(each)) for each in scores.correct)
        loglik = [round(float(each), 3) for each in scores.values]
        yield {"seed": seed, "method": name, "right": right, "loglik": loglik, "cpu": round(spent)}


def _average(run: Path, last: int) -> Recipe:
    """The plain average of a run's last checkpoints."""
    sources = {"run": str(run), "checkpoints": f"last {last}"}
    return validate(Recipe, {"sources": sources, "merge": {"method": "linear"}}, ValueError)


def _write(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    file.write_text(
        "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8"
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Methods side by side: means over seeds, and leads over the last checkpoint of either run."""
    values = {(row["method"], row["seed"]): np.asarray(row["loglik"]) for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        "| | accuracy | nats | lead over the last, constant | lead over the last, decayed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method in methods:
        right = [[int(digit) for digit in row["right"]] for row in rows if row["method"] == method]
        nats = np.mean([values[method, seed].mean() for seed in seeds])
        leads = [
            ""
            if method == other
            else _lead([values[method, seed] - values[other, seed] for seed in seeds])
            for other in methods[:2]
        ]
        lines.append(f"| {method} | {np.mean(right):.3f} | {nats:.3f} | {' | '.join(leads)} |")
    return "\n".join(lines)


def _lead(differences: Sequence[Any]) -> str:
    """Mean over seeds, and an interval of 95 % by a bootstrap over seeds and their examples."""
    rng = np.random.default_rng(0)
    means = []
    for _ in range(4000):
        chosen = [differences[at] for at in rng.integers(0, len(differences), len(differences))]
        means.append(
            np.mean([each[rng.integers(0, each.size, each.size)].mean() for each in chosen])
        )
    low, high = np.percentile(means, (2.5, 97.5))
    return f"{np.mean([each.mean() for each in differences]):+.3f} ({low:+.3f} to {high:+.3f})"


def memory(out: Path, counts: Sequence[int] = (2, 8, 32)) -> Iterator[str]:
    """Peak memory of an average of so many models of 109 million random weights in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    }
    config: Any = LlamaConfig(vocab_size=32000, tie_word_embeddings=True, dtype="bfloat16", **shape)  # type: ignore[arg-type]
    first = out / "run" / "checkpoint-0"
    LlamaForCausalLM._from_config(config).save_pretrained(first)
    tensors = load_file(first / "model.safetensors")
    for number in range(1, max(counts)):
        folder = out / "run" / f"checkpoint-{number}"
        config.save_pretrained(folder)
        moved = {
            name: tensor.flatten().roll(number).view_as(tensor) for name, tensor in tensors.items()
        }
        save_file(moved, folder / "model.safetensors", {"format": "pt"})
    for count in counts:
        recipe = out / "average.yaml"
        _average(out / "run", count).save(recipe)
        words = [sys.executable, "-m", "hf_evomerge", "merge", str(recipe), "--overwrite"]
        words += ["--out", str(out / "merged")]
        begin = time.perf_counter()
        most = dict.fromkeys(("VmHWM", "RssAnon"), 0)
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                with suppress(OSError):
                    lines = [
                        line.split()
                        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
                    ]
                    most = {
                        key: max([value, *(int(line[1]) for line in lines if line[0] == f"{key}:")])
                        for key, value in most.items()
                    }
                time.sleep(0.02)
        seconds = time.perf_counter() - begin
        yield (
            f"{count} sources: {most['VmHWM'] / 1e6:.2f} GB, of which allocated "
            f"{most['RssAnon'] / 1e6:.2f}; {seconds:.0f} s"
        )


def main() -> None:
    """Train, run, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["train", "run", "table", "memory"])
    parser.add_argument(
        "--out", type=Path, default=Path("soups"), help="folder of the runs, or of the models"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--into", type=Path, help="document that has a place for the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "memory":
        for line in memory(arguments.out):
            print(line, flush=True)
    elif arguments.command == "table":
        text = table(
            [
                json.loads(line)
                for line in arguments.results.read_text(encoding="utf-8").splitlines()
            ]
        )
        print(text) if arguments.into is None else write_into(arguments.into, "soups", text)
    for seed in arguments.seeds if arguments.command in ("train", "run") else ():
        if arguments.command == "train":
            train(arguments.out, seed)
            continue
        for row in run(arguments.out, seed):
            print(
                seed, row["method"], f"{np.mean(row['loglik']):.3f}", f"{row['cpu']} s", flush=True
            )
            with arguments.results.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
