"""Encoders, classifiers and encoder-decoders: merged whole and by part, on disk and in memory."""

import pytest
import torch
import transformers
from classes import CLASSES, edited, random_class, tensors_of
from recipes import merge_of
from slowly import slow_beyond

from hf_evomerge.checkpoints.component import Component
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.merging.live import LiveMerger

PARTS = {
    "bert": None,
    "vit": "vision",
    "clip": "text",
    "t5": "encoder",
    "bart": "decoder",
    "whisper": "decoder",
}


@pytest.mark.parametrize("name", slow_beyond(["bert", "t5", "vit"], CLASSES))
def test_models_of_any_class_are_merged(name, built, tmp_path):
    """The result is what the formula gives, whole and of a part, and a live model has its bits."""
    kind = getattr(transformers, CLASSES[name][0])
    folders = [tmp_path / folder for folder in ("a", "b", "base")]
    for seed, folder in enumerate(folders):
        random_class(name, seed).save_pretrained(folder)
    a, b, base = (kind.from_pretrained(folder).state_dict() for folder in folders)
    for part in dict.fromkeys([None, PARTS[name]]):
        sources = [{"model": str(folder), "component": part} for folder in folders[:2]]
        recipe = merge_of(*sources, method="task_arithmetic", base=folders[2], weights=[0.5, 0.25])
        out = built(recipe, f"out-{part}")
        model, report = kind.from_pretrained(out, output_loading_info=True)
        assert not report["missing_keys"]
        opened = [open_source(folder) for folder in folders]
        opened = [Component(source, part) for source in opened] if part else opened
        live = kind.from_pretrained(folders[0])
        LiveMerger(opened[:2], opened[2], "task_arithmetic", {}, 0, live).apply(
            [{"weight": 0.5}, {"weight": 0.25}]
        )
        changed = 0
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, live.state_dict()[key]), key
            if tensor.is_floating_point() and (part is None or not torch.equal(tensor, a[key])):
                changed += 1
                wanted = base[key] + 0.5 * (a[key] - base[key]) + 0.25 * (b[key] - base[key])
                torch.testing.assert_close(tensor, wanted)
        assert changed > 5


@pytest.mark.parametrize("older", ["a", "b", "base"])
def test_a_table_of_positions_that_newer_files_lack_is_no_hindrance(older, built, tmp_path):
    """Old files of BERT hold one: it is the first source's, if that has it, and weights are merged
    as ever."""
    folders = {name: tmp_path / name for name in ("a", "b", "base")}
    for seed, folder in enumerate(folders.values()):
        random_class("bert", seed).save_pretrained(folder)
    with edited(folders[older]) as tensors:
        tensors["bert.embeddings.position_ids"] = torch.arange(16)[None]
    recipe = merge_of(*list(folders.values())[:2], method="task_arithmetic", base=folders["base"])
    a, b, base, merged = (tensors_of(folder) for folder in (*folders.values(), built(recipe)))
    assert ("bert.embeddings.position_ids" in merged) == (older == "a")
    name = "classifier.weight"
    torch.testing.assert_close(merged[name], a[name] + b[name] - base[name])
