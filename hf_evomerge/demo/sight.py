"""Makes the demo's model that sees: `python -m hf_evomerge.demo.sight --family DIR [--seed N]` adds `sight/` to a family.

Its language part is the maths specialist, not a weight changed. Before it stands a small vision transformer that was trained
until what it makes of a picture of a number is the language part's own embedding of that number. The pictures are drawn here.
"""

from __future__ import annotations

import argparse
import re
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .language import LARGEST, Language, Split, problems, vocabulary
from .train import HIDDEN_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image
    from transformers import LlavaForConditionalGeneration

SIDE = 24
"""Pixels; a picture is one patch, and takes the place of one word."""
IMAGE_TOKEN = "<image>"
STEPS, BATCH_SIZE, LEARNING_RATE = 1500, 128, 2e-3
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
    found = []
    for problem in problems(split, count, seed=seed, text=text, answer=answer):
        numbers = [int(word) for word in re.findall(r"\b\d+\b", problem["prompt"])]
        prompt = re.sub(r"\b\d+\b", IMAGE_TOKEN, problem["prompt"])
        found.append(({**problem, "prompt": prompt}, [draw_number(number, rng) for number in numbers]))
    return found


def build_sight(text: Any, seed: int) -> LlavaForConditionalGeneration:
    """A Llava around a language model of the demo; the seed decides the weights of its vision part, which is not trained."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    words = text.config.vocab_size
    text = deepcopy(text)
    text.resize_token_embeddings(words + 1, mean_resizing=False)
    with torch.no_grad():
        for table in (text.get_input_embeddings().weight, text.lm_head.weight):
            table[words] = 0
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=SIDE, patch_size=SIDE
    )
    config = LlavaConfig(
        text_config=text.config.to_dict(), vision_config=vision, vision_feature_layer=-1, image_token_index=words,
        image_seq_length=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    return model


def train_sight(model: LlavaForConditionalGeneration, *, seed: int, steps: int = STEPS, title: str = "sight") -> None:
    """Train the vision part and the projector in place: a picture of a number becomes that number's embedding."""
    numbers = [str(number) for number in range(LARGEST + 1)]
    ids = {word: place for place, word in enumerate(vocabulary())}
    known: Any = model.get_input_embeddings()
    table = known.weight[[ids[number] for number in numbers]].detach().float()
    parts = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    optimizer = torch.optim.AdamW(parts, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    rng, images = np.random.default_rng(seed), processor()
    progress = tqdm(range(steps), desc=title, unit="step", disable=not title)
    for _ in progress:
        shown = rng.integers(0, LARGEST + 1, BATCH_SIZE)
        found = see(model, images, [draw_number(number, rng) for number in shown])
        wanted = table[torch.from_numpy(shown)]
        loss = ((found - wanted) ** 2).mean() / table.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


def see(model: LlavaForConditionalGeneration, images: Any, pictures: Sequence[Image]) -> torch.Tensor:
    """What the model makes of pictures, shape (pictures, hidden size)."""
    pixels = images.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
    found = model.model.get_image_features(pixel_values=pixels)
    return torch.cat(list(getattr(found, "pooler_output", found))).reshape(len(pictures), HIDDEN_SIZE)


def processor() -> Any:
    """The processor of a model that sees: the demo's words and one that stands for a picture."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    from .language import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)
    return LlavaProcessor(
        images, tokenizer, patch_size=SIDE, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
    )  # fmt: skip


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Save weights (bf16 safetensors), configs and processor."""
    model.bfloat16().save_pretrained(folder)
    processor().save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def add_sight(family: Path, seed: int) -> None:
    """Train a family's model that sees, and save it in the family's folder ``sight``."""
    from transformers import AutoModelForCausalLM

    text = AutoModelForCausalLM.from_pretrained(family / "maths", dtype=torch.float32, trust_remote_code=False)
    model = build_sight(text, seed)
    train_sight(model, seed=seed)
    save(model, family / "sight")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, required=True, help="folder with maths/, to which sight/ is added")
    parser.add_argument("--seed", type=int, default=0, help="decides the initial weights and the pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    add_sight(arguments.family, arguments.seed)


if __name__ == "__main__":
    main()
