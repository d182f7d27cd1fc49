"""Gates in data flow space: how much of what each slot's block adds to the stream is kept, and the
gradient of a loss in them.

A pre-norm block is blind to the scale of its input. So the stream x <- g_k Layer_k(x / g_k), in
which block k adds g_k times what it adds to x, is a path with scales: with h = x / g_k after hop k,
the scale on the way into it is s_k = g_{k-1} / g_k, where g_{-1} = 1, and the final norm takes the
last factor away. A gate of 0 is "not on the path"; the gradient there says what the block would do.

What a block adds is g_k times its attention, and g_k times an MLP that reads x with the gated
attention in it.

Slots of one hop read the same stream: x <- sum_i g_i Layer_i(x / sum_i g_i) is a sum of the blocks
with weights g_i, and 1 / sum_i g_i is its scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PathError, SourceError, told
from ..recipes.layer_path import Hop, LayerPath, Term

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from .pool import LayerPool

LEAST = 0.1
"""The least gate that is on; it bounds the scales, which are ratios of gates."""

Slot = tuple[int, int]
"""A source and one of its layers."""


def gate_path(
    slots: Sequence[Slot], gates: Sequence[float], hops: Sequence[int] | None = None
) -> LayerPath:
    """The path, the scales and the weights of sums that gates stand for.

    Args:
        slots: Source and layer of each slot.
        gates: One number per slot; those below `LEAST` are off.
        hops: A number per slot, the same for slots of one hop, which follow each other; each is a
            hop of its own where None.

    Raises:
        PathError: Every slot is off.

    Example:
        >>> path = gate_path([(0, 0), (1, 0), (0, 1)], [1.0, 0.0, 0.5])
        >>> str(path), path.scales
        ('0:0, 0:1', [1.0, 2.0])
        >>> path = gate_path([(0, 0), (1, 0)], [0.5, 0.75], hops=[0, 0])
        >>> str(path), path.scales
        ('0:0*0.5 + 1:0*0.75', [0.8])
    """
    on = [index for index, gate in enumerate(gates) if gate >= LEAST]
    if not on:
        raise PathError(
            f"gates: none of {len(gates)} is on; a path has at least one hop, with a gate of "
            f"{LEAST} or more"
        )
    found = []
    before = 1.0
    for members in _grouped(on, hops):
        total = sum(float(gates[index]) for index in members)
        weights = [1.0] if len(members) == 1 else [float(gates[index]) for index in members]
        terms = tuple(
            Term(*slots[index], weight) for index, weight in zip(members, weights, strict=True)
        )
        # s_k = g_{k-1} / g_k takes the last factor off and puts the next on: what the hop reads is
        # x / g_k. A serial hop hands on h = x / g_k, so the factor to take off next is g_k. The sum
        # of several terms is weighted by the gates already, so it is x itself.
        found.append(Hop(terms, before / total))
        before = total if len(members) == 1 else 1.0
    return LayerPath(tuple(found))


def _grouped(slots: Sequence[int], hops: Sequence[int] | None) -> list[list[int]]:
    """Indices of slots, those of one hop together."""
    return [
        list(members)
        for _, members in groupby(slots, lambda index: index if hops is None else hops[index])
    ]


def check_gates(config: PreTrainedConfig) -> None:
    """Raise `SourceError` unless the blocks of the architecture are blind to the scale of their
    input."""
    from ..modeling.blocks_evo_merged import layouts_of

    need = "path.kind: gates needs blocks with a norm in front"
    with told(SourceError, ValueError, f"{need}, and ", "; write kind: paper"):
        layouts = layouts_of(config)
    for layout in [*layouts.blocks, layouts.final]:
        reads = f"{next(iter(layout.readers))} reads the stream as it is" if layout.readers else ""
        if refusal := layout.refusal or reads:
            raise SourceError(
                f"{need}; in those of {config.model_type!r} {refusal}; write kind: paper"
            )


def gate_gradient(
    pool: LayerPool,
    slots: Sequence[Slot],
    gates: Sequence[float],
    backward: Callable[[PreTrainedModel], object],
    *,
    hops: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """The gradient with respect to gates, those that are 0 included.

    Args:
        pool: The resident layers.
        slots: Source and layer of each slot that runs.
        gates: A number per slot: 0, or at least `LEAST`.
        backward: Runs the model it is given and the backward pass, once or several times; the
            gradients add up.
        hops: As `gate_path` takes them.

    Returns:
        One number per slot.
    """
    import torch

    model = pool.model(LayerPath.of(slots))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    leaf = torch.tensor(list(gates), dtype=torch.float32, device=model.device, requires_grad=True)
    layers = model.layers
    for members in _grouped(range(len(slots)), hops):
        _Gates([leaf[index] for index in members]).install([layers[index] for index in members])
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        backward(model)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
    assert leaf.grad is not None  # `backward` has run
    return leaf.grad.double().numpy(force=True)


# The gradient is taken where gates are 0 too, which a path cannot express: the slot would not be on
# it. So all slots run, each with hooks that compute the gated stream itself,
#
#   u = x / max(sum_i g_i, LEAST),   x <- x + sum_i g_i (Layer_i(u) - u)   (1)
#
# and autograd differentiates (1) in g. Where every gate is 0 or at least LEAST, (1) is the model
# that `gate_path` builds: sum_i g_i u = x then, and what is left of (1) is sum_i g_i Layer_i(u).
# Where the sum is below LEAST, `rest` times u is what the gates do not carry: (max(sum, LEAST) -
# sum) u, so that x passes by.
class _Gates:
    """Hooks that make of the layers of a hop ``x + sum_i g_i (Layer_i(u) - u)``, u being ``x /
    max(sum_i g_i, LEAST)``.

    The layers stand one after the other in the model; each but the first is given u in place of the
    sum so far.
    """

    def __init__(self, gates: Sequence[Tensor]) -> None:
        self.gates = gates
        self.rest: Any = None
        self.inside: Any = None
        self.so_far: Any = None

    def install(self, layers: Sequence[nn.Module]) -> None:
        """Hang the gates on layers of a model of its own."""
        for place, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self.before, place), with_kwargs=True)
            layer.register_forward_hook(partial(self.after, place), with_kwargs=True)

    def before(
        self, place: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Divide the hidden state."""
        state = args[0] if args else kwargs["hidden_states"]
        if place == 0:  # anew in every pass: a backward pass frees what it went through
            total = sum(self.gates[1:], self.gates[0])
            kept = total.clamp(min=LEAST)
            self.rest = kept - total  # what gates below `LEAST` take from the stream
            self.inside = state / kept
        else:
            self.so_far = state
        return (
            ((self.inside, *args[1:]), kwargs)
            if args
            else (args, {**kwargs, "hidden_states": self.inside})
        )

    def after(
        self,
        place: int,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> Any:
        """Multiply what comes out, and add it to what came before."""
        state = self.gates[place] * (output[0] if isinstance(output, tuple) else output)
        state = state + (self.rest * self.inside if place == 0 else self.so_far)
        if place == len(self.gates) - 1:
            self.inside = self.so_far = None
        return (state, *output[1:]) if isinstance(output, tuple) else state
