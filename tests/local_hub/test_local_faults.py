"""What the real client does with each fault: what it retries, what it resumes, what it does not notice."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import httpx

from hf_evomerge.local_hub import Fault, LocalHub
from hf_evomerge.local_hub.faults import Faults

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
    """A repository."""
    return api.create_repo("acme/m").repo_id


@pytest.fixture
def lfs_repo(lfs_api: HfApi) -> str:
    """A repository with a large file, used with LFS."""
    lfs_api.create_repo("acme/m")
    lfs_api.upload_file(path_or_fileobj=SMALL, path_in_repo="w.bin", repo_id="acme/m")
    return "acme/m"


def _upload(api: HfApi, name: str = "new.bin") -> str:
    return api.upload_file(path_or_fileobj=SMALL + os.urandom(4), path_in_repo=name, repo_id="acme/m").oid


LIMIT = {"ratelimit": '"api";r=0;t=0', "ratelimit-policy": '"fixed window";"api";q=500;w=300'}


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST .*/preupload/", "status", status=503, headers={"Retry-After": "0"}),
        Fault("POST .*/preupload/", "status", status=429, headers=LIMIT),
    ],
    ids=["busy", "rate limit"],
)
def test_a_busy_hub_is_asked_again(api: HfApi, repo: str, hub: LocalHub, waits: list[float], fault: Fault) -> None:
    """After 503 and 429 before an upload the client waits as long as it is told to, plus a second, and goes on."""
    fault = hub.faults.add(replace(fault))
    _upload(api)
    assert (fault.hits, waits) == (1, [1.0])
    assert api.file_exists(repo, "new.bin")


def test_a_hub_that_stays_broken(api: HfApi, repo: str, hub: LocalHub, waits: list[float]) -> None:
    """Where an error stays, the client gives up after 23 seconds and six attempts."""
    fault = hub.faults.add(Fault("POST .*/preupload/", "status", status=500, times=None))
    with pytest.raises(HfHubHTTPError, match="500"):
        _upload(api)
    assert (fault.hits, waits) == (6, [1, 2, 4, 8, 8])


def test_an_upload_that_is_cut_is_sent_again(lfs_api: HfApi, lfs_repo: str, hub: LocalHub) -> None:
    """A reset in the middle of an LFS upload is retried, and nothing of the first attempt stays."""
    fault = hub.faults.add(Fault("PUT /lfs/", "reset", after_bytes=100_000))
    _upload(lfs_api)
    assert fault.hits == 1
    assert list((hub.root / "tmp").iterdir()) == []
    assert lfs_api.get_paths_info(lfs_repo, "new.bin")[0].size == len(SMALL) + 4


def test_parts(connect: Callable[..., HfApi], tmp_path: Path) -> None:
    """A file that is uploaded in parts is whole in the end, also where one part fails at first."""
    with LocalHub(tmp_path / "parts", part_size=150_000) as hub:
        api = connect(hub)
        api.create_repo("m")
        fault = hub.faults.add(Fault("PUT /lfs/.*/2[?]", "status", status=500))
        api.upload_file(path_or_fileobj=SMALL, path_in_repo="w.bin", repo_id="local/m")
        assert fault.hits == 1
        parts = [seen.target.split("?")[0].rsplit("/", 1)[1] for seen in hub.requests if seen.method == "PUT"]
        assert parts == ["1", "2", "2", "3"]
        assert Path(api.hf_hub_download("local/m", "w.bin")).read_bytes() == SMALL
        assert list((hub.root / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "error", "made"),
    [
        (Fault("POST .*/commit/", "status", status=500), HfHubHTTPError, False),
        (Fault("POST .*/commit/", "reset"), httpx.TransportError, False),
        (Fault("POST .*/commit/", "truncate"), httpx.TransportError, True),
        (Fault("POST .*/commit/", "truncate", rst=True), httpx.TransportError, True),
    ],
    ids=["500", "reset", "answer lost", "answer lost by reset"],
)
def test_a_commit_is_not_retried(
    api: HfApi, repo: str, hub: LocalHub, fault: Fault, error: type[Exception], made: bool
) -> None:
    """The client sends a commit once, and after an error cannot know whether it was made."""
    fault = hub.faults.add(replace(fault))
    with pytest.raises(error):
        _upload(api)
    assert fault.hits == 1
    assert api.file_exists(repo, "new.bin") is made


def test_a_folders_commit_is_retried_with_xet_only(
    api: HfApi, repo: str, hub: LocalHub, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """upload_folder sends a failed commit again where it goes by Xet, and not where it goes by LFS."""
    fault = hub.faults.add(Fault("POST .*/commit/", "status", status=500))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")
    if "xet" in request.node.callspec.id:
        api.upload_folder(repo_id=repo, folder_path=tmp_path / "folder")
    else:
        with pytest.raises(HfHubHTTPError):
            api.upload_folder(repo_id=repo, folder_path=tmp_path / "folder")
    assert fault.hits == 1


def test_what_is_asked_again_when_reading(lfs_api: HfApi, lfs_repo: str, hub: LocalHub) -> None:
    """A description is asked for once; the address of a file that is not in the cache, again."""
    description = hub.faults.add(Fault("GET /api/models/acme/m", "status", status=503))
    with pytest.raises(HfHubHTTPError):
        lfs_api.model_info(lfs_repo)
    address = hub.faults.add(Fault("HEAD .*/resolve/", "status", status=503))
    assert Path(lfs_api.hf_hub_download(lfs_repo, "w.bin")).read_bytes() == SMALL
    assert (description.hits, address.hits) == (1, 1)


def test_a_download_that_ends_early_goes_on(lfs_api: HfApi, lfs_repo: str, hub: LocalHub) -> None:
    """After an early end a download goes on from the last whole 10 MiB; a small one begins again."""
    fault = hub.faults.add(Fault("GET /content/", "truncate", after_bytes=200_000))
    assert Path(lfs_api.hf_hub_download(lfs_repo, "w.bin")).read_bytes() == SMALL
    assert _ranges(hub) == [None, None]
    large = os.urandom(25_000_000)
    lfs_api.upload_file(path_or_fileobj=large, path_in_repo="large.bin", repo_id=lfs_repo)
    fault = hub.faults.add(Fault("GET /content/", "truncate", after_bytes=22_000_000))
    assert Path(lfs_api.hf_hub_download(lfs_repo, "large.bin")).read_bytes() == large
    assert (fault.hits, _ranges(hub)[2:]) == (1, [None, "bytes=20971520-"])


def _ranges(hub: LocalHub) -> list[str | None]:
    return [seen.headers.get("Range") for seen in hub.requests if seen.target.startswith("/content/")]


def test_a_download_that_is_reset_fails(lfs_api: HfApi, lfs_repo: str, hub: LocalHub) -> None:
    """After a reset a download is not resumed, and leaves no file in the cache that looks whole."""
    hub.faults.add(Fault("GET /content/", "truncate", after_bytes=200_000, rst=True))
    with pytest.raises(httpx.ReadError):
        lfs_api.hf_hub_download(lfs_repo, "w.bin")
    assert Path(lfs_api.hf_hub_download(lfs_repo, "w.bin")).read_bytes() == SMALL


def test_a_wrong_byte_is_not_noticed(lfs_api: HfApi, lfs_repo: str, hub: LocalHub) -> None:
    """The client compares sizes only: a corrupt download passes, until its checksums are verified."""
    fault = hub.faults.add(Fault("GET /content/", "corrupt", at=7))
    data = Path(lfs_api.snapshot_download(lfs_repo), "w.bin").read_bytes()
    assert fault.hits == 1
    assert [at for at in range(len(SMALL)) if data[at] != SMALL[at]] == [7]
    assert [found["path"] for found in lfs_api.verify_repo_checksums(lfs_repo).mismatches] == ["w.bin"]


def test_a_hub_that_is_down(lfs_api: HfApi, lfs_repo: str, hub: LocalHub) -> None:
    """What is in the cache is found while the hub is down, what is not is an error, and all is well when it is back."""
    folder, endpoint = lfs_api.snapshot_download(lfs_repo), hub.endpoint
    hub.stop()
    assert lfs_api.snapshot_download(lfs_repo) == folder
    with pytest.raises(LocalEntryNotFoundError):
        lfs_api.hf_hub_download(lfs_repo, "README.md")
    with pytest.raises(LocalEntryNotFoundError):
        lfs_api.snapshot_download("acme/other")
    hub.start()
    assert hub.endpoint == endpoint
    assert lfs_api.list_repo_files(lfs_repo) == [".gitattributes", "w.bin"]


def test_a_delay(lfs_api: HfApi, lfs_repo: str, hub: LocalHub) -> None:
    """A delayed answer is late and otherwise as usual, and does not hold up other requests."""
    hub.faults.add(Fault("/refs$", "delay", seconds=1.0))
    late: list[float] = []
    begin = time.monotonic()

    def ask() -> None:
        lfs_api.list_repo_refs(lfs_repo)
        late.append(time.monotonic() - begin)

    thread = threading.Thread(target=ask)
    thread.start()
    lfs_api.model_info(lfs_repo)
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
