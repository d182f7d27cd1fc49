"""The demo's models: a seed gives the same weights, what is shipped sees, and a merge that sees."""

import os
import random
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

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
from specialists.sight import processor, see
from specialists.texts import TextKind, vocabulary, write
from specialists.train import BASE, SPECIALISTS, build_model, train
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from hf_evomerge.demo import quickstart
from hf_evomerge.search.file.sections import CompareConfig
from hf_evomerge.search.run import run_search

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZES = {"search": 48, "test": 40}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Few texts a step."""
    monkeypatch.setattr(training, "BATCH_SIZE", 6)


def _trained(seed):
    model = build_model(seed, layers=2)
    train(model, replace(BASE, steps=3), seed=seed)
    return model.state_dict()


def test_the_seed_decides_the_weights():
    """The same seed gives the same bits, another seed others, and training changes every tensor."""
    first = _trained(0)
    again = _trained(0)
    other = _trained(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "norm" not in name)
    untrained = build_model(0, layers=2).state_dict()
    assert not any(torch.equal(first[name], untrained[name]) for name in first)


def test_a_family_begins_with_its_base(monkeypatch):
    """A family is the base and then each specialist, and a specialist differs from the base only
    where its courses let it."""
    short = {
        name: tuple(replace(course, steps=1) for course in courses)
        for name, courses in SPECIALISTS.items()
    }
    monkeypatch.setattr(training, "BASE", replace(BASE, steps=1))
    monkeypatch.setattr(training, "SPECIALISTS", short)
    family = {name: deepcopy(model.state_dict()) for name, model in training.family(0)}
    base = family["base"]
    assert list(family) == ["base", *SPECIALISTS]
    for name, courses in short.items():
        changed = {key for key in base if not torch.equal(family[name][key], base[key])}
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


def test_vocabulary_is_the_same_under_every_hash_seed():
    """The numbers of the words do not depend on PYTHONHASHSEED."""
    code = "from specialists.texts import vocabulary; print(vocabulary())"
    command = [sys.executable, "-c", code]
    printed = {
        subprocess.check_output(command, env={**os.environ, "PYTHONHASHSEED": seed}, cwd=BENCHMARKS)
        for seed in ("0", "1", "123")
    }
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
