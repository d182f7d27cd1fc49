"""Runs evaluations: here, or in worker processes side by side. The search does not know which, and neither do the scores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from ..errors import SearchError
from ..fitness import Scores, TaskSpec
from .config import SearchConfig
from .evaluator import Batch, Evaluator, Target
from .slopes import Slopes


@dataclass(frozen=True)
class Job:
    """One evaluation to run: a target, a split, the examples of it (all where None), of what a gradient is wanted, and the
    fitness where it is not the search's."""

    target: Target
    split: str = "search"
    batch: Batch | None = None
    slopes: Slopes | None = None
    fitness: TaskSpec | None = None


class Runner(Protocol):
    """Something that evaluates jobs."""

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Scores]]:
        """Evaluate jobs; yields the index and the scores of each as it finishes, in any order."""

    def close(self) -> None:
        """Free what the runner holds."""


class LocalRunner:
    """Evaluates in this process, one job after the other."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Scores]]:
        """Evaluate jobs in order."""
        for index, job in enumerate(jobs):
            yield index, self.evaluator.evaluate(job.target, job.split, job.batch, job.slopes, job.fitness)

    def close(self) -> None:
        """Nothing to free."""


class ProcessRunner:
    """Evaluates in worker processes, each with an `Evaluator` of its own.

    A worker that dies (killed for memory, a crash in native code) takes only its own job with it: the other jobs of the round
    are run again, one at a time, and the one that kills its worker again is a failed evaluation.
    """

    def __init__(self, config: SearchConfig, workers: int, **evaluator_arguments: Any) -> None:
        if getattr(multiprocessing.current_process(), "_inheriting", False):  # this is a worker, importing the user's script
            raise SearchError("workers run the script that starts them: call run_search under `if __name__ == '__main__':`")
        self._start = (config, evaluator_arguments)
        self._workers = workers
        self._pool = self._new_pool(workers)

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Scores]]:
        """Evaluate jobs side by side."""
        waiting: dict[Future[Scores], int] = {}
        unfinished = set(range(len(jobs)))
        try:
            for index, job in enumerate(jobs):
                waiting[self._pool.submit(_evaluate, job)] = index
            for future in as_completed(waiting):
                yield waiting[future], future.result()
                unfinished.discard(waiting[future])
        except BrokenProcessPool:
            self._restart()
            for index in sorted(unfinished):
                yield index, self._run_alone(jobs[index])

    def close(self) -> None:
        """End the workers."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run_alone(self, job: Job) -> Scores:
        try:
            return self._pool.submit(_evaluate, job).result()
        except BrokenProcessPool:
            self._restart()
            return Scores.failed("the worker process died: out of memory, or see what it wrote above")

    def _restart(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._new_pool(self._workers)

    def _new_pool(self, workers: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # forking after torch has started its threads can hang
        return ProcessPoolExecutor(workers, context, _start_worker, self._start)


_evaluator: Evaluator | None = None


def _start_worker(config: SearchConfig, arguments: dict[str, Any]) -> None:
    """Make the worker's evaluator, and end the worker when its parent is gone."""
    global _evaluator
    import signal
    from threading import Thread

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches the workers too; the parent ends them
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=_end_with, args=(parent,), daemon=True).start()
    _evaluator = Evaluator(config, **arguments)


def _end_with(parent: BaseProcess) -> None:
    """Wait for the parent to end, however it does; a worker of a killed search must not live on."""
    parent.join()
    os._exit(1)


def _evaluate(job: Job) -> Scores:
    assert _evaluator is not None  # set by the pool's initializer
    return _evaluator.evaluate(job.target, job.split, job.batch, job.slopes, job.fitness)
