"""A hub on loopback, empty for a test or with a merge and its parents for all tests of this
folder."""

from types import SimpleNamespace

import pytest
from faulty_hub import FaultyHub
from hub_fixtures import connect, hub, lfs_api, use_hub  # noqa: F401
from push_faults import Bench


@pytest.fixture(scope="module")
def bench(tiny, tmp_path_factory):
    """The merge, to be pushed to the hub; nothing waits."""
    scratch = tmp_path_factory.mktemp("faults")
    with FaultyHub(scratch / "hub") as shared, pytest.MonkeyPatch.context() as patch:
        api = use_hub(patch, shared, scratch / "client")
        patch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))
        yield Bench(shared, api, tiny, scratch)
