"""Tiny parents for the merge tests: a base and three fine-tunes of it, on disk, in bfloat16 and in
float32."""

import pytest
import torch
from families import save_family, tiny_config
from transformers import AutoModelForCausalLM

from hf_evomerge import Recipe, build_model, open_source


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """A base and three sources in float32."""
    return save_family(tmp_path_factory.mktemp("family"), tiny_config(), torch.float32)


@pytest.fixture(scope="session")
def half_family(tmp_path_factory):
    """A base and three sources in bfloat16, with a head of their own."""
    return save_family(
        tmp_path_factory.mktemp("half"), tiny_config(tie_word_embeddings=False), torch.bfloat16
    )


@pytest.fixture
def make_recipe():
    """Makes a recipe from a folder of `save_family`."""

    def make(folder, method, parameters=(), options=None, count=2, base=True, **fields):
        data = {
            "sources": [{"model": str(folder / f"source{index}")} for index in range(count)],
            "merge": {"method": method, "parameters": list(parameters), "options": options or {}},
            **fields,
        }
        if base:
            data["base"] = {"model": str(folder / "base")}
        return Recipe.model_validate(data)

    return make


@pytest.fixture
def open_all():
    """Opens the sources and the base of a recipe."""

    def opened(recipe):
        return [
            open_source(ref) for ref in recipe.sources
        ], None if recipe.base is None else open_source(recipe.base)

    return opened


@pytest.fixture
def built(tmp_path):
    """Builds a recipe into a folder of the test, and gives the folder."""
    return lambda recipe, name="out", **options: build_model(recipe, tmp_path / name, **options)


@pytest.fixture
def load():
    """Loads a saved model."""
    return AutoModelForCausalLM.from_pretrained
