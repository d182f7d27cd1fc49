"""Ctrl-C, SIGTERM and SIGHUP: a command ends within seconds, says how to go on, and leaves no
process behind."""

import os
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import invoke
from recipes import merge_of
from searches import count_trials
from slowly import slow_beyond
from warm import COMMAND, Program
from watch import are_gone, descendants, runs

Start = Callable[..., Program]
SIGNALS = {"INT": (signal.SIGINT, 130), "TERM": (signal.SIGTERM, 143), "HUP": (signal.SIGHUP, 129)}
SLOW_MERGE = """
import time
from hf_evomerge.building.merged import Merged
usual = Merged.stream
def slow(self, name):
    open("reading", "w").close()
    time.sleep(3600)
    yield from usual(self, name)
Merged.stream = slow
"""
SLOW_PUSH = """
import time
from hf_evomerge.hub import push
def slow(*arguments, **more):
    open("reading", "w").close()
    try:
        time.sleep(3600)
    finally:
        time.sleep(3600)
push.push_model = slow
"""
APP = """
import os, pathlib, time
pathlib.Path(os.environ["PID"] + ".new").write_text(str(os.getpid()))
os.rename(os.environ["PID"] + ".new", os.environ["PID"])
time.sleep(3600)
"""
LOCAL_APP = """
import pathlib
from hf_evomerge.hub import space
space.bundled = lambda name: pathlib.Path("app")
"""


@pytest.fixture
def program(tmp_path):
    """Starts the command line in a process of its own, in the test's folder, after some other
    code."""
    started = []

    def start(*arguments, before=""):
        environment = {**os.environ, "PID": str(tmp_path / "pid")}
        started.append(Program(f"{before}\n{COMMAND}", *arguments, cwd=tmp_path, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def _wait_for(what, process):
    begin = time.monotonic()
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - begin < 300
        time.sleep(0.05)


def _ends(process, number):
    """Status and last line of a program after a signal, which must come within seconds."""
    begin = time.monotonic()
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1]
    assert time.monotonic() - begin < 20
    assert "Traceback" not in stderr
    return process.returncode, stderr.splitlines()[-1] if stderr else ""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("name", slow_beyond(["INT"], SIGNALS))
def test_a_search_says_how_to_go_on(search_config, tmp_path, program, name):
    """A search in workers ends within seconds with its status, leaves none of them, and the command
    that it prints goes on."""
    number, status = SIGNALS[name]
    optimizer = {"evaluations": 400, "population": 4}
    search_config(merge={"groups": "model"}, optimize=[optimizer]).save(tmp_path / "my search.yaml")
    process = program("search", "my search.yaml", "--out", "out", "--workers", "1", "--no-model")
    _wait_for(lambda: count_trials(tmp_path / "out") >= 3, process)
    workers = descendants(process.pid)
    assert workers
    ended, line = _ends(process, number)
    assert ended == status
    command = "hf-evomerge search 'my search.yaml' --out out --workers 1 --no-model"
    assert line == f"interrupted; go on with `{command}`"
    assert are_gone(*workers)
    if name != "INT":
        return  # the line is the same, and going on by it is tried once
    before = count_trials(tmp_path / "out")
    again = program(*shlex.split(command)[1:])
    _wait_for(lambda: count_trials(tmp_path / "out") > before, again)


@pytest.mark.parametrize("name", slow_beyond(["INT"], SIGNALS))
def test_a_build_says_how_to_go_on(tiny, tmp_path, program, monkeypatch, name):
    """A build whose threads are at work ends within seconds, puts no model in place, and the same
    command builds it."""
    number, status = SIGNALS[name]
    merge_of(tiny / "a", tiny / "b").save(tmp_path / "recipe.yaml")
    process = program("merge", "recipe.yaml", "--out", "merged", before=SLOW_MERGE)
    _wait_for((tmp_path / "reading").exists, process)
    assert _ends(process, number) == (
        status,
        "interrupted; go on with `hf-evomerge merge recipe.yaml --out merged`",
    )
    assert not (tmp_path / "merged").exists()
    monkeypatch.chdir(tmp_path)
    assert invoke("merge", "recipe.yaml", "--out", "merged").exit_code == 0
    assert (tmp_path / "merged" / "model.safetensors").exists()


@pytest.mark.parametrize("twice", [False, True])
def test_what_does_not_stop_is_ended(tmp_path, program, twice):
    """A push that does not end by itself is ended after a few seconds with its line, and by a
    second Ctrl-C at once."""
    process = program("push", "folder", "me/model", before=SLOW_PUSH)
    _wait_for((tmp_path / "reading").exists, process)
    if not twice:
        assert _ends(process, signal.SIGINT) == (
            130,
            "interrupted; go on with `hf-evomerge push folder me/model`",
        )
        return
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == -signal.SIGINT
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("name", slow_beyond(["INT"], SIGNALS))
def test_a_local_space_does_not_live_on(tmp_path, program, name):
    """The app that `space --local` runs ends with the command, whichever signal ends it."""
    number, status = SIGNALS[name]
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "app.py").write_text(APP)
    process = program("space", "--local", "me/model", before=LOCAL_APP)
    _wait_for((tmp_path / "pid").exists, process)
    pid = int((tmp_path / "pid").read_text())
    assert runs(pid)
    assert _ends(process, number)[0] == status
    assert are_gone(pid)
