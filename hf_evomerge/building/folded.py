"""A merged model as a plain checkpoint: its scales are multiplied into the weights, for programs
that run no custom code.

Knows arithmetic; which tensors it concerns is found in ``modeling/blocks_evo_merged.py``.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from ..checkpoints.checkpoint import Checkpoint, Origin, Parent
from ..checkpoints.headers import tensor_order, torch_dtype
from ..checkpoints.model_folder import write_json
from ..checkpoints.open import open_source
from ..checkpoints.quantized import check_quantization
from ..checkpoints.writer import write_checkpoint
from ..errors import EvoMergeError, PathError, SourceError, told
from ..recipes.recipe import Dtype, MergePart, Recipe
from .merged import Merged
from .planned import Planned, PlannedCheckpoint

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from ..modeling import EvoMergedConfig
    from ..modeling.blocks_evo_merged import Change

logger = logging.getLogger(__name__)

_LARGE_FACTOR = 2.0  # of the stream, from which on the norms' epsilon is worth a warning


class _Factors(NamedTuple):
    """The factors of one hop, as `Layout.changes` takes them."""

    others: float = 1.0
    last: float = 1.0
    sign: float = 1.0
    reader: float = 1.0


class Folded(PlannedCheckpoint):
    """A merged model as a plain one of the source architecture: every hop is a layer of its own,
    the scales are in the weights.

    - ``mlp_delta``, ``x_k = r_{k-1} + beta_k * MLP_{k-1}``: what the MLP of hop k-1 writes is
      multiplied by beta_k, the embeddings by beta_0. Exact. Embeddings that are scaled and tied to
      the head are untied.
    - ``stream``, ``x_k = beta_k * h_{k-1}``: with ``c_k = beta_0 * ... * beta_k`` and ``x_k = c_k *
      y_k``, the plain model carries y. What hop k writes to the stream is divided by c_k, and the
      norms that read it change their sign where c_k < 0. The embeddings stay as they are, tied or
      not. Exact but for the norms' epsilon.

    Products are formed in float64 and rounded once, to the dtype that is written. A layer that runs
    twice is written twice.

    Args:
        model: The merged model: one on disk, or a `Routed`.
        dtype: ``float32``, ``bfloat16`` or ``float16``; by default each tensor keeps its own.

    Raises:
        PathError: The path or its scales have no plain equal: several terms in a hop, a weight
            other than 1, a zero in the stream.
        SourceError: It is no merged model, its architecture cannot be folded, or a tensor is
            missing.
        EvoMergeError: The dtype is unknown.
    """

    def __init__(self, model: Checkpoint, dtype: str | None = None) -> None:
        if dtype is not None and dtype not in get_args(Dtype):
            raise EvoMergeError(
                f"dtype: {dtype!r} is unknown; there are {', '.join(get_args(Dtype))}"
            )
        self.ref = model.ref
        self.tokenizer_source = model.tokenizer_source
        self.model = model
        self.settings = (dtype, *model.settings)
        merged = _merged_config(model)
        self.has_parts = merged.has_parts
        self._is_stream = merged.scale_target == "stream"
        self._config = _plain_config(merged, dtype)
        plan, self._changes = _plan(model, merged, self._config, dtype=dtype)
        self.planned = {name: plan[name] for name in sorted(plan, key=tensor_order)}

    @property
    def config(self) -> PreTrainedConfig:
        """The config of the plain model."""
        return self._config

    @property
    def sources(self) -> list[Parent]:
        """Sources that the merged model reads."""
        return self.model.sources

    def origin(self, name: str) -> Origin:
        """Return the origin of the merged model's tensor."""
        origin = super().origin(name)
        return (
            origin
            if name not in self._changes or origin.kind == "merged"
            else replace(origin, kind="scaled")
        )

    def stream(self, name: str) -> Iterator[Tensor]:
        """Read one tensor; what is multiplied is multiplied in float64 and rounded once."""
        planned = self.planned[name]
        change = self._changes.get(name)
        wanted = torch_dtype(planned.info.dtype)
        for values in self.model.stream(planned.inputs[0][1]):
            if change is not None:
                values = (values.double() + change.offset) * change.factor - change.offset
            yield values if wanted is None else values.to(wanted)

    def doubts(self) -> list[str]:
        """Return the merged model's warnings, and one where the norms' epsilon may count.

        A norm adds epsilon to the mean square of its input. The plain model's input is 1 / c_k of
        the path's, so for it epsilon is c_k^2 times as large, or as small.
        """
        doubts = self.model.doubts()
        if not self._is_stream:  # where a scale may be 0
            return doubts
        sizes = [abs(change.factor) for change in self._changes.values() if not change.offset]
        most = max([*sizes, *(1 / size for size in sizes)], default=1.0)
        if most > _LARGE_FACTOR:
            doubts.append(
                f"the scales make the stream up to {most:.3g} times smaller or larger, for which "
                "the epsilon of the norms counts; compare the logits of both models"
            )
        return doubts

    def write_companions(self, folder: Path) -> None:
        """Write the config, and copy what else lies beside the weights."""
        self._config.save_pretrained(folder)
        if self.has_parts:
            self.model.processor_source.write_processor(folder)
        self.tokenizer_source.write_tokenizer(folder)
        _say_whether_bos(folder)


