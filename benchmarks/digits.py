"""A merge that draws: a class-conditional U-Net on scikit-learn's digits, a fine-tune for each half
of them, and their merge.

``python benchmarks/digits.py`` prints the table of pages/digits.md. Everything is trained here. The
base learns strokes: all digits, under labels that mean nothing. Then one fine-tune learns what 0 to
4 are called, the other 5 to 9. The judge is a classifier of real digits that has never seen a drawn
one; a picture counts as recognised where it is more than half sure of the digit that was asked for.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_evomerge import Example, FunctionTask, Recipe, SearchConfig, Study, run_search
from hf_evomerge.fitness import draw
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.results.result import Result

HALVES = {"low": (0, 1, 2, 3, 4), "high": (5, 6, 7, 8, 9)}
SIGMA_DATA = 0.5
SIGMA_MIN = 0.02
SIGMA_MAX = 10.0


@dataclass(frozen=True)
class Size:
    """How much is done: steps of training, of drawing, pictures per digit, scores of a search."""

    base: int = 600
    fine: int = 250
    steps: int = 8
    search: int = 8
    test: int = 40
    evaluations: int = 60
    batch: int = 64


def digits() -> tuple[torch.Tensor, np.ndarray]:
    """The 1,797 pictures of 8 x 8, from -1 to 1, and what they show."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images / 8 - 1, dtype=torch.float32)[:, None], data.target


def new_unet(width: int = 16) -> Any:
    """A U-Net of two levels, without attention."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(width, 2 * width),  # noqa: E501
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=8,  # noqa: E501
        num_class_embeds=10, add_attention=False,
    )  # fmt: skip


def train(
    unet: Any,
    pictures: torch.Tensor,
    labels: torch.Tensor,
    steps: int,
    rate: float,
    seed: int,
    batch: int,
) -> Any:
    """Learn to take noise away (arXiv:2206.00364), in the coordinates of diffusers' consistency
    scheduler."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=rate)
    unet.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        chosen = torch.randint(len(pictures), (batch,), generator=generator)
        clean = pictures[chosen]
        place = torch.rand(batch, generator=generator)
        sigma = (SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** place)[:, None, None, None]
        noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
        skip = SIGMA_DATA**2 / ((sigma - SIGMA_MIN) ** 2 + SIGMA_DATA**2)
        scale = (sigma - SIGMA_MIN) * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()
        inputs = noisy / (sigma**2 + SIGMA_DATA**2).sqrt()
        output = unet(inputs, 250 * sigma.flatten().log(), class_labels=labels[chosen]).sample
        loss = ((output - (clean - skip * noisy) / scale.clamp(min=1e-2)) ** 2)[
            sigma.flatten() > 2 * SIGMA_MIN
        ].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
    return unet.eval()


def save(unet: Any, folder: Path) -> None:
    """Save a pipeline."""
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline

    scheduler = CMStochasticIterativeScheduler(
        sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, sigma_data=SIGMA_DATA
    )
    ConsistencyModelPipeline(unet, scheduler).save_pretrained(folder)


def make_family(folder: Path, seed: int, size: Size, width: int = 16) -> None:
    """The base and its two fine-tunes."""
    pictures, target = digits()
    torch.manual_seed(seed)
    unet = new_unet(width)
    nothing = torch.randint(10, (len(pictures),), generator=torch.Generator().manual_seed(seed))
    train(unet, pictures, nothing, size.base, 2e-3, seed, size.batch)
    save(unet, folder / "base")
    start = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    labels = torch.tensor(target)
    for number, (name, half) in enumerate(HALVES.items()):
        unet.load_state_dict(start)
        mine = torch.isin(labels, torch.tensor(half))
        train(unet, pictures[mine], labels[mine], size.fine, 1e-3, seed + 10 + number, size.batch)
        save(unet, folder / name)


