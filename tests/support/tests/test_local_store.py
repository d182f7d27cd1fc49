"""What the hub on loopback keeps: everything that was answered, after a restart too."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty_hub import Fault
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError

WEIGHTS = bytes(range(250)) * 800


def _everything(api):
    """All that the client can ask for about two repositories."""
    revisions = ("main", "dev", "v1")
    return [
        *(api.model_info("acme/m", revision=name, files_metadata=True) for name in revisions),
        api.list_repo_commits("acme/m", revision="dev"),
        api.list_repo_refs("acme/m"),
        api.space_info("acme/s").sdk,
    ]


def test_a_restart_changes_nothing(api, hub):
    """After a restart every answer is what it was before, and contents come back byte for byte."""
    api.create_repo("acme/m", private=True)
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.safetensors", repo_id="acme/m")
    api.create_branch("acme/m", branch="dev")
    text = "naïve 文".encode()
    api.upload_file(path_or_fileobj=text, path_in_repo="文.txt", repo_id="acme/m", revision="dev")
    api.create_tag("acme/m", tag="v1", revision="dev")
    api.create_repo("acme/s", repo_type="space", space_sdk="docker")
    before = _everything(api)
    hub.stop()
    hub.start()
    assert _everything(api) == before
    assert Path(api.hf_hub_download("acme/m", "w.safetensors")).read_bytes() == WEIGHTS
    assert Path(api.hf_hub_download("acme/m", "文.txt", revision="v1")).read_bytes() == text


def test_commits_at_the_same_time(api):
    """Commits that come at once are all made, one after the other; with a parent given, exactly one
    of them is."""
    api.create_repo("acme/m")

    def upload(number, parent=None):
        files = [CommitOperationAdd(f"{number}.txt", b"x")]
        try:
            api.create_commit("acme/m", files, commit_message="x", parent_commit=parent)
        except HfHubHTTPError as error:
            return int(error.response.status_code)
        return 200

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(upload, range(16))) == {200}
        assert len(api.list_repo_files("acme/m")) == len(api.list_repo_commits("acme/m")) == 17
        parent = api.repo_info("acme/m").sha
        answers = sorted(pool.map(lambda number: upload(number, parent), range(100, 108)))
        assert answers == [200, *[412] * 7]


@pytest.mark.usefixtures("no_waiting")
def test_an_upload_that_is_cut_is_sent_again(api, hub):
    """A reset in the middle of an LFS upload is retried, and nothing of the first attempt stays."""
    api.create_repo("acme/m")
    fault = hub.faults.add(Fault("PUT /lfs/", "reset", after_bytes=100_000))
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.bin", repo_id="acme/m")
    assert fault.hits == 1
    assert api.get_paths_info("acme/m", "w.bin")[0].size == len(WEIGHTS)
