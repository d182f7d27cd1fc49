"""Refuses a search that cannot work, before anything expensive begins: device, data, sources, methods, paths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..checkpoints.unchanged import twins
from ..errors import EvoMergeError, FitnessError, SearchError, one_line, optional
from ..fitness import check_disjoint
from ..merging.registry import get_method
from ..recipes.recipe import Recipe
from .evaluation.devices import check_device, devices_of
from .evaluation.evaluator import Evaluator
from .file.config import SearchConfig
from .file.objectives import only_task_objectives
from .file.paths import GatesPath
from .file.sections import MergeConfig
from .file.splits import RETAINED, SPLITS
from .file.stages import Stage
from .optimizers.ask_tell import Start
from .optimizers.sweep import sweep_cost
from .results.contributions import without
from .runners.cluster import require_ray
from .spaces.parameter import ParameterSpace
from .spaces.space import Space, make_space
from .together import together_stage
from .trackers import Tracker


@dataclass
class Checked:
    """Findings of the checks of a search.

    Attributes:
        notes: What the user should know of the spaces, one line each.
        warnings: What is doubtful about the sources, one line each: what a build of the first candidates would say.
    """

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_search(config: SearchConfig, evaluator: Evaluator, *, here: bool = True) -> Checked:
    """Check everything that can be checked without evaluating a model.

    Args:
        config: The search.
        evaluator: Its evaluator, which has opened the sources.
        here: Whether candidates are evaluated on this machine.

    Raises:
        EvoMergeError: The search cannot work; the message names what is wrong.
    """
    if here:
        for device in devices_of(config):
            check_device(device)
    splits = {"search": evaluator.tasks.examples("search"), **evaluator.tasks.of_splits}
    retained = {name: splits[f"{RETAINED}{name}"] for name in config.compare.retain}
    own = [each for each in only_task_objectives(config.objectives) if each.data]
    together = {  # whatever is looked at for one objective, or term, is no test of another
        split: [
            *(each for example in splits.get(split, ()) for each in example.all),
            *(example for each in own for example in splits.get(each.split(split), ())),
        ]
        for split in SPLITS
    }
    check_disjoint(**together, retained=retained)
    _check_extras(config, evaluator, here=here)
    for source in evaluator.sources.all:
        evaluator.tasks.check_scored(source)
    found = Checked(notes=[*_unused(config), *_of_dtype(config, evaluator)])
    if evaluator.sources.runs_unmerged(config.merge_part()):
        bits = f", whose weights have {config.compute.quantization[0]} bits" if config.compute.quantization else ""
        merges = "`compute: {unmerged: false}` merges each"
        found.notes.append(f"candidates run unmerged, as LoRA adapters on their base{bits}; {merges}")
    reads = config.space != "dfs" and evaluator.sources.weights  # the head of a cluster reads nothing for paths
    found.warnings += twins(list(evaluator.sources), config.source_names, download=reads)
    if reads and not evaluator.sources.runs_unmerged(config.merge_part()):  # which would compute every whole weight
        found.warnings += evaluator.sources.merged(config.merge_part()).doubts()
    _check_contributions(config, evaluator)
    for stage in (stage for stage in config.stages if stage.role != "random"):
        on_merge = config.space == "hybrid" and stage.space == "dfs"
        space = make_space(config, stage, evaluator.sources.summary, config.merge_part() if on_merge else None)
        start = space.start()
        warnings = _check_recipe(space.decode(start.mean), evaluator)
        _check_sweep(stage, start, len(splits["search"]))
        found.notes += _check_gradient(config, stage, evaluator, space)
        found.notes += [note for note in space.notes() if note not in found.notes]
        found.warnings += [line for line in warnings if line not in found.warnings]
    for split in splits:
        evaluator.tasks.check_examples(split)
    return found


def _check_contributions(config: SearchConfig, evaluator: Evaluator) -> None:
    """Refuse contributions of sources that cannot be left out."""
    if not config.compare.contributions:
        return
    count, where = len(config.merge_sources), "compare.contributions"
    if config.space != "ps" or count <= max(1, get_method(config.merge.method).count[0]):
        found = f"found {config.space}, {config.merge.method} of {count}"
        raise SearchError(f"{where}: goes with space: ps and a method that can merge one source less ({found}); leave it out")
    whole = config.recipe(merge=config.merge_part())
    for at, number in enumerate(config.merge_sources):
        try:
            evaluator.sources.checkpoint(without(whole, at))
        except EvoMergeError as cause:
            name = config.source_names[number]
            raise SearchError(f"{where}: no merge is left without {name}; leave it out: {one_line(cause, 200)}") from cause


def _check_extras(config: SearchConfig, evaluator: Evaluator, *, here: bool) -> None:
    """Refuse what needs a package that is not there, and a base that is quantised or spread where it cannot be."""
    if not here:
        require_ray()
    for name in config.report_to:
        Tracker(name)  # refuses one that is not installed
    if config.objectives:
        optional("pymoo", "objectives", "objectives: a search for several", SearchError)
    tuned = [name for name in config.compare.baselines if "lora" in name]
    if "merge+lora" in tuned:
        together_stage(config)
    if config.compute.quantization:
        for package in ("bitsandbytes", "accelerate"):
            optional(package, "quantization", "quantization", SearchError)
        if tuned:
            raise SearchError(f"compare.baselines: {tuned[0]} fine-tunes whole models; leave it out, or quantization")
    if config.compute.device_map is not None:
        optional("accelerate", "quantization", "compute.device_map", SearchError)
        packed = config.compute.quantization or any(source.entries for source in evaluator.sources.all)
        if not here or packed or config.space != "ps" or config.compute.device != "auto":
            raise SearchError(
                "compute.device_map: goes with space: ps over whole language models and device: auto, on one machine without "
                "--ray; leave it out"
            )
    if tuned:
        try:
            evaluator.tasks.differentiable_task()
        except FitnessError as error:
            raise SearchError(f"compare.baselines: {tuned[0]} follows a gradient; leave it out: {error}") from error
        optional("peft", "lora", "fine-tuning", SearchError)


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
            yield f"{what} is not looked at, for space is {config.space}; leave it out, or write space: hybrid"


def _of_dtype(config: SearchConfig, evaluator: Evaluator) -> Iterator[str]:
    """Warn of half precision on a processor."""
    if devices_of(config)[0].startswith("cpu") and evaluator.models.dtype.itemsize < 4:  # type: ignore[union-attr]
        name = str(evaluator.models.dtype).removeprefix("torch.")
        yield (
            f"output.dtype: in {name} a CPU blurs scores, so that close candidates change places (as measured, by .02 to .25 "
            "nats an example); float32 is exact"
        )


def _check_sweep(stage: Stage, start: Start, examples: int) -> None:
    if stage.algorithm != "sweep":
        return
    (size,), budget = stage.batch_sizes(examples), stage.evaluations
    needed = math.ceil(sweep_cost(start, size=size, examples=examples))
    if needed > budget:
        raise SearchError(
            f"optimize: by: sweep: all candidates, {size} of {examples} examples at first, take {needed} evaluations (found "
            f"{budget}); give as many, or a smaller batch"
        )


def _check_recipe(recipe: Recipe, evaluator: Evaluator) -> list[str]:
    """Refuse what could not be built, on a stage's first recipe, and layers that cannot run anywhere; what is doubtful."""
    from ..building.routed import Routed
    from ..routing.config import check_configs

    checkpoint = evaluator.sources.checkpoint(recipe)
    if isinstance(checkpoint, Routed) and recipe.flow is not None:
        configs = [each.config for each in checkpoint.checkpoints]
        check_configs(configs, recipe.flow.embedding_source, names=checkpoint.checkpoints, anywhere=True)
    return checkpoint.warnings


def _check_gradient(config: SearchConfig, stage: Stage, evaluator: Evaluator, space: Space) -> list[str]:
    """Refuse gates for blocks that see the scale of their input, and gradients that are not to be had; says what one leaves."""
    from ..merging.gradient import check_differentiable
    from ..routing.gates import check_gates

    if stage.space == "dfs" and config.path.gated:
        check_gates(evaluator.sources[0].config.get_text_config())
    if stage.algorithm == "gradient":
        evaluator.tasks.check_gradient(stage.fitness)
        if isinstance(space, ParameterSpace):
            check_differentiable(get_method(config.merge.method))
            if still := space.unmoved:
                names = ", ".join(still)
                if len(still) == len({each.parameter for each in space.coordinates}):
                    raise SearchError(f"optimize: by: gradient moves no {names}; give weight a range, or write cma")
                return [f"ps: a gradient moves no {names}: those numbers stay at their start"]
    return []
