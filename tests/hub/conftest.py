"""A hub on loopback for each test that asks for one, and what is pushed to it."""

from pathlib import Path

import pytest
from hub_fixtures import command, connect, hub, lfs_api, program, waits  # noqa: F401

from hf_evomerge.building.build import build_model
from hf_evomerge.recipes.recipe import Recipe


@pytest.fixture
def plain(tiny: Path, tmp_path: Path) -> Path:
    """A merge in parameter space, built from a hand-written recipe."""
    sources = [{"model": str(tiny / "a")}, {"model": str(tiny / "b")}]
    recipe = Recipe.model_validate({"sources": sources, "merge": {"method": "linear"}})
    return build_model(recipe, tmp_path / "plain", progress=False)
