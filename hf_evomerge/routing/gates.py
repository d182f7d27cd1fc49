"""Gates in data flow space: how much of what each slot's block adds to the stream is kept, and the gradient of a loss in them.

A pre-norm block is blind to the scale of its input. So the stream x <- g_k Layer_k(x / g_k), in which block k adds g_k times
what it adds to x, is a path with scales: with h = x / g_k after hop k, the scale on the way into it is s_k = g_{k-1} / g_k,
where g_{-1} = 1, and the final norm takes the last factor away. A gate of 0 is "not on the path"; the gradient there says what
the block would do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PathError, SourceError
from ..recipes.layer_path import LayerPath

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from .pool import LayerPool

LEAST = 0.1
"""The least gate that is on; it bounds the scales, which are ratios of gates."""

Slot = tuple[int, int]
"""A source and one of its layers."""


def gate_path(slots: Sequence[Slot], gates: Sequence[float]) -> LayerPath:
    """The path and the scales that gates stand for.

    Args:
        slots: Source and layer of each slot.
        gates: One number per slot; those below `LEAST` are off.

    Raises:
        PathError: Every slot is off.

    Example:
        >>> path = gate_path([(0, 0), (1, 0), (0, 1)], [1.0, 0.0, 0.5])
        >>> str(path), path.scales
        ('0:0, 0:1', [1.0, 2.0])
    """
    on = [(slot, float(gate)) for slot, gate in zip(slots, gates, strict=True) if gate >= LEAST]
    if not on:
        raise PathError(f"gates: none of {len(gates)} is on; a path has at least one hop, with a gate of {LEAST} or more")
    before = [1.0, *(gate for _, gate in on)]
    return LayerPath.of([slot for slot, _ in on], [last / gate for last, (_, gate) in zip(before, on, strict=False)])


def check_gates(config: PreTrainedConfig) -> None:
    """Raise `SourceError` unless the blocks of the architecture are blind to the scale of their input."""
    from ..modeling.fold_layouts import layout_of

    try:
        layout = layout_of(config)
    except ValueError as cause:
        raise SourceError(f"dfs.scales: gate needs blocks with a norm in front, and {cause}; write scales: slot") from cause
    if layout.readers:
        raise SourceError(
            f"dfs.scales: gate needs blocks with a norm in front; those of {config.model_type!r} read the stream as it is; "
            "write scales: slot"
        )


def gate_gradient(
    pool: LayerPool,
    slots: Sequence[Slot],
    gates: Sequence[float],
    backward: Callable[[PreTrainedModel], object],
    *,
    weights: bool = False,
) -> NDArray[np.float64]:
    """The gradient with respect to gates, those that are 0 included.

    Args:
        pool: The resident layers.
        slots: Source and layer of each slot that runs.
        gates: A number per slot: 0, or at least `LEAST`.
        backward: Runs the model it is given and the backward pass, once or several times; the gradients add up.
        weights: Whether parameters that require a gradient get theirs in the same pass; by default none does.

    Returns:
        One number per slot.
    """
    import torch

    model = pool.model(LayerPath.of(slots))
    parameters = [] if weights else [parameter for parameter in model.parameters() if parameter.requires_grad]
    leaf = torch.tensor(list(gates), dtype=torch.float32, device=model.device, requires_grad=True)
    for layer, gate in zip(model.layers, leaf, strict=True):
        _Gate(gate).install(layer)
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        backward(model)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
    assert leaf.grad is not None  # `backward` has run
    return leaf.grad.double().numpy(force=True)


class _Gate:
    """Hooks that make of a layer ``x + g (Layer(u) - u)``, u being ``x / max(g, LEAST)``: from there on ``g Layer(x / g)``."""

    def __init__(self, gate: Tensor) -> None:
        self.gate, self.kept = gate, gate.clamp(min=LEAST)

    def install(self, layer: nn.Module) -> None:
        """Hang the gate on a layer of a model of its own."""
        layer.register_forward_pre_hook(self.before, with_kwargs=True)
        layer.register_forward_hook(self.after, with_kwargs=True)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Divide the hidden state."""
        if args:
            return (args[0] / self.kept, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] / self.kept}

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Multiply what comes out, and put back what a gate below `LEAST` takes from the stream."""
        inside = args[0] if args else kwargs["hidden_states"]
        state = output[0] if isinstance(output, tuple) else output
        state = self.gate * state + (self.kept - self.gate) * inside
        return (state, *output[1:]) if isinstance(output, tuple) else state
