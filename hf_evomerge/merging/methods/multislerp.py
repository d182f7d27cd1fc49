"""multislerp: the weighted mean direction of any number of sources, or of their task vectors, at
their mean length.

The method projects unit vectors to the tangent space at their weighted mean, averages them there,
and maps the average back to the sphere. The tangent vectors at that very mean add up to 0, so what
remains is the mean itself, put back on the sphere.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..method import Call
from ..parameters import Parameter
from ..registry import register_method
from .common import WEIGHT, divisor, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

    from ..arithmetic import TensorJob

NORMALIZE_WEIGHTS = Parameter(
    "normalize_weights", "flag", True, "global", "Divide the weights by their sum."
)


def coefficients(inputs: TensorJob, call: Call) -> list[float]:
    """The factors of the tensors: ``u_i = x_i / |x_i|``, ``m = sum w_i u_i``, result ``m / |m| *
    sum w_i |x_i|``."""
    weights = call.weights
    if len(weights) == 1:
        return [1.0]
    if call.options["normalize_weights"]:
        total = divisor(weights)
        weights = [weight / total for weight in weights]
    # With u_i = x_i / |x_i| and m = sum_i w_i u_i the result is m / |m| sum_i w_i |x_i|: a sum of
    # the x_i with coefficients
    #
    #   c_i = (w_i / |x_i|) (sum_j w_j |x_j|) / |m|                      (1)
    #   |m|^2 = sum_a sum_b (w_a / |x_a|) (w_b / |x_b|) <x_a, x_b>       (2)
    #
    # so the tensors are read for their products alone, never to make m.
    there = [index for index, weight in enumerate(weights) if weight != 0]
    lengths = {index: math.sqrt(inputs.product(index, index)) for index in there}
    shares = {index: weights[index] / (lengths[index] + 1e-8) for index in there}
    square = sum(  # (2)
        shares[a] * shares[b] * inputs.product(min(a, b), max(a, b)) for a in there for b in there
    )
    if (
        square < 1e-14
    ):  # opposite directions cancel: a straight line, as mergekit has it for two sources
        return weights
    factor = sum(weights[index] * lengths[index] for index in there) / math.sqrt(square)
    return [factor * shares.get(index, 0.0) for index in range(len(weights))]  # (1)


@register_method(
    "multislerp",
    parameters=[WEIGHT, NORMALIZE_WEIGHTS],
    task_vectors=True,
    base_optional=True,
    prepare=coefficients,
)
def multislerp(base: Tensor | None, tensors: list[Tensor], call: Call) -> Tensor:
    """Weighted mean on the sphere, of the sources or, where a base is given, of their task vectors;
    per tensor.

    ``m / |m| * sum w_i |x_i|`` with ``m = sum w_i x_i / |x_i|``; one source is given back as it is.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import multislerp
        >>> multislerp([torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])])
        tensor([1.4142, 1.4142])
    """
    mixed = weighted_sum(tensors, call.prepared)
    return mixed if base is None else mixed.add_(base)
