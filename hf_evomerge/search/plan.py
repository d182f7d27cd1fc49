"""The dry run of a search: checks it, measures one score of each kind, and says what the search
would do, and how long."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..errors import SearchError
from .answer_form import doubts_of_form
from .checks import check_search, doubts_of_prompts
from .evaluation.devices import check_devices, device_memory, devices_of, on_device
from .evaluation.evaluator import Evaluator
from .evaluation.memory import default_workers, worker_memory
from .file.config import SearchConfig
from .phases import phases_of
from .phases.phase import PhasePlan, Planner

_FEW = 16  # examples, below which a score says little


@dataclass(frozen=True)
class Plan:
    """Plan of a search; all that has been evaluated is a source, and the start of each stage.

    Attributes:
        phases: Its parts, in the order that they run.
        examples: Examples, per split.
        notes: What the user should know of the spaces, one line each, such as numbers that are not
            evolved.
        warnings: What will probably disappoint, one line each.
        memory: Bytes that a worker takes; see `worker_memory`.
        workers: How many workers a search takes where nobody says it.
    """

    phases: tuple[PhasePlan, ...]
    examples: dict[str, int]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    memory: int = 0
    workers: int = 1

    def minutes(self, workers: int = 1) -> float:
        """Expected time of the whole."""
        return sum(phase.minutes(workers) for phase in self.phases)

    def __str__(self) -> str:
        return self.to_text()

    def to_json(self, workers: int | None = None) -> dict[str, Any]:
        """The plan as plain data, with the time that so many workers take."""
        workers = self.workers if workers is None else workers
        minutes = [phase.minutes(workers) for phase in self.phases]
        phases = [
            {"name": phase.name, "text": phase.text, "minutes": _number(each)}
            for phase, each in zip(self.phases, minutes, strict=True)
        ]
        lines = {"notes": self.notes, "warnings": self.warnings, "examples": self.examples}
        size = {"memory": self.memory, "workers": workers}
        return {"minutes": _number(math.fsum(minutes)), "phases": phases, **lines, **size}

    def to_text(self, workers: int | None = None) -> str:
        """The plan in lines for people, with the time that so many workers take; with None those of
        the search itself."""
        workers = self.workers if workers is None else workers
        lines = [f"in all, with workers={workers}: {_duration(self.minutes(workers))}"]
        lines += [
            f"{phase.name}: {phase.text}; {_duration(phase.minutes(workers))}"
            for phase in self.phases
        ]
        lines += [f"note: {note}" for note in self.notes] + [
            f"warning: {warning}" for warning in self.warnings
        ]
        lines.append(
            "examples: " + ", ".join(f"{count} {split}" for split, count in self.examples.items())
        )
        lines.append(
            f"memory of each worker: about {self.memory / 1e9:.1f} GB, and what passes through the "
            "models comes on top"
        )
        return "\n".join(lines)


def plan_search(config: SearchConfig, *, trust_remote_code: bool = False) -> Plan:
    """Check everything that can be checked without searching, and measure how long the parts of the
    search take.

    Args:
        config: The search.
        trust_remote_code: Whether Python files that come with the sources may be run.

    Raises:
        EvoMergeError: A source, the data or a setting is wrong.

    Example:
        >>> plan_search(SearchConfig.load("search.yaml")).examples
        {'search': 5, 'validation': 4, 'test': 6}
    """
    begin = time.perf_counter()
    warnings = list[str]()
    try:
        check_devices(config)
    except SearchError as error:  # then what the headers say is said, and nothing is evaluated
        warnings.append(f"{error}; no weights were looked at, and no time was measured")
        config = on_device(config, "cpu")
    evaluator = Evaluator(config, trust_remote_code=trust_remote_code, weights=not warnings)
    checked = check_search(config, evaluator)
    memory = worker_memory(config, evaluator)  # and what is free before models are loaded
    workers = default_workers(config, memory)
    crowded = _of_devices(config, memory, workers)
    planner = Planner(config, evaluator)
    if evaluator.sources.weights:
        seconds = time.perf_counter() - begin
        start = PhasePlan("start", "checks, and models are loaded", seconds, at_once=1)
        planner.phases.append(start)
    planner.plan(phases_of(config))
    doubts = list[str]()
    if evaluator.sources.weights:
        doubts = doubts_of_form(evaluator) + doubts_of_prompts(evaluator)
    warnings += [
        *checked.warnings,
        *_of_splits(planner.sizes, all(step.by == "gradient" for step in config.optimize)),
        *doubts,
        *planner.warnings,
        *crowded,
    ]
    return Plan(
        tuple(planner.phases), planner.sizes, tuple(checked.notes), tuple(warnings), memory, workers
    )


def _of_splits(examples: dict[str, int], by_gradient: bool) -> list[str]:
    """Splits that are missing, or too small to tell models apart; a search by gradient ends at one
    point, which needs no choosing."""
    lost = {"test": "the table is measured on what the winner was chosen on, and flatters it"}
    if not by_gradient:
        lost["validation"] = (
            "the winner is the trial that scored best in the search, by luck in part"
        )
    missing = [
        f"data.{split}: not given: {what}" for split, what in lost.items() if split not in examples
    ]
    return missing + [
        (
            f"{split}: {count} examples: the standard error of an accuracy is up to "
            f"{0.5 / math.sqrt(count):.2f}"
        )
        for split, count in examples.items()
        if count < _FEW
    ]


def _of_devices(config: SearchConfig, memory: int, workers: int) -> list[str]:
    """Devices that have not the memory for the workers on them."""
    if config.compute.device_map is not None:
        return []  # accelerate shares them out
    devices = devices_of(config)
    counts = Counter(devices[number % len(devices)] for number in range(workers))
    lines = []
    for device, count in counts.items():
        room = device_memory(device)
        if count * memory > room:
            lines.append(
                f"compute.device: {device} has {room / 1e9:.3g} GB, and the workers of this "
                f"search take {count * memory / 1e9:.3g} GB there"
            )
    return lines


def _number(minutes: float) -> float | None:
    return None if math.isnan(minutes) else round(minutes, 3)


def _duration(minutes: float) -> str:
    if math.isnan(minutes):
        return "time not measured"
    if minutes < 2:
        return f"about {(seconds := max(1, round(minutes * 60)))} second{'s' * (seconds > 1)}"
    return f"about {minutes:.0f} minutes" if minutes < 120 else f"about {minutes / 60:.0f} hours"
