"""Parameter space: which genome is which merge. A weight in the search file becomes a bound here,
and a coordinate."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...checkpoints.headers import tensor_order
from ...errors import SearchError
from ...merging.parameters import Parameter
from ...merging.registry import get_method
from ...recipes.layer_groups import check_keys, classify, group_keys, has_post_norms, select_key
from ...recipes.limited_yaml import MAX_NODES
from ...recipes.recipe import Recipe
from ..evaluation.gradients import WeightSlopes
from ..file.config import SearchConfig
from ..file.sections import Range
from ..file.stages import Step
from ..optimizers.ask_tell import Start, Vector

# names of starts
SUM = "sum of the task vectors"
BASE = "the base"
ALONE = " as it is"  # the end of a name
_ROWS = 64
_MOST_RUNS = 20_000  # runs of all sources together
_MOST = MAX_NODES - 2_000  # numbers and groups: the rest of a recipe has room beside them
_DIGITS = 4  # of a number of a run of rows: there are thousands, and no score tells more


@dataclass(frozen=True)
class Coordinate:
    """Meaning of one number of a parameter-space genome.

    Attributes:
        parameter: The parameter's name.
        span: Its bounds; the genome holds the fraction of the way from low to high.
        source: Position of the source among those that take part; None for a global option.
        group: The layer group, or a tensor's name and the number of a run of its rows; None for a
            parameter that has one value for the whole model.
    """

    parameter: str
    span: Range
    source: int | None
    group: str | tuple[str, int] | None

    @property
    def key(self) -> str | None:
        """The key of the group in a recipe."""
        return self.group[0] if isinstance(self.group, tuple) else self.group


def run_length(config: SearchConfig, tensors: Mapping[str, int]) -> int:
    """Most rows of a run with ``groups: rows``, of tensors with so many rows each."""
    lengths = [config.merge.rows_per_group or _ROWS << doublings for doublings in range(15)]
    most = _MOST_RUNS // len(config.merge_sources)
    # Runs of 64 rows, or 128, 256, ...: the shortest with which all sources together have at most
    # `_MOST_RUNS` runs.
    for length in lengths:
        if sum(math.ceil(count / length) for count in tensors.values()) <= most:
            return length
    return lengths[-1]


# Genome to recipe: coordinate u in [0, 1] stands for the value low + u (high - low) of one
# parameter, of one source, in one layer group. All coordinates have the same scale, so one step
# size fits all. The order is: declared parameter, then source, then group; recipes and replays
# depend on it.
#
# Some numbers cannot change the merge: a source whose tensors equal the base's in a group has a
# task vector of 0 there. They are left out of the genome (`idle`) and written as 0. With
# `normalize` the weights are divided by their sum, so such a weight matters unless all sources are
# 0 in the group.
class ParameterSpace:
    """The parameters of a merge method: per source and layer group, or global. Every coordinate
    lies between 0 and 1.

    Attributes:
        coordinates: What each number of a genome is.
        idle: What would be numbers too, but changes nothing: groups of a source in which every task
            vector is 0.
    """

    def __init__(
        self,
        config: SearchConfig,
        layer_count: int,
        tensors: Mapping[str, int] = MappingProxyType({}),
        unchanged: Sequence[Container[str]] = (),
        *,
        step: Step | None = None,
    ) -> None:
        """Make the space.

        Args:
            config: The search.
            layer_count: Number of blocks of the merged sources.
            tensors: Names of their tensors and how many rows each has; needed for ``groups:
                tensor`` and ``rows``, and to tell what changes nothing.
            unchanged: Per merged source the names of the tensors that equal the base's.
            step: The step that will search it; the last of this space where absent.
        """
        self.config = config
        self.space = config.merge
        self.step = step or config.steps(config.spaces[0])[-1]
        self.tensors = dict(tensors)
        self.unchanged = list(unchanged)
        self.idle: list[Coordinate] = []
        self.groups = self._groups(layer_count)
        self._post_norms = has_post_norms(self.tensors)
        self._members: dict[str, list[str]] = {}
        for name in self.tensors:
            key = select_key(tuple(self._keys(self.groups)), name, self._post_norms)
            self._members.setdefault(key, []).append(name)
        self.source_count = len(config.merge_sources)
        self.fixed: dict[str, dict[str, Any]] = {"source": {}, "global": {}}
        self.coordinates: list[Coordinate] = []
        method = self.method = get_method(self.space.method)
        for scope, key in (("source", "parameters"), ("global", "options")):
            given = getattr(self.space, key)
            declared = {each.name: each for each in method.parameters if each.scope == scope}
            if unknown := sorted(given.keys() - declared.keys()):
                known = ", ".join(declared) or "none"
                raise SearchError(
                    f"merge.{key}.{unknown[0]}: {method.name} has no such parameter; it has {known}"
                )
            for name, parameter in declared.items():
                self._add(parameter, given.get(name), f"merge.{key}.{name}")
        if not self.coordinates and self.idle:
            raise SearchError("the sources equal the base: they have no change to weigh")
        if not self.coordinates:
            raise SearchError(
                f"merge.parameters: every parameter of {method.name} is fixed; give at least "
                "one a range"
            )
        self._check_size(
            len({(each.parameter, each.source, each.key) for each in self.coordinates})
        )

    def _add(self, parameter: Parameter, given: Any, where: str) -> None:
        """Make a parameter fixed or evolved. Per-source parameters that suit a search are evolved
        unless given."""
        if given is None and parameter.search is not None and parameter.grouped:
            given = Range(low=parameter.search[0], high=parameter.search[1])
        if not isinstance(given, Range):
            if given is not None:
                parameter.check(given, where)
                self.fixed[parameter.scope][parameter.name] = given
            return
        parameter.check(given.low, f"{where}.low")
        parameter.check(given.high, f"{where}.high")
        if parameter.grouped and (given.elsewhere is None) == self._is_partial:
            raise SearchError(
                f"{where}: elsewhere is the number of what is in no group; it goes with a list "
                "of groups without default, in each range"
            )
        if given.elsewhere is not None:
            parameter.check(given.elsewhere, f"{where}.elsewhere")
        sources: list[int | None] = (
            list(range(self.source_count)) if parameter.scope == "source" else [None]
        )
        groups: list[str | tuple[str, int] | None] = [None]
        if parameter.grouped and self.groups != ["default"]:
            groups = [run for group in self.groups for run in self._runs(group)]
        for coordinate in (
            Coordinate(parameter.name, given, source, group)
            for source in sources
            for group in groups
        ):
            (self.idle if self._is_idle(coordinate) else self.coordinates).append(coordinate)
            self._check_size()

    @cached_property
    def _is_partial(self) -> bool:
        """True where some tensors are in no group, and have a fixed number."""
        given = [*self.space.parameters.values(), *self.space.options.values()]
        fixed = any(isinstance(each, Range) and each.elsewhere is not None for each in given)
        groups = self.space.groups
        return fixed and isinstance(groups, list) and "default" not in groups

    def _check_size(self, keys: int = 0) -> None:
        if len(self.coordinates) + keys > _MOST:
            fewer = "more rows_per_group, or " if self.space.groups == "rows" else ""
            raise SearchError(
                f"merge.groups: more than the {_MOST} numbers and names of a recipe; take "
                f"{fewer}larger groups"
            )

    @cached_property
    def _run_length(self) -> int:
        return run_length(self.config, self.tensors)

    def _runs(self, group: str) -> list[str | tuple[str, int]]:
        """The runs of rows of a group; the group itself where it is not divided."""
        count = (
            math.ceil(self.tensors[group] / self._run_length) if self.space.groups == "rows" else 1
        )
        return [group] if count == 1 else [(group, run) for run in range(count)]

    def _keys(self, groups: list[str]) -> list[str]:
        return [*groups, "default"] if self._is_partial else groups

    def _groups(self, layer_count: int) -> list[str]:
        groups = self.space.groups
        if groups == "tensor" or groups == "rows":
            if not self.tensors:
                raise SearchError(
                    f"merge.groups: {groups} needs the tensors, which are not known here"
                )
            if groups == "rows" and get_method(self.space.method).prepare is not None:
                raise SearchError(
                    f"merge.groups: {self.space.method} looks at whole tensors; write tensor"
                )
            return sorted(self.tensors, key=tensor_order)
        if isinstance(groups, list):
            keys = dict.fromkeys(self._keys(groups), 0.0)
            check_keys(keys, layer_count, list(self.tensors) or None)
            return groups
        return group_keys(groups, layer_count)

    def _is_idle(self, coordinate: Coordinate) -> bool:
        """Tell whether nothing changes with a number: its source's task vectors are 0 in the
        group."""
        if coordinate.source is None or not self.unchanged or not self.method.task_vectors:
            return False
        inside = self.tensors if coordinate.key is None else self._members.get(coordinate.key, [])
        # with normalize, the weight of a source without a task vector scales those of the others
        sources = self.unchanged if self._normalizes else [self.unchanged[coordinate.source]]
        return all(name in names for names in sources for name in inside)

    @cached_property
    def _normalizes(self) -> bool:
        """True where the method divides by the sum of the weights."""
        defaults = {option.name: option.default for option in self.method.options}
        return bool(self.space.options.get("normalize", defaults.get("normalize", False)))

    @property
    def unmoved(self) -> list[str]:
        """Parameters with a range that have no gradient."""
        smooth = {parameter.name for parameter in self.method.parameters if parameter.smooth}
        evolved = dict.fromkeys(each.parameter for each in self.coordinates)
        return [name for name in evolved if name not in smooth]

    def notes(self) -> list[str]:
        """Say what is not evolved, and why: one line for all sources of which it is the same."""
        sources: dict[tuple[str, ...], list[str]] = {}
        for source, number in enumerate(self.config.merge_sources):
            groups = dict.fromkeys(each.key or "all" for each in self.idle if each.source == source)
            sources.setdefault(tuple(groups), []).append(self.config.source_names[number])
        sources.pop((), None)
        lines = []
        for names, labels in sources.items():
            more = f" and {len(names) - 6} more" if len(names) > 6 else ""
            lines.append(
                f"ps: nothing of {', '.join(labels)} is evolved in {', '.join(names[:6])}{more}: "
                "the tensors are the base's there"
            )
        return lines

    def start(self) -> Start:
        """Return where a search begins."""
        mean = np.array([coordinate.span.start_fraction for coordinate in self.coordinates])
        sigma = self.step.sigma or (0.04 if self.step.by == "gradient" else 1 / 6)
        candidates: dict[bytes, tuple[str, Vector]] = {}
        for name, point in (("first point", mean), *self._starts(mean).items()):
            candidates.setdefault(point.tobytes(), (name, point))
        names, points = zip(*candidates.values(), strict=True)
        tried = points if len(points) > 1 else ()
        return Start(
            mean,
            sigma,
            np.zeros(mean.size),
            np.ones(mean.size),
            tried,
            names,
            groups=self._halves(),
        )

    def _halves(self) -> NDArray[np.int64] | None:
        """Number of the half of a block, attention or MLP, of each coordinate, where these are runs
        of rows."""
        if self.space.groups != "rows":
            return None
        halves = [
            (each.parameter, each.source, classify(each.key or "", self._post_norms))
            for each in self.coordinates
        ]
        numbers = {half: number for number, half in enumerate(dict.fromkeys(halves))}
        return np.array([numbers[half] for half in halves])

    def _starts(self, mean: Vector) -> dict[str, Vector]:
        """The points of ``starts``: the mean with other weights, inside the bounds."""
        count = self.source_count
        half = (count + 1) // 2
        # far from the lower bound, where a step would be large beside a weight
        share = 1.0 if self._normalizes else 1 / half
        alone = [
            f"{self.config.source_names[number]}{ALONE}" for number in self.config.merge_sources
        ]
        weights: dict[str, dict[str, list[float]]] = {
            "average": {"uniform average": [1 / count] * count},
            "sum": {SUM: [1.0] * count},
            "sources": dict(zip(alone, np.eye(count).tolist(), strict=True)),
            "last": {"average of the last half": [0.0] * (count - half) + [share] * half},
        }
        if count == 1:  # where a search of several sources has that of another source
            weights["sources"][BASE] = [0.0]
        points: dict[str, Vector] = {}
        for start in self.space.starts:
            for name, chosen in weights[start].items():
                points[name] = mean.copy()
                for index, coordinate in enumerate(self.coordinates):
                    if coordinate.parameter == "weight" and coordinate.source is not None:
                        low = coordinate.span.low
                        # Inverse of `decode`, clipped to the bounds: u = (w - low) / (high - low).
                        share = (chosen[coordinate.source] - low) / (coordinate.span.high - low)
                        points[name][index] = np.clip(share, 0.0, 1.0)
        return points

    def price(self, active: NDArray[np.bool_]) -> float:
        """A forward pass, and a backward pass to activations and to weights."""
        return 3.0

    def slopes(self, genome: Vector, active: NDArray[np.bool_]) -> WeightSlopes:
        """Gradient request for this genome's merge weights."""
        numbers = tuple((each.parameter, each.source, each.group) for each in self.coordinates)
        return WeightSlopes(
            numbers, tuple(each.span.high - each.span.low for each in self.coordinates)
        )

    def decode(self, genome: Vector) -> Recipe:
        """The recipe of a genome."""
        options: dict[str, Any] = dict(self.fixed["global"])
        parameters: list[dict[str, Any]] = [
            dict(self.fixed["source"]) for _ in range(self.source_count)
        ]
        for coordinate, fraction in zip(self.coordinates, genome, strict=True):
            span = coordinate.span
            value = float(span.low + fraction * (span.high - span.low))
            target = options if coordinate.source is None else parameters[coordinate.source]
            if coordinate.group is None:
                target[coordinate.parameter] = value
                continue
            numbers = target.setdefault(coordinate.parameter, {})
            if isinstance(coordinate.group, tuple):
                numbers.setdefault(coordinate.key, []).append(round(value, _DIGITS))
            else:
                numbers[coordinate.group] = value
                if span.elsewhere is not None:
                    numbers["default"] = span.elsewhere
        for coordinate in self.idle:
            assert coordinate.source is not None  # options are not idle
            target = parameters[coordinate.source]
            if coordinate.group is None:
                target[coordinate.parameter] = 0.0
            else:
                numbers = target.setdefault(coordinate.parameter, {})
                numbers.setdefault("default", coordinate.span.elsewhere or 0.0)
        return self.config.recipe(self.config.merge.part(options=options, parameters=parameters))
