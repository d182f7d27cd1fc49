"""ties: trim each task vector to its largest elements, elect a sign, merge those that agree
(arXiv:2306.01708)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..method import Call
from ..registry import register_method
from .common import (
    DENSITY,
    LAMBDA,
    NORMALIZE,
    TRIM_RESCALE,
    WEIGHT,
    Sparse,
    each,
    l1_factor,
    vote_sparse,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..arithmetic import TensorJob


# Step 1 of TIES (arXiv:2306.01708, Algorithm 1) per tensor, as in mergekit; the paper ranks the
# whole flattened model at once. k = floor(rho N) is at least 1, so a small tensor is never lost.
def trim(inputs: TensorJob, index: int, values: Mapping[str, float], rescale: str) -> Sparse:
    """The cut that keeps the ``k = max(1, floor(rho N))`` largest elements, and the factor of
    ``rescale``."""
    density = values["density"]
    if density <= 0:
        return None
    cut = inputs.cut(index, max(1, math.floor(density * inputs.numel)))
    return cut.apply, 1.0 if rescale == "none" or cut.keeps_all else l1_factor(
        inputs, index, cut.apply
    )


@register_method(
    "ties",
    parameters=[WEIGHT, DENSITY, NORMALIZE.with_default(True), LAMBDA, TRIM_RESCALE],
    task_vectors=True,
    prepare=each(trim),
    memory=4,
)
def ties(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """TIES: keep the largest elements of each task vector, elect a sign by their weighted sum,
    average those that agree.

    The vote is on ``D_i = w_i * trimmed d_i``. With ``normalize`` the sum of the D_i that agree is
    divided by the sum of their weights.

    The steps are those of arXiv:2306.01708. Trim: of each task vector ``d_i = x_i - base`` the ``k
    = max(1, floor(density * N))`` elements of largest magnitude stay, the earlier ones where
    magnitudes tie, and none with density 0. Elect: ``s = sign(sum_i D_i)``, and + where the sum is
    0. Merge: ``base + lambda * sum_{i: sign(D_i) = s} D_i / sum of their w_i``.

    peft's ``ties`` elects the sign by the unweighted ``d_i``, and multiplies by the weights
    afterwards: a source's weight does not count in its vote, so that other signs win where weights
    are unequal. Where they are equal its result is the weight times this one.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import ties
        >>> base = torch.zeros(4)
        >>> a, b = torch.tensor([4.0, -3.0, 1.0, 0.5]), torch.tensor([2.0, 5.0, 0.1, -0.2])
        >>> ties(base, [a, b], weights=[0.6, 0.4], density=0.5)
        tensor([3.2000, 5.0000, 0.0000, 0.0000])
    """
    return vote_sparse(base, vectors, call)
