"""The recipe: everything that is needed to rebuild one merged model, bit for bit. Read from and
written to YAML.

Knows nothing of tensors. What a merge method computes is in ``hf_evomerge/merging``; what a path
computes is in ``hf_evomerge/modeling``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from ..errors import EvoMergeError, PathError, RecipeError, told
from .layer_groups import router_names
from .layer_path import MAX_HOPS, LayerPath
from .names import hidden
from .run import Run, expanded
from .strict_yaml import (
    Count,
    Index,
    Number,
    StrictModel,
    dump_yaml,
    load_yaml,
    read_yaml,
    validate,
)
from .whole_file import write_whole

MAX_SLICE = 256  # sources of one slice
# layers of all slices, each counted once per source: a stack of 4,096 of 15 sources and a base
MAX_STACK = 1 << 16
RECIPE_FILE = "recipe.yaml"  # beside the weights of every model that is built

ScaleTarget = Literal["stream", "mlp_delta"]
Dtype = Literal["float32", "float16", "bfloat16"]
Gradient = list[Number]
ParameterValue = Number | Gradient | dict[str, Number | Gradient]
OptionValue = bool | Number | str | Gradient | dict[str, Number | Gradient]
Vocabulary = Literal["union", "tokenizer"]
T = TypeVar("T")


class SourceRef(StrictModel):
    """Reference to one parent checkpoint."""

    model: str = Field(min_length=1)
    """A folder, or the id of a repository on the Hub."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; a commit pins the recipe. Must be empty for a folder."""
    adapter: str | None = Field(default=None, min_length=1)
    """A LoRA adapter that is merged into the weights when they are read: a folder, or a repository
    on the Hub; of a pipeline also one file of safetensors in it."""
    adapter_revision: str | None = None
    """Branch, tag or commit of the adapter's repository."""
    component: str | None = Field(default=None, min_length=1)
    """The part of the model that takes part: ``text``, ``vision``, ``audio``, ``projector``,
    ``encoder`` or ``decoder``; of a diffusion pipeline one of its ``model_index.json``, such as
    ``unet``. All of it where absent."""

    @model_validator(mode="after")
    def _check_keys(self) -> SourceRef:
        if self.adapter is None and self.adapter_revision is not None:
            raise ValueError(
                "adapter_revision: there is no adapter; name it, or leave its revision out"
            )
        return self

    @property
    def label(self) -> str:
        """A short name for reports, tables and plots: the ends of the model's name and of its
        adapter's."""
        return "+".join(_tail(name, 1) for name in self._names if name is not None)

    @property
    def _names(self) -> tuple[str, str | None]:
        return self.model, self.adapter

    @property
    def parts(self) -> list[SourceRef]:
        """The checkpoint, and the adapter where it has one: each has its own license and author."""
        rest = {"adapter": None, "adapter_revision": None, "component": None}
        model = self.model_copy(update=rest)
        if self.adapter is None:
            return [model]
        return [model, SourceRef(model=self.adapter, revision=self.adapter_revision)]

    @property
    def is_on_hub(self) -> bool:
        """True where a published reference can be downloaded: a folder of the publisher's machine
        is named without a slash."""
        return all("/" in part.model for part in self.parts)

    def hidden(self) -> SourceRef:
        """Name it for strangers: a folder of this machine by its last name only, a repository in
        full."""
        shown = {"model": hidden(self.model), "adapter": self.adapter and hidden(self.adapter)}
        return self.model_copy(update=shown)

    def __str__(self) -> str:
        pairs = [(self.model, self.revision), (self.adapter, self.adapter_revision)]
        return " + ".join(
            name if at is None else f"{name}@{at}" for name, at in pairs if name is not None
        )


Sources = Annotated[
    list[SourceRef],
    BeforeValidator(expanded, json_schema_input_type=list[SourceRef] | Run),
    Field(min_length=1),
]


def with_optional(items: Iterable[T], last: T | None) -> list[T]:
    """The items, and one after them where there is one, such as sources and their base."""
    return [*items] if last is None else [*items, last]


