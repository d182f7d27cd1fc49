"""Callbacks: what else happens while a search runs, and whether a stage ends before its budget
does.

The live table and the trackers of ``report_to`` are callbacks like anybody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .file.config import SearchConfig
from .study.study import Study, Trial

if TYPE_CHECKING:
    from .results.result import Result


@dataclass(frozen=True)
class Generation:
    """Whole generation of a stage.

    Attributes:
        stage: The stage.
        number: Number within the stage, from 0.
        trials: Its trials, in order.
        best: Best fitness of the stage so far, of the trials scored on all examples; None where
            there is none yet.
        mean: Mean fitness of its trials; None where all failed.
        sigma: The optimizer's step size, where it has one.
        evaluations: What the stage has spent so far, in scores of all search examples.
        replayed: Whether all its trials were in the study already.
    """

    stage: str
    number: int
    trials: Sequence[Trial]
    best: float | None
    mean: float | None
    sigma: float | None
    evaluations: float
    replayed: bool


@dataclass(frozen=True)
class Progress:
    """State of a search, after a trial or another evaluation.

    Attributes:
        phase: The stage, or ``parents``, ``finalists``, ``lora`` or ``test``.
        done, total: What this phase has spent, in scores of all examples, and its budget.
        generation: Number from 0.
        best, mean: Best fitness of the stage so far, of the trials scored on all examples; mean of
            the last whole generation.
        accuracy: Accuracy of the best trial, where the task can tell.
        sigma: The optimizer's step size.
        failed, duplicates: Trials that failed, and that shared another's scores.
        seconds: Wall time of this phase in this process.
        fresh: What was evaluated in this process, in scores of all examples; the rest was replayed.
        left: Seconds until the table of results is there, as all phases that are still to come take
            them at the pace so far; None where nothing has been seen yet.
        to_come: Titles of the phases after the current one.
        note: What it is at, in words.
    """

    phase: str
    done: float
    total: int
    generation: int = 0
    best: float | None = None
    mean: float | None = None
    accuracy: float | None = None
    sigma: float | None = None
    failed: int = 0
    duplicates: int = 0
    seconds: float = 0.0
    fresh: float = 0.0
    left: float | None = None
    to_come: tuple[str, ...] = ()
    note: str = ""


class SearchCallback:
    """Callback: your own code in a running search, a class with those of these methods that you
    need.

    Callbacks are called in the process of `run_search`, in their order; what one raises ends the
    search, which can be resumed. They may read the study, and must not write to it. A search that
    is resumed goes through its generations again.

    Example:
        >>> class Patient(SearchCallback):
        ...     def on_trial(self, study, trial):
        ...         print(trial.stage, trial.number, trial.fitness)
        ...     def should_stop(self, study, generation):
        ...         return generation.best is not None and generation.best > -0.1
        >>> config = SearchConfig.load("search.yaml")
        >>> result = run_search(config, "my-search", callbacks=[Patient()])
    """

    def on_begin(self, study: Study, config: SearchConfig) -> None:
        """Act when the search begins, or goes on."""

    def on_trial(self, study: Study, trial: Trial) -> None:
        """Act when a trial has been stored; not those of an earlier process."""

    def on_progress(self, study: Study, progress: Progress) -> None:
        """Act when a trial has been taken in, or replayed, or one of the parents or finalists has
        been scored."""

    def on_generation(self, study: Study, generation: Generation) -> None:
        """Act when all trials of a generation are stored; also of one that is replayed."""

    def should_stop(self, study: Study, generation: Generation) -> bool:
        """Tell whether the stage ends after this generation, the last that the study holds. The
        study keeps a yes."""
        return False

    def on_stage(self, study: Study, stage: str, trials: Sequence[Trial]) -> None:
        """Act when a stage has ended: its budget is spent, or one has stopped it."""

    def on_end(self, study: Study, result: Result) -> None:
        """Act when the winner is known and built, and its pictures are drawn."""
