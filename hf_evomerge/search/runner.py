"""Runs evaluations: here, or in worker processes side by side. The search does not know which, and neither do the scores."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.connection import wait
from typing import Any, Protocol

from ..errors import SearchError
from ..fitness import Scores, TaskSpec
from ..recipes.recipe import Recipe
from .config import SearchConfig
from .evaluator import Batch, Evaluator, Target
from .limits import Limit, Limits
from .slopes import Slopes
from .study import Study
from .workers import TICK, Worker

WORTH = 3.0  # seconds of work after which a patient runner starts another process
DIED = "its process died: out of memory, or see what it wrote above"
BEGUN = "begun"  # the study's note of what this process is evaluating, and how often a process has died at it


@dataclass(frozen=True)
class Job:
    """One evaluation to run: a target, a split, the examples of it (all where None), of what a gradient is wanted, and the
    fitness where it is not the search's."""

    target: Target
    split: str = "search"
    batch: Batch | None = None
    slopes: Slopes | None = None
    fitness: TaskSpec | None = None

    @property
    def name(self) -> str:
        """A short name of what is evaluated on what; the same in every process."""
        target = self.target.key if isinstance(self.target, Recipe) else str(self.target)
        return sha256(f"{target} {self.split} {self.batch} {self.fitness}".encode()).hexdigest()[:16]


class Runner(Protocol):
    """Something that evaluates jobs."""

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Scores]]:
        """Evaluate jobs; yields the index and the scores of each as it finishes, in any order."""

    def close(self) -> None:
        """Free what the runner holds."""


class LocalRunner:
    """Evaluates in this process, one job after the other.

    A job at which this process has died before is evaluated in a worker process: if that dies too, it is a failed evaluation.

    Args:
        evaluator: What scores.
        study: Where it is noted which job this process is at; nowhere by default.
        isolated: Makes the runner with that worker process.
    """

    def __init__(
        self, evaluator: Evaluator, study: Study | None = None, isolated: Callable[[], ProcessRunner] | None = None
    ) -> None:
        self.evaluator, self._study, self._isolated = evaluator, study, isolated
        begun = study.meta(BEGUN) if study is not None else None
        self._deaths: dict[str, int] = begun if isinstance(begun, dict) else {}

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Scores]]:
        """Evaluate jobs in order."""
        for index, job in enumerate(jobs):
            yield index, self._evaluate(job) if self._study is None else self._noted(job, self._study)

    def close(self) -> None:
        """Nothing to free."""

    def _evaluate(self, job: Job) -> Scores:
        return self.evaluator.evaluate(job.target, job.split, job.batch, job.slopes, job.fitness)

    def _noted(self, job: Job, study: Study) -> Scores:
        """Evaluate a job of which the study says so until it is over."""
        deaths = self._deaths.pop(job.name, 0)
        if deaths and self._isolated is not None:
            with suppress(SearchError):  # the task cannot be sent to another process
                runner = self._isolated()
                try:
                    return runner.run_alone(job)
                finally:
                    runner.close()
        if deaths > 1:
            return Scores.failed(DIED)
        study.set_meta(BEGUN, {job.name: deaths + 1})
        try:
            return self._evaluate(job)
        finally:  # also where it was stopped, which is not its fault
            study.set_meta(BEGUN, {})


class ProcessRunner:
    """Evaluates in worker processes, each with an `Evaluator` of its own.

    A worker that dies (killed for memory, a crash in native code) takes only its own job with it, which is run again, alone; if
    it kills its worker again it is a failed evaluation. One that exceeds a limit is ended, and its job has failed.

    Args:
        config: The search.
        workers: How many processes.
        limits: What a job may take; everything by default.
        patient: Whether another process is started only once those that there are have been at work for some seconds: starting
            one takes about as long.
        **evaluator_arguments: The evaluators' other arguments.

    Raises:
        SearchError: This is a worker itself, importing the user's script.
    """

    def __init__(
        self,
        config: SearchConfig,
        workers: int,
        *,
        limits: Limits | None = None,
        patient: bool = False,
        **evaluator_arguments: Any,
    ) -> None:
        refuse_in_worker()
        self._limits, self._patient = limits, patient
        self._workers = [Worker(config, evaluator_arguments) for _ in range(workers)]

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Scores]]:
        """Evaluate jobs side by side."""
        died = []
        for index, scores in self._round(enumerate(jobs)):
            if scores is None:
                died.append(index)
            else:
                yield index, scores
        for index in died:  # what the others took of the memory is free now
            yield index, self.run_alone(jobs[index])

    def run_alone(self, job: Job) -> Scores:
        """Evaluate one job; it has failed where its worker dies."""
        ((_, scores),) = self._round([(0, job)])
        return Scores.failed(DIED) if scores is None else scores

    def _pays(self, worker: Worker) -> bool:
        """Whether there is so much to do that a worker is worth its start."""
        others = [other.worked for other in self._workers if other.is_running]
        return not self._patient or worker.is_running or not others or min(others) > WORTH

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.end()

    def _round(self, jobs: Iterable[tuple[int, Job]]) -> Iterator[tuple[int, Scores | None]]:
        """Evaluate numbered jobs side by side; None in place of the scores where a worker died."""
        queue = deque(jobs)
        try:
            while True:
                for worker in self._workers:
                    if queue and worker.index is None and self._pays(worker):
                        index, job = queue.popleft()
                        worker.begin(index, job, Limit() if self._limits is None else self._limits.of(job))
                busy = [(worker, worker.index) for worker in self._workers if worker.index is not None]
                if not busy:
                    return
                wait([worker.pipe for worker, _ in busy], TICK)
                for worker, number in busy:
                    try:
                        scores = worker.look()
                    except EOFError:
                        yield number, None
                    else:
                        if scores is not None:
                            yield number, scores
        finally:  # who asked may have lost interest
            for worker in self._workers:
                if worker.index is not None:
                    worker.end()


def refuse_in_worker() -> None:
    """Raise `SearchError` where this process is a worker, importing the user's script: it would start a search of its own."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SearchError("workers run the script that starts them: call run_search under `if __name__ == '__main__':`")
