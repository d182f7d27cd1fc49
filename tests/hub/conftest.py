"""A hub on loopback for each test that asks for one, and what is pushed to it."""

import pytest
from hub_fixtures import command, connect, hub, lfs_api, program, waits  # noqa: F401
from recipes import merge_of

from hf_evomerge.building.build import build_model


@pytest.fixture
def plain(tiny, tmp_path):
    """A merge in parameter space, built from a hand-written recipe."""
    return build_model(merge_of(tiny / "a", tiny / "b"), tmp_path / "plain")
