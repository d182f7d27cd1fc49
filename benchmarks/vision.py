"""Tiny vision transformers with a head each, merged: one coefficient for all against a search per
layer.

The standard experiment of the merging literature in small. A ViT of four blocks is trained on
letters; its body is fine-tuned on four tasks, drawn pictures and scikit-learn's digits, with a head
of its own for each. The bodies are merged, and every picture is classified through its task's head:
by task arithmetic and TIES at the best single coefficient of a grid, and with a weight per block
and task found by gradient and by CMA-ES. All choose by the same examples; accuracy is on others.

    pip install "hf-evomerge[vision]" scikit-learn
    # two CPU-minutes per seed
    python benchmarks/vision.py --seeds 0 1 --out vision --into benchmarks/pages/encoders.md
"""

from __future__ import annotations

import argparse
import json
import os
import random
import string
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "search"))

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from report import write_into
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_evomerge.recipes.recipe import MergePart, Recipe
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.run import run_search

SIDE = 16
SIZES = {"train": 1000, "search": 48, "validation": 48, "test": 300}  # per task
LABELS: dict[str, list[str]] = {
    "letters": list(string.ascii_uppercase[:20]),
    "digits": list(string.digits),
    "shapes": ["disc", "ring", "square", "triangle", "cross"],
    "stripes": ["flat", "rising", "upright", "falling"],
    "dots": ["one", "two", "three", "four", "five"],
}
TASKS = [name for name in LABELS if name != "letters"]
WEIGHTS = [0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0]
OPTIONS: dict[str, dict[str, Any]] = {"ties": {"normalize": False}}
SEARCHES: dict[str, dict[str, Any]] = {
    "a weight per block and task, gradient": {"by": "gradient", "evaluations": 60},
    "a weight per block and task, CMA-ES": {"by": "cma", "evaluations": 200},
}


def draw(task: str, label: int, rng: random.Random) -> Image.Image:
    """One picture of a task: grey, noisy, a little out of place; sometimes light on dark."""
    image = Image.new("L", (SIDE, SIDE), 0)
    pen = ImageDraw.Draw(image)
    x = rng.uniform(5.5, 9.5)
    y = rng.uniform(5.5, 9.5)
    size = rng.uniform(3.5, 5)
    box = (x - size, y - size, x + size, y + size)
    if task == "letters":
        pen.text(
            (x, y),
            LABELS[task][label],
            fill=255,
            font=ImageFont.load_default(rng.randint(10, 14)),
            anchor="mm",
        )
    elif task == "shapes":
        if label < 2:
            pen.ellipse(box, fill=255 if label == 0 else 0, outline=255, width=2)
        elif label == 2:
            pen.rectangle(box, fill=255)
        elif label == 3:
            pen.polygon([(x, y - size), (x + size, y + size), (x - size, y + size)], fill=255)
        else:
            pen.line((x - size, y, x + size, y), fill=255, width=3)
            pen.line((x, y - size, x, y + size), fill=255, width=3)
    elif task == "stripes":
        rows, columns = np.mgrid[:SIDE, :SIDE]
        angle = (label + rng.uniform(-0.35, 0.35)) * np.pi / 4
        waves = np.sin(
            (rows * np.cos(angle) + columns * np.sin(angle)) * rng.uniform(1.0, 1.6)
            + rng.uniform(0, 6)
        )
        image = Image.fromarray(((waves > 0) * 255).astype("uint8"))
    else:
        cells = rng.sample([(row, column) for row in range(4) for column in range(4)], label + 1)
        for row, column in cells:
            pen.rectangle((4 * column + 1, 4 * row + 1, 4 * column + 2, 4 * row + 2), fill=255)
    return image


def pictures(task: str, count: int, rng: random.Random) -> list[tuple[Image.Image, int]]:
    """Pictures of a task with their labels."""
    if task == "digits":
        data = load_digits()
        order = rng.sample(range(len(data.target)), count)
        drawn = [
            (
                Image.fromarray((data.images[i] * 15.9).astype("uint8")).resize((SIDE, SIDE)),
                int(data.target[i]),
            )
            for i in order
        ]
    else:
        labels = [rng.randrange(len(LABELS[task])) for _ in range(count)]
        drawn = [(draw(task, label, rng), label) for label in labels]
    return [(noisy(image, rng), label) for image, label in drawn]