def labels_of(refs: Sequence[SourceRef]) -> list[str]:
    """Short names of models, all of them different: their labels, and of those that are alike the
    ends that tell them apart.

    Example:
        >>> names = ("runs/maths/final", "runs/japanese/final", "tiny", "tiny")
        >>> labels_of([SourceRef(model=name) for name in names])
        ['maths/final', 'japanese/final', 'tiny', 'tiny (2)']
    """
    alike: dict[str, list[SourceRef]] = {}
    for ref in refs:
        alike.setdefault(ref.label, []).append(ref)
    labels: list[str] = []
    for ref in refs:
        label = _among(ref, alike[ref.label])
        numbered = (f"{label} ({number})" for number in range(2, len(refs) + 2))
        labels.append(
            label if label not in labels else next(name for name in numbered if name not in labels)
        )
    return labels


def _among(ref: SourceRef, alike: Sequence[SourceRef]) -> str:
    """The shortest ends of a model's name and its adapter's that no other name has, and the
    revision where these differ."""
    parts = []
    for name, others in zip(
        ref._names, zip(*(each._names for each in alike), strict=True), strict=True
    ):
        if name is not None:
            distinct = {other.rstrip("/") for other in others if other is not None}
            most = max(other.count("/") for other in distinct) + 1
            # The shortest end of the path that differs among all of the same place: a/b/model and
            # a/c/model become b/model and c/model. Where even whole names are equal, only the
            # revision can tell them apart.
            count = 1
            while count < most and len({_tail(other, count) for other in distinct}) < len(distinct):
                count += 1
            parts.append(_tail(name, count))
    at = (
        f"@{ref.revision[:12]}"
        if ref.revision and len({each.revision for each in alike}) > 1
        else ""
    )
    return "+".join(parts) + at


def _tail(name: str, count: int) -> str:
    return "/".join(name.rstrip("/").split("/")[-count:])


def _pieces(value: Any) -> Any:
    """A path that is written as one text, as a list of its pieces."""
    return [piece.strip() for piece in value.split(",")] if isinstance(value, str) else value


Pieces = Annotated[list[str], BeforeValidator(_pieces, json_schema_input_type=list[str] | str)]


class SlicePart(StrictModel):
    """Slice: some layers of a merged model that is stacked from slices."""

    layers: Pieces = Field(min_length=1)
    """One entry per source that takes part in the slice: its layers as hops of a path, such as
    ``0:0-15``, ``1:8-23`` or ``0:4-7 x2``. All entries have as many layers; the slice's layers are
    merged one by one."""
    base: str | None = None
    """The base's layers, such as ``0-15``; those of the first entry where absent."""
    options: dict[str, OptionValue] = Field(default_factory=dict)
    """Options of this slice, in place of the merge's."""
    parameters: list[dict[str, ParameterValue]] = Field(default_factory=list)
    """The method's per-source parameters, one mapping per entry of ``layers``. A gradient runs over
    the slice."""

    def runs(self) -> list[list[tuple[int, int]]]:
        """Source and layer of each layer of the slice, per entry of ``layers``; raises
        `PathError`."""
        return [_run(text) for text in self.layers]

    def base_layers(self) -> list[int]:
        """The base's layers; raises `PathError`."""
        run = self.runs()[0] if self.base is None else _run(f"0:{self.base}")
        return [layer for _, layer in run]

    def check(self) -> list[int]:
        """Count the layers of each entry; raises `PathError` where one cannot be read, `ValueError`
        where numbers differ."""
        if len(self.layers) > MAX_SLICE:
            raise ValueError(f"layers: {len(self.layers)} entries; a slice has at most {MAX_SLICE}")
        runs = self.runs()
        counts = [len(run) for run in runs] + [len(self.base_layers())]
        if len(set(counts)) > 1:
            raise ValueError(
                f"layers: {', '.join(map(str, counts))} layers; the sources of a slice, and "
                "its base, have as many"
            )
        if len(self.parameters) not in (0, len(runs)):
            raise ValueError(
                f"parameters: {len(self.parameters)} mappings for {len(runs)} sources; give "
                "one per entry of layers"
            )
        return counts


