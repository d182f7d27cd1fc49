"""Whole programs against the hub on loopback: the `hf` command, our own command."""

import ast
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import local_hub as local
import pytest

PACKAGE = Path(local.__file__).parent


@pytest.mark.slow
def test_the_hf_command(hub, tmp_path):
    """The `hf` command logs in, creates, uploads, branches, tags, downloads and deletes."""
    environment = {**os.environ, **hub.environment()}
    del environment["HF_TOKEN"]

    def hf(*arguments):
        command = [str(Path(sys.executable).with_name("hf")), *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "w.safetensors").write_bytes(bytes(90_000))
    hf("auth", "login", "--token", hub.token)
    assert "local" in hf("auth", "whoami")
    hf("repos", "create", "acme/cli", "--private")
    hf("upload", "acme/cli", "in", ".")
    hf("repos", "tag", "create", "acme/cli", "v1")
    hf("repos", "branch", "create", "acme/cli", "next")
    hf("repos", "delete-files", "acme/cli", "w.safetensors", "--revision", "next")
    hf("download", "acme/cli", "--revision", "v1", "--local-dir", "out")
    assert (tmp_path / "out" / "w.safetensors").read_bytes() == bytes(90_000)
    hf("download", "acme/cli", "--revision", "next", "--local-dir", "next")
    assert not (tmp_path / "next" / "w.safetensors").exists()
    hf("repos", "delete", "acme/cli", "--yes")
    assert not list(hub.root.glob("repositories/models/acme/*"))


def test_our_own_command(tmp_path):
    """The program prints lines for a shell, says where its limits are listed, stops on Ctrl-C, and
    keeps everything."""
    command = [sys.executable, "-m", "local_hub", "--root", "kept", "--port", "0", "--user", "me"]
    begin = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    begin["preexec_fn"] = lambda: signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # a background job would ignore it
    with subprocess.Popen(command, **begin) as process:  # type: ignore[call-overload]
        printed = []
        while not printed or "local_hub/__init__.py" not in printed[-1]:
            printed.append(process.stdout.readline())
            assert printed[-1] or process.poll() is None
        exports = dict(
            shlex.split(line)[1].split("=", 1) for line in printed if line.startswith("export ")
        )
        code = (
            "from huggingface_hub import HfApi; print(HfApi().whoami()['name'], "
            "HfApi().create_repo('mine'))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **exports},
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == ["me", f"{exports['HF_ENDPOINT']}/me/mine"], done.stderr
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (0, "")
    assert rest == "stopped; the repositories are kept in kept\n"
    assert (
        tmp_path / "kept" / "repositories" / "models" / "me" / "mine" / "repository.json"
    ).exists()


def test_the_server_stands_alone():
    """The hub imports the standard library, PyYAML and a file lock, itself, and the errors of
    `hf_evomerge`."""
    allowed = {*sys.stdlib_module_names, "yaml", "filelock"}
    for file in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, file.name
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").split(".")[
                    0
                ] in allowed or node.module == "hf_evomerge.errors", file.name
