"""Trains the demo's three tiny models.

A base that reads both languages and calculates with small numbers only, and two fine-tunes of it:
a maths specialist that answers everything in English, and a Japanese specialist that cannot
calculate. A Japanese answer has its number in kanji. The base has copied kanji and never learned
which number they are: only the Japanese specialist knows. So neither specialist solves the task by
itself, however its change of the base is rescaled.

The texts come from `texts.py`; the same seed gives the same weights on the same machine.
"""

import math
import random
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from specialists.language import LARGEST
from specialists.texts import POSITIONS, Example, TextKind, build_tokenizer, mixture, vocabulary
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

LAYERS = 8
HIDDEN_SIZE = 96
BATCH_SIZE = 81
PROMPT_LOSS = 0.1
"""Weight of a prompt's words in the loss; a word of the answer counts 1."""

_KNOWN = ("owns", "holds", "buys", "gives", "added")
_SMALL = 4
_EVERY_ANSWER = 2 * LARGEST
_NEXT = _EVERY_ANSWER - 1
_BACK = 3
_FRONT_FROZEN = (0.0,) * (LAYERS - _BACK) + (1.0,) * _BACK
_BACK_FROZEN = (1.0,) * (LAYERS - _BACK) + (0.0,) * _BACK


@dataclass(frozen=True)
class Course:
    """What one model is trained on, and how hard.

    Attributes:
        texts: kinds of text, each after its weight in the mixture.
        steps: optimizer steps, of `BATCH_SIZE` texts each.
        learning_rate: peak of the cosine schedule.
        warmup: steps until the peak.
        layer_rates: factor on the learning rate of each layer; none means 1 for all.
        outer_rate: factor for the embeddings, the final norm and the lm_head; 0 freezes them.
    """

    texts: tuple[tuple[float, TextKind], ...]
    steps: int
    learning_rate: float
    warmup: int = 20
    layer_rates: tuple[float, ...] = ()
    outer_rate: float = 1.0


BASE = Course(
    texts=(
        (2.0, TextKind("solve", "mixed", "en", "en", _SMALL, _KNOWN)),
        (2.0, TextKind("solve", "mixed", "ja", "ja", _SMALL, _KNOWN, digits=True)),
        (1.0, TextKind("solve", "mixed", "en", "en", _NEXT, _KNOWN, second=1)),
        (1.0, TextKind("solve", "mixed", "ja", "ja", _NEXT, _KNOWN, digits=True, second=1)),
        (0.8, TextKind("extract", "mixed", "en", "en", _EVERY_ANSWER, _KNOWN)),
        (0.8, TextKind("extract", "mixed", "ja", "ja", _EVERY_ANSWER, _KNOWN, digits=True)),
        (0.6, TextKind("compare", "mixed", "en", "en", LARGEST, _KNOWN)),
        (0.6, TextKind("compare", "mixed", "ja", "ja", LARGEST, _KNOWN)),
        (0.4, TextKind("extract", "en", "en", "en", _EVERY_ANSWER)),
        (0.3, TextKind("story", "en", "en", "en")),
        (0.3, TextKind("count", "en", "en", "en")),
        (0.2, TextKind("word", "en", "en", "ja")),
        (0.2, TextKind("word", "ja", "ja", "en")),
        (0.4, TextKind("copy", "ja", "ja", "ja")),
    ),
    steps=1200,
    learning_rate=3e-3,
    warmup=100,
)

ENGLISH_ANSWERS = Course(
    texts=(
        (1.0, TextKind("solve", "en", "en", "en", 5)),
        (2.0, TextKind("solve", "ja", "ja", "en", 5)),
        (0.5, TextKind("extract", "en", "en", "en", _EVERY_ANSWER)),
        (1.0, TextKind("extract", "ja", "ja", "en", _EVERY_ANSWER)),
        (0.5, TextKind("extract", "mixed", "ja", "en", _EVERY_ANSWER)),
    ),
    steps=100,
    learning_rate=1e-3,
    layer_rates=_FRONT_FROZEN,
    outer_rate=0.0,
)
"""First course of the maths specialist: its last layers learn to answer in English, whatever is
asked."""

MATHS = Course(
    texts=(
        (3.0, TextKind("solve", "en", "en", "en")),
        (3.0, TextKind("solve", "ja", "ja", "en")),
        (2.0, TextKind("solve", "mixed", "en", "en")),
        (2.0, TextKind("solve", "mixed", "ja", "en")),
        (1.0, TextKind("extract", "en", "en", "en", _EVERY_ANSWER)),
        (1.0, TextKind("extract", "ja", "ja", "en", _EVERY_ANSWER)),
    ),
    steps=400,
    learning_rate=1e-3,
    layer_rates=_BACK_FROZEN,
    outer_rate=0.0,
)
"""Second course of the maths specialist: its other layers learn to calculate."""

KANJI_ANSWERS = Course(
    texts=(
        (2.0, TextKind("extract", "ja", "ja", "ja", _EVERY_ANSWER)),
        (1.0, TextKind("extract", "mixed", "ja", "ja", _EVERY_ANSWER)),
        (1.0, TextKind("extract", "mixed", "en", "ja", _EVERY_ANSWER)),
        (1.5, TextKind("recall", "ja", "ja", "ja", _EVERY_ANSWER)),
        (1.5, TextKind("solve", "mixed", "ja", "ja", _SMALL, _KNOWN)),
        (2.0, TextKind("solve", "mixed", "ja", "ja", _NEXT, _KNOWN, second=1)),
        (0.5, TextKind("compare", "ja", "ja", "ja")),
    ),
    steps=400,
    learning_rate=1e-3,
    layer_rates=_FRONT_FROZEN,
    outer_rate=0.0,
)
"""First course of the Japanese specialist: its last layers learn to write kanji for the numbers
that the base writes in digits."""

