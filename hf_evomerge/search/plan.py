"""The dry run of a search: checks it, measures one score of each kind, and says what the search would do, and how long."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import SearchError
from .answer_form import doubts_of_form
from .baselines import RATES
from .checks import check_search
from .evaluation.devices import check_device, device_memory, devices_of, on_device
from .evaluation.evaluator import Evaluator
from .evaluation.memory import PROCESS, default_workers, memory_of_models
from .evaluation.sources import Target
from .file.config import SearchConfig
from .file.splits import RETAINED
from .file.stages import Stage
from .optimizers.ask_tell import GROWTH, Vector, default_population
from .optimizers.descent import checks_of
from .optimizers.sweep import sweep_cost
from .spaces.space import Space, make_space
from .together import together_stage

_FEW = 16  # examples, below which a score says little


@dataclass(frozen=True)
class Phase:
    """Phase of a search.

    Attributes:
        name: ``parents``, a stage, ``finalists``, ``lora``, ``contributions`` or ``test``.
        text: What it does, in words.
        seconds: How long it takes with one worker.
        at_once: How many workers it has work for.
    """

    name: str
    text: str
    seconds: float
    at_once: float = math.inf

    def minutes(self, workers: int) -> float:
        """Return its minutes with so many workers."""
        return self.seconds / 60 / max(1, min(self.at_once, workers))


@dataclass(frozen=True)
class Plan:
    """Plan of a search; all that has been evaluated is a source, and the start of each stage.

    Attributes:
        phases: Its parts, in the order that they run.
        examples: Examples, per split.
        notes: What the user should know of the spaces, one line each, such as numbers that are not evolved.
        warnings: What will probably disappoint, one line each.
        memory: Bytes of the models that a worker holds, per phase; see `memory_of_models`.
        workers: How many workers a search takes where nobody says it.
    """

    phases: tuple[Phase, ...]
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
        """The plan in lines for people, with the time that so many workers take; with None those of the search itself."""
        workers = self.workers if workers is None else workers
        lines = [f"in all, with workers={workers}: {_duration(self.minutes(workers))}"]
        lines += [f"{phase.name}: {phase.text}; {_duration(phase.minutes(workers))}" for phase in self.phases]
        lines += [f"note: {note}" for note in self.notes] + [f"warning: {warning}" for warning in self.warnings]
        lines.append("examples: " + ", ".join(f"{count} {split}" for split, count in self.examples.items()))
        models = ", ".join(f"{phase} {size / 1e6:,.0f} MB" for phase, size in self.memory.items())
        rest = f"{PROCESS / 1e9:g} GB of Python and libraries, and what passes through the models, come on top"
        lines.append(f"memory for models, in each worker: {models}; {rest}")
        return "\n".join(lines)


def plan_search(config: SearchConfig, *, trust_remote_code: bool = False) -> Plan:
    """Check everything that can be checked without searching, and measure how long the parts of the search take.

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
        warnings.append("a person chooses, on a page; no weights were looked at, and no time was measured")
    evaluator = Evaluator(config, trust_remote_code=trust_remote_code, weights=not warnings)
    checked = check_search(config, evaluator)
    examples = evaluator.tasks.sizes
    second = _seconds(evaluator, config.sources[0], config.sources[0]) / examples["search"]  # of one example
    doubts = doubts_of_form(evaluator) if evaluator.sources.weights else []
    warnings += [*checked.warnings, *_of_splits(examples), *doubts]
    stages, merge = list[Phase](), None
    for stage in config.stages:
        space = make_space(config, stage, evaluator.sources.summary, merge)
        phase, hints = _stage(config, stage, space, evaluator)
        stages.append(phase)
        warnings += hints
        if stage.name == "ps" and config.space == "hybrid":
            merge = space.decode(space.start().mean).merge
    phases = _around(config, stages, examples, second, averaged=len(set(evaluator.sources.layers)) == 1)
    memory = memory_of_models(config, evaluator)
    warnings += _of_devices(config, memory)
    said = tuple(checked.notes), tuple(warnings)
    return Plan(tuple(phases), examples, *said, memory, default_workers(config, memory))


