"""The demo's models: what training reads, that a seed gives the same weights, what stays frozen,
and a merge that sees."""

import os
import random
import re
import stat
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from specialists import sight
from specialists import train as training
from specialists.language import LARGEST, problems
from specialists.pictures import (
    IMAGE_TOKEN,
    SIDE,
    SIGHT,
    draw_number,
    picture_config,
    picture_problems,
    write_picture_problems,
)
from specialists.sight import build_sight, processor, see, train_sight
from specialists.texts import Task, TextKind, build_tokenizer, mixture, vocabulary, write
from specialists.train import BASE, JAPANESE, SPECIALISTS, build_model, save, train
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from hf_evomerge.demo import quickstart
from hf_evomerge.search.file.sections import CompareConfig
from hf_evomerge.search.run import run_search

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZES = {"search": 48, "test": 40}
TASKS: tuple[Task, ...] = (
    "solve",
    "extract",
    "recall",
    "compare",
    "translate",
    "count",
    "story",
    "word",
)
KINDS = [
    kind
    for task in TASKS
    for kind in (
        TextKind(task, "en", "en", "en"),
        TextKind(task, "ja", "ja", "en"),
        TextKind(task, "mixed", "en", "ja"),
    )
]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few texts a step."""
    monkeypatch.setattr(training, "BATCH_SIZE", 6)


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _trained(seed: int) -> dict[str, torch.Tensor]:
    model = build_model(seed, layers=2)
    train(model, replace(BASE, steps=3), seed=seed)
    return _weights(model)


def test_the_seed_decides_the_weights():
    """The same seed gives the same bits, another seed others, and training changes every tensor."""
    first = _trained(0)
    again = _trained(0)
    other = _trained(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "norm" not in name)
    untrained = build_model(0, layers=2).state_dict()
    assert not any(torch.equal(first[name], untrained[name]) for name in first)


def test_frozen_parts_stay():
    """Layers with rate 0 and, with outer rate 0, everything outside the layers keep their bits; the
    others do not."""
    model = build_model(0, layers=3)
    before = _weights(model)
    train(model, replace(JAPANESE, steps=2, layer_rates=(1.0, 0.0, 0.5), outer_rate=0.0), seed=1)
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {
        name for name in before if name.startswith(("model.layers.0.", "model.layers.2."))
    }


def test_training_teaches():
    """A few dozen steps on one kind of text lower its loss by much."""
    model = build_model(0, layers=2)
    course = replace(BASE, texts=((1.0, BASE.texts[0][1]),), steps=30, warmup=3)
    batch = list(_examples(course))
    before = training.backward(model, batch)
    train(model, course, seed=3)
    assert training.backward(model, batch) < 0.75 * before


def _examples(course: training.Course) -> list[training.Example]:
    return list(islice(training.mixture(course.texts, random.Random(99)), 12))


def test_a_saved_model_loads_with_its_tokenizer(tmp_path):
    """A model is saved in bfloat16 with a tokenizer of one token per word, readable by all, and is
    itself left as it was."""
    model = build_model(0, layers=1)
    before = _weights(model)
    save(model, tmp_path / "model")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.bfloat16())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(tokenizer) == len(vocabulary()) == loaded.config.vocab_size
    assert all(
        stat.S_IMODE(file.stat().st_mode) == 0o644 for file in (tmp_path / "model").iterdir()
    )


def test_a_family_begins_with_its_base(monkeypatch):
    """A family is the base and then each specialist, and a specialist differs from the base only
    where its courses let it."""
    monkeypatch.setattr(training, "BASE", replace(BASE, steps=1))
    short = {
        name: tuple(replace(course, steps=1) for course in courses)
        for name, courses in SPECIALISTS.items()
    }
    monkeypatch.setattr(training, "SPECIALISTS", short)
    family = {name: deepcopy(_weights(model)) for name, model in training.family(0)}
    assert list(family) == ["base", *SPECIALISTS]
    for name, courses in short.items():
        changed = {
            key
            for key, tensor in family[name].items()
            if not torch.equal(tensor, family["base"][key])
        }
        assert changed
        if all(course.outer_rate == 0 for course in courses):
            assert all(key.startswith("model.layers.") for key in changed)


def test_the_shipped_model_sees_every_number_and_speaks_as_the_maths_specialist():
    """Of 500 new pictures the nearest number's embedding is the right one; the language part has
    the specialist's bits."""
    model = AutoModelForImageTextToText.from_pretrained(SIGHT, dtype=torch.float32)
    rng = np.random.default_rng(12345)
    shown = rng.integers(0, LARGEST + 1, 500)
    ids = {word: place for place, word in enumerate(vocabulary())}
    table = (
        model.get_input_embeddings()
        .weight[[ids[str(number)] for number in range(LARGEST + 1)]]
        .detach()
    )
    with torch.no_grad():
        found = see(model, processor(), [draw_number(number, rng) for number in shown])
    assert (torch.cdist(found, table).argmin(1).numpy() == shown).mean() > 0.99
    maths = AutoModelForCausalLM.from_pretrained(
        quickstart.SPECIALISTS / "maths", dtype=torch.float32
    )
    parts = model.model.language_model.state_dict()
    for name, tensor in maths.model.state_dict().items():
        assert torch.equal(parts[name][: tensor.shape[0]], tensor), name