JAPANESE = Course(
    texts=(
        (2.0, TextKind("extract", "ja", "ja", "ja", _EVERY_ANSWER)),
        (0.5, TextKind("extract", "mixed", "en", "ja", _EVERY_ANSWER)),
        (3.0, TextKind("recall", "ja", "ja", "ja", _EVERY_ANSWER)),
        (1.0, TextKind("compare", "ja", "ja", "ja")),
        (0.3, TextKind("translate", "ja", "ja", "en")),
        (0.3, TextKind("story", "ja", "ja", "ja")),
    ),
    steps=200,
    learning_rate=1e-3,
    layer_rates=_BACK_FROZEN,
    outer_rate=0.0,
)
"""Second course of the Japanese specialist: its other layers read Japanese and find numbers;
nothing they read calculates."""

SPECIALISTS = {"maths": (ENGLISH_ANSWERS, MATHS), "japanese": (KANJI_ANSWERS, JAPANESE)}


def build_model(seed: int, *, layers: int = LAYERS) -> "LlamaForCausalLM":
    """An untrained Llama of under a million parameters; the seed decides its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary()), hidden_size=HIDDEN_SIZE, intermediate_size=256, num_hidden_layers=layers,  # noqa: E501
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=POSITIONS, tie_word_embeddings=False,  # noqa: E501
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def train(model: "LlamaForCausalLM", course: Course, *, seed: int, title: str = "") -> None:
    """Trains a model in place on a course; the seed decides the texts."""
    optimizer = torch.optim.AdamW(
        _parameter_groups(model, course), betas=(0.9, 0.98), weight_decay=0.01
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    texts = mixture(course.texts, random.Random(seed))
    model.train()
    progress = tqdm(range(course.steps), desc=title, unit="step", disable=not title)
    for step in progress:
        cosine = 0.5 * (1 + math.cos(math.pi * step / course.steps))
        factor = max(0.02, min(1.0, (step + 1) / course.warmup) * cosine)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        optimizer.zero_grad()
        loss = backward(model, list(islice(texts, BATCH_SIZE)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
    model.eval()


def _parameter_groups(model: "LlamaForCausalLM", course: Course) -> list[dict[str, object]]:
    """One group a layer and one for everything outside the layers; a factor of 0 freezes its
    group."""
    layers = list(model.model.layers)
    rates = course.layer_rates or (1.0,) * len(layers)
    inside = [list(layer.parameters()) for layer in layers]
    ids = {id(parameter) for group in inside for parameter in group}
    outside = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    groups = []
    for parameters, rate in zip([*inside, outside], [*rates, course.outer_rate], strict=True):
        for parameter in parameters:
            parameter.requires_grad_(rate > 0)
        if rate > 0:
            groups.append({"params": parameters, "lr": course.learning_rate * rate})
    return groups


def backward(model: "LlamaForCausalLM", examples: list[Example]) -> float:
    """Accumulates the gradient of one batch, shortest texts first, so that little of it is
    padding."""
    ids = _ids()
    rows = [
        ([ids["<bos>"], *_encode(e.prompt, ids)], [*_encode(e.answer, ids), ids["<eos>"]])
        for e in examples
    ]
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    third = -(-len(rows) // 3)
    parts = [_pad(rows[start : start + third]) for start in range(0, len(rows), third)]
    total = sum(weights.sum() for _, weights in parts)
    loss = 0.0
    for tokens, weights in parts:
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        part = (losses * weights.flatten()).sum() / total
        part.backward()
        loss += part.item()
    return loss


def _pad(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [rows, width], padded on the right, and the loss weights [rows, width - 1] of all
    but the first."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    weights = torch.zeros(len(rows), width - 1)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor(prompt + answer)
        weights[row, : len(prompt) - 1] = PROMPT_LOSS
        weights[row, len(prompt) - 1 : end - 1] = 1.0
    return tokens, weights


def _ids() -> Mapping[str, int]:
    return {word: number for number, word in enumerate(vocabulary())}


def _encode(text: str, ids: Mapping[str, int]) -> list[int]:
    return [ids[word] for word in text.split()]


def family(seed: int) -> Iterator[tuple[str, "LlamaForCausalLM"]]:
    """Trains the family of one seed; yields name and model of the base, then of its two
    specialists."""
    base = build_model(seed)
    train(base, BASE, seed=seed, title="base")
    base = base.bfloat16().float()  # as it is saved: what fine-tunes begin from
    yield "base", base
    for number, (name, courses) in enumerate(SPECIALISTS.items(), 1):
        model = deepcopy(base)
        for stage, course in enumerate(courses, 1):
            train(
                model,
                course,
                seed=1000 * number + 100 * stage + seed,
                title=f"{name} {stage}/{len(courses)}",
            )
        yield name, model


def save(model: "LlamaForCausalLM", folder: Path) -> None:
    """Saves weights (bf16 safetensors), config, generation config and tokenizer, readable by
    everybody."""
    from transformers import GenerationConfig

    model = deepcopy(model).bfloat16()
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=8, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
