"""Batches that fit into memory: halved at the first evaluation of each kind until it does, and the
same from then on.

The size may change a score's last bits, so the study notes it, and whoever goes on with the study
has the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...errors import MachineError
from ...fitness import Scores
from ...recipes.recipe import Recipe
from ..file.config import SearchConfig
from ..study.study import Study
from .job import Job
from .runner import Runner

logger = logging.getLogger(__name__)

ROWS = (
    "rows"  # the study's note of how many examples are evaluated together at most, by kind of job
)
_SIGNS = (
    "OutOfMemoryError",
    "CUDA out of memory",
    "MPS backend out of memory",
    "can't allocate memory",
)


# Memory depends on the kind of job (parent, merge, path; with a gradient or without, with shots or
# without) and, for paths and shots, on their length. The first job of each kind is run alone with
# the largest batch, which is halved until it fits; the longest stands for the others. Then the size
# is a constant of the study. Kept invariant: scores of one kind are computed in batches of one
# size, also after a resume, since the size changes last bits. It is noted before the scores are
# handed on: a kill between the two leaves a size without scores, never scores of an unknown size.
class FittedRunner:
    """A runner whose first job of each kind on the search examples, or with shots, is run alone, in
    batches that it has the memory for.

    Args:
        runner: What evaluates.
        study: Where the sizes are noted.
        rows: The size to begin with: the largest of the tasks.
    """

    def __init__(self, runner: Runner, study: Study, rows: int) -> None:
        self._runner = runner
        self._study = study
        self._most = rows

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Scores]]:
        """Evaluate jobs; see `Runner`."""
        known: dict[str, int] = self._study.meta(ROWS) or {}
        done = set[int]()
        for kind in dict.fromkeys(_kind(job) for job in jobs if _is_fitted(job)):
            if kind in known:
                continue
            own = [
                index for index, job in enumerate(jobs) if _is_fitted(job) and _kind(job) == kind
            ]
            for index in sorted(
                own, key=lambda index: -_length(jobs[index])
            ):  # the longest path, or prompt, first
                rows, scores = self._fit(jobs[index])
                done.add(index)
                if _is_too_large(scores):  # at any size, which says nothing of the others
                    yield index, scores
                    continue
                known = {**known, kind: rows}
                self._study.set_meta(ROWS, known)  # first: scores that are kept are of this size
                yield index, scores
                break
        least = min(known.values(), default=self._most)
        left = [index for index in range(len(jobs)) if index not in done]
        sized = [replace(jobs[index], rows=known.get(_kind(jobs[index]), least)) for index in left]
        for number, scores in self._runner.run(sized):
            yield left[number], scores

    def close(self) -> None:
        """See `Runner`."""
        self._runner.close()

    def _fit(self, job: Job) -> tuple[int, Scores]:
        """The scores of a job and the size of batches that it has the memory for."""
        rows = self._most
        while True:
            try:
                ((_, scores),) = self._runner.run([replace(job, rows=rows)])
            except MachineError as error:
                if rows == 1 or not _is_memory(str(error)):
                    raise
            else:
                if rows == 1 or not _is_too_large(scores):
                    return rows, scores
            rows //= 2
            logger.warning(
                "out of memory: %d examples are evaluated together from here on (%s)",
                rows,
                _kind(job),
            )


def largest_batch(config: SearchConfig) -> int | None:
    """The largest batch of a search's tasks; None where none of them has one."""
    return max(
        (task.batch_size for task in config.task_specs if hasattr(task, "batch_size")), default=None
    )


def _kind(job: Job) -> str:
    """Name what a job's memory depends on, beside its batches; that of other splits is that of the
    search examples."""
    what = "model"
    if isinstance(job.target, Recipe):
        what = "path" if job.target.flow is not None else "merge"
    if job.shots:
        what = f"{what}, shots"
    return what if job.slopes is None else f"{what}, gradient"


def _is_fitted(job: Job) -> bool:
    return job.split == "search" or job.shots > 0


def _length(job: Job) -> int:
    flow = job.target.flow if isinstance(job.target, Recipe) else None
    return job.shots + (0 if flow is None else len(flow.to_path().hops))


def _is_too_large(scores: Scores) -> bool:
    return scores.error is not None and _is_memory(scores.error)


def _is_memory(line: str) -> bool:
    return any(sign in line for sign in _SIGNS)
