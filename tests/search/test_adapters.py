"""Searches over adapters of one base: the result is an adapter, and everything that reads models reads it."""

from pathlib import Path

import pytest
import torch
from tiny_adapters import save_adapter
from transformers import AutoModelForCausalLM

from hf_evomerge.building.build import build_model
from hf_evomerge.checkpoints.diff import diff_models
from hf_evomerge.checkpoints.inspect import inspect_model
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.recipes.recipe import Recipe, SourceRef
from hf_evomerge.search.run import run_search
from hf_evomerge.search.score_model import evaluate_model


@pytest.fixture
def adapters(tiny: Path, tmp_path: Path) -> list[SourceRef]:
    """Two adapters of the tiny base."""
    folders = [save_adapter(tiny / "base", tmp_path / name, seed) for seed, name in enumerate(("ja", "maths"))]
    return [SourceRef(model=str(tiny / "base"), adapter=str(folder)) for folder in folders]


def test_a_search_over_adapters_ends_with_one(adapters, search_config, tmp_path):
    """The winner is an adapter that scores what the search says, which commands and functions open as the model it is."""
    config = search_config("ps", sources=adapters)
    result = run_search(config, tmp_path / "out")
    folder = tmp_path / "out" / "model"
    assert {"adapter_config.json", "adapter_model.safetensors", "recipe.yaml", "tokenizer.json"} <= {
        file.name for file in folder.iterdir()
    }
    winner = next(row for row in result.rows if row.winner)
    assert evaluate_model(str(folder), config).scores.mean == pytest.approx(winner.scores.mean, abs=1e-5)
    whole = build_model(Recipe.load(folder / "recipe.yaml"), tmp_path / "whole", progress=False, whole=True)
    assert inspect_model(folder).stored == inspect_model(whole).stored
    assert (diff_models(folder, whole).total.weights.relative or 0) < 1e-6


def test_an_adapter_is_opened_with_its_own_tokenizer(adapters, tmp_path):
    """A chat template that the recipe gives goes with the adapter, and is read with it."""
    recipe = Recipe.model_validate(
        {
            "sources": adapters,
            "base": {"model": adapters[0].model},
            "merge": {"method": "task_arithmetic"},
            "chat_template": "X",
        }
    )
    folder = build_model(recipe, tmp_path / "out", progress=False)
    source = open_source(str(folder))
    assert source.tokenizer().chat_template == "X"
    assert source.pinned == SourceRef(model=adapters[0].model, adapter=str(folder))


def test_adapters_are_merged_again(adapters, tmp_path):
    """A recipe names an adapter alone; the one that is kept names its base, and the result is that of both steps at once."""
    half = {"weight": 0.5}
    data = {"sources": adapters, "base": {"model": adapters[0].model}}
    first = build_model(
        Recipe.model_validate({**data, "merge": {"method": "task_arithmetic", "parameters": [half, half]}}), tmp_path / "first"
    )
    data["sources"] = [{"model": str(first)}, {"model": adapters[0].adapter}]
    second = build_model(Recipe.model_validate({**data, "merge": {"method": "task_arithmetic"}}), tmp_path / "second")
    assert Recipe.load(second / "recipe.yaml").sources == [
        SourceRef(model=adapters[0].model, adapter=adapter) for adapter in (str(first), adapters[0].adapter)
    ]
    merge = {"method": "task_arithmetic", "parameters": [{"weight": 1.5}, {"weight": 0.5}]}
    once = build_model(Recipe.model_validate({**data, "sources": adapters, "merge": merge}), tmp_path / "once", whole=True)
    state = AutoModelForCausalLM.from_pretrained(once).state_dict()
    source = open_source(str(second))
    for name in source.tensors:
        assert torch.allclose(source.read(name), state[name], atol=1e-6), name
