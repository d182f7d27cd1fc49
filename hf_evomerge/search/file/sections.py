"""The sections of a search file: the two spaces, their optimizers, and limits. The file as a whole is in ``config.py``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ...checkpoints.shards import parse_size
from ...errors import EvoMergeError, shown
from ...fitness.registry import AnyTaskSpec
from ...recipes.layer_path import MAX_HOPS
from ...recipes.recipe import ScaleTarget
from ...recipes.strict_yaml import Count, Index, Number, Positive, StrictModel
from ...routing.layout import Ends, Initialisation, ScaleEncoding
from ..optimizers.ask_tell import Algorithm, Restarts


class Range(StrictModel):
    """The bounds of one evolved parameter, and where the search begins.

    Attributes:
        low, high: Bounds, in the parameter's own unit.
        start: First mean; the middle where absent.
    """

    low: Number
    high: Number
    start: Number | None = None

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
        algorithm: ``cma``, ``random``, ``gradient`` (Adam on batches) where the fitness has a gradient, or ``sweep`` (every
            candidate in turn) with ``dfs.repeat``, whose default it is, and ``dfs.prune``. ``nsga2`` where there are several
            objectives, and there by default.
        population: Candidates per generation; 4 + floor(3 ln n) where absent, and twice that for ``nsga2``.
        sigma: First step size. For PS as a fraction of each parameter's range, 1/6 by default (``gradient``: 0.04); for DFS in
            the units of the genome, 0.1 by default (gates by evolution: 0.2); 0.04 by default after a ``first``.
        evaluations: Budget in scores of all search examples. A score of a batch counts as its share, a gradient of merge
            weights three times as much, one of gates twice as much for as many hops as the first source has layers.
        minutes: Budget in minutes; no generation starts after it. Whichever budget ends first.
        batch: In place of the search's own ``batch``.
        restarts: ``none`` or ``ipop``.
        patience: The stage ends when so many generations were on average no better than as many before them; with ``cma``.
    """

    algorithm: Algorithm = "cma"
    population: Annotated[Count, Field(ge=2, le=10_000)] | None = None
    sigma: Positive | None = None
    evaluations: Count = 1000
    minutes: Positive | None = None
    batch: Count | Literal["all"] | None = None
    restarts: Restarts = "none"
    patience: Count | None = None

    @model_validator(mode="after")
    def _check_patience(self) -> OptimizerConfig:
        if self.patience is not None and self.algorithm != "cma":
            raise ValueError(f"patience: goes with algorithm: cma, whose generations get better (found {self.algorithm})")
        return self


