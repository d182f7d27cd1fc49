"""Where each tensor of a merged checkpoint comes from, and whether an architecture's layers can change places at all.

Works on the meta device: nothing is allocated, no weight is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .configuration_evo_merged import MAX_HOPS, EvoMergedConfig
from .modeling_evo_merged import _PLACE_NAMES, EvoMergedForCausalLM, find_layers, source_class


def tensor_origins(config: EvoMergedConfig) -> dict[str, tuple[int, str]]:
    """Map every tensor of the merged checkpoint to its source and its raw name there.

    Args:
        config: The configuration of the merged model.

    Returns:
        ``{name in the merged checkpoint: (source, name in the source's checkpoint)}``. Names are those that ``save_pretrained``
        writes. A layer that runs several times is there once, under the first slot that runs it.

    Raises:
        ValueError: The names that the architecture writes do not say which layer they belong to.
    """
    return {name: origin for name, (origin, _) in plan_tensors(config).items()}


def plan_tensors(config: EvoMergedConfig) -> dict[str, tuple[tuple[int, str], tuple[int, ...]]]:
    """As `tensor_origins`, with the shape that each tensor must have."""
    with torch.device("meta"):
        merged = EvoMergedForCausalLM(config)
    left_out = merged.all_tied_weights_keys.keys() | set(merged._keys_to_ignore_on_save or ())
    state = {name: tensor for name, tensor in merged.state_dict().items() if name not in left_out}
    raw = _as_written(merged, state)
    prefix = f"{merged._inner_name}."
    layers = f"{merged._layers_name.removeprefix(prefix)}."
    known = _as_written(merged.inner, {name.removeprefix(prefix): tensor for name, tensor in state.items()})
    if {f"{prefix}{name}" for name in known} != raw.keys():
        raise ValueError(f"text_config.model_type: the tensor names of {config.text_config.model_type!r} are not supported")
    plan = {}
    for name, tensor in raw.items():
        origin = config.embedding_source, name.removeprefix(prefix)
        if origin[1].startswith(layers):
            slot, _, rest = origin[1].removeprefix(layers).partition(".")
            source, layer = config.slots[int(slot)]
            origin = source, f"{layers}{layer}.{rest}"
        plan[name] = origin, tuple(tensor.shape)
    return plan


def _as_written(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under the names, and in the shapes, in which ``save_pretrained`` writes them."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, dict(state))


def check_rearrangeable(configs: Sequence[PreTrainedConfig]) -> None:
    """Raise `ValueError` where a layer would compute something else in another place of the model.

    Some architectures build their layers differently by their number. Each source is built on the meta device with its layers
    in reverse, and every layer compared with itself in its own place.
    """
    seen: list[dict[str, Any]] = []
    for config in configs:
        if (fields := config.to_dict()) in seen:
            continue
        seen.append(fields)
        count = config.num_hidden_layers
        if not 0 < count <= MAX_HOPS:
            raise ValueError(f"num_hidden_layers: {count}; a source has between 1 and {MAX_HOPS} layers")
        there = EvoMergedConfig.from_sources([config], [f"0:{layer}" for layer in reversed(range(count))]).text_config
        plain, reversed_layers = _layers_on_meta(config), _layers_on_meta(there)
        for layer, module in enumerate(plain):
            here, other = _description(module), _description(reversed_layers[count - 1 - layer])
            if here != other:
                where = next((key for key in here.keys() | other.keys() if here.get(key) != other.get(key)), "")
                raise ValueError(
                    f"text_config.model_type: layer {layer} of {config.model_type!r} has {where} = {here.get(where)!r} in its "
                    f"own place but {other.get(where)!r} elsewhere; layers of this architecture cannot be rearranged"
                )


def _layers_on_meta(config: PreTrainedConfig) -> list[nn.Module]:
    with torch.device("meta"):
        model = source_class(config)(config)
    return list(model.get_submodule(find_layers(model, config.num_hidden_layers)).children())


def _description(layer: nn.Module) -> dict[str, Any]:
    """What a layer is made of and its settings, apart from its number."""
    found: dict[str, Any] = {}
    for name, module in layer.named_modules():
        found[f"{name}.class"] = type(module)
        for key, value in vars(module).items():
            if not key.startswith("_") and key not in _PLACE_NAMES and isinstance(value, (int, float, str, tuple, type(None))):
                found[f"{name}.{key}"] = value
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            found[f"{name}.{key}"] = None if tensor is None else tuple(tensor.shape)
    return found
