"""A push that is cut off: nothing is published by half, and pushing again finishes it."""

import os
import subprocess
import sys
import time

import pytest
from faulty_hub import Fault
from hub_fixtures import commit_titles
from huggingface_hub import CommitOperationAdd
from refusals import refused

from hf_evomerge.errors import HubError

COMMIT = r"POST /api/models/local/merge/commit/"
LFS_PUT = r"PUT /lfs"
PUSH = "from hf_evomerge.cli import app; app()"


def test_a_space_that_fails_says_that_the_model_is_there(plain, hub, push):
    """Where only the Space cannot be made, the error says that the model is published, and pushing
    again makes the Space."""
    hub.faults.add(Fault(r"POST /api/spaces/local/merge/commit/", "status", status=403))
    said = r"the model is published, http.*/local/merge at [0-9a-f]{12}, but not its Space: "
    with refused(HubError, said):
        push(plain, space=True)
    again = push(plain, space=True)
    assert not again.model.changed
    assert again.space is not None


def test_a_repository_whose_creation_was_not_answered_may_be_there(plain, hub, lfs_api, push):
    """Where the answer is cut off the line says no more than that, and pushing again finds the
    repository."""
    hub.faults.add(Fault("POST /api/repos/create", "hang_up", carried_out=True))
    with refused(HubError, r"local/merge: no answer says that it was created: "):
        push(plain)
    assert lfs_api.repo_exists("local/merge")
    push(plain)


def _uploads(hub):
    return sum(seen.method == "PUT" for seen in hub.requests)


NO_ANSWER = r"local/merge: no answer says that the commit was made; push again to go on: "


@pytest.mark.parametrize("made", [False, True])
def test_a_commit_without_an_answer(made, plain, hub, lfs_api, push):
    """One line says that it may have been made; pushing again uploads nothing twice, and there is
    one commit in the end."""
    hub.faults.add(Fault(COMMIT, "status", status=504, carried_out=made))
    with refused(HubError, NO_ANSWER) as caught:
        push(plain)
    assert "\n" not in str(caught.value)
    assert hub.token not in str(caught.value)
    assert len(commit_titles(lfs_api)) == 1 + made
    uploads = _uploads(hub)
    assert push(plain).model.changed is not made
    assert _uploads(hub) == uploads
    assert len(commit_titles(lfs_api)) == 2


def test_an_upload_that_is_refused(plain, hub, lfs_api, push):
    """Where the Hub takes no large file nothing is committed."""
    hub.faults.add(Fault(LFS_PUT, "status", status=403, times=None))
    with refused(HubError, NO_ANSWER + ".*log in as somebody who may"):
        push(plain)
    assert len(commit_titles(lfs_api)) == 1


def test_somebody_elses_commit_is_not_overwritten(plain, lfs_api, monkeypatch, push):
    """A commit by somebody else between the check and ours stops the push; pushing again goes on
    top of it."""
    usual = lfs_api.create_commit
    calls = []

    def interrupted(*arguments, **keywords):
        if not calls:
            calls.append(1)
            usual("local/merge", [CommitOperationAdd("theirs.txt", b"x")], commit_message="theirs")
        return usual(*arguments, **keywords)

    monkeypatch.setattr(lfs_api, "create_commit", interrupted)
    with refused(HubError, NO_ANSWER):
        push(plain)
    push(plain, replace=True)
    assert {"theirs.txt", "model.safetensors"} <= set(lfs_api.list_repo_files("local/merge"))


def test_a_push_survives_kill_9(plain, hub, lfs_api, tmp_path, push):
    """Killed between its uploads and its commit, a push has published nothing; run again, it
    finishes."""
    fault = hub.faults.add(Fault(COMMIT, "delay", seconds=20))
    environment = {**os.environ, **hub.environment(home=tmp_path / "client")}
    command = [sys.executable, "-c", PUSH, "push", str(plain), "local/merge"]
    process = subprocess.Popen(command, env=environment)
    while fault.hits == 0 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert fault.hits == 1
    assert "model.safetensors" not in lfs_api.list_repo_files("local/merge")
    uploads = _uploads(hub)
    push(plain)
    assert "model.safetensors" in lfs_api.list_repo_files("local/merge")
    assert _uploads(hub) == uploads
