"""A hub on loopback for each test that asks for one."""

import os
from pathlib import Path

import local_hub
import pytest
from hub_fixtures import connect, hub, no_waiting  # noqa: F401
from hub_fixtures import lfs_api as api  # noqa: F401


@pytest.fixture(autouse=True)
def _found_by_processes(monkeypatch):
    """Processes that a test starts find the package, as in `make demo`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(local_hub.__file__).parents[1]), prepend=os.pathsep)
