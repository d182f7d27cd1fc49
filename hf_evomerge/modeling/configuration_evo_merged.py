"""Configuration of a model whose layers are a path through the layers of several source models.

This file travels to the Hub beside the weights: it imports nothing but transformers and
huggingface_hub.
"""

import copy
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import logging

from .sources_evo_merged import (
    check_alike,
    check_architecture,
    config_along,
    decoder_of,
    kinds_of,
    layer_count,
)

logger = logging.get_logger(__name__)

MAX_HOPS = 4096
SCALE_TARGETS = ("stream", "mlp_delta")
AUTO_MAP = {
    "AutoConfig": "configuration_evo_merged.EvoMergedConfig",
    "AutoModel": "modeling_evo_merged.EvoMergedModel",
} | {
    f"AutoModelFor{head}": f"modeling_evo_merged.EvoMergedFor{head}"
    for head in ("SequenceClassification", "TokenClassification", "QuestionAnswering")
}

_TERM = re.compile(r"(\d{1,9}):(\d{1,9})(?:\s*\*\s*(-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?))?")
# Fields of which it matters where they are: the merged model's own, if it has them.
_NOT_ASKED = ("quantization_config", "auto_map", "transformers_weights")

Term = tuple[int, int, float]


def parse_hop(text: Any, position: int) -> list[Term]:
    """Read one hop, such as ``0:3`` or ``0:3*0.5 + 1:3*0.5``, as ``(source, layer, weight)``
    triples.

    Raises:
        ValueError: The text is not a hop, or a weight is not finite.
    """
    terms: list[Term] = []
    for part in re.split(r"(?<![eE])\+", text) if isinstance(text, str) else [""]:
        match = _TERM.fullmatch(part.strip())
        weight = float(match[3] or 1) if match else math.nan
        if match is None or not math.isfinite(weight):
            raise ValueError(
                f"path[{position}]: cannot read {text!r:.80}; a hop is written 0:3 or "
                "0:3*0.5 + 1:3*0.5"
            )
        terms.append((int(match[1]), int(match[2]), weight))
    return terms


