"""The search spaces: which genome is which recipe. A weight in the search file becomes a bound here, and a coordinate."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.headers import tensor_order
from ..errors import SearchError
from ..merging.parameters import Parameter
from ..merging.registry import get_method
from ..recipes.layer_groups import Grouping, check_keys, select_key
from ..recipes.recipe import FlowPart, MergePart, ParameterValue, Recipe, SourceRef
from ..routing.layout import FlowGenome, Layout
from .config import FlowSpaceConfig, Range, SearchConfig, Stage
from .optimizer import Start, Vector
from .slopes import GateSlopes, Slopes, WeightSlopes

_WAITING = 0.05  # gates of slots that are off at the start of a gradient search: half of what puts them on


class Space(Protocol):
    """A set of recipes, and the vectors that stand for them."""

    def start(self) -> Start:
        """Where a search begins: mean, step size and bounds of the genome."""

    def decode(self, genome: Vector) -> Recipe:
        """The recipe of a genome; raises `EvoMergeError` where it has none."""

    def notes(self) -> list[str]:
        """What the user should know of the space, one line each."""

    def price(self, active: NDArray[np.bool_]) -> float:
        """What a gradient in the active coordinates costs, in scores of the same examples."""

    def slopes(self, genome: Vector, active: NDArray[np.bool_]) -> Slopes:
        """Of what the gradient at a genome is taken."""


@dataclass(frozen=True)
class SourceSummary:
    """What the spaces must know of the sources.

    Attributes:
        layers: Number of layers of each source.
        tensors: Names of the weights of the sources that are merged.
        unchanged: Per source that is merged the names of the tensors that equal the base's; empty where there is no base.
    """

    layers: Sequence[int]
    tensors: Sequence[str] = ()
    unchanged: Sequence[Container[str]] = ()


@dataclass(frozen=True)
class Coordinate:
    """What one number of a parameter-space genome is.

    Attributes:
        parameter: The parameter's name.
        span: Its bounds; the genome holds the fraction of the way from low to high.
        source: Position of the source among those that take part; None for a global option.
        group: The layer group; None for a parameter that has one value for the whole model.
    """

    parameter: str
    span: Range
    source: int | None
    group: str | None


class ParameterSpace:
    """The parameters of a merge method: per source and layer group, or global. Every coordinate lies between 0 and 1.

    Attributes:
        coordinates: What each number of a genome is.
        idle: What would be numbers too, but changes nothing: groups of a source in which every task vector is 0.
    """

    def __init__(
        self, config: SearchConfig, layer_count: int, tensors: Sequence[str] = (), unchanged: Sequence[Container[str]] = ()
    ) -> None:
        """Make the space.

        Args:
            config: The search.
            layer_count: Number of blocks of the merged sources.
            tensors: Names of their tensors; needed for ``groups: tensor`` and to tell what changes nothing.
            unchanged: Per merged source the names of the tensors that equal the base's.
        """
        self.config, self.space = config, config.ps
        self.tensors, self.unchanged = list(tensors), list(unchanged)
        self.idle: list[Coordinate] = []
        self.groups = self._groups(layer_count)
        self._members: dict[str, list[str]] = {}
        for name in self.tensors:
            self._members.setdefault(select_key(tuple(self.groups), name), []).append(name)
        self.source_count = len(config.ps_sources)
        self.fixed: dict[str, dict[str, Any]] = {"source": {}, "global": {}}
        self.coordinates: list[Coordinate] = []
        method = self.method = get_method(self.space.method)
        given: dict[str, Mapping[str, Any]] = {"source": self.space.parameters, "global": self.space.options}
        for scope, key in (("source", "parameters"), ("global", "options")):
            declared = [parameter for parameter in method.parameters if parameter.scope == scope]
            if unknown := sorted(set(given[scope]) - {parameter.name for parameter in declared}):
                known = ", ".join(parameter.name for parameter in declared) or "none"
                raise SearchError(f"ps.{key}.{unknown[0]}: {method.name} has no such parameter; it has {known}")
            for parameter in declared:
                self._add(parameter, given[scope].get(parameter.name))
        if not self.coordinates:
            raise SearchError(f"ps.parameters: every parameter of {method.name} is fixed; give at least one a range")

    def _add(self, parameter: Parameter, given: Any) -> None:
        """Make a parameter fixed or evolved. Per-source parameters that suit a search are evolved unless given."""
        if given is None and parameter.search is not None and parameter.grouped:
            given = Range(low=parameter.search[0], high=parameter.search[1])
        where = f"ps.{'parameters' if parameter.scope == 'source' else 'options'}.{parameter.name}"
        if not isinstance(given, Range):
            if given is not None:
                parameter.check(given, where)
                self.fixed[parameter.scope][parameter.name] = given
            return
        parameter.check(given.low, f"{where}.low")
        parameter.check(given.high, f"{where}.high")
        sources: list[int | None] = list(range(self.source_count)) if parameter.scope == "source" else [None]
        groups: list[str | None] = list(self.groups) if parameter.grouped and self.groups != ["default"] else [None]
        for coordinate in (Coordinate(parameter.name, given, source, group) for source in sources for group in groups):
            (self.idle if self._is_idle(coordinate) else self.coordinates).append(coordinate)

    def _groups(self, layer_count: int) -> list[str]:
        """The keys of the groups, in the order of the layers or as the file has them."""
        if self.space.groups == "tensor":
            if not self.tensors:
                raise SearchError("ps.groups: tensor needs the names of the tensors, which are not known here")
            return sorted(self.tensors, key=tensor_order)
        if self.space.groups is not None:
            check_keys(dict.fromkeys(self.space.groups, 0.0), layer_count, self.tensors or None)
            return self.space.groups
        grouping = Grouping(self.space.blocks_per_group, self.space.split_attention, layer_count)
        return grouping.keys

    def _is_idle(self, coordinate: Coordinate) -> bool:
        """Whether nothing changes with a number: its source's task vectors are 0 in the group."""
        if coordinate.source is None or not self.unchanged or not self.method.task_vectors:
            return False
        inside = self.tensors if coordinate.group is None else self._members.get(coordinate.group, [])
        # with normalize, the weight of a source without a task vector scales those of the others
        defaults = {option.name: option.default for option in self.method.options}
        everyone = self.space.options.get("normalize", defaults.get("normalize", False))
        sources = self.unchanged if everyone else [self.unchanged[coordinate.source]]
        return all(name in names for names in sources for name in inside)

    def notes(self) -> list[str]:
        """What is not evolved, and why: one line per source."""
        lines = []
        for source, number in enumerate(self.config.ps_sources):
            if groups := list(dict.fromkeys(each.group or "all" for each in self.idle if each.source == source)):
                shown = ", ".join(groups[:6]) + (f" and {len(groups) - 6} more" if len(groups) > 6 else "")
                label = source_label(self.config.sources[number])
                lines.append(f"ps: nothing of {label} is evolved in {shown}: its tensors are the base's there")
        return lines

    def start(self) -> Start:
        """Where a search begins."""
        mean = np.array([coordinate.span.start_fraction for coordinate in self.coordinates])
        sigma = self.space.optimizer.sigma or (0.04 if self.space.optimizer.algorithm == "gradient" else 1 / 6)
        return Start(mean, sigma, np.zeros(mean.size), np.ones(mean.size))

    def price(self, active: NDArray[np.bool_]) -> float:
        """A forward pass, and a backward pass to activations and to weights."""
        return 3.0

    def slopes(self, genome: Vector, active: NDArray[np.bool_]) -> Slopes:
        """Those of the numbers of the recipe."""
        numbers = tuple((each.parameter, each.source, each.group) for each in self.coordinates)
        return WeightSlopes(numbers, tuple(each.span.high - each.span.low for each in self.coordinates))

    def decode(self, genome: Vector) -> Recipe:
        """The recipe of a genome."""
        options: dict[str, Any] = dict(self.fixed["global"])
        parameters: list[dict[str, Any]] = [dict(self.fixed["source"]) for _ in range(self.source_count)]
        for coordinate, fraction in zip(self.coordinates, genome, strict=True):
            span = coordinate.span
            value = float(span.low + fraction * (span.high - span.low))
            target = options if coordinate.source is None else parameters[coordinate.source]
            if coordinate.group is None:
                target[coordinate.parameter] = value
            else:
                target.setdefault(coordinate.parameter, {})[coordinate.group] = value
        for coordinate in self.idle:
            assert coordinate.source is not None  # options are not idle
            if coordinate.group is None:
                parameters[coordinate.source][coordinate.parameter] = 0.0
            else:
                parameters[coordinate.source].setdefault(coordinate.parameter, {}).setdefault("default", 0.0)
        part = MergePart(method=self.space.method, options=options, sources=self.space.sources, parameters=parameters)
        return _recipe(self.config, merge=part)


