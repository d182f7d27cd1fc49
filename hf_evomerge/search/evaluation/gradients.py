"""Gradient requests, for numbers of a merge or gates of a path; and how live models give the
gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...recipes.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ...merging.gradient import Number
    from .model_pool import ModelPool

Vector = NDArray[np.float64]


# For a merge theta = theta_0 + sum_i w_ig tau_i, where g is a layer group, the chain rule gives
#   dL/dw_ig = sum over tensors t of g of <dL/dtheta_t, tau_it>
# One backward pass through the merged model serves all weights (as in AdaMerging,
# arXiv:2310.02575). A coordinate u with w = low + u (high - low) has the slope dL/du = (high - low)
# dL/dw: `widths`.
@dataclass(frozen=True)
class WeightSlopes:
    """Gradient request for numbers of a merge.

    Attributes:
        numbers: Numbers, in the order of the coordinates. Those that have no gradient, such as
            densities, get 0.
        widths: How far each number moves over its coordinate's 0 to 1.
    """

    numbers: tuple[Number, ...]
    widths: tuple[float, ...]

    def take(self, models: ModelPool, recipe: Recipe, backward: Callable[[Any], object]) -> Vector:
        """The gradient at a recipe, one number per coordinate; `backward` runs a live model and its
        backward pass."""
        assert recipe.merge is not None  # the space makes recipes with a merge part
        gradient, model = models.merge_gradient(recipe.merge)
        gradients = gradient(recipe.merge.parameters, recipe.merge.options, lambda: backward(model))
        return np.array(
            [
                gradients.get(number, 0.0) * width
                for number, width in zip(self.numbers, self.widths, strict=True)
            ]
        )


# For a slot with output f(x) and gate g the stream is x + g f(x), so dL/dg = <dL/d(g f(x)), f(x)>.
# Only activations are differentiated. Slots that are out of play are not run, and have slope 0.
@dataclass(frozen=True)
class GateSlopes:
    """Gradient request for gates.

    Attributes:
        slots: Source and layer of each slot.
        gates: 0, or at least `LEAST`, per slot.
        active: Flags of the slots that run; the others get 0.
        hops: The hop of each slot.
    """

    slots: tuple[tuple[int, int], ...]
    gates: tuple[float, ...]
    active: tuple[bool, ...]
    hops: tuple[int, ...]

    def take(self, models: ModelPool, recipe: Recipe, backward: Callable[[Any], object]) -> Vector:
        """See `WeightSlopes`."""
        from ...routing.gates import gate_gradient

        running = [index for index, active in enumerate(self.active) if active]
        slots = [self.slots[i] for i in running]
        gates = [self.gates[i] for i in running]
        hops = [self.hops[i] for i in running]
        gradient = np.zeros(len(self.slots))
        gradient[running] = gate_gradient(
            models.layer_pool(recipe), slots, gates, backward, hops=hops
        )
        return gradient


Slopes = WeightSlopes | GateSlopes
"""What to differentiate the fitness with respect to."""


@contextmanager
def recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Let the layers keep their inputs alone and compute what is inside anew in the backward pass.

    Not transformers' own switch: that one works in training mode only, which brings dropout with
    it. The model keeps no cache meanwhile: a layer that runs twice would fill it twice.
    """
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    for layer in layers:
        # Gradient checkpointing (Chen et al., arXiv:1604.06174): memory for one layer's activations
        # at a time, at the price of a second forward pass. An instance attribute hides the method;
        # deleting it brings the method back.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    caches = getattr(model.config, "use_cache", True)
    model.config.use_cache = False
    try:
        yield
    finally:
        model.config.use_cache = caches
        for layer in layers:
            del layer.forward
