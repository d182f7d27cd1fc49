"""The layers of a model: where they are, what hangs on them, how they are copied, and whether they
may stand elsewhere.

This file travels to the Hub beside the weights: it imports nothing but torch and transformers.
"""

import copy
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import output_capturing

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
)
_COUNTS_FROM_THE_END = hasattr(
    output_capturing, "resolve_hidden_states_indices"
)  # older versions count otherwise
_PLACE_NAMES = ("layer_idx", "layer_id", "layer_number", "layer_index")


class ScaleInput:
    """Forward pre-hook: multiply the hidden state on the way into a layer. Holds nothing but the
    factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the arguments with the hidden state scaled."""
        if args:
            return (args[0] * self.factor, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * self.factor}


class ScaleOutput:
    """Forward hook: multiply the output of a branch before it is added to the residual stream."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Return the output scaled; where it is a tuple, its first element."""
        return _with_first(output, _first(output) * self.factor)


# Hop k computes h_k = sum_i w_i L_i(x_k). The loop of the source architecture knows one layer per
# hop, so the first term's hook runs the others on the same arguments. They share masks and
# positions, and each writes to its own cache slot.
class SumTerms:
    """Forward hook of the first term of a hop: run the further terms on the same input, and return
    the weighted sum."""

    def __init__(self, weights: Sequence[float], others: Sequence[nn.Module]) -> None:
        self.weights = list(weights)
        self.others = list(others)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Return the output of the whole hop."""
        # `forward` rather than a call: the hooks that record hidden states must see one state per
        # hop
        outputs = [output, *(other.forward(*args, **kwargs) for other in self.others)]
        total = None
        for weight, item in zip(self.weights, outputs, strict=True):
            state = _first(item) if weight == 1 else _first(item) * weight
            total = state if total is None else total + state
        return _with_first(output, total)


def _first(output: Any) -> Any:
    """The hidden state that a module returns, by itself or before other things."""
    return output[0] if isinstance(output, (tuple, list)) else output


def _with_first(output: Any, state: Any) -> Any:
    """What a module returns, with another hidden state."""
    return type(output)([state, *output[1:]]) if isinstance(output, (tuple, list)) else state


class HopList(nn.ModuleList):
    """A list of layers of which a model's loop over its layers sees the hops only, not the further
    terms behind them."""

    hops = 0

    def __init__(self, modules: Sequence[nn.Module], hops: int) -> None:
        super().__init__(modules)
        self.hops = hops

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Show all layers for a while: to whatever initialises them, not only those that the loop
        runs."""
        hops = self.hops
        self.hops = len(self._modules)
        try:
            yield
        finally:
            self.hops = hops

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([layer for layer in self._modules.values() if layer is not None][: self.hops])

    def __len__(self) -> int:
        return self.hops

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


def find_layers(model: nn.Module, count: int) -> str:
    """The name of the list of decoder layers in a model: the outermost list of `count` modules, in
    its language model."""
    inside = ""
    if (
        isinstance(model, PreTrainedModel)
        and model.config.get_text_config(decoder=True) is not model.config
    ):
        decoder = model.get_decoder()
        inside = next(f"{name}." for name, part in model.named_modules() if part is decoder)
    lists = [
        (name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)
    ]
    found = [
        name for name, part in lists if len(part._modules) == count and name.startswith(inside)
    ]
    # A model may have other lists of as many modules: of a tower, or within a block. Those inside
    # its language model count, the outermost first.
    outermost = min((name.count(".") for name in found), default=0)
    found = [name for name in found if name.count(".") == outermost]
    if len(found) > 1:  # a list of something else may be as long by coincidence
        blocks = []
        for name in found:
            parts = model.get_submodule(name).children()
            if all(isinstance(part, GradientCheckpointingLayer) for part in parts):
                blocks.append(name)
        found = blocks or found
    if len(found) != 1:
        raise ValueError(
            f"text_config.model_type: {type(model).__name__} has {len(found)} lists of "
            f"{count} layers, not one"
        )
    return found[0]


def decoder_layers(model: PreTrainedModel) -> nn.Module:
    """The list of decoder layers of a plain model."""
    return model.get_submodule(
        find_layers(model, model.config.get_text_config(decoder=True).num_hidden_layers)
    )


def source_class(config: PreTrainedConfig, mapping: Any = None) -> type[PreTrainedModel]:
    """The source architecture's own class in one of transformers' mappings; in that of models that
    generate by default."""
    text = config.get_text_config(decoder=True) is config
    generates = MODEL_FOR_CAUSAL_LM_MAPPING if text else MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    mapping, what = (
        (generates, "causal language model")
        if mapping is None
        else (mapping, "class with this head")
    )
    if type(config) not in mapping:
        raise ValueError(
            f"text_config.model_type: {config.model_type!r} has no {what} in transformers"
        )
    kind: Any = mapping[type(config)]
    return kind[0] if isinstance(kind, (tuple, list)) else kind


def known_arguments(
    config: Any, known: Collection[str], arguments: dict[str, Any]
) -> dict[str, Any]:
    """The arguments in the names that the source class of the installed transformers knows, without
    those not given.

    Args:
        config: The merged model's configuration.
        known: The names.
        arguments: What the merged model was called with.
    """
    if "output_hidden_states" in arguments:
        arguments["output_hidden_states"] = _counted(
            arguments["output_hidden_states"], len(config.path) + 1
        )
    names = ("cache", "past_key_values", "cache_params")
    cache = [arguments.pop(name, None) for name in names]
    given = [value for value in cache if value is not None]
    if len(given) > 1:
        raise ValueError("cache: given twice, under its old name and its new one")
    if given:
        arguments[next((name for name in names if name in known), "cache")] = given[0]
    for name in {"position_ids", "logits_to_keep"} - set(known):
        arguments.pop(name, None)
    for name in ("output_hidden_states", "output_attentions"):
        if getattr(config, name, False):
            arguments.setdefault(name, True)
    if config.return_dict is False:
        arguments.setdefault("return_dict", False)
    return {name: value for name, value in arguments.items() if value is not None}


