"""Runs evaluations: here, or in worker processes side by side. The search does not know which, and
neither do the scores."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Generic, Protocol, TypeVar

from ...errors import MachineError, SearchError
from ...fitness import Scores
from ..evaluation.devices import devices_of, on_device
from ..evaluation.evaluator import Evaluator
from ..file.config import SearchConfig
from .job import Job
from .limits import Limit, Limits
from .workers import TICK, MachineLostError, MakeEvaluator, Worker

logger = logging.getLogger(__name__)

PAUSE = 10.0  # seconds after which a job is tried again where the machine failed
MOVES = 3  # machines that may be lost under a job
DIED = (
    "its process died twice, see what it wrote above; out of memory? go on with fewer --workers "
    "or a smaller batch_size"
)


class Runner(Protocol):
    """Runner that evaluates jobs."""

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Scores]]:
        """Evaluate jobs; yields the index and the scores of each as it finishes, in any order.

        Raises:
            MachineError: The machine has failed at a job, twice.
            SearchError: A job has killed its process, twice.
        """

    def close(self) -> None:
        """Free what the runner holds."""


class LocalRunner:
    """Evaluates in this process, one job after the other. A job that kills the process ends the
    search with it.

    Args:
        evaluator: What scores.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Scores]]:
        """Evaluate jobs in order."""
        for index, job in enumerate(jobs):
            yield index, self._evaluate(job)

    def close(self) -> None:
        """Nothing to free."""

    def _evaluate(self, job: Job) -> Scores:
        try:
            return self.evaluator.evaluate(**vars(job))
        except MachineError as error:
            _pause(error)
        return self.evaluator.evaluate(**vars(job))


def _pause(error: MachineError) -> None:
    """Wait until another program may have given back what the machine has not."""
    logger.warning(f"{error}; tried again in {PAUSE:g} s, alone")
    time.sleep(PAUSE)


class PoolWorker(Protocol):
    """A process, here or elsewhere, that evaluates a job at a time.

    Attributes:
        index: The number of its job among those of the round; None where it has nothing to do.
    """

    index: int | None

    def begin(self, index: int, job: Job, limit: Limit) -> None:
        """Give the worker a job; raises `MachineError` or `SearchError` where it cannot be
        started."""

    def look(self) -> Scores | None:
        """The scores of the job where it is finished or was given up; None where it is not.

        Raises:
            EOFError: The process has died.
            MachineError: The machine has failed, not the job, or the process was killed while it
                started.
            MachineLostError: The machine that it was on is gone.
            SearchError: It does not start.
        """

    def end(self) -> None:
        """End the process, whatever it is at."""


AnyWorker = TypeVar("AnyWorker", bound=PoolWorker)


# Scheduling. Largest first (Graham 1969, longest processing time): with jobs of different size on
# equal workers the end comes at most a third later than the best schedule's. Scores carry their
# index, so the order in which they arrive changes nothing of the search.
#
# Faults are told apart by whom they blame:
#   scores with an error           the candidate; the search goes on
#   the process died (EOFError)    the job perhaps, or memory that others took: once more, alone
#   the machine failed             once more, alone, after a pause; twice ends the search
#   the machine is gone            nobody; again beside the others, `MOVES` times at most
class PoolRunner(Generic[AnyWorker]):
    """Gives every free worker a job, the largest first, until all are done; the same for processes
    here and on other machines.

    A worker that dies (killed for memory, a crash in native code) takes only its own job with it,
    which is run again, alone; if it kills its worker again the search ends. A job at which the
    machine failed is run again, alone, after a pause; if that fails too, the search ends. One whose
    machine is gone is run again beside the others, so often as `MOVES` says. A job that exceeds a
    limit is ended, and has failed.

    Args:
        limits: What a job may take; everything by default.

    Attributes:
        workers: Those that there are.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits
        self.workers: list[AnyWorker] = []

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Scores]]:
        """Evaluate jobs side by side."""
        aside = list[int]()
        failure = None
        for index, scores in self._round(enumerate(jobs)):
            if isinstance(scores, Scores):
                yield index, scores
            else:
                aside.append(index)
                failure = scores or failure
        if failure is not None:
            for worker in self.workers:
                worker.end()
            _pause(failure)
        for index in aside:  # what the others took of the memory is free now
            ((_, scores),) = self._round([(index, jobs[index])])
            if isinstance(scores, MachineError):
                raise scores
            if scores is None:
                raise SearchError(f"{jobs[index]}: {DIED}")
            yield index, scores

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            worker.end()

    def free(self) -> Iterable[AnyWorker]:
        """Workers that take a job now, looked for again after each."""
        return (worker for worker in self.workers if worker.index is None)

    def wait(self, busy: Sequence[AnyWorker]) -> Iterable[AnyWorker]:
        """Wait until there is something to look at, or for a moment; at which workers."""
        raise NotImplementedError

    def _round(
        self, jobs: Iterable[tuple[int, Job]]
    ) -> Iterator[tuple[int, Scores | MachineError | None]]:
        """Evaluate numbered jobs side by side; in place of the scores how the machine failed, None
        where a worker died."""
        limits = self.limits
        queue = deque(
            jobs if limits is None else sorted(jobs, key=lambda numbered: -limits.size(numbered[1]))
        )
        running = dict[int, Job]()
        moves = Counter[int]()
        try:
            while True:
                for worker in self.free() if queue else ():
                    index, job = queue.popleft()
                    running[index] = job
                    try:
                        worker.begin(index, job, Limit() if limits is None else limits.of(job))
                    except MachineError as error:
                        yield index, error
                    if not queue:
                        break
                busy = [worker for worker in self.workers if worker.index is not None]
                if not busy and not queue:
                    return
                for worker in self.wait(busy):
                    number = worker.index
                    assert number is not None  # it is busy
                    try:
                        scores = worker.look()
                    except MachineError as error:
                        yield number, error
                    except (EOFError, MachineLostError) as error:
                        moves[number] += 1
                        if isinstance(error, EOFError) or moves[number] > MOVES:
                            yield number, None
                        else:
                            queue.appendleft((number, running[number]))
                    else:
                        if scores is not None:
                            yield number, scores
        finally:  # who asked may have lost interest
            for worker in self.workers:
                if worker.index is not None:
                    worker.end()


class ProcessRunner(PoolRunner[Worker]):
    """Evaluates in worker processes, each with an `Evaluator` of its own.

    Args:
        config: The search.
        workers: How many processes; they take the search's devices in turn.
        limits: What a job may take; everything by default.
        make: Makes the evaluator of each.

    Raises:
        SearchError: This is a worker itself, importing the user's script.
    """

    def __init__(
        self,
        config: SearchConfig,
        workers: int,
        *,
        limits: Limits | None = None,
        make: MakeEvaluator = Evaluator,
    ) -> None:
        refuse_in_worker()
        super().__init__(limits)
        devices = devices_of(config)
        self.workers = [
            Worker(on_device(config, devices[number % len(devices)]), make)
            for number in range(workers)
        ]

    def wait(self, busy: Sequence[Worker]) -> Sequence[Worker]:
        """See `PoolRunner`."""
        wait([worker.pipe for worker in busy], TICK)
        return busy


def refuse_in_worker() -> None:
    """Raise `SearchError` where this process is a worker, importing the user's script: it would
    start a search of its own."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SearchError(
            "workers run the script that starts them: call run_search under `if __name__ == "
            "'__main__':`"
        )
