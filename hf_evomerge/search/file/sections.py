"""The sections of a search file: merge, compare, output, compute. Paths are in ``paths.py``, steps
in ``stages.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ...errors import shown
from ...fitness.data.spec import DataSpec
from ...recipes.recipe import Dtype, MergePart, TokenPart, Vocabulary
from ...recipes.strict_yaml import Count, Index, Number, Positive, StrictModel


def _distinct(numbers: Sequence[int]) -> Sequence[int]:
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"numbers that are distinct, each once (found {shown(list(numbers))})")
    return numbers


Distinct = AfterValidator(_distinct)
Numbers = Annotated[list[Index], Field(min_length=1), Distinct]
"""Models by their numbers, each once."""


class Range(StrictModel):
    """The bounds of one evolved parameter, and where the search begins."""

    low: Number
    """The lower bound, in the parameter's own unit."""
    high: Number
    """The upper bound."""
    start: Number | None = None
    """First mean; the middle where absent."""
    elsewhere: Number | None = None
    """Number of what is in no group, where ``groups`` is a list without ``default``."""

    @model_validator(mode="after")
    def _check_order(self) -> Range:
        if (
            not self.low < self.high
            or not self.low <= (self.low if self.start is None else self.start) <= self.high
        ):
            start = "" if self.start is None else f", start {self.start}"
            raise ValueError(
                f"low must be below high, and start between them (found low {self.low}, high "
                f"{self.high}{start})"
            )
        return self

    @property
    def start_fraction(self) -> float:
        """Start of the search, as a fraction of the way from low to high."""
        return 0.5 if self.start is None else (self.start - self.low) / (self.high - self.low)


class MergeConfig(StrictModel):
    """Parameter space (PS, arXiv:2403.13187): the merge method, and what is evolved of it."""

    method: str = "task_arithmetic"
    """Name of a merge method."""
    groups: Literal["tensor", "rows", "block", "half", "model"] | Count | list[str] = "block"
    """Tensors that share one set of parameters: each ``tensor`` has its own; each run of its output
    ``rows``; each ``block``; each ``half`` of a block, attention and MLP; or the whole ``model``,
    the paper's reported setting. A number: into how many groups the blocks are divided, beside
    embeddings and head. A list of keys as a recipe has them: layer groups, names of tensors, name
    patterns, ``default``."""
    parameters: dict[str, Number | Range] = Field(default_factory=dict)
    """Per per-source parameter: a number (fixed), a range (evolved), or absent (evolved within the
    method's own bounds)."""
    options: dict[str, bool | Number | str | Range] = Field(default_factory=dict)
    """The method's global parameters: a value (fixed), or for a number a range (evolved)."""
    core_space: bool | None = None
    """Whether LoRA adapters of ``base`` are merged in core space, whatever the method; see the
    recipe's. Candidates run unmerged."""
    sources: Numbers | None = None
    """The sources that take part, as indices; all by default."""
    router: Index | Literal["merge"] | None = None
    """Source whose routers candidates of a mixture of experts have, as an index; the first that
    takes part where absent. ``merge``: they are merged as everything else."""
    rows_per_group: Count | None = None
    """Most output rows of a run with ``groups: rows``: a tensor of R rows is cut into the fewest
    runs, n, that are no longer, and these are equal up to a row (row r is in run floor(r n / R)).
    Where absent 64, or so many times more that all sources together have no more than 20,000 runs.
    With as many rows as a head has, a run of a query, key or value projection is a head."""
    starts: list[Literal["average", "sum", "sources", "last"]] = Field(default_factory=list)
    """Points that are tried on one batch before the search, which begins at the best of them and of
    its own start: ``average`` (all weights 1 / sources), ``sum`` (all weights 1), ``sources``
    (weight 1 for one, 0 for the others), ``last`` (the average of the later half, as of checkpoints
    of a run)."""

    def part(self, **numbers: Any) -> MergePart:
        """A merge of the kind that is searched, with these ``options`` and ``parameters``; the
        method's defaults where absent."""
        return MergePart(
            method=self.method,
            sources=self.sources,
            core_space=self.core_space,
            router=self.router,
            **numbers,
        )


