"""Checks and completes the parameters that a recipe gives a merge method. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import RecipeError, told
from ..recipes.layer_groups import expand, is_tensor, without_unmatched
from .method import Call, MergeMethod, Values

_FINE = 1 << 40  # rows: the numbers of a real tensor change at fewer places


def complete(
    method: MergeMethod,
    parameters: Sequence[Values],
    options: Values,
    *,
    sources: int,
    has_base: bool,
    layer_count: int | None = None,
    names: Sequence[str] | None = None,
    ignore: bool = False,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Check everything that a recipe gives a method before any work, and fill in the defaults.

    Args:
        method: The method.
        parameters, options: What a recipe gives.
        sources: Number of merged sources.
        has_base: Whether there is a base.
        layer_count: Number of blocks, where it is known: layer groups are checked, and gradients
            laid over the blocks.
        names: Raw names of the tensors, where they are known: patterns are checked, and what does
            not go together.
        ignore: Whether patterns that name no tensor are left out; else they are refused.

    Returns:
        The parameters of each source, and the options.

    Raises:
        RecipeError: Naming the key: unknown parameter, wrong type, out of range, layer groups that
            do not exist, overlap or leave a part of the model out, patterns that name nothing,
            parameters that do not go together, no base where one is needed, too many or too few
            sources.
    """
    check_sources(method, sources, has_base)
    if parameters and len(parameters) != sources:
        raise RecipeError(
            f"merge.parameters: {len(parameters)} mappings for {sources} sources; give one "
            "per source"
        )
    if ignore and names is not None:
        options = _matched(options, names)
        parameters = [_matched(values, names) for values in parameters]
    chosen = _complete(method, "global", options, "merge.options", layer_count, names)
    values = [
        _complete(method, "source", mapping, f"merge.parameters[{index}]", layer_count, names)
        for index, mapping in enumerate(parameters or [{}] * sources)
    ]
    if (check := method.check) is None:
        return values, chosen
    for name in names or ():
        for _, _, call in Call.of_tensor(name, values, chosen).runs(_FINE):
            with told(RecipeError, RecipeError, "merge.parameters: ", f" (in {name})"):
                check(call)
    return values, chosen


def _matched(values: Values, names: Sequence[str]) -> dict[str, Any]:
    return {key: without_unmatched(value, names) for key, value in values.items()}


def check_sources(method: MergeMethod, sources: int, has_base: bool) -> None:
    """Raise `RecipeError` unless the method can merge so many sources, with or without a base."""
    if method.needs_base and not has_base:
        raise RecipeError(
            f"base: {method.name} works on differences to a common base; name the base model"
        )
    low, high = method.count
    tensors = sources + (1 if method.takes_base_as_first(sources) and has_base else 0)
    if tensors < low or (high is not None and tensors > high):
        wanted = number_of_models(method)
        hint = (
            ", or one source and a base"
            if (low, high) == (2, 2) and not method.task_vectors
            else ""
        )
        models, given = ("model", "source") if wanted == "1" else ("models", "sources")
        raise RecipeError(
            f"merge.sources: {method.name} merges {wanted} {models} (found {sources}); give "
            f"{wanted} {given}{hint}"
        )


def number_of_models(method: MergeMethod) -> str:
    """Say how many tensors a method merges, as in "at least 2"."""
    low, high = method.count
    if low == high:
        return f"{low}"
    return f"at least {low}" if high is None else f"{low} to {high}"


def _complete(
    method: MergeMethod,
    scope: str,
    given: Values,
    where: str,
    layer_count: int | None,
    names: Sequence[str] | None,
) -> dict[str, Any]:
    known = {
        parameter.name: parameter
        for parameter in (method.options if scope == "global" else method.source_parameters)
    }
    for name, value in given.items():
        if name not in known:
            hint = f"it takes {', '.join(known) or 'none'}"
            if any(parameter.name == name for parameter in method.parameters):
                other = "parameters, once per source" if scope == "global" else "options"
                hint = f"it belongs in merge.{other}"
            raise RecipeError(f"{where}.{name}: {method.name} has no such parameter here; {hint}")
        known[name].check(value, f"{where}.{name}", layer_count, names)
        by_key = value.items() if isinstance(value, Mapping) else ()
        over_rows = any(isinstance(item, list) and is_tensor(key) for key, item in by_key)
        if method.prepare is not None and over_rows:
            raise RecipeError(
                f"{where}.{name}: {method.name} looks at whole tensors; give one number per "
                "tensor, not per row"
            )
    complete = {name: given.get(name, parameter.default) for name, parameter in known.items()}
    if layer_count is None:
        return complete
    return {
        name: expand(value, 0, layer_count - 1, names or ()) for name, value in complete.items()
    }
