"""Refuses a search that cannot work, before anything expensive begins: device, data, sources,
methods, paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..checkpoints.unchanged import twins
from ..errors import SearchError, optional
from ..fitness import Example, check_disjoint
from ..fitness.example import by_source
from ..fitness.tasks.agreement import AgreementTask
from ..merging.registry import get_method, in_core
from .evaluation.devices import check_devices, devices_of, product_seconds
from .evaluation.evaluator import Evaluator
from .file.config import SearchConfig
from .file.paths import GatesPath
from .file.sections import MergeConfig
from .file.splits import RETAINED, SPLITS
from .front.optimizers import require_pymoo
from .phases import phases_of
from .phases.phase import Findings
from .reports.trackers import Tracker
from .runners.cluster import require_ray

_SLOW = 1.2  # times float32's time, from where on a dtype is warned of


def check_search(config: SearchConfig, evaluator: Evaluator, *, here: bool = True) -> Findings:
    """Check everything that can be checked without evaluating a model.

    Args:
        config: The search.
        evaluator: Its evaluator, which has opened the sources.
        here: Whether candidates are evaluated on this machine.

    Raises:
        EvoMergeError: The search cannot work; the message names what is wrong.
    """
    if here:
        check_devices(config)
    splits = {"search": evaluator.tasks.examples("search"), **evaluator.tasks.of_splits}
    retained = {name: splits[f"{RETAINED}{name}"] for name in config.compare.retain}
    together: dict[str, list[Example]] = {}
    for split in SPLITS:  # whatever is looked at for one task is no test of another
        together[split] = [*splits.get(split, ())]
    for extra in config.extra_splits:
        together[extra.beside] += splits[extra.name]
    check_disjoint(**together, retained=retained)
    _check_extras(config, evaluator, here=here)
    for source in evaluator.sources.all:
        evaluator.tasks.check_scored(source)
    findings = Findings(notes=list(_unused(config)))
    if getattr(config.fitness, "vary", 0):
        findings.notes += _varied(splits["search"])
    if here:
        _check_dtype(config, evaluator, findings)
    if evaluator.sources.runs_unmerged(config.merge.part()):
        bits = (
            f", whose weights have {config.compute.quantization[0]} bits"
            if config.compute.quantization
            else ""
        )
        more = "; `compute: {unmerged: false}` merges each"
        if in_core(config.merge.part()):
            more = ", merged in core space"
        findings.notes.append(
            f"candidates run unmerged, as LoRA adapters on their base{bits}{more}"
        )
    # the head of a cluster reads nothing for paths
    reads = config.space != "dfs" and evaluator.sources.weights
    models = list(evaluator.sources)
    if config.space == "ps" and get_method(config.merge.method).task_vectors:
        models = evaluator.sources.all  # ends with the base
    findings.warnings += twins(models, [*config.source_names, "the base"], download=reads)
    if reads and not evaluator.sources.runs_unmerged(
        config.merge.part()
    ):  # which would compute every whole weight
        findings.warnings += evaluator.sources.merged(config.merge.part()).doubts()
    for phase in phases_of(config):
        phase.check(config, evaluator, findings)
    for split in splits:
        evaluator.tasks.check_examples(split)
    return findings


def doubts_of_prompts(evaluator: Evaluator) -> list[str]:
    """Warn where a source leaves prompts of its own unanswered, and where two sources look as if
    each had the other's prompts; runs them on a few.

    Raises:
        SearchError: A source answers none: to agree with it is to answer nothing.
    """
    task = evaluator.tasks.prepared(evaluator.config.sources[0])
    if not isinstance(task, AgreementTask):
        return []
    doubts = list[str]()
    unanswered = task.unanswered()
    pair = task.swapped()
    evaluator.models.forget()  # where workers run the models, none stays here
    for name, (silent, count) in unanswered.items():
        if silent:
            of = f"{len(silent)} of {count} prompts, such as {silent[0].prompt!r:.60}"
            doubts.append(
                f"{name} answers nothing to {of}; end them as it was trained, with 'Answer:', a "
                "space or a new line"
            )
            if len(silent) == count:
                raise SearchError(f"agreement: {doubts[-1]}")
    if pair is not None:
        doubts.append(
            f"{' and '.join(pair)} are each surer of their answers to the other's prompts: are the "
            "files of prompts in the order of the sources?"
        )
    return doubts


def _varied(examples: Sequence[Example]) -> Iterator[str]:
    """Say of each source how many prompts were made of its own, with one of them."""
    for source, own in by_source(examples).items():
        made = [example for example in own if example.made]
        of = f"of {len(own) - len(made)} prompts of {source}"
        if made:
            yield f"{of} {len(made)} more were made, such as {made[-1].prompt!r:.100}"
        else:
            yield f"{of} none were made: those of a source have too few words in common"


def _check_extras(config: SearchConfig, evaluator: Evaluator, *, here: bool) -> None:
    """Refuse what needs a package that is not there, and a base that is quantised or spread where
    it cannot be."""
    if not here:
        require_ray()
    others = [spec for spec in config.task_specs if spec is not config.fitness]
    if any(getattr(spec, "vary", 0) for spec in others):
        raise SearchError(
            "vary: goes with the search's own fitness, and not with a step or an objective; leave "
            "it out there"
        )
    for name in config.report_to:
        Tracker(name)  # refuses one that is not installed
    if config.has_front:
        require_pymoo()
    if config.compute.quantization:
        for package in ("bitsandbytes", "accelerate"):
            optional(package, "quantization", "quantization", SearchError)
    if config.compute.device_map is not None:
        optional("accelerate", "quantization", "compute.device_map", SearchError)
        packed = config.compute.quantization or any(
            source.entries for source in evaluator.sources.all
        )
        if not here or packed or config.space != "ps" or config.compute.device != "auto":
            raise SearchError(
                "compute.device_map: goes with space: ps over whole language models and device: "
                "auto, on one machine without --ray; leave it out"
            )


def _unused(config: SearchConfig) -> Iterator[str]:
    """Sections and steps of a space that is not searched."""
    steps = [step.space for step in config.optimize if step.space not in (None, *config.spaces)]
    for key, unused in {
        "merge": config.space == "dfs" and config.merge != MergeConfig(),
        "path": config.space == "ps" and config.path != GatesPath(kind="gates"),
        "optimize": bool(steps),
    }.items():
        if unused:
            what = f"a step with space: {steps[0]}" if key == "optimize" else key
            yield (
                f"{what} is not looked at, for space is {config.space}; leave it out, or write "
                "space: hybrid"
            )


# A processor with units for half precision computes in it up to twice as fast as in float32, one
# without up to eighty times as slowly. Which one this is only a measurement says.
def _check_dtype(config: SearchConfig, evaluator: Evaluator, findings: Findings) -> None:
    """Say what half precision costs on a processor, in time and in scores."""
    dtype: Any = evaluator.models.dtype
    if not devices_of(config)[0].startswith("cpu") or dtype.itemsize >= 4:
        return
    name = str(dtype).removeprefix("torch.")
    times = product_seconds(dtype) / product_seconds("float32")
    quicker = f"{name} is {1 / times:.1f} times as fast as float32 here, and" if times < 1 else name
    findings.notes.append(
        f"output.dtype: {quicker} blurs scores on a CPU, so that close candidates change places "
        "(as measured, by .02 to .25 nats an example); `output: {dtype: float32}` is exact"
    )
    if times > _SLOW:
        findings.warnings.append(
            f"output.dtype: one product of matrices takes this processor {times:.3g} times as long "
            f"in {name} as in float32; write `output: {{dtype: float32}}`"
        )