class Judge:
    """How sure a classifier of real digits is of the digit that was asked for."""

    def __init__(self, steps: int) -> None:
        from sklearn.linear_model import LogisticRegression

        pictures, target = digits()
        self.steps = steps
        self.classifier = LogisticRegression(max_iter=300, C=0.1).fit(
            pictures.flatten(1).numpy()[::2], target[::2]
        )
        self.on_real = float(self.classifier.score(pictures.flatten(1).numpy()[1::2], target[1::2]))

    def __call__(self, pipeline: Any, tokenizer: Any, examples: list[Example]) -> list[float]:
        """A probability for each example."""
        drawn = draw(
            pipeline, examples, batch_size=200, num_inference_steps=self.steps, output_type="np"
        )
        flat = np.stack(drawn).reshape(len(drawn), -1) * 2 - 1
        chances = self.classifier.predict_proba(flat)
        return [
            float(row[int(example.prompt)]) for row, example in zip(chances, examples, strict=True)
        ]


def asked(split: str, count: int) -> list[Example]:
    """So many pictures of each digit; another split has other seeds."""
    return [
        Example(str(digit), "", content=f"{split} {digit} {number}")
        for digit in range(10)
        for number in range(count)
    ]


def settings(folder: Path, size: Size, seed: int, **step: Any) -> SearchConfig:
    """One weight for each fine-tune and block, searched by an optimizer."""
    sources = [{"model": str(folder / name), "component": "unet"} for name in HALVES]
    weight = {"low": 0.0, "high": 1.5, "start": 0.75}
    return SearchConfig.model_validate({
        "space": "ps", "sources": sources, "base": {"model": str(folder / "base")},
        "merge": {"method": "task_arithmetic", "parameters": {"weight": weight}},
        "optimize": [{"evaluations": size.evaluations, **step}],
        "fitness": {"task": "likelihood"}, "compute": {"seed": seed},
        "compare": {"baselines": ["average"], "finalists": 1},
    })  # fmt: skip


def interval(values: np.ndarray) -> str:
    """A share, and half its 95 % interval."""
    share = float(values.mean())
    return f"{share:.3f} ± {1.96 * math.sqrt(share * (1 - share) / len(values)):.3f}"


def both(config: SearchConfig) -> Recipe:
    """Both task vectors whole: task arithmetic as people do it by hand."""
    merge = config.merge.part().model_copy(
        update={"parameters": [{"weight": 1.0}, {"weight": 1.0}]}
    )
    return config.recipe(merge=merge)


def run(out: Path, seed: int, size: Size, width: int = 16) -> dict[str, np.ndarray]:
    """Train, search, and how sure the judge is of each test picture of each model, by its name."""
    begin = time.process_time()
    if not (out / "family" / "high").is_dir():
        make_family(out / "family", seed, size, width)
    print(f"seed {seed}: trained in {time.process_time() - begin:.0f} CPU-seconds", file=sys.stderr)
    judge = Judge(size.steps)
    config = settings(out / "family", size, seed, by="cma", sigma=0.15, batch="all")
    by_chance = settings(out / "family", size, seed, by="random")
    splits = {"search": asked("search", size.search), "test": asked("test", size.test)}

    def task() -> FunctionTask:
        return FunctionTask(judge)

    def search(config: SearchConfig, folder: str) -> Result:
        return run_search(config, out / folder, task_factory=task, examples=splits, build=False)

    result = search(config, "search")
    random = search(by_chance, "random")
    print(f"seed {seed}: {time.process_time() - begin:.0f} CPU-seconds in all", file=sys.stderr)
    evaluator = Evaluator(config, task_factory=task, examples=splits)
    found = {row.model: row.scores.values for row in result.rows}
    found["random search"] = random.row("ps").scores.values
    found["task arithmetic, both 1"] = evaluator.evaluate(both(config), "test").values
    Study.open(out / "search").close()
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("digits"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    torch.set_num_threads(1)
    given = parser.parse_args()
    low = np.repeat(np.arange(10) < 5, Size.test)
    print(f"the judge recognises {Judge(1).on_real:.3f} of real digits that it has not seen\n")
    print("| model | seed | recognised | 0 to 4 | 5 to 9 |\n| --- | --- | --- | --- | --- |")
    for seed in given.seeds:
        for name, chances in run(given.out / str(seed), seed, Size()).items():
            right = chances > 0.5
            print(
                (
                    f"| {name} | {seed} | {interval(right)} | {right[low].mean():.3f} | "
                    f"{right[~low].mean():.3f} |"
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