def test_training_touches_sight_alone(monkeypatch):
    """The same seed gives the same bits; the language part and the head keep theirs, and the
    pictures come nearer."""
    monkeypatch.setattr(sight, "BATCH_SIZE", 8)
    maths = AutoModelForCausalLM.from_pretrained(
        quickstart.SPECIALISTS / "maths", dtype=torch.float32
    )
    before = build_sight(maths, 0).state_dict()
    trained = []
    for _ in range(2):
        model = build_sight(maths, 0)
        train_sight(model, seed=0, steps=3, title="")
        trained.append(model.state_dict())
    for name, tensor in before.items():
        assert torch.equal(trained[0][name], trained[1][name]), name
        if "language_model" in name or name.startswith("lm_head"):
            assert torch.equal(trained[0][name], tensor), name
    changed = [name for name, tensor in before.items() if not torch.equal(trained[0][name], tensor)]
    assert any("vision_tower" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)


def test_vocabulary_is_the_same_under_every_hash_seed():
    """The numbers of the words do not depend on PYTHONHASHSEED."""
    code = "from specialists.texts import vocabulary; print(vocabulary())"
    printed = set()
    for seed in ("0", "1", "123"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=BENCHMARKS,
            capture_output=True,
            check=True,
        )
        printed.add(done.stdout)
    assert len(printed) == 1


@pytest.mark.parametrize("language", ["en", "ja"])
def test_training_texts_hold_no_problem_of_a_split(language):
    """A model never reads a problem that it may be tested on."""
    held_out = {
        p["prompt"]
        for split in ("search", "validation", "test")
        for p in problems(split, 3000, text=language)
    }
    rng = random.Random(3)
    kind = TextKind("solve", language, language, "en")
    assert held_out.isdisjoint(write(kind, rng).prompt for _ in range(3000))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_text_is_inside_the_vocabulary(kind):
    """Text of every kind survives the tokenizer word for word, with <bos> in front and no unknown
    word."""
    tokenizer = build_tokenizer()
    rng = random.Random(0)
    for prompt, answer in (write(kind, rng) for _ in range(50)):
        text = f"{prompt} {answer}".strip()
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[1:]) == text
        assert len(ids) < 64


def test_words_are_numbered_once():
    """No word is in the vocabulary twice, and the special tokens come first."""
    words = vocabulary()
    assert len(set(words)) == len(words)
    assert words[:4] == ["<pad>", "<bos>", "<eos>", "<unk>"]


def test_known_sentences_limit_the_japanese():
    """Sentences outside `japanese` are written in English, and numbers stay within `largest`."""
    rng = random.Random(1)
    kind = TextKind("solve", "ja", "ja", "ja", largest=4, japanese=("owns", "buys"))
    text = " ".join(write(kind, rng).prompt for _ in range(300))
    assert "買い足します" in text
    assert "失くします" not in text
    assert "loses" in text
    assert max(int(number) for number in re.findall(r"\d+", text)) == 4


def test_mixture_follows_its_weights():
    """Kinds are drawn in proportion to their weights."""
    parts = [(3.0, TextKind("story", "ja", "ja", "ja")), (1.0, TextKind("count", "en", "en", "en"))]
    texts = mixture(parts, random.Random(0))
    stories = sum(next(texts).prompt == "" for _ in range(2000))
    assert 1400 < stories < 1600


def test_pictures_show_the_numbers_of_the_problems():
    """Each problem is one of the demo's, every number of it a picture; the same every time, no two
    alike."""
    found = picture_problems("search", 6)
    again = picture_problems("search", 6)
    for (shown, pictures), (_, same), told in zip(found, again, problems("search", 6), strict=True):
        assert shown["answer"] == told["answer"]
        words = zip(shown["prompt"].split(), told["prompt"].split(), strict=True)
        hidden = [word for mark, word in words if mark == IMAGE_TOKEN and word.isdecimal()]
        assert len(hidden) == shown["prompt"].count(IMAGE_TOKEN) == len(pictures) == 2
        assert [image.tobytes() for image in pictures] == [image.tobytes() for image in same]
        assert {image.size for image in pictures} == {(SIDE, SIDE)}
    drawn = [image.tobytes() for _, pictures in found for image in pictures]
    assert len(set(drawn)) == len(drawn)


def test_a_merge_sees_calculates_and_answers_in_japanese(tmp_path):
    """Neither parent solves a problem; a few evaluations of the search by gradient do, and the
    winner does so on its own."""
    data = write_picture_problems(tmp_path / "data", SIZES)
    config = picture_config("ps", data, 20).model_copy(update={"compare": CompareConfig()})
    result = run_search(config, tmp_path / "search")
    scores = {row.model: row.scores.accuracy or 0.0 for row in result.rows}
    assert scores["sight"] == scores["japanese"] == 0.0
    assert scores[next(row.model for row in result.rows if row.stage == "average")] < 0.2
    assert result.row("ps").scores.accuracy > 0.6  # type: ignore[operator]
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "search" / "model")
    assert type(loaded).__name__ == "LlavaForConditionalGeneration"
    assert AutoProcessor.from_pretrained(tmp_path / "search" / "model").image_token == IMAGE_TOKEN
