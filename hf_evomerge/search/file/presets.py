"""What a search file leaves unsaid, filled in by a preset, or by a task that knows its data. What the file says stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import EvoMergeError

_QUICK = 48  # scores of the search examples, all spaces together
_FEW_GROUPS = 3  # for a search without a gradient, for which every number costs


def filled(data: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a search file with the preset that it names; others as they are.

    ``quick`` spends 48 scores of the search examples: by gradient, with a weight for each tensor and a gate for each slot,
    where the fitness and the merge method have one; by CMA-ES with three groups of blocks where not. PS begins at the best of
    its own start, the uniform average and MetaGPT's closed form.
    """
    sections = dict(data)
    _set_algorithm(sections, "dfs", "sweep", where=lambda part: part.get("repeat") is not None)
    spaces = ["ps", "dfs"] if sections.get("space") == "hybrid" else [str(sections.get("space"))]
    for name in spaces if sections.get("objectives") else ():
        _set_algorithm(sections, name, "nsga2", where=lambda part: name in ("ps", "dfs"))  # noqa: B023
    if sections.get("preset") != "quick":
        return sections
    for name in spaces:
        part = sections.get(name) or {}
        if name not in ("ps", "dfs") or not isinstance(part, Mapping):
            continue  # is refused with the rest
        gradient = not sections.get("objectives") and _differentiable(sections.get("fitness"))
        gradient = gradient and (_smooth(part) if name == "ps" else _gates(part))
        usual: dict[str, Any] = {}
        if name == "ps":
            if not {"groups", "blocks_per_group", "split_attention"} & part.keys():
                usual["groups"] = "tensor" if gradient else _FEW_GROUPS
            usual["starts"] = ["average", *(["metagpt"] if sections.get("base") is not None else [])]
        optimizer = {"algorithm": "gradient" if gradient else "cma", "evaluations": _QUICK // len(spaces)}
        given = part.get("optimizer") or {}
        merged = {**optimizer, **given} if isinstance(given, Mapping) else given
        sections[name] = {**usual, **part, "optimizer": merged}
    return sections


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
    from ...fitness import TaskSpec, parse_task

    splits = sections.get("data")
    if not isinstance(splits, Mapping):
        return dict(sections)
    try:
        spec = fitness if isinstance(fitness, TaskSpec) else parse_task(fitness if isinstance(fitness, Mapping) else {})
    except EvoMergeError:  # is complained about with the rest
        return dict(sections)
    data = {split: spec.complete(given) if isinstance(given, Mapping) else given for split, given in splits.items()}
    return {**sections, "data": data}


def _differentiable(fitness: Any) -> bool:
    """Whether a section names a task whose fitness has a gradient."""
    from ...fitness import get_task, task_names

    name = fitness.get("task") if isinstance(fitness, Mapping) else getattr(fitness, "task", None)
    return name in task_names() and hasattr(get_task(str(name)), "backward")


def _smooth(part: Mapping[str, Any]) -> bool:
    """Whether the merge method of a section has a gradient."""
    from ...merging.registry import all_methods

    method = all_methods().get(part.get("method", "task_arithmetic"))
    return method is not None and any(parameter.smooth for parameter in method.parameters)


def _gates(part: Mapping[str, Any]) -> bool:
    return part.get("scales") in (None, "gate") and part.get("scale_target") in (None, "stream")