def fold(
    model: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    max_shard_size: str | int = "4GB",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Write a merged model as a plain checkpoint of the source architecture, which needs no custom
    code: see `Folded`.

    Args:
        model: The folder of the merged model, or its repository on the Hub; or an adapter that
            moves layers (peft's ``layer_replication``).
        out: The folder to make. It appears when the checkpoint is complete.
        dtype: ``float32``, ``bfloat16`` or ``float16``; by default each tensor keeps its own.
        max_shard_size: The largest file of weights, such as ``"4GB"``.
        overwrite: Whether to replace a model that is there.
        trust_remote_code: Whether Python files that come with the model may be run.

    Returns:
        The folder.

    Raises:
        PathError: The path or its scales have no plain equal.
        SourceError: The folder is not a merged model, its architecture cannot be folded, or a
            tensor is missing.
        EvoMergeError: An argument is wrong, or a weight does not fit into the dtype.

    Example:
        >>> fold("my-search/model", "my-search/plain", dtype="bfloat16")
        PosixPath('my-search/plain')
    """
    source = open_source(model, trust_remote_code=trust_remote_code)
    folded: Checkpoint
    if source.layer_order:  # plain once it is read
        alone = MergePart(method="linear", parameters=[{"weight": 1.0}])
        recipe = Recipe.model_validate({"sources": [source.ref], "merge": alone, "dtype": dtype})
        folded = Merged(recipe, {0: source})
    else:
        folded = Folded(source, dtype)
    return write_checkpoint(folded, out, max_shard_size=max_shard_size, overwrite=overwrite)


def hop_factors(config: EvoMergedConfig) -> list[_Factors]:
    """The factors that fold the scales into the weights of each hop.

    Raises:
        PathError: The path or its scales have no plain equal.
    """
    for position, hop in enumerate(config.hops):
        text = f"path[{position}]: {config.path[position]!r}"
        if len(hop) > 1:
            raise PathError(
                f"{text} sums {len(hop)} layers; no plain model does that, so the path "
                "cannot be folded"
            )
        if hop[0][2] != 1:
            raise PathError(
                f"{text} has a weight other than 1, which cannot be folded; say it with the "
                "scales instead"
            )
    if config.scale_target == "mlp_delta":
        # mlp_delta: beta_k multiplies what the MLP of hop k - 1 adds, so it belongs to the last
        # branch of the hop before; the last hop has none after it. beta_0 is in the embeddings.
        return [_Factors(last=float(scale)) for scale in [*config.scales[1:], 1.0]]
    # Stream, with beta_k on the way into hop k and F_k what the hop adds:
    #
    #   x_k = beta_k h_{k-1},   h_k = x_k + F_k(norm(x_k))                     (1)
    #   c_k = beta_0 beta_1 ... beta_k,   x_k = c_k y_k                        (2)
    #
    # Divide (1) by c_k. As c_{k+1} = beta_{k+1} c_k, the left side h_k / c_k is x_{k+1} / c_{k+1}:
    #
    #   y_{k+1} = y_k + F_k(norm(c_k y_k)) / c_k                               (3)
    #   norm(c y) = sign(c) norm(y), but for the norm's epsilon                (4)
    #
    # So the plain model carries y, its writers have the factor 1 / c_k, its norms the sign of c_k,
    # and maps that read the stream without a norm the factor c_k. (1) to (4) fail for beta = 0, and
    # for a product that a double cannot hold.
    factors = []
    product = 1.0
    for position, scale in enumerate(config.scales):
        product *= scale  # c_k of (2)
        if scale == 0:
            raise PathError(
                f"scales[{position}]: 0 wipes out the stream, the input with it; no plain "
                "model does that"
            )
        if not sys.float_info.min <= abs(product) <= sys.float_info.max:
            raise PathError(
                f"scales[{position}]: the product of the scales up to this one is {product}, "
                "which is out of range"
            )
        factors.append(_Factors(1 / product, 1 / product, math.copysign(1.0, product), product))
    return factors


def _embedding_factor(config: EvoMergedConfig) -> float:
    """Return the factor of the embeddings: 1 in the stream, where the scale of the first hop is in
    every c_k."""
    return float(config.scales[0]) if config.scale_target == "mlp_delta" else 1.0


def _merged_config(source: Checkpoint) -> EvoMergedConfig:
    """The configuration, if there is a plain equal of its path."""
    from ..modeling import EvoMergedConfig

    config = source.config
    if not isinstance(config, EvoMergedConfig):
        raise SourceError(
            f"{source}: a plain {config.model_type!r} already, with no path to fold; use it "
            "as it is"
        )
    hop_factors(config)
    check_quantization(config, source, "folded")
    return config


def _plain_config(config: EvoMergedConfig, dtype: str | None) -> PreTrainedConfig:
    """The configuration of the result: its lists with one entry per layer are in the order of the
    hops already."""
    import torch

    from ..modeling.sources_evo_merged import decoder_of

    plain = copy.deepcopy(config.text_config)
    plain.architectures = [_plain_class(config).__name__]
    plain.dtype = getattr(torch, dtype) if dtype is not None else config.dtype
    if _embedding_factor(config) != 1:
        if config.has_parts:
            raise PathError(
                f"scales[0]: {config.scales[0]} multiplies pictures as well as words, and a "
                f"plain {plain.model_type!r} has no "
                "place for that; with mlp_delta only a first scale of 1 can be folded here"
            )
        plain.tie_word_embeddings = False
    _describe_windows(decoder_of(plain))
    return plain


def _plain_class(config: EvoMergedConfig) -> type[PreTrainedModel]:
    """The source architecture's class with the head that the merged model was saved with."""
    from ..modeling.layers_evo_merged import source_class
    from ..modeling.modeling_evo_merged import CLASSES

    heads = (kind._classes for kind in CLASSES if kind.__name__ in (config.architectures or []))
    return source_class(config.text_config, next(heads, None))


def _describe_windows(plain: PreTrainedConfig) -> None:
    """Say the kinds of the layers in the older way too, or that it cannot be said."""
    kinds = getattr(plain, "layer_types", None)
    if not kinds:
        return
    if getattr(plain, "max_window_layers", None) is not None:
        plain.max_window_layers = next(
            (layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"), len(kinds)
        )
    fields = {name: value for name, value in plain.to_dict().items() if name != "layer_types"}
    if list(getattr(type(plain)(**fields), "layer_types", None) or kinds) != list(kinds):
        logger.warning(
            "layer_types: the path does not keep the order of the architecture's kinds of "
            "layers; a program that does not read "
            "this list from config.json, such as llama.cpp, computes something else"
        )


def _plan(
    source: Checkpoint, config: EvoMergedConfig, plain: PreTrainedConfig, *, dtype: str | None
) -> tuple[dict[str, Planned], dict[str, Change]]:
    """Find every tensor of the result in the headers of the merged model, and what becomes of
    it."""
    import torch

    from ..modeling.origins import as_written, is_kept_in_float32, saved_tensors

    with torch.device("meta"):
        model = _plain_class(config)(plain)
    names = as_written(model, saved_tensors(model))
    changes: dict[str, Change] = {}
    if any(scale != 1 for scale in config.scales):
        changes = _changes(config, model)
    plan = {}
    for name, stored in _stored_names(config, model, names).items():
        source.check_name(stored)
        own = None if is_kept_in_float32(model, name) else dtype
        plan[name] = Planned.copy(source, stored, own)
    return plan, changes


def _weight_of(model: PreTrainedModel, module: Any) -> str:
    """The name of the weight of one of the model's modules."""
    return next((f"{name}.weight" for name, other in model.named_modules() if other is module), "")


def _stored_names(
    config: EvoMergedConfig, model: PreTrainedModel, names: Iterable[str]
) -> dict[str, str]:
    """Under which name the merged checkpoint holds each tensor of the result: of a layer under its
    first slot's."""
    from ..modeling.modeling_evo_merged import find_layers
    from ..modeling.origins import written_layers

    # as `save_pretrained` writes them
    prefix = f"{find_layers(model, len(config.path))}."
    prefix = written_layers(model, model.state_dict(), f"{prefix}0.") or prefix
    stored = {}
    for name in names:
        there = name
        if name.startswith(prefix):
            hop, _, rest = name.removeprefix(prefix).partition(".")
            there = f"{prefix}{config.owners[int(hop)]}.{rest}"
        stored[name] = f"model.{there}"
    tied = getattr(config.text_config, "tie_word_embeddings", False)  # some types do not have it
    if tied and (head := _weight_of(model, model.get_output_embeddings())) in stored:
        stored[head] = f"model.{_weight_of(model, model.get_input_embeddings())}"
    return stored


def _changes(config: EvoMergedConfig, model: PreTrainedModel) -> dict[str, Change]:
    """Fold the embeddings, the tensors of each layer, and the final norm; by the names that are
    written."""
    from ..modeling.origins import as_written, saved_tensors

    parameters = _parameter_changes(config, model)
    state = saved_tensors(model)
    written = {}
    for change in set(parameters.values()):
        alike = {name: state[name] for name, other in parameters.items() if other == change}
        written.update(dict.fromkeys(as_written(model, alike), change))
    return written


def _parameter_changes(config: EvoMergedConfig, model: PreTrainedModel) -> dict[str, Change]:
    """The changes by the names of the model's parameters."""
    from ..modeling.blocks_evo_merged import check_scale_target, layouts_of
    from ..modeling.layers_evo_merged import find_layers

    kind = config.decoder_config.model_type
    with told(SourceError, ValueError):
        check_scale_target(config)
        layouts = layouts_of(config.decoder_config)
    sight = getattr(config.text_config, "vision_config", None)
    if config.scale_target == "stream" and getattr(sight, "deepstack_visual_indexes", None):
        raise PathError(
            f"scales: {config.text_config.model_type!r} adds pictures to the stream behind "
            "its first layers too, where a plain "
            "model cannot scale them; take scale_target: mlp_delta, or no scales"
        )
    factors = hop_factors(config)
    layers = find_layers(model, len(config.path))
    parts = [
        (f"{layers}.{hop}.", layout, factors[hop]) for hop, layout in enumerate(layouts.blocks)
    ]
    around = layers.removesuffix(layouts.layers)
    first = _embedding_factor(config)
    parts += [
        (around, layouts.embeddings, _Factors(first, first)),
        (around, layouts.final, factors[-1]),
    ]
    changes: dict[str, Change] = {}
    for prefix, layout, factor in parts:
        if (
            layout.refusal and factor._replace(last=1.0) != _Factors()
        ):  # the last branch is proved by itself
            raise SourceError(
                f"text_config.model_type: {kind!r} cannot be folded with these scales; "
                f"{layout.refusal}"
            )
        if layout.unsigned and factor.sign < 0:
            raise SourceError(
                f"scales: their product is negative, and {prefix}{layout.unsigned} has no "
                "weight that could be negated"
            )
        changes |= {f"{prefix}{name}": change for name, change in layout.changes(*factor).items()}
    return changes


def _say_whether_bos(folder: Path) -> None:
    """Write ``add_bos_token`` as the tokenizer does it: where the key is absent, programs assume
    different things."""
    from transformers import AutoTokenizer

    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as cause:
        logger.warning(
            (
                "tokenizer_config.json: add_bos_token is not written, because the tokenizer "
                "cannot be loaded: %s"
            ),
            cause,
        )
        return
    first = tokenizer("a")["input_ids"][:1]
    settings["add_bos_token"] = tokenizer.bos_token_id is not None and first == [
        tokenizer.bos_token_id
    ]
    write_json(file, settings)
