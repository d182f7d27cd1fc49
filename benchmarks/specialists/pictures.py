"""The demo with pictures: its problems with drawn numbers, and a search that merges a model that
sees them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from specialists.language import Language, Split, problems

from hf_evomerge.demo.quickstart import ABOUT, SIZES, SPACES, SPECIALISTS, comparison, demo_config
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.reports.display import LiveTable
from hf_evomerge.search.results.result import Result
from hf_evomerge.search.results.table import Row
from hf_evomerge.search.run import run_search

if TYPE_CHECKING:
    from PIL.Image import Image

SIGHT = Path(__file__).parent / "models" / "sight"
EVALUATIONS = 60
SIDE = 24
"""Pixels; a picture is one patch, and takes the place of one word."""
IMAGE_TOKEN = "<image>"
_DIGITS = (
    "01110 10001 10011 10101 11001 10001 01110", "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00010 00100 01000 11111", "11111 00010 00100 00010 00001 10001 01110",
    "00010 00110 01010 10010 11111 00010 00010", "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110", "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110", "01110 10001 10001 01111 00001 00010 01100",
)  # fmt: skip


def draw_number(number: int, rng: np.random.Generator) -> Image:
    """A picture of a number: its digits somewhere on it, in two colours, with noise over all. RGB,
    `SIDE` by `SIDE`."""
    from PIL import Image

    digits = [
        np.array([list(row) for row in _DIGITS[int(digit)].split()], dtype=int)
        for digit in str(number)
    ]
    written = np.concatenate(
        [part for digit in digits for part in (digit, np.zeros((7, 1), dtype=int))], axis=1
    )[:, :-1]
    written = np.kron(written, np.ones((2, 2), dtype=int))
    height, width = written.shape
    top = rng.integers(0, SIDE - height + 1)
    left = rng.integers(0, SIDE - width + 1)
    page = np.zeros((SIDE, SIDE, 1))
    page[top : top + height, left : left + width, 0] = written
    dark = rng.integers(0, 90, 3)
    light = rng.integers(165, 256, 3)
    pixels = np.where(page > 0, dark, light) + rng.normal(0, 20, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def picture_problems(
    split: Split, count: int, *, seed: int = 0, text: Language = "ja", answer: Language = "ja"
) -> list[tuple[dict[str, Any], list[Image]]]:
    """The demo's problems with a picture in place of each number.

    Args:
        split, count, seed, text, answer: As for `problems`.

    Returns:
        What `problems` gives of each, with `IMAGE_TOKEN` where the pictures stand, and the pictures
        in that order.
    """
    rng = np.random.default_rng([seed, *split.encode()])
    drawn = []
    for problem in problems(split, count, seed=seed, text=text, answer=answer):
        numbers = [int(word) for word in re.findall(r"\b\d+\b", problem["prompt"])]
        prompt = re.sub(r"\b\d+\b", IMAGE_TOKEN, problem["prompt"])
        drawn.append(
            ({**problem, "prompt": prompt}, [draw_number(number, rng) for number in numbers])
        )
    return drawn


def write_picture_problems(folder: Path, sizes: dict[str, int]) -> dict[str, Path]:
    """Write the problems of each split as JSON lines, with their pictures in a folder beside the
    file."""
    files = {split: folder / f"{split}.jsonl" for split in sizes}
    for split, file in files.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        lines = []
        for number, (problem, drawn) in enumerate(picture_problems(split, sizes[split])):  # type: ignore[arg-type]
            names = [f"{split}/{number}-{place}.png" for place in range(len(drawn))]
            for name, picture in zip(names, drawn, strict=True):
                picture.save(folder / name)
            lines.append(json.dumps({**problem, "pictures": names}, ensure_ascii=False))
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def picture_config(
    space: str,
    data: dict[str, Path],
    evaluations: int,
    seed: int = 0,
    family: Path = SPECIALISTS,
    sight: Path = SIGHT,
) -> SearchConfig:
    """The demo's search of one space, in which the specialist that calculates, `sight`, sees the
    numbers."""
    settings = demo_config(space, data, evaluations, seed, family).model_dump(
        mode="json", by_alias=True, exclude_unset=True
    )
    settings["about"] = f"{ABOUT[:-1]}, where the numbers are pictures."
    settings["sources"] = [{"model": str(sight), "component": "text"}, settings["sources"][0]]
    # no example goes into a prompt with pictures, and of a single source only one sees
    left_out = {"prompt", "alone"}
    if space == "dfs":  # without a merge there is no vocabulary to name, and none for an average
        left_out.add("average")
    baselines = settings["compare"]["baselines"]
    settings["compare"]["baselines"] = [name for name in baselines if name not in left_out]
    if space != "dfs":
        settings["output"]["vocabulary"] = "tokenizer"
    settings["path"]["order"] = [2, 0, 1] if space == "hybrid" else [0, 1]
    settings["data"] = {
        split: {**spec, "image_field": "pictures"} for split, spec in settings["data"].items()
    }
    return SearchConfig.model_validate(settings)


def run_pictures(
    out: Path, *, family: Path, workers: int = 1, evaluations: int | None = None
) -> list[Row]:
    """Run the demo's three searches on problems with pictures, for a family that has a model
    `sight`; returns its table."""
    data = write_picture_problems(out / "data", SIZES)
    results: dict[str, Result] = {}
    for space in SPACES:
        config = picture_config(
            space, data, evaluations or EVALUATIONS, 0, family, family / "sight"
        )
        with LiveTable(config=config) as table:
            results[space] = run_search(config, out / space, workers=workers, callbacks=[table])
    return comparison(results)
