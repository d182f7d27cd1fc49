"""The search file: what is evolved, how, on which data. Read from YAML; every key is checked before anything is loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ..checkpoints.shards import parse_size
from ..errors import EvoMergeError, SearchError, shown
from ..fitness.data import DataSpec
from ..fitness.registry import AnyTaskSpec, TaskSpec
from ..recipes.recipe import Dtype, FlowPart, MergePart, Recipe, ScaleTarget, SourceRef
from ..recipes.strict_yaml import StrictModel, dump_yaml, load_yaml
from ..routing.layout import Ends, Initialisation, ScaleEncoding
from .optimizer import Algorithm, Restarts
from .presets import filled

SpaceName = Literal["ps", "dfs", "joint"]
Stage = Literal["ps-first", "ps", "dfs-first", "dfs", "joint", "random"]
STAGES: dict[str, str] = {
    "ps-first": "parameter space, first",
    "ps": "parameter space",
    "dfs-first": "data flow space, first",
    "dfs": "data flow space",
    "joint": "weights and path together",
    "random": "random search",
}

_SPACES: dict[str, tuple[SpaceName, ...]] = {"ps": ("ps",), "dfs": ("dfs",), "hybrid": ("ps", "dfs")}
_FIRST: dict[str, Stage] = {"ps": "ps-first", "dfs": "dfs-first"}

_BATCH = 16  # examples of a gradient's step, and of the first generations, where the file does not say it
Baseline = Literal["average", "random", "lora"]
SPLITS = ("search", "validation", "test")
RETAINED = "retain:"  # begins the names of splits whose examples a search does not look at


class Range(StrictModel):
    """The bounds of one evolved parameter, and where the search begins.

    Attributes:
        low, high: Bounds, in the parameter's own unit.
        start: First mean; the middle where absent.
    """

    low: float
    high: float
    start: float | None = None

    @model_validator(mode="after")
    def _check_order(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.start is not None and not self.low <= self.start <= self.high:
            raise ValueError(f"start {self.start} is outside {self.low} to {self.high}")
        return self

    @property
    def start_fraction(self) -> float:
        """Where the search begins, as a fraction of the way from low to high."""
        return 0.5 if self.start is None else (self.start - self.low) / (self.high - self.low)


class OptimizerConfig(StrictModel):
    """How genomes are proposed, and how many.

    Attributes:
        algorithm: ``cma``, ``random``, or ``gradient`` (Adam on batches) where the fitness has a gradient.
        population: Candidates per generation; 4 + floor(3 ln n) where absent.
        sigma: First step size. For PS as a fraction of each parameter's range, 1/6 by default (``gradient``: 0.04); for DFS in
            the units of the genome, 0.1 by default (gates by evolution: 0.2); 0.04 by default after a ``first``.
        evaluations: Budget in scores of all search examples. A score of a batch counts as its share, a gradient of merge
            weights three times as much, one of gates twice as much for as many hops as the first source has layers.
        minutes: Budget in minutes; no generation starts after it. Whichever budget ends first.
        restarts: ``none`` or ``ipop``.
    """

    algorithm: Algorithm = "cma"
    population: int | None = Field(default=None, ge=2)
    sigma: float | None = Field(default=None, gt=0)
    evaluations: int = Field(default=1000, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    restarts: Restarts = "none"


class FirstConfig(OptimizerConfig):
    """An optimizer that runs before a space's own, which then begins at its winner.

    Attributes:
        algorithm: As for any; ``gradient`` by default.
        fitness: What this one climbs; the search's own fitness where absent.
    """

    algorithm: Algorithm = "gradient"
    fitness: AnyTaskSpec | None = None


class ParameterSpaceConfig(StrictModel):
    """The parameter-space search (arXiv:2403.13187).

    Attributes:
        method: Name of a merge method.
        options: The method's global parameters: a value (fixed), or for a number a range (evolved).
        sources: Which sources take part, as indices; all by default.
        blocks_per_group: Blocks that share one set of parameters: a number, ``all`` (one group for all blocks, beside
            embeddings and head) or ``model`` (one group for everything, the paper's reported setting).
        split_attention: Whether attention has parameters of its own, apart from the MLP.
        groups: In place of these two: ``tensor`` (one set of parameters for each tensor), or a list of keys as a recipe has
            them: layer groups, names of tensors, name patterns, ``default``; or into how many groups the blocks are divided.
        parameters: Per per-source parameter: a number (fixed), a range (evolved), or absent (evolved within the method's own
            bounds).
        optimizer: How to search.
    """

    method: str = "task_arithmetic"
    options: dict[str, bool | float | str | Range] = Field(default_factory=dict)
    sources: list[int] | None = None
    blocks_per_group: int | Literal["all", "model"] = 1
    split_attention: bool = False
    groups: Literal["tensor"] | Annotated[int, Field(ge=1)] | list[str] | None = None
    parameters: dict[str, float | Range] = Field(default_factory=dict)
    starts: list[Literal["average", "metagpt"]] = Field(default_factory=list)
    first: FirstConfig | None = None
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)

    @model_validator(mode="after")
    def _check_groups(self) -> ParameterSpaceConfig:
        if self.groups is not None and (self.blocks_per_group, self.split_attention) != (1, False):  # a study states defaults
            raise ValueError("groups: stands in the place of blocks_per_group and split_attention; leave those out")
        return self


class FlowSpaceConfig(StrictModel):
    """The data-flow-space search (arXiv:2403.13187).

    Attributes:
        order: The sources in the order their layers are laid out; the first is the paper's A. All, in order, by default. In a
            hybrid search the merged model has the number of sources as its index, and comes first by default.
        terms: Layers of a hop: 1, or as many as there are sources in `order`: the layers of one depth then run side by side on
            the same stream, and their gates are the weights of their sum.
        repetitions: How often the layout is repeated (the paper's r); 2, and 1 where hops have several terms.
        scales: Scale encoding: ``gate`` (one number per slot in place of indicator and scale), ``slot``, ``matrix``,
            ``network`` or ``none``. ``gate`` by default; ``slot`` with ``mlp_delta``.
        scale_bounds: The least and the greatest scale; gates do not look at it.
        ends: ``paper``: every path begins with the first and ends with the last layer of A; ``free``: these are slots like all
            others. ``free`` by default with gates, which alone can have it.
        scale_target: What a scale multiplies: ``stream`` or ``mlp_delta``.
        initialisation: ``near_identity`` or ``paper``.
        max_hops: The longest path.
        first, optimizer: As for `ParameterSpaceConfig`.
    """

    order: list[int] | None = None
    terms: int = Field(default=1, ge=1)
    repetitions: int | None = Field(default=None, ge=1, le=64)
    scales: ScaleEncoding | None = None
    scale_bounds: tuple[float, float] = (0.4, 1.5)
    scale_target: ScaleTarget = "stream"
    initialisation: Initialisation = "near_identity"
    ends: Ends | None = None
    max_hops: int = Field(default=128, ge=2, le=4096)
    first: FirstConfig | None = None
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)

    @field_validator("scale_bounds")
    @classmethod
    def _one_inside(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < 1 < value[1]:
            raise ValueError(f"1 is not between {value[0]} and {value[1]}, and a search starts with all scales at 1")
        return value

    @property
    def encoding(self) -> ScaleEncoding:
        """The scale encoding, where the file does not say it too."""
        return self.scales or ("gate" if self.scale_target == "stream" else "slot")

    @property
    def passes(self) -> int:
        """The repetitions of the layout, where the file does not say it too."""
        return self.repetitions or (2 if self.terms == 1 else 1)

    @model_validator(mode="after")
    def _check_gates(self) -> FlowSpaceConfig:
        gates = self.encoding == "gate"
        if gates and self.scale_target != "stream":
            raise ValueError("scales: gate is a factor of the stream; write scale_target: stream, or scales: slot")
        if self.terms > 1 and (not gates or self.ends == "paper"):
            raise ValueError(f"terms: {self.terms} go with gates and free ends; write scales: gate, and leave ends out")
        if not gates and self.ends == "free":
            raise ValueError(f"ends: free goes with gates; with scales: {self.encoding} leave it out")
        for key, optimizer in (("first", self.first), ("optimizer", self.optimizer)):
            if not gates and optimizer is not None and optimizer.algorithm == "gradient":
                raise ValueError(f"{key}.algorithm: gradient goes with gates; write scales: gate (found {self.encoding})")
        return self


class LimitsConfig(StrictModel):
    """What one evaluation may take; a trial beyond it has failed. In worker processes only.

    Attributes:
        seconds: Time, without that for loading models; ten times what the slowest parent takes where absent, and 60 at least.
        memory: Memory of a worker, such as ``4GB``, all models included; on Linux. None where absent.
    """

    seconds: float | None = Field(default=None, gt=0)
    memory: str | None = None

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, value: str | None) -> str | None:
        try:
            parse_size(value or "1GB")
        except EvoMergeError as cause:
            raise ValueError(f"cannot read {shown(value)}; write 4GB or 500MB") from cause
        return value


class SearchConfig(StrictModel):
    """One search, whole.

    Attributes:
        preset: ``quick``: what the file leaves unsaid is filled in for a first look, at 48 scores of the search examples.
        space: ``ps``, ``dfs`` or ``hybrid`` (PS, then DFS over its winner and the sources).
        joint: Whether a hybrid search by gradient moves weights and gates together, in one stage with the budget of both.
        sources, base: As in a recipe.
        dtype: The dtype that candidates are evaluated in and the winner is saved in; the first source's where absent.
        seed: Seed of the optimizer, of DARE's masks and of the batches.
        ps, dfs: The two spaces; a space that takes part and is absent has its defaults.
        fitness: The task and its settings; see ``docs/fitness.md``.
        data: Where examples come from, per split. ``search`` is what candidates are scored on; the best are scored again on
            ``validation`` before a winner is named; ``test`` is touched once, at the end.
        retain: More data, by name, that the result may not forget, such as the sources' own tasks: every model of the table of
            results is scored on it too. Nothing is chosen by it.
        batch: Number of search examples per generation, drawn anew for each, or ``all``. Where absent 16, which without a
            gradient doubles after every 100 generations, up to half of the examples. A random search has all.
        finalists: How many of the best trials are scored on the validation split.
        baselines: What the result is compared with, beside base and sources: the plain ``average``; a ``random`` search of the
            same budget, in the space of the first stage; ``lora`` fine-tunes of the best parent and of the average, on the
            search examples at the same cost (extra ``lora``).
        threads: CPU threads per evaluation. Part of the study: another number may change the last bits of a score.
        limits: What one evaluation may take.
        device: Where candidates are evaluated, such as ``cpu`` or ``cuda:0``.
        gradient_checkpointing: Whether the backward passes of ``gradient`` compute each layer's activations anew: the memory of
            one layer, and a third more time.
    """

    preset: Literal["quick"] | None = None
    space: Literal["ps", "dfs", "hybrid"]
    joint: bool = False
    sources: list[SourceRef] = Field(min_length=2)
    base: SourceRef | None = None
    dtype: Dtype | None = None
    seed: int = Field(default=0, ge=0)
    ps: ParameterSpaceConfig = Field(default_factory=ParameterSpaceConfig)
    dfs: FlowSpaceConfig = Field(default_factory=FlowSpaceConfig)
    fitness: AnyTaskSpec
    data: dict[Literal["search", "validation", "test"], DataSpec] = Field(default_factory=dict)
    retain: dict[str, DataSpec] = Field(default_factory=dict)
    batch: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    finalists: int = Field(default=8, ge=1)
    baselines: tuple[Baseline, ...] = ("average",)
    threads: int = Field(default=1, ge=1)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    device: str = "cpu"
    gradient_checkpointing: bool = False

    @property
    def splits(self) -> dict[str, DataSpec]:
        """Where the examples of each split come from, the retained ones among them."""
        retained = {f"{RETAINED}{name}": spec for name, spec in self.retain.items()}
        return {**{str(split): spec for split, spec in self.data.items()}, **retained}

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        return filled(data) if isinstance(data, Mapping) else data

    @model_validator(mode="before")
    @classmethod
    def _is_search(cls, data: Any) -> Any:
        given = data.keys() if isinstance(data, dict) and "space" not in data else set()
        if given & {"merge", "flow", "merge_method"}:
            raise ValueError("this is a recipe, not a search file; build it with `hf-evomerge merge FILE --out FOLDER`")
        return data

    @model_validator(mode="after")
    def _check_indices(self) -> SearchConfig:
        count = len(self.sources)
        for key, indices, limit in (
            ("ps.sources", self.ps.sources, count),
            ("dfs.order", self.dfs.order, count + (self.space == "hybrid")),
        ):
            if indices is not None and (
                not indices or len(set(indices)) != len(indices) or not set(indices) <= set(range(limit))
            ):
                raise ValueError(f"{key}: {indices} must be distinct numbers from 0 to {limit - 1}")
        wanted = len(self.dfs.order or self.sources) + (self.space == "hybrid" and self.dfs.order is None)
        if self.space != "ps" and self.dfs.terms not in (1, wanted):
            raise ValueError(f"dfs.terms: a hop has a layer of every source that is laid out, which are {wanted}, or of one")
        if "metagpt" in self.ps.starts and self.base is None:
            raise ValueError("ps.starts: metagpt is made of task vectors; give a base, or leave it out")
        return self

    @model_validator(mode="after")
    def _check_joint(self) -> SearchConfig:
        by_gradient = self.ps.optimizer.algorithm == self.dfs.optimizer.algorithm == "gradient"
        if self.joint and not (self.space == "hybrid" and by_gradient):
            raise ValueError(
                "joint: moves weights and gates by their gradient; write space: hybrid, and optimizer: {algorithm: gradient} "
                f"under ps and dfs (found {self.space}, {self.ps.optimizer.algorithm}, {self.dfs.optimizer.algorithm})"
            )
        if self.joint and self.dfs.order is not None and len(self.sources) not in self.dfs.order:
            raise ValueError(
                f"joint: dfs.order {self.dfs.order} is without the merged model, which has number {len(self.sources)}"
            )
        if self.joint and (self.ps.first is not None or self.dfs.first is not None):
            raise ValueError("joint: there is one stage, and none before it; leave first out under ps and dfs")
        return self

    @property
    def stages(self) -> list[Stage]:
        """The stages in the order they run."""
        stages: list[Stage] = []
        for name in self.spaces:
            if self.part(name).first is not None:
                stages.append(_FIRST[name])
            stages.append(name)
        return [*stages, "random"] if "random" in self.baselines else stages

    @property
    def spaces(self) -> tuple[SpaceName, ...]:
        """What is searched, one after the other."""
        return ("joint",) if self.joint else _SPACES[self.space]

    def part(self, name: SpaceName) -> ParameterSpaceConfig | FlowSpaceConfig:
        """The section of a space; of both together, that of parameter space."""
        return self.dfs if name == "dfs" else self.ps

    def space_of(self, stage: Stage) -> SpaceName:
        """What a stage searches; a random search has the space of the first stage."""
        if stage == "random":
            return self.spaces[0]
        return "joint" if stage == "joint" else "ps" if stage in ("ps", "ps-first") else "dfs"

    def first_of(self, stage: Stage) -> Stage | None:
        """The stage at whose winner a stage begins, if it does."""
        first = _FIRST.get(stage)
        return first if first in self.stages else None

    def fitness_of(self, stage: Stage) -> TaskSpec | None:
        """The fitness of a stage, where it is not that of the search."""
        optimizer = self.optimizer(stage)
        return optimizer.fitness if isinstance(optimizer, FirstConfig) else None

    @property
    def ps_sources(self) -> list[int]:
        """The sources that a PS search merges, as indices."""
        return list(range(len(self.sources))) if self.ps.sources is None else self.ps.sources

    def optimizer(self, stage: Stage) -> OptimizerConfig:
        """The settings of a stage's optimizer; a random search has those of the first space."""
        part = self.part(self.space_of(stage))
        return part.first if part.first is not None and stage in _FIRST.values() else part.optimizer

    def batch_sizes(self, stage: Stage, examples: int) -> tuple[int, ...]:
        """How many of so many examples a generation of a stage is scored on: one size after the other, see `GROWTH`."""
        algorithm = self.optimizer(stage).algorithm
        if self.batch == "all" or stage == "random" or algorithm == "random":
            return (examples,)
        if self.batch is not None or algorithm == "gradient":
            return (min(examples, self.batch or _BATCH),)
        sizes = [min(examples, _BATCH)]
        while 4 * sizes[-1] <= examples:
            sizes.append(2 * sizes[-1])
        return tuple(sizes)

    def budget(self, stage: Stage) -> tuple[int, float]:
        """Evaluations and minutes (infinite where unbounded) of a stage.

        A random search has those of all others together, and a stage that searches both spaces those of both.
        """
        counted = [other for other in self.stages if other != "random"] if stage == "random" else [stage]
        budgets = [self.ps.optimizer, self.dfs.optimizer] if self.joint else [self.optimizer(other) for other in counted]
        minutes = [math.inf if budget.minutes is None else budget.minutes for budget in budgets]
        return sum(budget.evaluations for budget in budgets), sum(minutes)

    def recipe(self, merge: MergePart | None = None, flow: FlowPart | None = None) -> Recipe:
        """The recipe of a candidate: these parts, of the search's sources."""
        return Recipe(sources=self.sources, base=self.base, merge=merge, flow=flow, dtype=self.dtype, seed=self.seed)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the search to a YAML file."""
        Path(file).write_text(dump_yaml(self), encoding="utf-8")

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> SearchConfig:
        """Read a search file; raises `SearchError` with the keys that are wrong."""
        return load_yaml(cls, file, SearchError)


def source_label(ref: SourceRef) -> str:
    """A short name for tables and plots."""
    return ref.label
