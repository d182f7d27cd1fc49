"""A merge on this machine and its parents on a Hub on loopback, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_fixtures import no_waiting, use_hub
from push_faults import Bench

from hf_evomerge.local_hub import LocalHub


@pytest.fixture(scope="module", params=["lfs", "xet"])
def bench(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The merge, to be pushed to the hub, once with LFS and once with Xet; nothing waits."""
    scratch = tmp_path_factory.mktemp("faults")
    with LocalHub(scratch / "hub") as hub, pytest.MonkeyPatch.context() as patch:
        api = use_hub(patch, hub, scratch / "client", xet=request.param == "xet")
        no_waiting(patch)
        yield Bench(hub, api, tiny, scratch)
