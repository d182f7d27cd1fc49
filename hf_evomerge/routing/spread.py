"""A model over several devices: runs of its layers on each, and hooks that take what reaches a layer to where its weights are.

The hooks are of modules and leave `forward` as it is, so that layers of spread models make paths like any others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import SourceError
from ..modeling.layers_evo_merged import decoder_layers


def layer_places(sizes: Sequence[int], rest: int, count: int) -> list[int]:
    """Assign each layer to one of so many devices, so that all hold about as much.

    Args:
        sizes: Bytes of each layer.
        rest: Bytes outside the layers, which lie on the first device.
        count: How many devices.
    """
    total, before, found = rest + sum(sizes), rest, []
    for size in sizes:
        found.append(min(count - 1, int((before + size / 2) * count / total)))
        before += size
    return found


def spread(model: PreTrainedModel, devices: Sequence[str]) -> None:
    """Move a model to several devices, and let it run there; inputs go to the first, and logits come from it.

    Raises:
        SourceError: It has no one list of layers.
    """
    try:
        layers = list(decoder_layers(model).children())
    except (AttributeError, ValueError) as cause:
        raise SourceError(f"devices_per_model: {type(model).__name__} has no one list of layers to spread") from cause
    sizes = [_size(layer.parameters()) for layer in layers]
    places = layer_places(sizes, _size(model.parameters()) - sum(sizes), len(devices))
    for layer, place in zip(layers, places, strict=True):
        _move(layer.modules(), devices[place])
    _move(_outside(model, layers), devices[0])
    follow(model, layers)


def follow(model: PreTrainedModel, layers: Iterable[nn.Module]) -> None:
    """Take what reaches each layer, and each module outside them that has weights, to the device of its weights."""
    layers = list(layers)
    outside = [module for module in _outside(model, layers) if any(True for _ in module.parameters(recurse=False))]
    for module in [*layers, *outside]:
        module.register_forward_pre_hook(_Follow(next(module.parameters()).device), with_kwargs=True)


class _Follow:
    """Forward pre-hook: take the tensors of a call to a device. Caches stay: each layer's part of one lies with the layer."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the arguments there."""
        return self._there(args), self._there(kwargs)

    def _there(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(self.device)
        if type(value) in (tuple, list):
            return type(value)(self._there(each) for each in value)
        if type(value) is dict:
            return {name: self._there(each) for name, each in value.items()}
        return value


def _outside(model: nn.Module, layers: Iterable[nn.Module]) -> list[nn.Module]:
    inside = {module for layer in layers for module in layer.modules()}
    return [module for module in model.modules() if module not in inside]


def _move(modules: Iterable[nn.Module], device: str) -> None:
    """Move what modules hold themselves; parameters stay the objects that they are, so that tied ones stay tied."""
    for module in modules:
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                tensor.data = tensor.data.to(device)


def _size(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)
