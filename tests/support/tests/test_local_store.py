"""What the hub on loopback keeps: everything that was answered, after a restart too."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty_hub import Fault
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError

WEIGHTS = os.urandom(200_000)


def _everything(api):
    """All that the client can ask for about two repositories."""
    facts = {"me": api.whoami()["name"]}
    for revision in ("main", "dev", "v1", "refs/pr/1"):
        facts[revision] = api.model_info("acme/m", revision=revision, files_metadata=True)
    facts["commits"] = api.list_repo_commits("acme/m", revision="dev")
    facts["refs"] = api.list_repo_refs("acme/m", include_pull_requests=True)
    facts["pull"] = next(iter(api.get_repo_discussions("acme/m"))).title
    facts["space"] = api.space_info("acme/s").sdk
    return facts


def _fill(api):
    api.create_repo("acme/m", private=True)
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.safetensors", repo_id="acme/m")
    api.create_branch("acme/m", branch="dev")
    api.upload_file(
        path_or_fileobj="naïve 文".encode(), path_in_repo="文.txt", repo_id="acme/m", revision="dev"
    )
    api.create_tag("acme/m", tag="v1", revision="dev")
    api.upload_file(path_or_fileobj=b"p", path_in_repo="p.txt", repo_id="acme/m", create_pr=True)
    secret = [{"key": "S", "value": "secret-value"}]
    api.create_repo("acme/s", repo_type="space", space_sdk="docker", space_secrets=secret)
    api.create_repo("acme/gone")
    api.delete_repo("acme/gone")


def test_a_restart_changes_nothing(api, hub, tmp_path):
    """After a restart every answer is what it was before, and contents come back byte for byte."""
    _fill(api)
    before = _everything(api)
    hub.stop()
    hub.start()
    assert _everything(api) == before
    assert Path(api.hf_hub_download("acme/m", "w.safetensors")).read_bytes() == WEIGHTS
    assert (
        Path(api.hf_hub_download("acme/m", "文.txt", revision="v1")).read_text(encoding="utf-8")
        == "naïve 文"
    )


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
        assert len(api.list_repo_files("acme/m")) == 17
        assert len(api.list_repo_commits("acme/m")) == 17
        parent = api.repo_info("acme/m").sha
        answers = sorted(pool.map(lambda number: upload(number, parent), range(100, 108)))
        assert answers == [200, *[412] * 7]


@pytest.mark.usefixtures("waits")
def test_an_upload_that_is_cut_is_sent_again(api, hub):
    """A reset in the middle of an LFS upload is retried, and nothing of the first attempt stays."""
    api.create_repo("acme/m")
    fault = hub.faults.add(Fault("PUT /lfs/", "reset", after_bytes=100_000))
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.bin", repo_id="acme/m")
    assert fault.hits == 1
    assert api.get_paths_info("acme/m", "w.bin")[0].size == len(WEIGHTS)
