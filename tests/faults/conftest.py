"""A hub on loopback, empty for a test or with a merge and its parents for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_fixtures import api, connect, hub, lfs_api, no_waiting, use_hub  # noqa: F401
from push_faults import Bench

from hf_evomerge.local_hub import LocalHub


@pytest.fixture(scope="module", params=["lfs", "xet"])
def bench(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The merge, to be pushed to the hub, once with LFS and once with Xet; nothing waits."""
    scratch = tmp_path_factory.mktemp("faults")
    with LocalHub(scratch / "hub") as shared, pytest.MonkeyPatch.context() as patch:
        api = use_hub(patch, shared, scratch / "client", xet=request.param == "xet")
        no_waiting(patch)
        yield Bench(shared, api, tiny, scratch)
