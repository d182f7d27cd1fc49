"""karcher: the Karcher mean of the sources on the sphere, their Riemannian centre of mass
(arXiv:2603.04972)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..method import Call
from ..parameters import Parameter
from ..registry import register_method
from .common import WEIGHT, divisor, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

    from ..arithmetic import TensorJob

MAX_ITER = Parameter("max_iter", "number", 10.0, "global", "Number of steps at most.", low=0.0)
TOL = Parameter(
    "tol",
    "number",
    1e-5,
    "global",
    "Where a step is shorter than this the mean has converged; lengths below it count as 0.",
    low=0.0,
)


def coefficients(inputs: TensorJob, call: Call) -> list[float]:
    """The factors of the tensors.

    Every step of the iteration is a linear combination of the unit vectors ``u_i``, so it is done
    on their coefficients, with their inner products, and the tensors are read once.
    """
    count = len(call.sources)
    tol = call.options["tol"]
    if count == 1:
        return [1.0]
    total = divisor(call.weights)
    alphas = [weight / total for weight in call.weights]
    there = [index for index in range(count) if alphas[index] != 0]
    lengths = {index: math.sqrt(inputs.product(index, index)) for index in there}
    scale = sum(alphas[index] * lengths[index] for index in there)
    valid = [index for index in there if lengths[index] > tol]
    if not valid:
        return [0.0] * count
    cosines = [
        inputs.product(min(a, b), max(a, b)) / (lengths[a] * lengths[b])
        for a in valid
        for b in valid
    ]
    gram = np.array(cosines).reshape(len(valid), -1)
    mean = _mean(
        np.array([alphas[index] for index in valid]), gram, int(call.options["max_iter"]), tol
    )
    factors = [0.0] * count
    for index, factor in zip(valid, mean, strict=True):
        factors[index] = scale * float(factor) / lengths[index]
    return factors


def _mean(
    alphas: NDArray[np.float64], gram: NDArray[np.float64], max_iter: int, tol: float
) -> NDArray[np.float64]:
    """The mean of unit vectors with these inner products, as coefficients: gradient descent along
    great circles."""

    def length(vector: NDArray[np.float64]) -> float:
        return math.sqrt(max(0.0, float(vector @ gram @ vector)))

    # The Karcher mean m minimises sum_i alpha_i theta_i^2, theta_i being the angle between m and
    # u_i (arXiv:2603.04972). Riemannian gradient descent: map the u_i to the tangent plane at m,
    # average, walk along the great circle.
    #
    #   cos(theta_i) = <u_i, m>                                                     (1)
    #   v = sum_i alpha_i theta_i / sin(theta_i) (u_i - cos(theta_i) m)             (2)
    #   m <- cos(|v|) m + sin(|v|) v / |v|                                          (3)
    #
    # Every step stays in the span of the u_i. So vectors are lists of coefficients a, their
    # products a' G b with the Gram matrix G, and no tensor is read in the loop.
    alphas = alphas / alphas.sum()
    size = length(alphas)
    mean = alphas / size if size >= tol else np.eye(len(alphas))[0]
    for _ in range(max_iter):
        cosines = np.clip(gram @ mean, -1.0, 1.0)  # (1)
        thetas = np.arccos(cosines)
        far = thetas >= tol
        steps = np.where(far, alphas * thetas / np.where(far, np.sin(thetas), 1.0), 0.0)
        tangent = steps - float(steps @ cosines) * mean  # (2)
        size = length(tangent)
        if size < tol:
            break
        mean = math.cos(size) * mean + math.sin(size) * tangent / size  # (3)
        if length(mean) > tol:
            mean = mean / length(mean)
    return mean


@register_method(
    "karcher", parameters=[replace(WEIGHT, low=0.0), MAX_ITER, TOL], prepare=coefficients
)
def karcher(base: Tensor | None, sources: list[Tensor], call: Call) -> Tensor:
    """Karcher mean: the direction whose squared angles to the sources are least, at their mean
    length; per tensor. No base.

    The weighted mean of the unit vectors on the sphere, found by gradient descent along great
    circles (arXiv:2603.04972), times the weighted mean of the lengths. Weights are divided by their
    sum.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import karcher
        >>> karcher([torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])])
        tensor([1.4142, 1.4142])
    """
    return weighted_sum(sources, call.prepared)