class MergePart(StrictModel):
    """The parameter-space part: how much of each source's weights goes into the merged model."""

    method: str
    """Name of a merge method (``hf-evomerge merge --methods`` lists them)."""
    options: dict[str, OptionValue] = Field(default_factory=dict)
    """The method's global parameters, such as ``normalize`` or ``lambda``; defaults where absent.
    Some, like slerp's ``t``, take what a per-source parameter takes."""
    sources: list[Index] | None = Field(default=None, min_length=1)
    """Which sources take part, as indices into the recipe's sources; all by default."""
    slices: list[SlicePart] | None = Field(default=None, min_length=1)
    """A stack of layers in place of the sources' own: its parts, from the bottom to the top. The
    embeddings are merged as the first slice is, final norm and head as the last. Then ``sources``
    and ``parameters`` are left out."""
    parameters: list[dict[str, ParameterValue]] = Field(default_factory=list)
    """The method's per-source parameters, one mapping per source that takes part, such as
    ``{weight: 0.5}``. A value is a number for the whole model, a gradient over the blocks such as
    ``[0, 0.5, 1]``, or a mapping to numbers and gradients: from layer groups (``embed``,
    ``blocks.0-3``, ``blocks.4.attn``, ``head``) or patterns of tensor names (``"*down_proj*"``);
    the key ``default`` stands for all that is not named."""
    core_space: bool | None = None
    """Whether LoRA adapters of ``base`` are merged in core space (arXiv:2509.17786), whatever the
    method: as small matrices in a basis that all their changes of a module share. The result is an
    adapter. It is another merge than that of the weights, unless the method is a plain sum."""
    router: Index | Literal["merge"] | None = None
    """Source whose routers a mixture of experts has in the result, as an index into the recipe's
    sources; the first that takes part (of a slice: its first) where absent. ``merge``: they are
    merged as everything else."""
    unmatched: Literal["refuse", "ignore"] | None = None
    """What becomes of patterns that name no tensor: ``refuse``, the default, or ``ignore``."""

    def kept(self, names: Iterable[str], sources: Sequence[T]) -> dict[str, T]:
        """Tensors that are not merged, each with the source whose the result has.

        Args:
            names: Raw names of a source's tensors.
            sources: The merged sources, in the order of ``sources``; of a slice its own.
        """
        if self.router == "merge":
            return {}
        numbers = self.sources or range(len(sources))
        position = 0 if self.router is None else numbers.index(self.router)
        return dict.fromkeys(router_names(names), sources[position])

    def check_slices(self) -> None:
        """Raise `ValueError`, naming the key, where the slices do not go with the rest or with
        themselves."""
        if self.slices is None:
            return
        for key, given in (("sources", self.sources), ("parameters", self.parameters)):
            if given:
                raise ValueError(
                    f"merge.{key}: with slices it is given in each slice; leave it out here"
                )
        layers = hops = 0
        for position, part in enumerate(self.slices):
            with told(ValueError, (EvoMergeError, ValueError), f"merge.slices[{position}]."):
                counts = part.check()
            layers = layers + counts[0]
            hops = hops + sum(counts)
            if layers > MAX_HOPS:
                raise ValueError(
                    f"merge.slices: more than {MAX_HOPS} layers; a model has no more, write fewer"
                )
            if hops > MAX_STACK:
                raise ValueError(
                    f"merge.slices: more than {MAX_STACK} layers, each counted once per "
                    "source; write fewer"
                )


class FlowPart(StrictModel):
    """The data-flow part: which layer of which source runs next, and the scale on the way."""

    path: Pieces
    """One string per hop, or ranges of hops: see `LayerPath.parse`. The number of the merged model,
    where the recipe has a ``merge`` part as well, is the number of sources."""
    scales: list[Number] | None = None
    """One number per hop; all 1 where absent."""
    scale_target: ScaleTarget = "stream"
    """What a scale multiplies: the residual stream (``stream``, the paper's text) or only the MLP
    output of the hop before (``mlp_delta``, what the released EvoLLM-JP-v1-10B computes)."""
    embedding_source: Index = 0
    """The source of the embeddings, the final norm, the head and the tokenizer."""

    def to_path(self) -> LayerPath:
        """The path with its scales."""
        return LayerPath.parse(self.path, self.scales)


