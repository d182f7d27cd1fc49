"""Training the demo's models: the same seed gives the same weights, and what a course freezes stays as it was."""

from __future__ import annotations

import stat
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_evomerge.demo import train as training
from hf_evomerge.demo.language import vocabulary
from hf_evomerge.demo.train import BASE, JAPANESE, SPECIALISTS, build_model, save, train


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


def test_the_seed_decides_the_weights() -> None:
    """The same seed gives the same bits, another seed others, and training changes every tensor."""
    first, again, other = _trained(0), _trained(0), _trained(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "norm" not in name)
    untrained = build_model(0, layers=2).state_dict()
    assert not any(torch.equal(first[name], untrained[name]) for name in first)


def test_frozen_parts_stay() -> None:
    """Layers with rate 0 and, with outer rate 0, everything outside the layers keep their bits; the others do not."""
    model = build_model(0, layers=3)
    before = _weights(model)
    train(model, replace(JAPANESE, steps=2, layer_rates=(1.0, 0.0, 0.5), outer_rate=0.0), seed=1)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith(("model.layers.0.", "model.layers.2."))}


def test_training_teaches() -> None:
    """A few dozen steps on one kind of text lower its loss by much."""
    model = build_model(0, layers=2)
    course = replace(BASE, texts=((1.0, BASE.texts[0][1]),), steps=30, warmup=3)
    batch = list(_examples(course))
    before = training._backward(model, batch)
    train(model, course, seed=3)
    assert training._backward(model, batch) < 0.75 * before


def _examples(course: training.Course) -> list[training.Example]:
    import random
    from itertools import islice

    return list(islice(training.mixture(course.texts, random.Random(99)), 12))


def test_a_saved_model_loads_with_its_tokenizer(tmp_path: Path) -> None:
    """A model is saved in bfloat16 with a tokenizer of one token per word, readable by all, and is itself left as it was."""
    model = build_model(0, layers=1)
    before = _weights(model)
    save(model, tmp_path / "model")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.bfloat16())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(tokenizer) == len(vocabulary()) == loaded.config.vocab_size
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o644 for file in (tmp_path / "model").iterdir())


def test_a_family_begins_with_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family is the base and then each specialist, and a specialist differs from the base only where its courses let it."""
    monkeypatch.setattr(training, "BASE", replace(BASE, steps=1))
    short = {name: tuple(replace(course, steps=1) for course in courses) for name, courses in SPECIALISTS.items()}
    monkeypatch.setattr(training, "SPECIALISTS", short)
    family = {name: deepcopy(_weights(model)) for name, model in training.family(0)}
    assert list(family) == ["base", *SPECIALISTS]
    for name, courses in short.items():
        changed = {key for key, tensor in family[name].items() if not torch.equal(tensor, family["base"][key])}
        assert changed
        if all(course.outer_rate == 0 for course in courses):
            assert all(key.startswith("model.layers.") for key in changed)
