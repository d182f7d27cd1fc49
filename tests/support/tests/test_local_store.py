"""What the hub on loopback keeps: everything that was answered, after a restart and after a kill,
and no token."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faulty_hub import Fault
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from local_hub import LocalHub
from local_hub.repository import State
from local_hub.store import Store
from local_hub.wire import Refusal

from hf_evomerge.errors import HubError

WEIGHTS = os.urandom(200_000)


def _everything(api: HfApi) -> dict[str, Any]:
    """All that the client can ask for about two repositories."""
    facts: dict[str, Any] = {"me": api.whoami()["name"]}
    for revision in ("main", "dev", "v1", "refs/pr/1"):
        facts[revision] = api.model_info("acme/m", revision=revision, files_metadata=True)
    facts["commits"] = api.list_repo_commits("acme/m", revision="dev")
    facts["refs"] = api.list_repo_refs("acme/m", include_pull_requests=True)
    facts["pull"] = next(iter(api.get_repo_discussions("acme/m"))).title
    facts["space"] = api.space_info("acme/s").sdk
    return facts


def _fill(api: HfApi) -> None:
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


def test_no_token_and_no_secret_is_stored(api, hub):
    """Neither the token nor the value of a Space's secret is in any file."""
    _fill(api)
    contents = {path: path.read_bytes() for path in hub.root.rglob("*") if path.is_file()}
    assert any(b'"acme/m"' in content for content in contents.values())
    for word in (hub.token, "secret-value"):
        assert [path for path, content in contents.items() if word.encode() in content] == []


def test_one_folder_has_one_hub(hub, api, tmp_path):
    """A second hub on a folder or a port that is in use is refused in one line, and the first goes
    on."""
    with pytest.raises(HubError, match="another hub serves this folder"):
        LocalHub(hub.root).start()
    port = int(hub.endpoint.rsplit(":", 1)[1])
    with pytest.raises(HubError, match=f"port {port} is in use"):
        LocalHub(tmp_path / "other", port).start()
    with LocalHub(tmp_path / "other"):
        pass
    assert api.whoami()["name"] == "local"
    hub.stop()
    with pytest.raises(HubError, match="does not run"):
        hub.endpoint  # noqa: B018


WRITER = """
import os, sys
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
api, count = HfApi(), 0
api.create_repo("local/m", exist_ok=True)
while True:
    data = os.urandom(60_000)
    files = [CommitOperationAdd(f"{n}.bin", data + bytes([n])) for n in range(3)] + [CommitOperationAdd("n.txt", b"%d" % count)]
    print(api.create_commit("local/m", files, commit_message=f"commit {count}").oid, flush=True)
    count += 1
"""  # noqa: E501
SERVER = """
import json, sys
from local_hub import LocalHub
with LocalHub(sys.argv[1]) as hub:
    print(json.dumps(hub.environment(home=sys.argv[2])), flush=True)
    hub.wait()
"""


@contextmanager
def _process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=pipe,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_kill_minus_nine(connect, tmp_path):
    """After kill -9 in the middle of commits, every commit that was answered is there and whole,
    and the hub goes on."""
    root = tmp_path / "hub"
    committed = []
    for seconds in (0.0, 0.05, 0.11):
        with _process(SERVER, str(root), str(tmp_path / "client")) as server:
            environment = json.loads(server.stdout.readline())
            with _process(WRITER, **environment) as writer:
                committed.append(writer.stdout.readline().strip())
                time.sleep(seconds)
                server.send_signal(signal.SIGKILL)
                server.wait()
                writer.kill()
                committed += [
                    line
                    for line in writer.stdout.read().split()
                    if re.fullmatch("[0-9a-f]{40}", line)
                ]
    with LocalHub(root) as hub:
        api = connect(hub)
        history = [commit.commit_id for commit in api.list_repo_commits("local/m")]
        assert set(committed) <= set(history)
        assert list((root / "tmp").iterdir()) == []
        api.create_commit("local/m", [CommitOperationAdd("end.txt", b"end")], commit_message="end")
        assert api.file_exists("local/m", "end.txt")
    _check_contents(Store(root))


def _check_contents(store: Store) -> None:
    """Every file of every commit has the content that its entry names."""
    repository = store.get("models", "local/m")
    for commit in repository.log(repository.resolve("main")):
        for entry in commit.tree.values():
            assert hashlib.sha256(store.objects.read(entry.sha256)).hexdigest() == entry.sha256


def test_commits_at_the_same_time(api):
    """Commits that come at once are all made, one after the other; with a parent given, exactly one
    of them is."""
    api.create_repo("acme/m")

    def upload(number: int, parent: str | None = None) -> int:
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
    assert list((hub.root / "tmp").iterdir()) == []
    assert api.get_paths_info("acme/m", "w.bin")[0].size == len(WEIGHTS)


def test_creation_that_was_killed_is_forgotten(tmp_path):
    """What a killed run left half-made is neither shown nor in the way."""
    store = Store(tmp_path)
    made = store.create(State("models", "a/m"), author="a")
    (made.folder / "repository.json").unlink()
    (tmp_path / "tmp" / "half").write_bytes(b"half")
    again = Store(tmp_path)
    assert again.get("models", "a/m") is None
    assert list((tmp_path / "tmp").iterdir()) == []
    assert list(again.create(State("models", "a/m"), author="a").at("main").tree) == [
        ".gitattributes"
    ]
    with pytest.raises(Refusal, match="already created"):
        again.create(State("models", "a/m"), author="a")


def test_a_folder_that_is_damaged(tmp_path):
    """A state that cannot be read is one line that names its file, and the folder is free again."""
    made = Store(tmp_path).create(State("models", "a/m"), author="a")
    for content in (b"", b"[1]", b'{"mood": 1}'):
        (made.folder / "repository.json").write_bytes(content)
        with pytest.raises(HubError, match=r"repository\.json: no repository of this hub"):
            LocalHub(tmp_path).start()
    (made.folder / "repository.json").unlink()
    with LocalHub(tmp_path) as hub:
        assert hub.endpoint


@pytest.mark.parametrize("wrong", [{"user": "../x"}, {"user": ""}, {"orgs": ["fine", "a/b"]}])
def test_users_that_cannot_be(tmp_path, wrong):
    """A name that the Hub would not take is refused before anything starts."""
    with pytest.raises(HubError, match="is no name of"):
        LocalHub(tmp_path / "hub", **wrong)
    assert not (tmp_path / "hub").exists()
