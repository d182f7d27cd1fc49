"""The dry run of a search: checks it, measures one score of each kind, and says what the search
would do, and how long."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..errors import SearchError
from .answer_form import doubts_of_form
from .checks import check_search
from .evaluation.devices import check_device, device_memory, devices_of, on_device
from .evaluation.evaluator import Evaluator
from .evaluation.memory import PROCESS, default_workers, memory_of_models
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
        memory: Bytes of the models that a worker holds, per phase; see `memory_of_models`.
        workers: How many workers a search takes where nobody says it.
    """

    phases: tuple[PhasePlan, ...]
    examples: dict[str, int]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    memory: dict[str, int] = field(default_factory=dict)
    workers: int = 1

    def minutes(self, workers: int = 1) -> float:
        """Expected time of the whole."""
        return sum(phase.minutes(workers) for phase in self.phases)

    def __str__(self) -> str:
        return self.to_text()

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
        models = ", ".join(f"{phase} {size / 1e6:,.0f} MB" for phase, size in self.memory.items())
        rest = (
            f"{PROCESS / 1e9:g} GB of Python and libraries, and what passes through the models, "
            "come on top"
        )
        lines.append(f"memory for models, in each worker: {models}; {rest}")
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
    warnings = list[str]()
    try:
        for device in devices_of(config):
            check_device(device)
    except SearchError as error:  # then what the headers say is said, and nothing is evaluated
        warnings.append(f"{error}; no weights were looked at, and no time was measured")
        config = on_device(config, "cpu")
    if config.fitness.task == "choice":
        warnings.append(
            "a person chooses, on a page; no weights were looked at, and no time was measured"
        )
    evaluator = Evaluator(config, trust_remote_code=trust_remote_code, weights=not warnings)
    checked = check_search(config, evaluator)
    planner = Planner(config, evaluator)
    for phase in phases_of(config):
        if (planned := phase.plan(planner)) is not None:
            planner.phases.append(planned)
    doubts = doubts_of_form(evaluator) if evaluator.sources.weights else []
    memory = memory_of_models(config, evaluator)
    warnings += [
        *checked.warnings,
        *_of_splits(planner.sizes),
        *doubts,
        *planner.warnings,
        *_of_devices(config, memory),
    ]
    return Plan(
        tuple(planner.phases),
        planner.sizes,
        tuple(checked.notes),
        tuple(warnings),
        memory,
        default_workers(config, memory),
    )


def _of_splits(examples: dict[str, int]) -> list[str]:
    """Splits that are missing, or too small to tell models apart."""
    lost = {
        "validation": "the winner is the trial that scored best in the search, by luck in part",
        "test": "the table is measured on what the winner was chosen on, and flatters it",
    }
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


def _of_devices(config: SearchConfig, memory: dict[str, int]) -> list[str]:
    """Devices that have not the memory for the models of the workers on them."""
    if config.compute.device_map is not None:
        return []  # accelerate shares them out
    devices = devices_of(config)
    lines = []
    needed = dict[str, float]()
    for number in range(default_workers(config, memory)):
        device = devices[number % len(devices)]
        needed[device] = needed.get(device, 0.0) + max(memory.values())
    for device in dict.fromkeys(devices):
        there = device_memory(device)
        if needed.get(device, 0.0) > there:
            sizes = (
                f"{there / 1e9:.3g} GB, and the models of this search take "
                f"{needed[device] / 1e9:.3g} GB there"
            )
            lines.append(f"compute.device: {device} has {sizes}")
    return lines


def _duration(minutes: float) -> str:
    if math.isnan(minutes):
        return "time not measured"
    if minutes < 2:
        return f"about {(seconds := max(1, round(minutes * 60)))} second{'s' * (seconds > 1)}"
    return f"about {minutes:.0f} minutes" if minutes < 120 else f"about {minutes / 60:.0f} hours"
