"""The faults that tests order do happen: what the real client retries, resumes and does not notice of them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from faulty_hub import Fault, Faults, FaultyHub
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import httpx

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


def test_an_upload_that_is_cut_is_sent_again(api: HfApi, repo: str, hub: FaultyHub) -> None:
    """A reset in the middle of an LFS upload is retried, and nothing of the first attempt stays."""
    fault = hub.faults.add(Fault("PUT /lfs/", "reset", after_bytes=100_000))
    _upload(api)
    assert fault.hits == 1
    assert list((hub.root / "tmp").iterdir()) == []
    assert api.get_paths_info(repo, "new.bin")[0].size == len(SMALL) + 4


def test_what_is_asked_again_when_reading(api: HfApi, repo: str, hub: FaultyHub) -> None:
    """A description is asked for once; the address of a file that is not in the cache, again."""
    description = hub.faults.add(Fault("GET /api/models/acme/m", "status", status=503))
    with pytest.raises(HfHubHTTPError):
        api.model_info(repo)
    address = hub.faults.add(Fault("HEAD .*/resolve/", "status", status=503))
    assert Path(api.hf_hub_download(repo, "w.bin")).read_bytes() == SMALL
    assert (description.hits, address.hits) == (1, 1)


def test_a_download_that_ends_early_goes_on(api: HfApi, repo: str, hub: FaultyHub) -> None:
    """After an early end a download goes on from the last whole 10 MiB; a small one begins again."""
    fault = hub.faults.add(Fault("GET /content/", "truncate", after_bytes=200_000))
    assert Path(api.hf_hub_download(repo, "w.bin")).read_bytes() == SMALL
    assert _ranges(hub) == [None, None]
    large = os.urandom(25_000_000)
    api.upload_file(path_or_fileobj=large, path_in_repo="large.bin", repo_id=repo)
    fault = hub.faults.add(Fault("GET /content/", "truncate", after_bytes=22_000_000))
    assert Path(api.hf_hub_download(repo, "large.bin")).read_bytes() == large
    assert (fault.hits, _ranges(hub)[2:]) == (1, [None, "bytes=20971520-"])


def _ranges(hub: FaultyHub) -> list[str | None]:
    return [seen.headers.get("Range") for seen in hub.requests if seen.target.startswith("/content/")]


def test_a_download_that_is_reset_fails(api: HfApi, repo: str, hub: FaultyHub) -> None:
    """After a reset a download is not resumed, and leaves no file in the cache that looks whole."""
    hub.faults.add(Fault("GET /content/", "truncate", after_bytes=200_000, rst=True))
    with pytest.raises(httpx.ReadError):
        api.hf_hub_download(repo, "w.bin")
    assert Path(api.hf_hub_download(repo, "w.bin")).read_bytes() == SMALL


def test_a_wrong_byte_is_not_noticed(api: HfApi, repo: str, hub: FaultyHub) -> None:
    """The client compares sizes only: a corrupt download passes, until its checksums are verified."""
    fault = hub.faults.add(Fault("GET /content/", "corrupt", at=7))
    data = Path(api.snapshot_download(repo), "w.bin").read_bytes()
    assert fault.hits == 1
    assert [at for at in range(len(SMALL)) if data[at] != SMALL[at]] == [7]
    assert [found["path"] for found in api.verify_repo_checksums(repo).mismatches] == ["w.bin"]


def test_a_hub_that_is_down(api: HfApi, repo: str, hub: FaultyHub) -> None:
    """What is in the cache is found while the hub is down, what is not is an error, and all is well when it is back."""
    folder, endpoint = api.snapshot_download(repo), hub.endpoint
    hub.stop()
    assert api.snapshot_download(repo) == folder
    with pytest.raises(LocalEntryNotFoundError):
        api.hf_hub_download(repo, "README.md")
    with pytest.raises(LocalEntryNotFoundError):
        api.snapshot_download("acme/other")
    hub.start()
    assert hub.endpoint == endpoint
    assert api.list_repo_files(repo) == [".gitattributes", "w.bin"]


def test_a_delay(api: HfApi, repo: str, hub: FaultyHub) -> None:
    """A delayed answer is late and otherwise as usual, and does not hold up other requests."""
    hub.faults.add(Fault("/refs$", "delay", seconds=1.0))
    late: list[float] = []
    begin = time.monotonic()

    def ask() -> None:
        api.list_repo_refs(repo)
        late.append(time.monotonic() - begin)

    thread = threading.Thread(target=ask)
    thread.start()
    api.model_info(repo)
    assert not late
    thread.join()
    assert late[0] >= 1.0


def test_which_requests_a_fault_hits() -> None:
    """Faults come in their order, after as many passing requests and as often as was said, on requests that match."""
    faults = Faults()
    first = faults.add(Fault("GET /a", "reset", times=2, skip=1))
    second = faults.add(Fault("GET", "delay", times=None))
    taken = [faults.take(line) for line in ("PUT /a", "GET /a", "GET /a", "GET /b", "GET /a", "GET /a")]
    assert taken == [None, second, first, second, first, second]
    assert (first.hits, second.hits) == (2, 3)
    faults.clear()
    assert faults.take("GET /a") is None