def _counted(selected: Any, count: int) -> Any:
    """Negative numbers of hidden states, counted from the last hop: the source class would count
    from the last slot."""
    if selected is None or isinstance(selected, bool) or not _COUNTS_FROM_THE_END:
        return selected
    numbers = [selected] if isinstance(selected, int) else selected
    return [number if number >= 0 else max(number + count, -1) % (count + 1) for number in numbers]


def copy_structure(
    module: nn.Module, config: PreTrainedConfig, slot: int | None, swap: Mapping[int, nn.Module]
) -> nn.Module:
    """Copy a tree of modules without its hooks, over the same parameters and buffers.

    Args:
        module: The root of the tree.
        config: The configuration that the copies refer to.
        slot: The place of the layer in the merged model; None outside the layers.
        swap: What to put in the place of some of the modules, by their `id`.
    """
    if id(module) in swap:
        return swap[id(module)]
    if "forward" in vars(module):
        raise ValueError(
            f"{type(module).__name__}: its forward is replaced; load the source without "
            "device_map or patches"
        )
    new = module.__new__(type(module))
    fields = new.__dict__
    fields.update(module.__dict__)
    for name in _HOOKS:
        fields[name] = OrderedDict()
    fields["_parameters"] = dict(module._parameters)
    fields["_buffers"] = dict(module._buffers)
    fields["_modules"] = {
        name: None if child is None else copy_structure(child, config, slot, swap)
        for name, child in module._modules.items()
    }
    if isinstance(own := fields.get("config"), PreTrainedConfig):
        if type(own) is type(config):
            fields["config"] = config
        elif (decoder := config.get_text_config(decoder=True)) is config or type(own) is type(
            decoder
        ):
            fields["config"] = decoder
    if slot is not None:
        for name in _PLACE_NAMES:
            if isinstance(fields.get(name), int):
                fields[name] = slot
    fields.pop("_output_capturing_hooks_installed", None)
    return new


def check_places(
    merged: PreTrainedConfig,
    slots: Sequence[tuple[int, int]],
    sources: Mapping[int, PreTrainedConfig],
) -> None:
    """Raise `ValueError` where a layer would compute something else in its slot than in its own
    place.

    Some architectures build a layer by its number or by how many there are: a first dense layer, a
    residual that shrinks with depth, an embedding per layer. The models are built on the meta
    device, where nothing is allocated, and compared.

    Args:
        merged: The source architecture's configuration with one layer per slot.
        slots: The `(source, layer)` of each slot.
        sources: The configuration of each source.
    """
    there, around = _described(merged)
    own = {source: _described(config) for source, config in sources.items()}
    for slot, (source, layer) in enumerate(slots):
        here = own[source][0][layer]
        if here != there[slot]:
            what = _first_difference(here, there[slot])
            raise ValueError(
                f"text_config.model_type: layer {layer} of {merged.model_type!r} has {what} "
                f"= {here.get(what)!r:.80} in its "
                f"own place but {there[slot].get(what)!r:.80} in slot {slot} of "
                f"{len(slots)}; it cannot run there"
            )
    for _, outside in own.values():
        if outside != around:
            what = _first_difference(outside, around)
            raise ValueError(
                f"text_config.model_type: {what} of {merged.model_type!r} is "
                f"{outside.get(what)!r:.80} in a source but "
                f"{around.get(what)!r:.80} with {len(slots)} layers; this architecture needs "
                "as many layers as its source has"
            )


def _first_difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    return next(key for key in [*one, *other] if one.get(key) != other.get(key))


def _described(config: PreTrainedConfig) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What each layer of a model is made of, and the shapes of the tensors that belong to no
    layer."""
    config = copy.deepcopy(config)  # a model writes into its own
    if isinstance(name := config.dtype, str):  # as it is after save_pretrained
        config.dtype = getattr(torch, name)
    try:
        with torch.device("meta"):
            model = source_class(config)(config)
    except (
        Exception
    ) as cause:  # each architecture trips in its own way over what it does not expect
        text = " ".join(str(cause).split())
        raise ValueError(
            f"text_config: a {config.model_type!r} cannot be built: {type(cause).__name__}: "
            f"{text:.200}"
        ) from cause
    name = find_layers(model, config.get_text_config(decoder=True).num_hidden_layers)
    if any(tied.startswith(f"{name}.") for tied in model.all_tied_weights_keys):
        raise ValueError(
            f"text_config.model_type: layers of {config.model_type!r} share tensors; they "
            "cannot be told apart"
        )
    layers = [_description(layer) for layer in model.get_submodule(name).children()]
    return layers, {
        key: tuple(tensor.shape)
        for key, tensor in model.state_dict().items()
        if not key.startswith(f"{name}.")
    }


def _description(layer: nn.Module) -> dict[str, Any]:
    """What a layer is made of and its settings, apart from its number."""
    found: dict[str, Any] = {}
    for name, module in layer.named_modules():
        found[f"{name}.class".lstrip(".")] = type(module).__name__
        for key, value in vars(module).items():
            if (
                not key.startswith("_")
                and key not in _PLACE_NAMES
                and isinstance(value, (int, float, str, tuple, type(None)))
            ):
                found[f"{name}.{key}".lstrip(".")] = value
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            found[f"{name}.{key}".lstrip(".")] = None if tensor is None else tuple(tensor.shape)
    return found
