"""The faults that tests order do happen, in their order, and an upload that is cut is sent again."""

import os
import time
from types import SimpleNamespace

import pytest
from faulty_hub import Fault, Faults
from huggingface_hub import HfApi

SMALL = os.urandom(400_000)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client waited between its attempts; the tests do not wait them."""
    waited: list[float] = []
    clock = SimpleNamespace(sleep=waited.append, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    monkeypatch.setattr("huggingface_hub.file_download.time", clock)
    return waited


@pytest.fixture
def repo(api: HfApi) -> str:
    """A repository with a large file."""
    api.create_repo("acme/m")
    api.upload_file(path_or_fileobj=SMALL, path_in_repo="w.bin", repo_id="acme/m")
    return "acme/m"


def _upload(api: HfApi, name: str = "new.bin") -> str:
    return api.upload_file(path_or_fileobj=SMALL + os.urandom(4), path_in_repo=name, repo_id="acme/m").oid


def test_an_upload_that_is_cut_is_sent_again(api, repo, hub):
    """A reset in the middle of an LFS upload is retried, and nothing of the first attempt stays."""
    fault = hub.faults.add(Fault("PUT /lfs/", "reset", after_bytes=100_000))
    _upload(api)
    assert fault.hits == 1
    assert list((hub.root / "tmp").iterdir()) == []
    assert api.get_paths_info(repo, "new.bin")[0].size == len(SMALL) + 4


def test_which_requests_a_fault_hits():
    """Faults come in their order, after as many passing requests and as often as was said, on requests that match."""
    faults = Faults()
    first = faults.add(Fault("GET /a", "reset", times=2, skip=1))
    second = faults.add(Fault("GET", "delay", times=None))
    taken = [faults.take(line) for line in ("PUT /a", "GET /a", "GET /a", "GET /b", "GET /a", "GET /a")]
    assert taken == [None, second, first, second, first, second]
    assert (first.hits, second.hits) == (2, 3)
    faults.clear()
    assert faults.take("GET /a") is None