def noisy(image: Image.Image, rng: random.Random) -> Image.Image:
    """The picture with less contrast and noise, in three equal channels."""
    dice = np.random.default_rng(rng.getrandbits(32))
    grey = (
        np.asarray(image, dtype=float) * rng.uniform(0.5, 0.9)
        + dice.normal(0, 25, (SIDE, SIDE))
        + 20
    )
    return Image.fromarray(np.clip(grey, 0, 255).astype("uint8")).convert("RGB")


def new_model(task: str) -> ViTForImageClassification:
    """A random classifier of a task."""
    names = dict(enumerate(LABELS[task]))
    config = ViTConfig(
        **{
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
        **{"image_size": SIDE, "patch_size": 4, "hidden_dropout_prob": 0.0},
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    return ViTForImageClassification(config)


def train(
    model: ViTForImageClassification,
    data: list[tuple[Image.Image, int]],
    *,
    steps: int,
    rate: float,
    seed: int,
) -> None:
    """Adam on batches of 64, the rate falling to 0; the head learns faster than the body."""
    pixels = (
        torch.stack([torch.from_numpy(np.array(image)) for image, _ in data]).permute(0, 3, 1, 2)
        / 127.5
        - 1
    )
    labels = torch.tensor([label for _, label in data])
    groups = [
        {"params": model.vit.parameters(), "lr": rate},
        {"params": model.classifier.parameters(), "lr": 3e-3},
    ]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    dice = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(data), (64,), generator=dice)
        optimizer.zero_grad()
        model(pixels[rows], labels=labels[rows]).loss.backward()
        optimizer.step()
        schedule.step()


def make_family(folder: Path, seed: int) -> None:
    """Train the base and its fine-tunes, and write their pictures, unless they are there."""
    if (folder / "test.jsonl").exists():
        return
    torch.manual_seed(seed)
    rng = random.Random(seed)
    base = new_model("letters")
    train(base, pictures("letters", 2000, rng), steps=600, rate=2e-3, seed=seed)
    base.vit.save_pretrained(folder / "base")
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    processor.save_pretrained(folder / "base")
    lines: dict[str, list[str]] = {split: [] for split in SIZES}
    for task in TASKS:
        drawn = pictures(task, sum(SIZES.values()), rng)
        tuned = new_model(task)
        tuned.vit.load_state_dict(base.vit.state_dict())
        train(tuned, drawn[: SIZES["train"]], steps=200, rate=5e-4, seed=seed)
        tuned.save_pretrained(folder / task)
        processor.save_pretrained(folder / task)
        start = SIZES["train"]
        for split in ("search", "validation", "test"):
            for number, (image, label) in enumerate(drawn[start : start + SIZES[split]]):
                name = f"{split}-{task}-{number}"
                image.save(folder / f"{name}.png")
                record = {
                    "prompt": name,
                    "picture": f"{name}.png",
                    "label": LABELS[task][label],
                    "task": task,
                }
                lines[split].append(json.dumps(record))
            start += SIZES[split]
    for split in ("search", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines[split]))


def settings(folder: Path, optimizer: dict[str, Any], seed: int) -> SearchConfig:
    """A search over the bodies."""
    fields = {"image_field": "picture", "answer_field": "label", "head_field": "task"}
    return validate(
        SearchConfig,
        {
            "space": "ps",
            "sources": [{"model": str(folder / task), "component": "vision"} for task in TASKS],
            "base": {"model": str(folder / "base")},
            "merge": {
                "groups": "block",
                "parameters": {"weight": {"low": 0.0, "high": 1.5, "start": 0.3}},
            },
            "optimize": [optimizer],
            "fitness": {"task": "classification", "heads": TASKS, "batch_size": 64},
            "data": {
                split: {"jsonl": str(folder / f"{split}.jsonl"), **fields}
                for split in ("search", "validation", "test")
            },
            "compute": {"seed": seed},
        },
        ValueError,
    )


