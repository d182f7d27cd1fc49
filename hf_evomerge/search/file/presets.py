"""What a search file leaves unsaid, filled in by a preset, or by a task that knows its data. What the file says stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import EvoMergeError
from ...merging.registry import all_methods

if TYPE_CHECKING:
    from ...fitness import TaskSpec

_QUICK = 48  # scores of the search examples, all spaces together
_WEIGHT = {"low": -0.5, "high": 2.0, "start": 0.5}  # of a task vector, where a gradient moves it
_FEW_GROUPS = 3  # for a search without a gradient, for which every number costs


def filled(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what a search file leaves unsaid; objectives, ``dfs.repeat``, a search by gradient and a preset have their usual.

    A PS search by gradient has a weight between -.5 and 2 for each run of rows (for each tensor, where the method looks at
    whole tensors), and begins at the best of .5, the uniform average, the sum of the task vectors and each source alone.
    ``quick`` spends 48 scores of the search examples: by gradient where the fitness and the merge method have one; where not,
    by CMA-ES with three groups of blocks.
    """
    sections = dict(data)
    _set_algorithm(sections, "dfs", "sweep", where=lambda part: part.get("repeat") is not None)
    spaces = ["ps", "dfs"] if sections.get("space") == "hybrid" else [str(sections.get("space"))]
    for name in spaces if sections.get("objectives") else ():
        _set_algorithm(sections, name, "nsga2", where=lambda part: name in ("ps", "dfs"))  # noqa: B023
    for name in spaces:
        part = sections.get(name) or {}
        if name not in ("ps", "dfs") or not isinstance(part, Mapping):
            continue  # is refused with the rest
        if sections.get("preset") == "quick":
            gradient = not sections.get("objectives") and _differentiable(sections.get("fitness"))
            gradient = gradient and (_smooth(part) if name == "ps" else _gates(part))
            usual = {"algorithm": "gradient" if gradient else "cma", "evaluations": _QUICK // len(spaces)}
            given = part.get("optimizer") or {}
            part = {**part, "optimizer": {**usual, **given} if isinstance(given, Mapping) else given}
        if name == "ps":
            part = _weights(part, quick=sections.get("preset") == "quick", based=sections.get("base") is not None)
        if part:
            sections[name] = part
    return sections


def _weights(part: Mapping[str, Any], *, quick: bool, based: bool) -> dict[str, Any]:
    """The section of parameter space with the groups, starts and bounds that suit its optimizer, where it says no others."""
    optimizer, method = part.get("optimizer"), all_methods().get(part.get("method", "task_arithmetic"))
    gradient = isinstance(optimizer, Mapping) and optimizer.get("algorithm") == "gradient"
    if method is None or not (gradient or quick):
        return dict(part)
    usual: dict[str, Any] = {}
    if has_weights := any(each.name == "weight" for each in method.source_parameters):
        sums = ["sum"] if method.task_vectors else []
        usual["starts"] = ["average", *([*sums, "sources"] if gradient else ["metagpt"] if based else [])]
    if not {"groups", "blocks_per_group", "split_attention"} & part.keys():
        usual["groups"] = ("rows" if method.prepare is None else "tensor") if gradient else _FEW_GROUPS
    given = part.get("parameters") or {}
    if gradient and has_weights and method.task_vectors and isinstance(given, Mapping):
        return {**usual, **part, "parameters": {"weight": _WEIGHT, **given}}
    return {**usual, **part}


def _set_algorithm(sections: dict[str, Any], name: str, algorithm: str, *, where: Callable[[Mapping[str, Any]], bool]) -> None:
    """Name the optimizer of a section that does not name one; a section that is no mapping is refused with the rest."""
    part = sections.get(name) or {}
    if not isinstance(part, Mapping) or not where(part):
        return
    given = part.get("optimizer") or {}
    if isinstance(given, Mapping):
        sections[name] = {**part, "optimizer": {"algorithm": algorithm, **given}}


def completed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a search file, those of its splits with what the fitness task knows of its examples.

    So have the objectives that have examples of their own.
    """
    sections = _complete(data, data.get("fitness"))
    objectives = sections.get("objectives")
    if isinstance(objectives, list | tuple):
        sections["objectives"] = [
            _complete(each, each.get("fitness") or data.get("fitness")) if isinstance(each, Mapping) else each
            for each in objectives
        ]
    return sections


def _complete(sections: Mapping[str, Any], fitness: Any) -> dict[str, Any]:
    """Sections with ``data`` as the task of a section knows it."""
    splits, spec = sections.get("data"), _task(fitness)
    if not isinstance(splits, Mapping) or spec is None:
        return dict(sections)
    data = {split: spec.complete(given) if isinstance(given, Mapping) else given for split, given in splits.items()}
    return {**sections, "data": data}


def _task(fitness: Any) -> TaskSpec | None:
    """The task of a section; None where it cannot be read, which is complained about with the rest."""
    from ...fitness import TaskSpec, parse_task

    try:
        return fitness if isinstance(fitness, TaskSpec) else parse_task(fitness if isinstance(fitness, Mapping) else {})
    except EvoMergeError:
        return None


def _differentiable(fitness: Any) -> bool:
    """Whether a section names a task whose fitness has a gradient."""
    from ...fitness import make_task

    spec = _task(fitness)
    return spec is not None and hasattr(make_task(spec), "backward")


def _smooth(part: Mapping[str, Any]) -> bool:
    """Whether the merge method of a section has a gradient."""
    method = all_methods().get(part.get("method", "task_arithmetic"))
    return method is not None and any(parameter.smooth for parameter in method.parameters)


def _gates(part: Mapping[str, Any]) -> bool:
    return part.get("scales") in (None, "gate") and part.get("scale_target") in (None, "stream")
