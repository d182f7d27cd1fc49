"""Encoders, classifiers and encoder-decoders: merged whole and by part, on disk and in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from classes import CLASSES, random_class

from hf_evomerge.building.build import build_model
from hf_evomerge.checkpoints.component import Component
from hf_evomerge.checkpoints.source import Source
from hf_evomerge.merging.live import LiveMerger
from hf_evomerge.recipes.recipe import Recipe

PARTS = {"bert": None, "vit": "vision", "clip": "text", "t5": "encoder", "bart": "decoder", "whisper": "decoder"}


@pytest.mark.parametrize("name", CLASSES)
def test_models_of_any_class_are_merged(name: str, tmp_path: Path) -> None:
    """The result is what the formula gives, whole and of a part, and a live model has its bits."""
    kind: Any = getattr(transformers, CLASSES[name][0])
    for seed, folder in enumerate(("base", "a", "b")):
        random_class(name, seed).save_pretrained(tmp_path / folder)
    base, a, b = (kind.from_pretrained(tmp_path / folder).state_dict() for folder in ("base", "a", "b"))
    for part in (None, PARTS[name]) if PARTS[name] else (None,):
        sources = [{"model": str(tmp_path / folder), "component": part} for folder in "ab"]
        merge = {"method": "task_arithmetic", "parameters": [{"weight": 0.5}, {"weight": 0.25}]}
        recipe = Recipe.model_validate({"sources": sources, "base": {"model": str(tmp_path / "base")}, "merge": merge})
        out = build_model(recipe, tmp_path / f"out-{part}", progress=False)
        model, report = kind.from_pretrained(out, output_loading_info=True)
        assert not report["missing_keys"]
        merged = model.state_dict()
        opened = [Source.open(str(tmp_path / folder)) for folder in ("a", "b", "base")]
        opened = [Component(source, part) for source in opened] if part else opened
        live = kind.from_pretrained(tmp_path / "a")
        LiveMerger(opened[:2], opened[2], "task_arithmetic", {}, 0, live).apply([{"weight": 0.5}, {"weight": 0.25}])
        changed = 0
        for key, tensor in merged.items():
            assert torch.equal(tensor, live.state_dict()[key]), key
            if part is not None and torch.equal(tensor, a[key]):
                continue
            changed += tensor.is_floating_point()
            if tensor.is_floating_point():
                wanted = base[key] + 0.5 * (a[key] - base[key]) + 0.25 * (b[key] - base[key])
                torch.testing.assert_close(tensor, wanted)
        assert changed > 5
