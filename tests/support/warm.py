"""Processes that begin with torch and transformers imported: forks of a server that has done
nothing else.

A cold interpreter takes seconds for these imports. The package is imported by the process itself.
"""

import gc
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import weakref
from contextlib import contextmanager
from multiprocessing.context import ForkProcess, ForkServerContext, ForkServerProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from tempfile import mkdtemp
from types import ModuleType

import pytest

IMPORTED = (
    "numpy",
    "cma",
    "safetensors.torch",
    "torch",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers",
    "pydantic.types",
    "rich.progress",
    "typer.main",
)

COMMAND = "from hf_evomerge.cli import run; run()"  # what `hf-evomerge` does


class WarmProcess(ForkServerProcess):
    """A process in the environment that this one has when it is made."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self._environment = dict(os.environ)

    def run(self):
        os.environ.clear()
        os.environ.update(self._environment)
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # also where a shell started the tests in the background
        # a search collects garbage often: half a second each time, among what the server imported
        gc.freeze()
        read_environment()
        super().run()


def read_environment():
    """Read what huggingface_hub and transformers read when they are imported, which the server
    did."""
    from huggingface_hub import constants, hf_api

    importlib.reload(constants)
    hf_api.api.endpoint = constants.ENDPOINT
    modules = os.environ.get("HF_MODULES_CACHE", f"{constants.HF_HOME}/modules")
    sys.path[:] = [
        place for place in sys.path if not Path(place, "transformers_modules").exists()
    ]  # of the process before
    for name in ("transformers.utils.hub", "transformers.dynamic_module_utils"):
        importlib.import_module(name).HF_MODULES_CACHE = modules  # type: ignore[attr-defined]


class _Context(ForkServerContext):
    Process = WarmProcess


@contextmanager
def warm_workers(method=None):
    """Start what would be a cold interpreter by this method, or as a `WarmProcess`."""
    usual = multiprocessing.get_context
    context = _Context()
    context.set_forkserver_preload(list(IMPORTED))

    def get_context(asked=None):
        return usual(asked) if asked != "spawn" else usual(method) if method else context

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", get_context)
        yield


class Program:
    """Python code that runs in a warm process as a program of its own, with the methods of
    `subprocess.Popen`.

    Its workers are forks of it; the files `said` and `errors` have what it wrote so far.
    """

    def __init__(self, code, *arguments, cwd=None, env=None):
        folder = mkdtemp(prefix="warm-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.said, self.errors = (Path(folder, name) for name in ("said", "errors"))
        self.said.touch()
        self.errors.touch()
        given = (code, list(map(str, arguments)), cwd or Path.cwd(), self.said, self.errors)
        self._process = _Context().Process(target=_work, args=given)
        if env is not None:
            self._process._environment = env
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        return self.returncode

    @property
    def returncode(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutExpired("program", timeout or 0)
        return self.returncode

    def communicate(self, timeout=None):
        self.wait(timeout)
        return self.said.read_text(encoding="utf-8"), self.errors.read_text(encoding="utf-8")

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def run(code, *arguments, timeout=300, **more):
    """Run Python code as a program of its own, and give its status and what it wrote."""
    program = Program(code, *arguments, **more)
    try:
        out, err = program.communicate(timeout)
    finally:
        program.kill()
    return CompletedProcess(["python", "-c", code], program.wait(), out, err)


def _work(code, arguments, cwd, *said):
    os.chdir(cwd)
    for number, file in enumerate(said, 1):
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = ["-c", *arguments]
    main = sys.modules["__main__"] = ModuleType("__main__")
    with warm_workers("fork"), pytest.MonkeyPatch.context() as patch:
        usual = ForkProcess.start
        patch.setattr(
            ForkProcess,
            "start",
            lambda process: (ForkingPickler.dumps(process._args[1:]), usual(process))[1],
        )
        exec(compile(code, "<program>", "exec"), main.__dict__)
