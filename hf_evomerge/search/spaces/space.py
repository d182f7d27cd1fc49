"""The search spaces: what they have in common, and which one a stage searches."""

from __future__ import annotations

from dataclasses import replace

from ...recipes.recipe import MergePart, ParameterValue, Recipe
from ..evaluation.sources import SourceSummary
from ..file.config import SearchConfig
from ..file.stages import Stage
from .flow import FlowSpace
from .parameter import ParameterSpace, run_length

Space = ParameterSpace | FlowSpace
"""A set of recipes, and the vectors that stand for them: `start`, `decode`, `notes`, `price` and
`slopes` of a genome."""


def make_space(
    config: SearchConfig, stage: Stage, sources: SourceSummary, merge: MergePart | None = None
) -> Space:
    """Make the space that a stage searches.

    Args:
        config: The search.
        stage: Which of its stages.
        sources: What is known of the sources.
        merge: The merge that a second stage builds on: the winner of the first.
    """
    if stage.source is not None:
        config, sources = narrowed(config, stage.source, sources)
    depth = sources.layers[config.merge_sources[0]]
    if stage.space == "ps":
        return ParameterSpace(config, depth, sources.tensors, sources.unchanged, step=stage.step)
    layers = sources.layers if merge is None else [*sources.layers, depth]
    return FlowSpace(config, layers, merge, step=stage.step)


def narrowed(
    config: SearchConfig, number: int, sources: SourceSummary
) -> tuple[SearchConfig, SourceSummary]:
    """The search over one of its sources alone, which has as many numbers there as before.

    Merges are of this source and the base; paths run through its layers, and in a hybrid search
    through those of its merge.
    """
    merge = config.merge
    router = merge.router if merge.router == "merge" else None
    rows = merge.rows_per_group
    if merge.groups == "rows":
        rows = run_length(config, sources.tensors)
    merge = merge.model_copy(update={"sources": [number], "router": router, "rows_per_group": rows})
    merged = len(config.sources)
    first = [merged] if config.space == "hybrid" else []
    laid_out = config.path.order or [*first, *range(merged)]
    order = [each for each in laid_out if each in (number, merged)]
    path = config.path.model_copy(update={"order": order or None})
    unchanged = sources.unchanged
    if unchanged:
        unchanged = [unchanged[config.merge_sources.index(number)]]
    return (
        config.model_copy(update={"merge": merge, "path": path}),
        replace(sources, unchanged=unchanged),
    )


def task_vector_sum(config: SearchConfig) -> Recipe:
    """The base and all task vectors in full."""
    return _alike(config, "task_arithmetic", 1.0)


def uniform_average(config: SearchConfig) -> Recipe:
    """The plain average of the sources: what people try first."""
    adapters = config.base is not None and all(ref.adapter is not None for ref in config.sources)
    if adapters:
        return _alike(config, "task_arithmetic", 1 / len(config.sources))
    return _alike(config, "linear", 1.0)


def _alike(config: SearchConfig, method: str, weight: float) -> Recipe:
    """A merge of all sources with one weight."""
    parameters: list[dict[str, ParameterValue]] = [{"weight": weight} for _ in config.sources]
    part = MergePart(method=method, parameters=parameters, router=config.merge.router)
    return config.recipe(merge=part)
