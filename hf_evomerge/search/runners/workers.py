"""Worker process with an evaluator of its own: started when it is needed, watched, and ended
whatever it is at."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from threading import Thread

from ...errors import MachineError, SearchError, is_of_machine, one_line
from ...fitness import Scores
from ..evaluation.evaluator import Evaluator
from ..file.config import SearchConfig
from .job import Job
from .limits import Limit

MakeEvaluator = Callable[[SearchConfig], Evaluator]
"""Factory of an evaluator in another process."""
TICK = 0.25  # seconds between two looks at a worker
_PATIENCE = 5.0  # seconds in which a worker that has nothing to do ends by itself
_READY = "ready"


class MachineLostError(Exception):
    """A worker's machine is gone: taken back, switched off or cut off. That says nothing of its
    job."""


# Messages through the pipe. To the worker: jobs. From it: "ready" once, a line (it cannot start),
# True and False (loading of models begins and ends), scores, or a `MachineError`. A closed pipe
# means that the process is dead; its exit code tells a signal (below 0) from an end of its own.
#
# The clock of a job runs here, between two looks, and stands while models load: the first job on a
# worker would otherwise seem slow. A gap of more than four ticks means that this process itself did
# not run (a suspended machine), so no more than that is counted.
class Worker:
    """Worker process, and the job that it is at.

    Args:
        config: The search.
        make: Makes its evaluator.

    Attributes:
        index: The number of its job among those of the round; None where it has nothing to do.
    """

    def __init__(self, config: SearchConfig, make: MakeEvaluator) -> None:
        self._start = (config, make)
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._ready = self._loading = False
        self._limit = Limit()
        self._seconds = 0.0
        self._seen = 0.0
        self.index: int | None = None

    @property
    def pipe(self) -> Connection:
        """Connection that becomes readable when there is something to `look` at."""
        assert self._pipe is not None  # it has a job
        return self._pipe

    def begin(self, index: int, job: Job, limit: Limit) -> None:
        """See `PoolWorker`."""
        if self._process is None or not self._process.is_alive():
            self.end()
            try:
                self._launch()
            except OSError as cause:
                raise MachineError(
                    f"a worker process cannot be started: {one_line(cause)}"
                ) from cause
        self.index = index
        self._limit = limit
        self._seconds = 0.0
        self._seen = time.monotonic()
        with suppress(OSError):  # it has died just now, which `look` will find
            self.pipe.send(job)

    def look(self) -> Scores | None:
        """See `PoolWorker`."""
        now = time.monotonic()
        if self._ready and not self._loading:
            # where it is longer, this process stood still as well
            self._seconds += min(now - self._seen, 4 * TICK)
        self._seen = now
        try:
            while self.pipe.poll():
                message = self.pipe.recv()
                if isinstance(message, Scores | MachineError):
                    self.index = None
                    if isinstance(message, MachineError):
                        raise message
                    return message
                if isinstance(message, bool):
                    self._loading = message
                elif message == _READY:
                    self._ready = True
                else:
                    raise SearchError(message)
        except (EOFError, OSError) as cause:
            assert self._process is not None  # it has a job
            self._process.join(_PATIENCE)
            ready = self._ready
            by_itself = (self._process.exitcode or 0) >= 0
            self.end()
            if not ready and not by_itself:
                raise MachineError(
                    "a worker process was killed while it started: out of memory, or by hand"
                ) from cause
            if not ready:
                raise SearchError(
                    "a worker process does not start, see what it wrote above; a script that "
                    "calls run_search does so under "
                    "`if __name__ == '__main__':`"
                ) from cause
            raise EOFError from cause
        line = self._limit.exceeded(self._seconds)
        if line is None:
            return None
        self.end()
        return Scores.failed(line, self._seconds)

    def end(self) -> None:
        """End the process: at once where it is at a job, and else as soon as it has noticed."""
        if self._process is None:
            return
        self.pipe.close()
        if self.index is None and self._ready:
            self._process.join(_PATIENCE)
        self._process.kill()
        self._process.join()
        self._process.close()
        self._process = self._pipe = self.index = None

    def _launch(self) -> None:
        context = multiprocessing.get_context(
            "spawn"
        )  # forking after torch has started its threads can hang
        self._pipe, theirs = context.Pipe()
        self._ready = self._loading = False
        process = context.Process(target=_work, args=(theirs, *self._start))
        resource_tracker.ensure_running()  # which lets interrupts through when it starts
        try:
            with _no_interrupts():
                process.start()
                self._process = process  # only now is there something to end
        except (AttributeError, TypeError, pickle.PicklingError) as cause:
            what = "the task or the examples cannot be sent to a worker process"
            raise SearchError(
                f"{what} ({one_line(cause, 100)}); define them in a module, or use workers=0"
            ) from cause
        finally:
            theirs.close()


# Ctrl-C goes to every process of the terminal's group. The child inherits the blocked signal and
# later ignores it, so that only the parent decides what an interrupt means.
@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait: a process that starts meanwhile never sees it, for its parent ends it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: Connection, config: SearchConfig, make: MakeEvaluator) -> None:
    """Run the process: jobs come in, scores go out; before them, whether it is ready and whether it
    loads a model."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        evaluator = make(config)
    except Exception as error:
        line = f"a worker process does not start: {one_line(error, 500)}"
        pipe.send(MachineError(line) if is_of_machine(error) else line)
        return
    evaluator.models.loading = pipe.send
    pipe.send(_READY)
    with suppress(EOFError, OSError):  # there are no more jobs, or nobody waits for the scores
        while True:
            job: Job = pipe.recv()
            try:
                pipe.send(evaluator.evaluate(**vars(job)))
            except MachineError as error:
                pipe.send(error)


def _end_with(parent: BaseProcess) -> None:
    """Wait for the parent to end, however it does; a worker of a killed search must not live on."""
    parent.join()
    os._exit(1)
