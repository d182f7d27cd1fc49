"""The demo's model that sees: its pictures, its parts, its training, and a merge of it that answers in another language."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from hf_evomerge.demo import sight
from hf_evomerge.demo.language import LARGEST, problems, vocabulary
from hf_evomerge.demo.quickstart import SPECIALISTS, check_reload, demo_config, write_problems
from hf_evomerge.demo.sight import IMAGE_TOKEN, SIDE, build_sight, draw_number, picture_problems, processor, see, train_sight
from hf_evomerge.search.run import run_search

SIZES = {"search": 48, "test": 40}


def test_pictures_show_the_numbers_of_the_problems() -> None:
    """Each problem is one of the demo's, every number of it a picture; the same every time, no two alike."""
    found, again = picture_problems("search", 6), picture_problems("search", 6)
    for (shown, pictures), (_, same), told in zip(found, again, problems("search", 6), strict=True):
        assert shown["answer"] == told["answer"]
        words = zip(shown["prompt"].split(), told["prompt"].split(), strict=True)
        hidden = [word for mark, word in words if mark == IMAGE_TOKEN and word.isdecimal()]
        assert len(hidden) == shown["prompt"].count(IMAGE_TOKEN) == len(pictures) == 2
        assert [image.tobytes() for image in pictures] == [image.tobytes() for image in same]
        assert {image.size for image in pictures} == {(SIDE, SIDE)}
    drawn = [image.tobytes() for _, pictures in found for image in pictures]
    assert len(set(drawn)) == len(drawn)


def test_the_shipped_model_sees_every_number_and_speaks_as_the_maths_specialist() -> None:
    """Of 500 new pictures the nearest number's embedding is the right one; the language part has the specialist's bits."""
    model = AutoModelForImageTextToText.from_pretrained(SPECIALISTS / "sight", dtype=torch.float32)
    rng = np.random.default_rng(12345)
    shown = rng.integers(0, LARGEST + 1, 500)
    ids = {word: place for place, word in enumerate(vocabulary())}
    table = model.get_input_embeddings().weight[[ids[str(number)] for number in range(LARGEST + 1)]].detach()
    with torch.no_grad():
        found = see(model, processor(), [draw_number(number, rng) for number in shown])
    assert (torch.cdist(found, table).argmin(1).numpy() == shown).mean() > 0.99
    maths = AutoModelForCausalLM.from_pretrained(SPECIALISTS / "maths", dtype=torch.float32)
    parts = model.model.language_model.state_dict()
    for name, tensor in maths.model.state_dict().items():
        assert torch.equal(parts[name][: tensor.shape[0]], tensor), name


def test_training_touches_sight_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed gives the same bits; the language part and the head keep theirs, and the pictures come nearer."""
    monkeypatch.setattr(sight, "BATCH_SIZE", 8)
    maths = AutoModelForCausalLM.from_pretrained(SPECIALISTS / "maths", dtype=torch.float32)
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


def test_a_merge_sees_calculates_and_answers_in_japanese(tmp_path: Path) -> None:
    """Neither parent solves a problem; a few evaluations of the search by gradient do, and the winner does so on its own."""
    data = write_problems(tmp_path / "data", SIZES, pictures=True)
    config = demo_config("ps", data, 20, 0, vlm=True).model_copy(update={"baselines": ["average"]})
    result = run_search(config, tmp_path / "search")
    scores = {row.model: row.scores.accuracy or 0.0 for row in result.rows}
    assert scores["sight"] == scores["japanese"] == 0.0
    assert scores[next(row.model for row in result.rows if row.stage == "average")] < 0.2
    assert result.row("ps").scores.accuracy > 0.6  # type: ignore[operator]
    said = check_reload({str(tmp_path / "search" / "model"): result}, data["test"])
    assert "loaded by AutoModelForImageTextToText in a fresh process as LlavaForConditionalGeneration" in said
    assert AutoProcessor.from_pretrained(tmp_path / "search" / "model").image_token == IMAGE_TOKEN
