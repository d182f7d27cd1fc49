"""The hub on loopback as a program of its own."""

import os
import shlex
import signal
import subprocess
import sys


def test_the_program(tmp_path):
    """It prints lines for a shell, says where its limits are listed, stops on Ctrl-C, and keeps
    everything."""
    command = [sys.executable, "-m", "local_hub", "--root", "kept", "--port", "0", "--user", "me"]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    piped["preexec_fn"] = lambda: signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # a background job would ignore it
    with subprocess.Popen(command, cwd=tmp_path, **piped) as process:
        printed = []
        while not printed or "local_hub/__init__.py" not in printed[-1]:
            printed.append(process.stdout.readline())
            assert printed[-1] or process.poll() is None
        exports = dict(
            shlex.split(line)[1].split("=", 1) for line in printed if line.startswith("export ")
        )
        code = "from huggingface_hub import HfApi; print(HfApi().create_repo('mine'))"
        given = {**os.environ, **exports}
        done = subprocess.check_output([sys.executable, "-c", code], env=given, text=True)
        assert done.strip() == f"{exports['HF_ENDPOINT']}/me/mine"
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, "")
    assert rest == "stopped; the repositories are kept in kept\n"
    assert (tmp_path / "kept/repositories/models/me/mine/repository.json").exists()