def best_of_grid(
    evaluator: Evaluator, method: str, values: dict[str, float]
) -> tuple[Recipe, float]:
    """The merge with the best of the grid's weights for all tasks, by its accuracy on what searches
    look at too."""
    found = []
    for weight in WEIGHTS:
        parameters: list[Any] = [{"weight": weight, **values}] * len(TASKS)
        part = MergePart(method=method, parameters=parameters, options=OPTIONS.get(method, {}))
        recipe = evaluator.config.recipe(merge=part)
        shares = [evaluator.evaluate(recipe, split).accuracy for split in ("search", "validation")]
        found.append((sum(share or 0.0 for share in shares), weight, recipe))
    _, weight, recipe = max(found, key=lambda each: each[0])
    return recipe, weight


def measure(folder: Path, seed: int) -> dict[str, list[bool]]:
    """Which test pictures each model gets right."""
    make_family(folder, seed)
    evaluator = Evaluator(settings(folder, SEARCHES["a weight per block and task, gradient"], seed))
    tasks = [example.head for example in evaluator.tasks.examples("test")]

    def right(target: Any) -> list[bool]:
        scores = evaluator.evaluate(target, "test")
        assert scores.error is None, scores.error
        return [bool(each) for each in scores.correct]  # type: ignore[union-attr]

    alone = [right(ref) for ref in evaluator.config.sources]
    found = {"base, through the heads": right(evaluator.config.base)}
    for task, own in zip(TASKS, alone, strict=True):
        found[f"fine-tuned on {task}"] = own
    found["plain average"] = right(
        evaluator.config.recipe(
            merge=MergePart(method="linear", parameters=[{"weight": 0.25}] * len(TASKS))
        )
    )
    for name, method, values in (
        ("task arithmetic, best weight for all", "task_arithmetic", {}),
        ("TIES, density .2, best weight for all", "ties", {"density": 0.2}),
    ):
        recipe, weight = best_of_grid(evaluator, method, values)
        print(f"seed {seed}: {name}: {weight}", flush=True)
        found[name] = right(recipe)
    for name, optimizer in SEARCHES.items():
        begin = time.process_time()
        out = folder / f"search-{optimizer['by']}"
        result = run_search(settings(folder, optimizer, seed), out, build=False)
        print(f"seed {seed}: {name}: {time.process_time() - begin:.0f} CPU-seconds", flush=True)
        found[name] = right(result.winner)
    found["each on its own task"] = [alone[TASKS.index(task)][i] for i, task in enumerate(tasks)]
    return {**found, "tasks": tasks}


def table(runs: list[dict[str, Any]], seeds: list[int]) -> str:
    """Accuracy per task over all seeds, of all with a 95 % interval, per seed, and what the best
    single weight lacks."""
    names = [name for name in runs[0] if name != "tasks"]
    several = seeds if len(seeds) > 1 else []
    rows = [
        (
            "| "
            f"{' | '.join(['', *TASKS, 'all', *(f'draw {seed}' for seed in several), 'against task arithmetic'])} "  # noqa: E501
            "|"
        ),
        "| --- " * (len(TASKS) + len(several) + 3) + "|",
    ]
    tasks = np.concatenate([run["tasks"] for run in runs])
    reference = np.concatenate(
        [run["task arithmetic, best weight for all"] for run in runs]
    ).astype(float)
    for name in names:
        each = [np.array(run[name], dtype=float) for run in runs]
        whole = np.concatenate(each)
        cells = [_share(whole[tasks == task].mean()) for task in TASKS]
        cells.append(f"{_share(whole.mean())} ± {_share(1.96 * whole.std() / len(whole) ** 0.5)}")
        cells += [_share(values.mean()) for values in each[: len(several)]]
        gain = whole - reference
        cells.append(
            f"{gain.mean():+.3f} ± {_share(1.96 * gain.std() / len(gain) ** 0.5)}".replace(
                "0.", "."
            )
        )
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _share(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1) if value < 1 else "1"


def main() -> None:
    """Train, merge, search, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of the models and searches; what is there is used",
    )
    parser.add_argument("--into", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for seed in arguments.seeds:
        folder = arguments.out / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "found.json").exists():
            (folder / "found.json").write_text(json.dumps(measure(folder, seed)))
        runs.append(json.loads((folder / "found.json").read_text()))
    text = table(runs, arguments.seeds)
    print(text)
    if arguments.into is not None:
        write_into(arguments.into, "vision", text)


if __name__ == "__main__":
    main()