class FlowSpace:
    """Paths through the layers of the sources, and of the merged model where a merge came first."""

    def __init__(self, config: SearchConfig, layers: Sequence[int], merge: MergePart | None = None) -> None:
        """Make the space.

        Args:
            config: The search.
            layers: Number of layers of each source, and of the merged model at the end where there is one.
            merge: The parameter-space part of every recipe of this space: the winner of the stage before.
        """
        self.config, self.merge = config, merge
        self.space: FlowSpaceConfig = config.dfs
        merged = [len(config.sources)] if merge is not None else []
        order = self.space.order or [*merged, *range(len(config.sources))]
        self.genome = FlowGenome(
            Layout(tuple(order), tuple(layers[source] for source in order), self.space.repetitions),
            self.space.encoding,
            self.space.scale_bounds,
            self.space.max_hops,
            self.space.initialisation,
            self.space.ends or ("free" if self.space.encoding == "gate" else "paper"),
        )

    def start(self) -> Start:
        """Where a search begins; one over gates at the best of the sources as they are and of their splices."""
        gates, gradient = self.space.encoding == "gate", self.space.optimizer.algorithm == "gradient"
        sigma = self.space.optimizer.sigma or (0.2 if gates and not gradient else 0.1)
        lower, upper = self.genome.bounds()
        if not gates:
            return Start(self.genome.start(sigma), sigma, lower, upper)
        other = _WAITING if gradient else -0.5 * sigma
        candidates = tuple(self.genome.along(slots, other) for slots in self.genome.splices())
        mean = candidates[0] if gradient else self.genome.start(sigma)
        return Start(mean, sigma, np.zeros(mean.size) if gradient else lower, upper, candidates)

    def price(self, active: NDArray[np.bool_]) -> float:
        """A forward pass over the slots in play, and a backward pass to activations alone."""
        return 2.0 * float(active.sum()) / self.genome.layout.layers[0]

    def slopes(self, genome: Vector, active: NDArray[np.bool_]) -> Slopes:
        """Those of the gates."""
        gates = self.genome.gates(genome)
        return GateSlopes(tuple(self.genome.layout.slots), tuple(gates.tolist()), tuple(active.tolist()))

    def decode(self, genome: Vector) -> Recipe:
        """The recipe of a genome."""
        path = self.genome.decode(genome)
        scales = None if all(scale == 1 for scale in path.scales) else path.scales
        part = FlowPart(
            path=path.as_text(),
            scales=scales,
            scale_target=self.space.scale_target,
            embedding_source=self.genome.layout.order[0],
        )
        return _recipe(self.config, merge=self.merge, flow=part)

    def notes(self) -> list[str]:
        """Nothing: every number of the space matters."""
        return []