class RepeatConfig(StrictModel):
    """Paths that run one block of layers several times, or not at all.

    Attributes:
        longest: Layers of the longest block.
        times: How often a block runs, in all: each of these is tried; 0 leaves it out.
    """

    longest: Annotated[Count, Field(le=MAX_HOPS)] = 8
    times: tuple[Annotated[Index, Field(le=64)], ...] = Field(default=(2,), min_length=1)

    @field_validator("times")
    @classmethod
    def _changes_something(cls, times: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(times)) != len(times) or 1 in times:
            raise ValueError("distinct numbers: 2 or more, or 0; once is what the model does as it is")
        return times


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
        groups: In place of these two: ``tensor`` (one set of parameters for each tensor), ``rows`` (one for each run of its
            output rows), or a list of keys as a recipe has them: layer groups, names of tensors, name patterns, ``default``; or
            into how many groups the blocks are divided.
        rows_per_group: Output rows of a run with ``groups: rows``; where absent 64, or so many times more that there are no
            more than 10,000 runs. With as many rows as a head has, a run of a query, key or value projection is a head.
        router: Of a mixture of experts, the source whose routers candidates have, as an index; the first that takes part where
            absent. ``merge``: they are merged as everything else.
        parameters: Per per-source parameter: a number (fixed), a range (evolved), or absent (evolved within the method's own
            bounds).
        starts: Points that are tried on one batch before the search, which begins at the best of them and of its own start:
            ``average`` (all weights 1 / sources), ``sum`` (all weights 1), ``sources`` (weight 1 for one, 0 for the others),
            ``metagpt`` (in proportion to the squared norms of the task vectors, arXiv:2406.11385).
        first: An optimizer that runs before; the search then begins at its winner.
        optimizer: How to search.
    """

    method: str = "task_arithmetic"
    options: dict[str, bool | Number | str | Range] = Field(default_factory=dict)
    sources: list[Index] | None = None
    blocks_per_group: Count | Literal["all", "model"] = 1
    split_attention: bool = False
    groups: Literal["tensor", "rows"] | Count | list[str] | None = None
    rows_per_group: Count | None = None
    router: Index | Literal["merge"] | None = None
    parameters: dict[str, Number | Range] = Field(default_factory=dict)
    starts: list[Literal["average", "sum", "sources", "metagpt"]] = Field(default_factory=list)
    first: FirstConfig | None = None
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)

    @model_validator(mode="after")
    def _check_groups(self) -> ParameterSpaceConfig:
        for key, optimizer in (("first", self.first), ("optimizer", self.optimizer)):
            if optimizer is not None and optimizer.algorithm == "sweep":
                raise ValueError(f"{key}.algorithm: sweep tries every candidate, and there are too many merges; write cma")
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
        prune: How many layers of one model are left out, at least: paths are gates of its layers, and no hop is repeated.
        repeat: Search among the paths that repeat one block of layers of one model.
        repetitions: How often the layout is repeated (the paper's r); 2, and 1 where hops have several terms or layers are
            pruned.
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

    order: list[Index] | None = None
    terms: Count = 1
    prune: Count | None = None
    repeat: RepeatConfig | None = None
    repetitions: Annotated[Count, Field(le=64)] | None = None
    scales: ScaleEncoding | None = None
    scale_bounds: tuple[Number, Number] = (0.4, 1.5)
    scale_target: ScaleTarget = "stream"
    initialisation: Initialisation = "near_identity"
    ends: Ends | None = None
    max_hops: Annotated[Count, Field(ge=2, le=MAX_HOPS)] = 128
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
        return self.scales or ("none" if self.repeat is not None else "gate" if self.scale_target == "stream" else "slot")

    @property
    def passes(self) -> int:
        """The repetitions of the layout, where the file does not say it too."""
        return self.repetitions or (2 if self.terms == 1 and self.prune is None else 1)

    @model_validator(mode="after")
    def _check_gates(self) -> FlowSpaceConfig:
        gates = self.encoding == "gate"
        if gates and self.scale_target != "stream":
            raise ValueError("scales: gate is a factor of the stream; write scale_target: stream, or scales: slot")
        if self.terms > 1 and (not gates or self.ends == "paper"):
            raise ValueError(f"terms: {self.terms} go with gates and free ends; write scales: gate, and leave ends out")
        if not gates and self.ends == "free":
            raise ValueError(f"ends: free goes with gates; with scales: {self.encoding} leave it out")
        if self.repeat is not None and (self.prune is not None or self.encoding != "none" or self.terms > 1):
            raise ValueError("repeat: is a search of its own; leave prune, scales and terms out")
        if self.prune is not None and (not gates or self.ends == "paper" or self.terms > 1 or self.passes > 1):
            raise ValueError("prune: layers are left out by gates of one pass; leave scales, ends, terms and repetitions out")
        for key, optimizer in (("first", self.first), ("optimizer", self.optimizer)):
            if optimizer is None:
                continue
            if self.repeat is not None and optimizer.algorithm not in ("sweep", "random"):
                raise ValueError(f"{key}.algorithm: {optimizer.algorithm} does not go with repeat; write sweep, or random")
            if self.repeat is None and self.prune is None and optimizer.algorithm == "sweep":
                raise ValueError(f"{key}.algorithm: sweep tries every candidate; it goes with repeat or prune, which have few")
            if not gates and optimizer.algorithm == "gradient":
                raise ValueError(f"{key}.algorithm: gradient goes with gates; write scales: gate (found {self.encoding})")
        return self


class LimitsConfig(StrictModel):
    """What one evaluation may take; a trial beyond it has failed. In worker processes only.

    Attributes:
        seconds: Time, without that for loading models; ten times what the slowest parent takes where absent, and 60 at least.
        memory: Memory of a worker, such as ``4GB``, all models included; on Linux. None where absent.
    """

    seconds: Positive | None = None
    memory: str | None = None

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, value: str | None) -> str | None:
        try:
            parse_size(value or "1GB")
        except EvoMergeError as cause:
            raise ValueError(f"cannot read {shown(value)}; write 4GB or 500MB") from cause
        return value
