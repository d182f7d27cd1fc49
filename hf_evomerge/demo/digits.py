"""Pictures of the demo's problems: its numbers, drawn."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from .language import Language, Split, problems

if TYPE_CHECKING:
    from PIL.Image import Image

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
    """A picture of a number: its digits somewhere on it, in two colours, with noise over all. RGB, `SIDE` by `SIDE`."""
    from PIL import Image

    digits = [np.array([list(row) for row in _DIGITS[int(digit)].split()], dtype=int) for digit in str(number)]
    written = np.concatenate([part for digit in digits for part in (digit, np.zeros((7, 1), dtype=int))], axis=1)[:, :-1]
    written = np.kron(written, np.ones((2, 2), dtype=int))
    height, width = written.shape
    top, left = rng.integers(0, SIDE - height + 1), rng.integers(0, SIDE - width + 1)
    page = np.zeros((SIDE, SIDE, 1))
    page[top : top + height, left : left + width, 0] = written
    dark, light = rng.integers(0, 90, 3), rng.integers(165, 256, 3)
    pixels = np.where(page > 0, dark, light) + rng.normal(0, 20, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def picture_problems(
    split: Split, count: int, *, seed: int = 0, text: Language = "ja", answer: Language = "ja"
) -> list[tuple[dict[str, Any], list[Image]]]:
    """The demo's problems with a picture in place of each number.

    Args:
        split, count, seed, text, answer: As for `problems`.

    Returns:
        What `problems` gives of each, with `IMAGE_TOKEN` where the pictures stand, and the pictures in that order.
    """
    rng = np.random.default_rng([seed, *split.encode()])
    drawn = []
    for problem in problems(split, count, seed=seed, text=text, answer=answer):
        numbers = [int(word) for word in re.findall(r"\b\d+\b", problem["prompt"])]
        prompt = re.sub(r"\b\d+\b", IMAGE_TOKEN, problem["prompt"])
        drawn.append(({**problem, "prompt": prompt}, [draw_number(number, rng) for number in numbers]))
    return drawn