def _around(
    config: SearchConfig, stages: list[Phase], examples: dict[str, int], second: float, *, averaged: bool
) -> list[Phase]:
    """The stages, and what comes before and after them: scores of whole models at so many seconds an example."""
    parents = len(config.sources) + (config.base is not None and config.base not in config.sources)
    phases = [Phase("parents", f"{parents} models on all search examples", parents * second * examples["search"]), *stages]
    if "validation" in examples:
        count = config.compare.finalists * sum(stage.role != "first" for stage in config.stages)
        text = f"up to {count} of the best models on {examples['validation']} validation examples, which name the winner"
        phases.append(Phase("finalists", text, count * second * examples["validation"]))
    averaged = averaged and len(config.sources) > 1
    if "lora" in config.compare.baselines:
        spent, starts = sum(stage.evaluations for stage in config.stages if stage.role != "random"), parents + averaged
        text = f"{starts * len(RATES)} trainings, {starts} starts at {len(RATES)} rates, each of {spent} evaluations"
        chosen_on = examples.get("validation", examples["search"])
        seconds = starts * len(RATES) * (spent * examples["search"] + chosen_on) * second
        phases.append(Phase("lora", text, seconds, at_once=1))
    if "merge+lora" in config.compare.baselines:
        stage = together_stage(config)
        cost = next((phase for phase in stages if phase.name == stage.name), stages[0])
        phases.append(Phase("together", "merge weights and a LoRA beside them, by the same steps", cost.seconds, at_once=1))
    if config.compare.contributions:
        split, count = "validation" if "validation" in examples else "search", len(config.merge_sources)
        text = f"the winner, and without each of its {count} sources, on {examples[split]} {split} examples"
        phases.append(Phase("contributions", text, (count + 1) * second * examples[split]))
    split = next(split for split in ("test", "validation", "search") if split in examples)
    count = parents + (averaged and "average" in config.compare.baselines) + len(config.stages)
    count += sum("lora" in name for name in config.compare.baselines)
    judged = [split, *(name for name in examples if name.startswith(RETAINED))]
    text = f"{count} models on {' + '.join(f'{examples[name]} {name}' for name in judged)} examples"
    return [*phases, Phase("test", f"{text}: all rows of the table", count * second * sum(examples[name] for name in judged))]