@strict
class EvoMergedConfig(PreTrainedConfig):
    r"""
    Configuration of [`EvoMergedForCausalLM`]: which layer of which source runs next, and the scale
    on the way.

    Args:
        text_config (`dict` or `PreTrainedConfig`):
            Configuration of the source architecture. Its `num_hidden_layers` is the number of cache
            slots: one per term of the path. Lists with one entry per layer are in the order of the
            slots. Of a vision-language model it is the configuration of the whole, and its own
            `text_config` has the slots.
        path (`list[str]`):
            One string per hop: `"0:3"` is layer 3 of source 0; `"0:3*0.5 + 1:3*0.5"` is a weighted
            sum of two layers.
        scales (`list[float]`):
            One finite number per hop: the factor beta on the way into it. All 1 by default.
        scale_target (`str`):
            What a scale multiplies: `"stream"`, the residual stream, `x_k = beta_k * h_{k-1}`; or
            `"mlp_delta"`, only the MLP output of the hop before,
            `x_k = r_{k-1} + beta_k * MLP_{k-1}`, where beta_0 multiplies the embeddings.
        embedding_source (`int`):
            The source of the embeddings, the final norm and the head.
        sources (`list[dict]`):
            What the sources are: `model`, `revision` and `layers` (their number) of each.

    Raises:
        ValueError: A field is wrong; the message is one line that begins with the field's name.
    """

    model_type = "evo_merged"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 (the base class has it without annotation too)
    has_no_defaults_at_init = False

    # `Any` where this class checks the type itself, so that the complaint is one line
    text_config: Any = None
    path: Any = None
    scales: Any = None
    scale_target: Any = "stream"
    embedding_source: Any = 0
    sources: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.path is None:
            layers = layer_count(self.text_config)
            layers = 32 if layers is None else layers
            if type(layers) is not int or not 0 < layers <= MAX_HOPS:
                raise ValueError(
                    f"text_config.num_hidden_layers: {layers!r:.80}, but a path has between "
                    f"1 and {MAX_HOPS} hops"
                )
            self.path = [f"0:{layer}" for layer in range(layers)]
        if self.scales is None:
            self.scales = [1.0] * len(self.path) if isinstance(self.path, list) else []
        if self.sources is None:
            self.sources = []
        self._check_numbers()
        self._check_inherited(kwargs)
        self.text_config = _as_config(self.text_config, len(self.slots))
        for name in [name for name in kwargs if not self._owns(name)]:
            setattr(self.text_config, name, kwargs.pop(name))
        self._check_text_config()
        head = "ImageTextToText" if self.has_parts else "CausalLM"
        kwargs.setdefault(
            "auto_map",
            {**AUTO_MAP, f"AutoModelFor{head}": f"modeling_evo_merged.EvoMergedFor{head}"},
        )
        for name in (
            "attn_implementation",
            "experts_implementation",
        ):  # the base class passes its own to text_config
            kwargs.setdefault(name, getattr(self.text_config, f"_{name}", None))
        super().__post_init__(**kwargs)

    def validate_path(self) -> None:
        """Part of the validation by `@strict`: the fields must agree with each other whenever they
        are saved."""
        self._check_numbers()
        self._check_text_config()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Write the configuration, unless it was changed into something wrong; `@strict` says that
        in several lines."""
        self.validate_path()
        super().save_pretrained(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What this class has no field for, such as `hidden_size`, the source architecture's
        configuration answers."""
        # `vars`, not an attribute: before `text_config` is set, as when an object is copied, this
        # method would call itself without end. Fields with an underscore are the base class's own.
        text_config = vars(self).get("text_config")
        if (
            name.startswith("_")
            or name in _NOT_ASKED
            or not isinstance(text_config, PreTrainedConfig)
        ):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(text_config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field where it is: of the source architecture's own, in `text_config`, so that it
        is stored once."""
        super().__setattr__(name, value) if self._owns(name) else setattr(
            self.text_config, name, value
        )

    def _owns(self, name: str) -> bool:
        """Whether a field belongs to this class, rather than to the source architecture."""
        return name in vars(self) or hasattr(type(self), name) or not hasattr(self, name)

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Leave the rotary embeddings to `text_config`, which has done it."""
        return kwargs

    def validate_rope(self) -> None:
        """Leave the rotary embeddings to `text_config`, which has validated them."""

    def validate_architecture(self) -> None:
        """Leave it to `validate_path`, which asks the source architecture's own class."""

    def validate_layer_type(self) -> None:
        """Leave it to `validate_path`, which asks the source architecture's own class."""

    def _get_generation_parameters(self) -> dict[str, Any]:
        # fields of the source architecture that are called like one of generation's are no mistake
        return {
            name: value
            for name, value in super()._get_generation_parameters().items()
            if name in vars(self)
        }

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The configuration of the language model, also where that is a part of `text_config`."""
        found = super().get_text_config(*args, **kwargs)
        return found if found is self else found.get_text_config(*args, **kwargs)

    @property
    def decoder_config(self) -> PreTrainedConfig:
        """The configuration of the layers: `text_config`, or of a vision-language model the
        language model's."""
        return decoder_of(self.text_config)

    @property
    def has_parts(self) -> bool:
        """Whether the model has parts beside its language model, such as a vision tower."""
        return self.decoder_config is not self.text_config

    @property
    def hops(self) -> list[list[Term]]:
        """The path as lists of `(source, layer, weight)`."""
        return [parse_hop(text, position) for position, text in enumerate(self.path)]

    @property
    def slots(self) -> list[tuple[int, int]]:
        """The `(source, layer)` of each cache slot: the first terms of the hops, then the further
        terms."""
        return _slots_of(self.path)

    @property
    def hop_slots(self) -> list[list[int]]:
        """The slots of the terms of each hop."""
        hops = self.hops
        result = []
        # Slot k < K is the first term of hop k: transformers' loop over the layers runs slots 0 to
        # K - 1, so the hidden states that it records are those of the hops. Further terms of sums
        # follow from K on, each with a cache slot of its own.
        following = len(hops)
        for position, hop in enumerate(hops):
            result.append([position, *range(following, following + len(hop) - 1)])
            following += len(hop) - 1
        return result

    @property
    def owners(self) -> list[int]:
        """For each slot the first slot that runs the same layer: the one under whose name its
        weights are stored."""
        # A layer that is visited n times has n cache slots, as each visit has other keys and
        # values, and one set of weights: the first slot's.
        first: dict[tuple[int, int], int] = {}
        return [first.setdefault(layer, slot) for slot, layer in enumerate(self.slots)]

    def source_config(self, source: int) -> PreTrainedConfig:
        """The configuration that a source has in its own right, as far as the path says it.

        Lists with one entry per layer have the entries of the layers on the path; those of other
        layers are the first slot's.
        """
        slots = self.slots
        layers = [layer for of, layer in slots if of == source]
        count = (
            self.sources[source]["layers"]
            if self.sources
            else max(layers, default=len(slots) - 1) + 1
        )
        # Of several slots of a layer the first, hence reversed. A layer off the path has left
        # nothing in this config; any entry will do for it.
        there = {layer: slot for slot, layer in reversed(list(enumerate(slots)))}
        return config_along(
            [self.text_config], [(0, there.get((source, layer), 0)) for layer in range(count)], 0
        )

    def check_places(self) -> None:
        """Raise `ValueError` where a layer would compute something else in its slot than in its
        source."""
        from .layers_evo_merged import check_places

        sources = {source for source, _ in self.slots} | {self.embedding_source}
        check_places(
            self.text_config,
            self.slots,
            {source: self.source_config(source) for source in sorted(sources)},
        )

    def _check_numbers(self) -> None:
        path = self.path
        scales = self.scales
        sources = self.sources
        for name, value in (("path", path), ("scales", scales), ("sources", sources)):
            if not isinstance(value, list):
                raise ValueError(f"{name}: {type(value).__name__}, but it must be a list")
        if not path:
            raise ValueError("path: no hops; a path has at least one, such as '0:0'")
        if len(path) > MAX_HOPS:
            raise ValueError(f"path: {len(path)} hops; a path has at most {MAX_HOPS}")
        if len(scales) != len(path):
            raise ValueError(
                f"scales: {len(scales)} numbers for a path of {len(path)} hops; give one per hop"
            )
        for position, scale in enumerate(scales):
            if (
                isinstance(scale, bool)
                or not isinstance(scale, (int, float))
                or not abs(scale) <= sys.float_info.max
            ):
                raise ValueError(f"scales[{position}]: {scale!r:.80} is not a finite number")
        if self.scale_target not in SCALE_TARGETS:
            raise ValueError(
                f"scale_target: {self.scale_target!r:.80} is unknown; there are "
                f"{', '.join(SCALE_TARGETS)}"
            )
        hops = self.hops
        if (count := sum(map(len, hops))) > MAX_HOPS:
            raise ValueError(f"path: {count} terms; a path has at most {MAX_HOPS}")
        for position, source in enumerate(sources):
            if not isinstance(source, dict) or type(source.get("layers")) is not int:
                raise ValueError(
                    f"sources[{position}]: {source!r:.80} is not a mapping with the number "
                    "of 'layers'"
                )
            for name in ("model", "revision"):
                if not isinstance(source.get(name), (str, type(None))):
                    raise ValueError(
                        f"sources[{position}].{name}: {source[name]!r:.80} is not a text"
                    )
        number = self.embedding_source
        if type(number) is not int:
            raise ValueError(f"embedding_source: {number!r:.80} is not the number of a source")
        if number < 0 or (sources and number >= len(sources)):
            there = "sources are numbered from 0"
            if sources:
                there = f"there are {len(sources)} sources, from 0"
            raise ValueError(f"embedding_source: {number}, but {there}")
        if sources:
            _check_layers(hops, [source["layers"] for source in sources])

    def _check_inherited(self, others: dict[str, Any]) -> None:
        """Fields of the base class over which it would trip without naming them."""
        for name in ("id2label", "label2id", "quantization_config"):
            value = others.get(name, getattr(self, name, None))
            if value is not None and not isinstance(value, dict) and not hasattr(value, "to_dict"):
                raise ValueError(f"{name}: {type(value).__name__}, but it must be a mapping")
        if type(use_cache := others.get("use_cache", True)) is not bool:
            raise ValueError(f"use_cache: {use_cache!r:.80} is not true or false")
        for name in ("hops", "slots", "hop_slots", "owners", "decoder_config", "has_parts"):
            if name in others:
                raise ValueError(
                    f"{name}: not a field of the configuration, it follows from 'path'"
                )

    def _check_text_config(self) -> None:
        slots = self.slots
        config = self.decoder_config
        if config.num_hidden_layers != len(slots):
            raise ValueError(
                f"text_config.num_hidden_layers: {config.num_hidden_layers}, but the path "
                f"needs {len(slots)} cache slots"
            )
        try:
            for name in ("validate_architecture", "validate_layer_type"):
                getattr(type(config), name)(config)  # a static method in one of them
        except ValueError as cause:
            raise ValueError(f"text_config: {' '.join(str(cause).split()):.200}") from cause
        owners = self.owners
        groups = self.hop_slots
        # its loop takes exactly one layer for each entry of layer_types
        if config.model_type == "ergo" and len(groups) < len(slots):
            raise ValueError("path: layers of 'ergo' cannot be summed; give one layer for each hop")
        for name in ("layer_types", "mlp_layer_types", "no_rope_layers"):
            entries = getattr(config, name, None)
            if not isinstance(entries, (list, tuple)):
                continue
            if len(entries) != len(slots):
                raise ValueError(
                    f"text_config.{name}: {len(entries)} entries, but the path needs "
                    f"{len(slots)} cache slots"
                )
            for slot, owner in enumerate(owners):
                if entries[slot] != entries[owner]:
                    source, layer = slots[slot]
                    raise ValueError(
                        f"text_config.{name}: layer {source}:{layer} is {entries[owner]!r} "
                        f"in slot {owner} "
                        f"but {entries[slot]!r} in slot {slot}"
                    )
            for position, group in enumerate(groups if name == "layer_types" else []):
                if len(kinds := {entries[slot] for slot in group}) > 1:
                    raise ValueError(
                        f"path[{position}]: the terms of a hop must be of one layer type, "
                        f"not {sorted(kinds)}"
                    )

    @classmethod
    def from_sources(
        cls,
        configs: Sequence[PreTrainedConfig],
        path: Sequence[str],
        scales: Sequence[float] | None = None,
        *,
        scale_target: str = "stream",
        embedding_source: int = 0,
        sources: Sequence[dict[str, Any]] | None = None,
        checked: bool = False,
    ) -> "EvoMergedConfig":
        """Make the configuration of a merged model from those of its sources.

        Args:
            configs: The configuration of each source, all of one architecture; where that of the
                embeddings is a vision-language model, others may be plain language models.
            path: One string per hop.
            scales: One number per hop; all 1 by default.
            scale_target: `"stream"` or `"mlp_delta"`.
            embedding_source: The source whose embeddings, final norm and head are used, and whose
                configuration decides where those of the sources may differ.
            sources: The `model` and `revision` of each source; the number of `layers` is filled in.
            checked: It is known that the sources fit together, and that their layers may stand in
                any place.

        Raises:
            ValueError: The sources do not fit together, or the path does not fit them.
        """
        if not checked:
            check_alike(configs, embedding_source)
        given = [{} for _ in configs] if sources is None else [dict(source) for source in sources]
        if len(given) != len(configs):
            raise ValueError(f"sources: {len(given)} descriptions for {len(configs)} sources")
        depths = [decoder_of(config).num_hidden_layers for config in configs]
        described = [
            {**source, "layers": depth} for source, depth in zip(given, depths, strict=True)
        ]
        slots = _slots_of(path)
        _check_layers([parse_hop(text, position) for position, text in enumerate(path)], depths)
        merged = cls(
            text_config=config_along(configs, slots, embedding_source),
            path=list(path),
            scales=None if scales is None else list(scales),
            scale_target=scale_target,
            embedding_source=embedding_source,
            sources=described,
        )
        merged.dtype = configs[embedding_source].dtype
        unknown = kinds_of(merged.decoder_config) - kinds_of(decoder_of(configs[embedding_source]))
        if unknown:
            raise ValueError(
                f"path: source {embedding_source}, of the embeddings, knows no layers of the "
                f"kind {min(unknown)!r}"
            )
        if not checked:
            merged.check_places()
        return merged

    def rerouted(
        self,
        path: Sequence[str],
        scales: Sequence[float] | None = None,
        *,
        scale_target: str | None = None,
    ) -> "EvoMergedConfig":
        """The configuration of another path through the layers that this model has.

        Args:
            path: One string per hop.
            scales: One number per hop; all 1 by default.
            scale_target: This model's by default.

        Raises:
            ValueError: The path cannot be read, or runs a layer that this model does not have.
        """
        resident = {layer: slot for slot, layer in reversed(list(enumerate(self.slots)))}
        slots = _slots_of(path)
        for source, layer in slots:
            if (source, layer) not in resident:
                raise ValueError(f"path: layer {source}:{layer} is not part of this model")
        merged = type(self)(
            text_config=config_along(
                [self.text_config], [(0, resident[layer]) for layer in slots], 0
            ),
            path=list(path),
            scales=None if scales is None else list(scales),
            scale_target=scale_target or self.scale_target,
            embedding_source=self.embedding_source,
            sources=copy.deepcopy(self.sources),
        )
        merged.dtype = self.dtype
        merged.check_places()
        return merged

    def separate(self) -> None:
        """Name the layers anew, as those of one source with a layer per slot: where repeated layers
        are no longer shared."""
        path = []
        for group, hop in zip(self.hop_slots, self.hops, strict=True):
            terms = []
            for slot, (_, _, weight) in zip(group, hop, strict=True):
                terms.append(f"0:{slot}" + ("" if weight == 1 else f"*{weight}"))
            path.append(" + ".join(terms))
        self.sources = [{"layers": len(self.slots)}]
        self.embedding_source = 0
        self.path = path


def _slots_of(path: Sequence[str]) -> list[tuple[int, int]]:
    """The `(source, layer)` of each cache slot of a path: the first terms of the hops, then the
    further terms."""
    if isinstance(path, str) or len(path) > MAX_HOPS:
        raise ValueError(
            f"path: a list of at most {MAX_HOPS} hops, one string each, such as ['0:0', '0:1']"
        )
    hops = [parse_hop(text, position) for position, text in enumerate(path)]
    return [hop[0][:2] for hop in hops] + [term[:2] for hop in hops for term in hop[1:]]


def _check_layers(hops: Sequence[Sequence[Term]], depths: Sequence[int]) -> None:
    """Raise `ValueError` where a path names a source or a layer that is not there."""
    for position, hop in enumerate(hops):
        for source, layer, _ in hop:
            if source >= len(depths):
                raise ValueError(
                    f"path[{position}]: source {source}, but there are {len(depths)} "
                    "sources, from 0"
                )
            if layer >= depths[source]:
                raise ValueError(
                    f"path[{position}]: layer {layer} of source {source}, which has "
                    f"{depths[source]} layers"
                )


def _as_config(value: Any, slots: int) -> PreTrainedConfig:
    """The source architecture's configuration object; refuses a wrong size before anything of that
    size is made."""
    if value is None:
        value = {"model_type": "llama", "num_hidden_layers": slots}
    if not isinstance(value, (dict, PreTrainedConfig)):
        raise ValueError(
            f"text_config: {type(value).__name__}, but it must be a configuration or a mapping"
        )
    check_architecture(
        value.model_type if isinstance(value, PreTrainedConfig) else value.get("model_type")
    )
    count = layer_count(value)
    if count != slots and (
        type(count) is not int or count != 2 * slots
    ):  # one architecture writes the double
        raise ValueError(
            f"text_config.num_hidden_layers: {count!r:.80}, but the path needs {slots} cache slots"
        )
    if isinstance(value, dict):
        try:
            value = CONFIG_MAPPING[value["model_type"]](**value)
        except (
            Exception
        ) as cause:  # each architecture trips in its own way over values that it does not expect
            raise ValueError(
                f"text_config: {type(cause).__name__}: {' '.join(str(cause).split()):.200}"
            ) from cause
    if (count := decoder_of(value).num_hidden_layers) != slots:
        raise ValueError(
            f"text_config.num_hidden_layers: {count}, but the path needs {slots} cache slots"
        )
    return value


EvoMergedConfig._auto_class = "AutoConfig"
