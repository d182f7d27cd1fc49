"""A push that is cut off: nothing is published by half, and pushing again finishes it."""

import os
import subprocess
import sys
import time

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


def test_a_hub_that_shuts_the_door_meanwhile_is_one_line(plain, hub, lfs_api, waits, push):
    """Where the commit's answer is lost and the repository cannot be read any more, that is
    said."""
    hub.faults.add(Fault(COMMIT, "status", status=504, carried_out=True))
    lfs_api.create_repo("local/merge")
    hub.faults.add(
        Fault(
            r"GET /api/models/local/merge/revision/main", "status", status=403, skip=1, times=None
        )
    )
    with refused(HubError, r"not known whether the commit was taken"):
        push(plain)


def test_a_repository_whose_creation_was_not_answered_may_be_there(
    plain, hub, lfs_api, waits, push
):
    """Where every answer is cut off the line says no more than that, and pushing again finds the
    repository."""
    hub.faults.add(Fault("POST /api/repos/create", "hang_up", times=None, carried_out=True))
    with refused(HubError, r"local/merge: no answer says that it was created: .*attempts"):
        push(plain)
    hub.faults.clear()
    assert lfs_api.repo_exists("local/merge")
    push(plain)


def _uploads(hub):
    return sum(seen.method == "PUT" for seen in hub.requests)


def test_a_push_that_fails_says_what_is_there_and_can_be_finished(plain, hub, lfs_api, waits, push):
    """After the last attempt one line says that nothing is committed; pushing again uploads nothing
    twice and finishes."""
    hub.faults.add(Fault(COMMIT, "status", status=500, times=None))
    message = r"all files are uploaded, but nothing is committed and the branch is still at"
    with refused(HubError, message) as caught:
        push(plain)
    assert "\n" not in str(caught.value)
    assert hub.token not in str(caught.value)
    assert waits == [1.0, 2.0, 4.0, 8.0, *[16.0] * 6]
    assert len(commit_titles(lfs_api)) == 1
    hub.faults.clear()
    uploads = _uploads(hub)
    push(plain)
    assert _uploads(hub) == uploads
    assert len(commit_titles(lfs_api)) == 2


def test_an_upload_that_is_refused_says_what_is_missing(plain, hub, lfs_api, push):
    """Where the Hub takes no large file, the error names the file, and says that nothing is
    committed."""
    hub.faults.add(Fault(LFS_PUT, "status", status=403, times=None))
    with refused(
        HubError, r"model.safetensors cannot be uploaded \(nothing is committed, .* of \d+ files"
    ) as caught:
        push(plain)
    assert "push again to go on" in str(caught.value)
    assert len(commit_titles(lfs_api)) == 1


def test_somebody_elses_commit_is_not_overwritten(plain, lfs_api, monkeypatch, waits, push):
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
    with refused(HubError, r"somebody else has committed"):
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