def _stage(config: SearchConfig, stage: Stage, space: Space, evaluator: Evaluator) -> tuple[Phase, list[str]]:
    """Measure a stage: candidates near its start are scored on batches of each size. Warn of a budget that hardly moves it."""
    start, count = space.start(), len(evaluator.tasks.examples("search"))
    gradient, sweep = stage.algorithm == "gradient", stage.algorithm == "sweep"
    usual = default_population(start.mean.size) * (2 if stage.algorithm == "nsga2" else 1)
    population = 1 if gradient or sweep else stage.step.population or usual
    everything, sizes = np.ones(start.mean.size, dtype=np.bool_), stage.batch_sizes(count)
    price = space.price(everything) + start.prunable if gradient else 1.0  # a step is tried
    budget = math.ceil(sweep_cost(start, size=sizes[0], examples=count)) if sweep else stage.evaluations
    rounds, left = dict[int, float](), float(budget)  # generations, or steps, on batches of each size
    if gradient:  # the starts are scored before the first step, and the average of the points now and then
        starts = min(len(start.candidates), max(1.0, left / (3 * sizes[0] / count)))
        left = max(0.0, left - int(starts) * sizes[0] / count - len(checks_of(left)) - 1)
    for size in sizes:
        cost = price * population * size / count
        rounds[size] = left / cost if size == sizes[-1] else min(GROWTH, left / cost)
        left -= rounds[size] * cost
    rounds = {size: each for size, each in rounds.items() if each > 0}
    step = np.where(np.arange(start.mean.size) % 2, 0.01, -0.01) * start.sigma
    near: Vector = np.clip(start.mean + step, start.lower, start.upper)  # another genome, and as good
    first, second = (space.decode(genome) for genome in (start.mean, near))
    slopes = space.slopes(near, everything) if gradient else None
    seconds = 0.0
    for size, each in rounds.items():
        batch = None if size == count else tuple(range(size))
        seconds += each * population * _seconds(evaluator, first, second, batch=batch, slopes=slopes, fitness=stage.fitness)
    method, path = config.merge.method, config.path
    scales = "gates (how much of each layer is kept)" if path.gated else f"path.kind: {path.kind}"
    what = [method if stage.space == "ps" else scales, f"{start.mean.size} numbers to evolve", f"{budget} evaluations"]
    if second.flow is not None:
        longest = space.decode(np.where(np.isfinite(start.upper), start.upper, 1.0)).flow
        what.append(f"paths of {len(second.flow.to_path())} to {0 if longest is None else len(longest.to_path())} hops")
    kind, total = "gradient steps" if gradient else f"generations of {population}", sum(rounds.values())
    span = f"{min(rounds)} to {max(rounds)}" if len(rounds) > 1 else f"{min(rounds)}"
    done = "every candidate" if sweep else f"{total:.0f} {kind}"
    what.append(f"{done} on {span} of {count} examples{' at first' if sweep else ''}")
    at_once = 1 if gradient else math.inf if sweep else population
    least, warnings = 20 if gradient else 2, list[str]()
    if stage.role != "random" and not sweep and total < least:
        warnings.append(
            f"{stage}: evaluations: {budget} do for {total:.1f} {kind}, and fewer than {least} hardly move; "
            f"give more, or a smaller {'batch' if gradient else 'population'}"
        )
    return Phase(stage.name, ", ".join(what), seconds, at_once), warnings


def _seconds(evaluator: Evaluator, first: Target, then: Target, **how: Any) -> float:
    """Time one evaluation, once the first has loaded what it needs; not a number where weights are not read."""
    if not evaluator.sources.weights:
        return math.nan
    for target in (first, then):
        scores = evaluator.evaluate(target, **how)
        if scores.error is not None:
            raise SearchError(f"{getattr(target, 'model', 'the start of the search')}: cannot be evaluated: {scores.error}")
    return scores.seconds


def _of_splits(examples: dict[str, int]) -> list[str]:
    """Splits that are missing, or too small to tell models apart."""
    lost = {
        "validation": "the winner is the trial that scored best in the search, by luck in part",
        "test": "the table is measured on what the winner was chosen on, and flatters it",
    }
    missing = [f"data.{split}: not given: {what}" for split, what in lost.items() if split not in examples]
    return missing + [
        f"{split}: {count} examples: the standard error of an accuracy is up to {0.5 / math.sqrt(count):.2f}"
        for split, count in examples.items()
        if count < _FEW
    ]


def _of_devices(config: SearchConfig, memory: dict[str, int]) -> list[str]:
    """Devices that have not the memory for the models of the workers on them."""
    if config.compute.device_map is not None:
        return []  # accelerate shares them out
    devices, lines, needed = devices_of(config), [], dict[str, float]()
    for number in range(default_workers(config, memory)):
        device = devices[number % len(devices)]
        needed[device] = needed.get(device, 0.0) + max(memory.values())
    for device in dict.fromkeys(devices):
        there = device_memory(device)
        if needed.get(device, 0.0) > there:
            sizes = f"{there / 1e9:.3g} GB, and the models of this search take {needed[device] / 1e9:.3g} GB there"
            lines.append(f"compute.device: {device} has {sizes}")
    return lines


def _duration(minutes: float) -> str:
    if math.isnan(minutes):
        return "time not measured"
    if minutes < 2:
        return f"about {(seconds := max(1, round(minutes * 60)))} second{'s' * (seconds > 1)}"
    return f"about {minutes:.0f} minutes" if minutes < 120 else f"about {minutes / 60:.0f} hours"
