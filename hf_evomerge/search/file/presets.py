"""Defaults of a search file that depend on more than one key, and of a task that knows its data.
What the file says stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import EvoMergeError
from ...merging.registry import all_methods
from .stages import SpaceName, Step

if TYPE_CHECKING:
    from ...fitness import TaskSpec
    from ...merging.method import MergeMethod

SPACES: dict[str, tuple[SpaceName, ...]] = {"ps": ("ps",), "dfs": ("dfs",), "hybrid": ("ps", "dfs")}
"""The spaces that each kind of search goes through, one after the other."""
_QUICK = 48  # scores of the search examples, all spaces together
# Of a task vector, where a gradient moves it. A bound that a weight runs into costs much, and one
# that it does not costs nothing: 128 examples of one pair of tiny models had .17 between -.5 and 2
# and .54 here. The first step is a tenth whatever the bounds are.
_WEIGHT = {"low": -4.0, "high": 6.0, "start": 0.5}
_FIRST_STEP = 0.01  # of the distance between the bounds
_FEW_GROUPS = 3  # for a search without a gradient, for which every number costs


def filled(data: Mapping[str, Any], by: str = "") -> dict[str, Any]:
    """Fill in steps and merge as a search by gradient or ``optimize: quick`` have them, and the
    optimizer of steps that name none.

    A PS search by gradient has a weight between -4 and 6 for each run of rows (for each tensor,
    where the method looks at whole tensors), and begins at the best of .5, the uniform average, the
    sum of the task vectors and each source alone. ``quick`` spends 48 scores of the search
    examples: by gradient where the fitness and the merge method have one; where not, by CMA-ES with
    three groups of blocks.
    """
    spaces = SPACES.get(str(data.get("space")), ())
    given = data.get("optimize")
    merge = data.get("merge") or {}
    quick = given == "quick"
    if not quick and not isinstance(given, list | tuple | None):
        return dict(data)  # is refused with the rest
    steps = [
        dict(each) if isinstance(each, Mapping | Step) else each
        for each in given or ()
        if not quick
    ]
    if not spaces or not all(isinstance(step, dict) for step in steps):
        return {**data, "optimize": steps}  # as well
    for step in steps:
        usual = by or _usual(data, step.get("space") or spaces[0], quick=False)
        step["by"] = step.get("by") or usual
    for space in spaces:
        if not any(step.get("space") in (None, space) for step in steps):
            budget = {"evaluations": _QUICK // len(spaces)} if quick else {}
            steps.append(
                {
                    "by": by or _usual(data, space, quick=quick),
                    "space": space if len(spaces) > 1 else None,
                    **budget,
                }
            )
    if spaces[0] != "dfs" and isinstance(merge, Mapping):
        of_weights = [step for step in steps if step.get("space") in (None, spaces[0])]
        merge = _weights(merge, gradient=of_weights[-1]["by"] == "gradient", quick=quick)
        given = merge.get("parameters")
        if isinstance(given, Mapping) and given.get("weight") is _WEIGHT:
            for step in of_weights:
                if step["by"] == "gradient":
                    step["sigma"] = step.get("sigma") or _FIRST_STEP
    return {**data, "optimize": steps, **({"merge": merge} if merge else {})}


def _usual(data: Mapping[str, Any], space: str, *, quick: bool) -> str:
    path = data.get("path")
    merge = data.get("merge") or {}
    kind = path.get("kind") if isinstance(path, Mapping) else getattr(path, "kind", "gates")
    smooth = (
        kind in ("gates", "prune")
        if space == "dfs"
        else isinstance(merge, Mapping) and _smooth(merge)
    )
    return "gradient" if quick and smooth and _differentiable(data.get("fitness")) else "cma"


def _weights(part: Mapping[str, Any], *, gradient: bool, quick: bool) -> dict[str, Any]:
    """The section of parameter space with the groups, starts and bounds that suit its optimizer,
    where it says no others."""
    method = _method(part)
    if method is None or not (gradient or quick):
        return dict(part)
    usual: dict[str, Any] = {"groups": _FEW_GROUPS}
    if gradient:
        usual["groups"] = "rows" if method.prepare is None else "tensor"
    if has_weights := any(each.name == "weight" for each in method.source_parameters):
        sums = ["sum"] if method.task_vectors else []
        usual["starts"] = ["average", *([*sums, "sources"] if gradient else [])]
    given = part.get("parameters") or {}
    if gradient and has_weights and method.task_vectors and isinstance(given, Mapping):
        return {**usual, **part, "parameters": {"weight": _WEIGHT, **given}}
    return {**usual, **part}


def completed(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The sections of a search file, those of its splits with what the fitness task knows of its
    examples.

    So have the parts under a key that have examples of their own.
    """
    sections = _complete(data, data.get("fitness"))
    parts = sections.get(key)
    if isinstance(parts, list | tuple):
        sections[key] = [
            _complete(each, each.get("fitness") or data.get("fitness"))
            if isinstance(each, Mapping)
            else each
            for each in parts
        ]
    return sections


def _complete(sections: Mapping[str, Any], fitness: Any) -> dict[str, Any]:
    """Sections with ``data`` as the task of a section knows it."""
    splits = sections.get("data")
    spec = _task(fitness)
    if not isinstance(splits, Mapping) or spec is None:
        return dict(sections)
    data = {
        split: spec.complete(given) if isinstance(given, Mapping) else given
        for split, given in splits.items()
    }
    return {**sections, "data": data}


def _task(fitness: Any) -> TaskSpec | None:
    """The task of a section; None where it cannot be read, which is complained about with the
    rest."""
    from ...fitness import TaskSpec, parse_task

    if isinstance(fitness, TaskSpec):
        return fitness
    try:
        return parse_task(fitness if isinstance(fitness, Mapping) else {})
    except EvoMergeError:
        return None


def _differentiable(fitness: Any) -> bool:
    from ...fitness import make_task

    spec = _task(fitness)
    return spec is not None and hasattr(make_task(spec), "backward")


def _method(part: Mapping[str, Any]) -> MergeMethod | None:
    name = part.get("method", "task_arithmetic")
    return all_methods().get(name) if isinstance(name, str) else None


def _smooth(part: Mapping[str, Any]) -> bool:
    method = _method(part)
    return method is not None and any(parameter.smooth for parameter in method.parameters)
