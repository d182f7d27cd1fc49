"""Makes the demo's model that sees, from the maths specialist of a family.

Its language part is the maths specialist, not a weight changed. Before it stands a small vision
transformer that was trained until what it makes of a picture of a number is the language part's own
embedding of that number.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from specialists.language import LARGEST
from specialists.pictures import IMAGE_TOKEN, SIDE, draw_number
from specialists.texts import build_tokenizer, vocabulary
from specialists.train import HIDDEN_SIZE
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image
    from transformers import LlavaForConditionalGeneration

STEPS = 1500
BATCH_SIZE = 128
LEARNING_RATE = 2e-3


def build_sight(text: Any, seed: int) -> LlavaForConditionalGeneration:
    """A Llava around a language model of the demo; the seed decides the weights of its vision part,
    which is not trained."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    words = text.config.vocab_size
    text = deepcopy(text)
    text.resize_token_embeddings(words + 1, mean_resizing=False)
    with torch.no_grad():
        for table in (text.get_input_embeddings().weight, text.lm_head.weight):
            table[words] = 0
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=SIDE,
    )
    described = text.config.to_dict()
    described.pop("_name_or_path", None)  # a folder of this machine
    config = LlavaConfig(
        text_config=described, vision_config=vision, vision_feature_layer=-1, image_token_index=words,  # noqa: E501
        image_seq_length=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    return model


def train_sight(
    model: LlavaForConditionalGeneration, *, seed: int, steps: int = STEPS, title: str = "sight"
) -> None:
    """Train the vision part and the projector in place: a picture of a number becomes that number's
    embedding."""
    numbers = [str(number) for number in range(LARGEST + 1)]
    ids = {word: place for place, word in enumerate(vocabulary())}
    known: Any = model.get_input_embeddings()
    table = known.weight[[ids[number] for number in numbers]].detach().float()
    parts = [
        *model.model.vision_tower.parameters(),
        *model.model.multi_modal_projector.parameters(),
    ]
    optimizer = torch.optim.AdamW(parts, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    rng = np.random.default_rng(seed)
    images = processor()
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


def see(
    model: LlavaForConditionalGeneration, images: Any, pictures: Sequence[Image]
) -> torch.Tensor:
    """What the model makes of pictures, shape (pictures, hidden size)."""
    pixels = images.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
    found = model.model.get_image_features(pixel_values=pixels)
    return torch.cat(list(getattr(found, "pooler_output", found))).reshape(
        len(pictures), HIDDEN_SIZE
    )


def processor() -> Any:
    """The processor of a model that sees: the demo's words and one that stands for a picture."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)
    return LlavaProcessor(
        images, tokenizer, patch_size=SIDE, vision_feature_select_strategy="default", num_additional_image_tokens=1,  # noqa: E501
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

    text = AutoModelForCausalLM.from_pretrained(
        family / "maths", dtype=torch.float32, trust_remote_code=False
    )
    model = build_sight(text, seed)
    train_sight(model, seed=seed)
    save(model, family / "sight")