def make_space(config: SearchConfig, stage: Stage, sources: SourceSummary, merge: MergePart | None = None) -> Space:
    """The space that a stage searches; a random search has that of the first stage.

    Args:
        config: The search.
        stage: Which of its stages.
        sources: What is known of the sources.
        merge: The merge that a second stage builds on: the winner of the first.
    """
    depth = sources.layers[config.ps_sources[0]]
    if (config.stages[0] if stage == "random" else stage) == "ps":
        return ParameterSpace(config, depth, sources.tensors, sources.unchanged)
    return FlowSpace(config, sources.layers if merge is None else [*sources.layers, depth], merge)


def uniform_average(config: SearchConfig) -> Recipe:
    """The plain average of the sources: what people try first."""
    parameters: list[dict[str, ParameterValue]] = [{"weight": 1.0} for _ in config.sources]
    return _recipe(config, merge=MergePart(method="linear", parameters=parameters))


def source_label(ref: SourceRef) -> str:
    """A short name for tables and plots."""
    return ref.model.rstrip("/").rsplit("/", 1)[-1]


def _recipe(config: SearchConfig, merge: MergePart | None = None, flow: FlowPart | None = None) -> Recipe:
    return Recipe(sources=config.sources, base=config.base, merge=merge, flow=flow, dtype=config.dtype, seed=config.seed)
