"""Refuses a search that cannot work, before anything expensive begins: device, data, sources, methods, paths."""

from __future__ import annotations

import math

from ..errors import SearchError
from ..fitness import check_disjoint
from ..recipes.recipe import MergePart, Recipe
from .config import RETAINED, SPLITS, SearchConfig, Stage
from .evaluator import Evaluator
from .limits import check_memory_limit
from .optimizer import Start
from .spaces import make_space
from .sweep import sweep_cost


def check_search(config: SearchConfig, evaluator: Evaluator) -> tuple[dict[str, int], list[str]]:
    """Check everything that can be checked without evaluating a model.

    Args:
        config: The search.
        evaluator: Its evaluator, which has opened the sources.

    Returns:
        How many numbers each stage evolves (a second stage counts the merged model's layers), and what the user should know of
        the spaces, one line each.

    Raises:
        EvoMergeError: The search cannot work; the message names what is wrong.
    """
    from ..checkpoints.compatibility import check_mergeable

    _check_device(config.device)
    if config.limits.memory is not None:
        check_memory_limit()
    splits = {split: evaluator.examples(split) for split in ["search", *evaluator.splits]}
    retained = {name.removeprefix(RETAINED): examples for name, examples in splits.items() if name.startswith(RETAINED)}
    check_disjoint(**{split: examples for split, examples in splits.items() if split in SPLITS}, retained=retained)
    if config.space != "dfs":
        check_mergeable([evaluator.sources[i] for i in config.ps_sources], evaluator.base)
    if "lora" in config.baselines:
        from .finetune import peft

        evaluator.differentiable_task()
        peft()
    dimensions: dict[str, int] = {}
    notes: list[str] = []
    for stage in config.stages:
        if stage == "random":
            continue
        on_merge = config.space == "hybrid" and config.space_of(stage) == "dfs"
        merge = MergePart(method=config.ps.method) if on_merge else None
        space = make_space(config, stage, evaluator.summary, merge)
        start = space.start()
        mean = start.mean
        _check_recipe(space.decode(mean), evaluator, stage)
        _check_sweep(config, stage, start, len(splits["search"]))
        _check_gradient(config, stage, evaluator)
        dimensions[stage] = mean.size
        notes += [note for note in space.notes() if note not in notes]
    for split in splits:
        evaluator.check_examples(split)
    return dimensions, notes


def _check_sweep(config: SearchConfig, stage: Stage, start: Start, examples: int) -> None:
    """Refuse a budget that ends before a sweep does."""
    if config.optimizer(stage).algorithm != "sweep":
        return
    (size,), (budget, _) = config.batch_sizes(stage, examples), config.budget(stage)
    needed = math.ceil(sweep_cost(start, size=size, examples=examples))
    if needed > budget:
        key = "dfs.first" if stage == "dfs-first" else "dfs.optimizer"
        raise SearchError(
            f"{key}.evaluations: all candidates, {size} of {examples} examples at first, take {needed} (found {budget}); give "
            "as many, or a smaller batch"
        )


def _check_recipe(recipe: Recipe, evaluator: Evaluator, stage: Stage) -> None:
    """Refuse options that a method does not take, and layers that cannot run in one model, on a stage's first recipe."""
    from ..merging import check_part
    from ..routing.config import check_configs, path_config

    merged = recipe.merge_sources
    if recipe.flow is not None:
        flow = recipe.flow
        sources = [*evaluator.sources, *([evaluator.sources[merged[0]]] if recipe.merge is not None else [])]
        configs = [source.config for source in sources]
        check_configs(configs, flow.embedding_source, names=sources, anywhere=True)
        path_config(configs, flow, anywhere=True)
    if recipe.merge is not None and evaluator.config.space_of(stage) != "dfs":  # there it is the first stage's
        layer_count = evaluator.layers[merged[0]]
        check_part(recipe.merge, sources=len(merged), has_base=recipe.base is not None, layer_count=layer_count)


def _check_gradient(config: SearchConfig, stage: Stage, evaluator: Evaluator) -> None:
    """Refuse gates for blocks that see the scale of their input, and gradients that are not to be had."""
    from ..merging.gradient import check_differentiable
    from ..merging.registry import get_method
    from ..routing.gates import check_gates

    name = config.space_of(stage)
    if name != "ps" and config.dfs.encoding == "gate":
        check_gates(evaluator.sources[0].config.get_text_config())
    if config.optimizer(stage).algorithm == "gradient":
        evaluator.check_gradient(config.fitness_of(stage))
        if name != "dfs":
            check_differentiable(get_method(config.ps.method))


def _check_device(device: str) -> None:
    """Refuse a device that is not there."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as cause:
        raise SearchError(f"device: {device!r} cannot be used here: {cause}") from cause