class CompareConfig(StrictModel):
    """The models of the table of results, beside base and sources, and the data that they are
    scored on."""

    baselines: tuple[Literal["average", "prompt", "alone", "noise", "lora", "merge+lora"], ...] = (
        "average",
    )
    """The plain ``average``, and the sum of the task vectors; the best ``prompt``, 1, 4, 8 or 16 of
    the search examples before each question, of every parent and of the average; the same search
    over each source ``alone``, which says whether the result needs them all, and costs as much as
    the search for each; the same search over ``noise`` of the size of the sources' changes, which
    says whether it needs what they have learned; the best ``lora``, fine-tunes on the search
    examples of the parents, of the average and of the sum, at rates that go on while that
    helps, each at the cost of the search (extra ``lora``); ``merge+lora``, merge weights by
    gradient and a LoRA beside them by the same steps, or beside a parent or the sum that stands
    still, by the same schedule, the best of which is built."""
    retain: dict[str, DataSpec] = Field(default_factory=dict)
    """More data, by name, that the result may not forget, such as the sources' own tasks: every
    model of the table of results is scored on it too. Nothing is chosen by it."""
    finalists: Count = 8
    """How many of the best trials are scored on the validation split; of a gradient those only that
    were scored on all search examples, three at most."""
    contributions: bool = False
    """Whether the winner of a ``ps`` search is scored without each of its sources too, on the
    validation split (search where there is none): what its absence costs is what a source gives."""


class OutputConfig(StrictModel):
    """The winner beside its weights, as a recipe has it. Candidates are scored with the tokenizer
    that goes with it."""

    dtype: Dtype | None = None
    """The dtype that candidates are evaluated in and the winner is saved in; the first source's
    where absent."""
    adapter: Literal["auto"] | None = None
    """``auto``: the winner is saved as an adapter where it can be one, see the recipe's; where
    absent, only a merge of a language model's adapters."""
    tokenizer: Index | Literal["base"] | None = None
    """The source whose tokenizer, chat template and generation settings go with the result, or
    ``base``."""
    vocabulary: Vocabulary | None = None
    """Rule where the sources' vocabularies differ. Of merges; a path alone has the vocabulary of
    its embeddings."""
    tokens: TokenPart | None = None
    """More of a vocabulary that is matched by token."""
    chat_template: str | None = Field(default=None, min_length=1)
    """A Jinja template in place of the tokenizer's own; ``auto``: the one that most sources
    have."""
    processor: Index | None = None
    """The source whose processor and chat template go with the result, where a part of the sources
    is merged."""
    components: dict[str, Index] | None = None
    """Where a part is merged, the source that another part is copied from, such as ``{vision:
    1}``."""


class LimitsConfig(StrictModel):
    """Limits of one evaluation; a trial beyond them has failed. In worker processes only."""

    seconds: Positive | None = None
    """Time, without that for loading models; ten times what the slowest parent takes where absent,
    and 60 at least."""


class ComputeConfig(StrictModel):
    """Settings of where and how candidates are evaluated."""

    seed: Index = 0
    """Seed of the optimizer, of DARE's masks and of the batches."""
    device: str | Annotated[tuple[str, ...], Field(min_length=1)] = "cpu"
    """A device, such as ``cpu`` or ``cuda:0``; a list of devices, which workers take in turn; or
    ``auto``, every GPU of the machine, or its processor where there is none."""
    device_map: Literal["auto"] | None = None
    """``auto`` spreads every model of a ``ps`` search over all GPUs of the machine, where one is
    too small for it. It goes with ``device: auto`` and needs accelerate (extra
    ``quantization``)."""
    threads: Annotated[Count, Field(le=1024)] = 1
    """CPU threads per evaluation. Part of the study: another number may change the last bits of a
    score."""
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    """Limits of one evaluation."""
    attn_implementation: (
        Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None
    ) = None
    """Attention, by its name in transformers; its own choice where absent. Part of the study, for
    each has other last bits. Kernels of the Hub are none of them: a file brings no code."""
    gradient_checkpointing: bool = False
    """Whether the backward passes of ``gradient`` compute each layer's activations anew: the memory
    of one layer, and a third more time."""
    unmerged: bool | None = None
    """Whether candidates of a ``ps`` search over LoRA adapters run as adapters on their base,
    instead of being merged into a copy of it. Where absent they do where all sources are adapters
    of ``base`` and the method is ``task_arithmetic``, and in core space. Scores are the same up to
    rounding."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Bits of the base that adapters run on, by bitsandbytes (extra ``quantization``); ``4bit`` is
    QLoRA's NF4. All scores of the study are then of adapters on that base. In ``8bit`` a score
    depends a little on ``batch_size``, because LLM.int8() looks for outliers in a whole batch."""