class TokenRow(StrictModel):
    """Origin of the rows of one token, in embeddings and head."""

    source: Index | Literal["base", "zero"]
    """The source, or ``base``; ``zero``: no row, but zeros."""
    token: str | None = None
    """The token whose row it is there; the same token where absent."""
    id: Index | None = None
    """The row's number, in place of ``token``."""
    force: bool = False
    """Whether sources that have the token take that row too; else only those that lack it."""


class TokenPart(StrictModel):
    """Exceptions to the rule that matches a vocabulary by token."""

    default: Index | Literal["base"] | None = None
    """Donor of the row of a token that a source lacks, a source or ``base``; the base where absent.
    What that one lacks is the row of the only source that has it, or the mean of those that have
    it."""
    rows: dict[str, TokenRow] = Field(default_factory=dict)
    """Tokens with another row than that."""
    multiple_of: Annotated[Count, Field(le=1 << 16)] = 1
    """The number of rows is rounded up to a multiple of this; the rows that are added are the mean
    of the others."""


class Built(StrictModel):
    """Record of the build of a published recipe, for whoever rebuilds it. Building does not read
    it."""

    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the libraries that it was built with."""
    sha256: dict[str, str] = Field(default_factory=dict)
    """The sha256 of each weights file, by its name."""
    tensors: str | None = None
    """What became of every tensor of the sources, in one line."""
    energy: dict[str, Annotated[Number, Field(ge=0, le=1)]] | None = None
    """Share of the change's squared length that the rank keeps, by module, for an adapter of a
    given rank."""


def _run(text: str) -> list[tuple[int, int]]:
    """Source and layer of each hop of a piece of a path."""
    path = LayerPath.parse([text])
    if not path.is_serial:
        raise PathError(
            f"layers: {text!r} sums layers; write one range per source, and say how they are "
            "merged with parameters"
        )
    return [(hop.terms[0].source, hop.terms[0].layer) for hop in path.hops]


class Recipe(StrictModel):
    """Recipe: everything that is needed to rebuild one merged model."""

    sources: Sources
    """The parents, numbered from 0 in this order; or the checkpoints of a run, as ``{run:
    FOLDER_OR_REPOSITORY, checkpoints: last 12}``."""
    base: SourceRef | None = None
    """The common ancestor; needed by methods that work on task vectors."""
    merge: MergePart | None = None
    """The parameter-space part. Without a ``flow`` part the result is a plain model of the parents'
    architecture."""
    flow: FlowPart | None = None
    """The data-flow part; the result is an `EvoMergedForCausalLM`, or of a vision-language model an
    `EvoMergedForImageTextToText`."""
    dtype: Dtype | None = None
    """The dtype of the result; the first source's where absent. Sums are accumulated in float32."""
    adapter: Literal["auto"] | None = None
    """``auto``: the result is an adapter where it can be one, also of a path through one model
    without scales, or of a diffusion pipeline's LoRAs; where absent, only of a merge of a language
    model's adapters."""
    rank: Count | None = None
    """The largest rank of the result, where it is a LoRA adapter; that is exact where absent."""
    seed: Index = 0
    """Seed of the random masks of DARE and DELLA."""
    vocabulary: Vocabulary | None = None
    """How rows are matched, by token, where the sources' vocabularies differ, which is refused
    without it. ``tokenizer``: the result has the tokens of the tokenizer that goes with it;
    ``union``: these, and then those of all others."""
    tokens: TokenPart | None = None
    """What a vocabulary that is matched needs to know beside the rule."""
    tokenizer: Index | Literal["base"] | None = None
    """The source whose tokenizer, chat template and generation settings go with the result, or
    ``base``; by default the first source that takes part, or the one that gives the embeddings."""
    components: dict[str, Index] | None = None
    """Where a part is merged, the source that another part is copied from, such as ``{vision: 1}``,
    or of a pipeline ``{tokenizer: 1}``; the first that is merged where absent."""
    processor: Index | None = None
    """The source whose processor and chat template go with the result, where a part takes part; the
    first that is merged, or the one that gives the embeddings, where absent."""
    chat_template: str | None = Field(default=None, min_length=1)
    """A Jinja template in place of the tokenizer's own; ``auto``: the one that most sources
    have."""
    built: Built | None = None
    """What it gave when it was built, in a published recipe."""

    @model_validator(mode="before")
    @classmethod
    def _is_recipe(cls, data: Any) -> Any:
        if isinstance(data, dict) and {"space", "fitness"} <= data.keys():
            raise ValueError(
                "this is a search file, not a recipe; run it with `hf-evomerge search FILE "
                "--out FOLDER`"
            )
        return data

    @model_validator(mode="after")
    def _check_parts(self) -> Recipe:
        if self.merge is None and self.flow is None:
            raise ValueError(
                "neither 'merge' nor 'flow' is given; a recipe has at least one of them"
            )
        if self.merge is not None:
            self.merge.check_slices()
            if self.merge.core_space:
                self._check_core()
            merged = self.merge_sources
            where = "sources" if self.merge.slices is None else "slices"
            for number in merged:
                self._check_number(f"merge.{where}", number)
            if isinstance(router := self.merge.router, int) and (
                router not in merged or self.merge.slices is not None
            ):
                raise ValueError(
                    f"merge.router: {router} is no source of all that is merged; name one, "
                    "or write merge"
                )
            given = len(self.merge.parameters)
            if given not in (0, len(merged)):
                raise ValueError(
                    f"merge.parameters: {given} mappings for {len(merged)} sources; give one "
                    "per source"
                )
        self._check_donors()
        self._check_components()
        if self.flow is not None:
            count = len(self.sources) + (self.merge is not None)
            with told(ValueError, EvoMergeError, "flow."):
                path = self.flow.to_path()
            named = [
                self.flow.embedding_source,
                *(term.source for hop in path.hops for term in hop.terms),
            ]
            if bad := [i for i in named if i >= count]:
                raise ValueError(
                    f"flow: source {bad[0]} is not there; there are {count}, numbered from 0"
                )
        return self

    def _check_core(self) -> None:
        """Raise `ValueError` where more than the adapters of one base would be merged."""
        assert self.merge is not None
        if self.base is None:
            raise ValueError("base: merge.core_space is for adapters of one base; name that model")
        others = {
            "merge.slices": self.merge.slices is not None,
            "vocabulary": self.vocabulary is not None,
            "component": self.has_components,
        }
        for key, is_given in others.items():
            if is_given:
                raise ValueError(
                    f"{key}: merge.core_space changes linear layers alone; leave one of them out"
                )

    def _check_donors(self) -> None:
        """Raise `ValueError` unless the sources of rows and of the tokenizer are there."""
        if self.vocabulary is not None and self.merge is None:
            raise ValueError(
                "vocabulary: there is no merge; a path has that of one source, so leave it out"
            )
        tokens = self.tokens or TokenPart()
        if self.tokens is not None and self.vocabulary is None:
            raise ValueError(
                "tokens: matched only with vocabulary: union, or vocabulary: tokenizer; "
                "write one of them"
            )
        self._check_number("tokenizer", self.tokenizer)
        rows = {f"tokens.rows.{name}": row.source for name, row in tokens.rows.items()}
        for key, index in {"tokens.default": tokens.default, **rows}.items():
            if isinstance(index, int) and index not in self.merge_sources:
                raise ValueError(f"{key}: {index} is no source that takes part in the merge")
            self._check_number(key, index)

    def _check_number(self, key: str, index: int | str | None) -> None:
        """Raise `ValueError` where a key names a source, or the base, that is not there."""
        if index == "base" and self.base is None:
            raise ValueError(f"{key}: there is no base; name a source by its number")
        if isinstance(index, int) and index >= len(self.sources):
            raise ValueError(
                f"{key}: {index} is not a source; there are {len(self.sources)}, numbered from 0"
            )

    def _check_components(self) -> None:
        """Raise `ValueError` unless what is said about parts goes together."""
        named = {
            "processor": self.processor,
            **{f"components.{part}": at for part, at in (self.components or {}).items()},
        }
        for key, index in named.items():
            if index is not None and not self.has_components:
                raise ValueError(
                    f"{key}: no source names a component; write component: text on those "
                    "that a part is merged of"
                )
            self._check_number(key, index)
        if not self.has_components:
            return
        if self.flow is not None and (
            others := {ref.component for ref in self.sources} - {None, "text"}
        ):
            raise ValueError(
                "flow: a path runs through language models; write component: text (found "
                f"{others.pop()})"
            )
        if self.merge is None and self.components is not None:
            raise ValueError(
                "components: a merge puts other parts in place; add one, or leave components out"
            )
        if self.merge is not None and self.merge.slices is not None:
            raise ValueError(
                "merge.slices: a stack is made of whole models; leave component out, or the slices"
            )
        if merged := {ref.component for ref in self.merged_refs} & (self.components or {}).keys():
            raise ValueError(f"components.{merged.pop()}: is merged; name a part that is not")

    @property
    def refs(self) -> list[SourceRef]:
        """The sources, and the base where there is one."""
        return with_optional(self.sources, self.base)

    @property
    def parents(self) -> list[SourceRef]:
        """Sources and base, each adapter apart, each once."""
        return list(dict.fromkeys(part for ref in self.refs for part in ref.parts))

    @property
    def merged_refs(self) -> list[SourceRef]:
        """Sources that are merged, and the base."""
        return with_optional((self.sources[number] for number in self.merge_sources), self.base)

    @property
    def has_components(self) -> bool:
        """True where a component of some source takes part, and not all of it."""
        refs = self.merged_refs if self.flow is None else [*self.merged_refs, *self.sources]
        return any(ref.component is not None for ref in refs)

    def tokenizer_of(self, sources: Mapping[int, T], base: T | None, default: T) -> T:
        """Choose among sources and base the one whose tokenizer the result has."""
        if self.tokenizer == "base":
            assert base is not None  # the recipe was checked
            return base
        return default if self.tokenizer is None else sources[self.tokenizer]

    @property
    def merge_sources(self) -> list[int]:
        """Indices of the sources that take part in the merge, each once."""
        if self.merge is None:
            return list(range(len(self.sources)))
        if self.merge.slices is not None:
            return list(
                dict.fromkeys(run[0][0] for part in self.merge.slices for run in part.runs())
            )
        return list(range(len(self.sources))) if self.merge.sources is None else self.merge.sources

    def to_yaml(self) -> str:
        """The recipe as YAML; the same recipe always gives the same text."""
        return dump_yaml(self)

    @property
    def key(self) -> str:
        """A short name of what the recipe does with its sources, whatever these are and wherever
        they lie.

        It is the first 16 hexadecimal digits of the sha256 of its YAML, with numbers in place of
        the sources.
        """
        refs = list(dict.fromkeys(self.refs))
        numbered = self.renamed(
            lambda ref: SourceRef(model=str(refs.index(ref)), component=ref.component)
        )
        return sha256(numbered.to_yaml().encode()).hexdigest()[:16]

    def renamed(self, name: Callable[[SourceRef], SourceRef]) -> Recipe:
        """The recipe with other references to its sources and base."""
        base = None if self.base is None else name(self.base)
        return self.model_copy(
            update={"sources": [name(ref) for ref in self.sources], "base": base}
        )

    def save(self, file: str | Path) -> None:
        """Write the recipe to a YAML file."""
        write_whole(file, self.to_yaml())

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """Read a recipe from YAML text, which looks for nothing; raises `RecipeError` with the key
        that is wrong."""
        data = read_yaml(text, RecipeError)
        if isinstance(data.get("sources"), dict):
            raise RecipeError(
                "sources: must be a list, here; a run is looked for where a file names it "
                "(found a mapping)"
            )
        return validate(cls, data, RecipeError)

    @classmethod
    def load(cls, file: str | Path) -> Recipe:
        """Read a recipe from a YAML file; raises `RecipeError`."""
        return load_yaml(cls, file, RecipeError)
