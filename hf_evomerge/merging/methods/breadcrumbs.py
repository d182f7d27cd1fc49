"""breadcrumbs and breadcrumbs_ties: drop the largest and the smallest elements (arXiv:2312.06795),
then add up or vote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..method import Call
from ..parameters import Parameter
from ..registry import register_method
from ..statistics import Cut
from .common import (
    DENSITY,
    LAMBDA,
    NORMALIZE,
    TRIM_RESCALE,
    WEIGHT,
    Sparse,
    add_sparse,
    each,
    l1_factor,
    vote_sparse,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..arithmetic import TensorJob

GAMMA = Parameter(
    "gamma",
    "number",
    0.01,
    "source",
    (
        "Share of the task vector's elements that is dropped at the top, per tensor; less where "
        "the density would not be reached."
    ),
    low=0.0,
    high=1.0,
    grouped=True,
)
_PARAMETERS = [WEIGHT, DENSITY, GAMMA, NORMALIZE, LAMBDA, TRIM_RESCALE]


@dataclass(frozen=True, slots=True)
class Band:
    """Keeps the elements that one cut keeps and a narrower one does not.

    Attributes:
        wide: Keeps what is not too small.
        top: Keeps what is too large; None: nothing is.
    """

    wide: Cut
    top: Cut | None

    def apply(self, vector: Tensor, start: int = 0) -> Tensor:
        """A new tensor: the slice of the task vector that begins at `start`, with 0 for what is
        outside the band."""
        kept = self.wide.apply(vector, start)
        # x - x = 0: exact
        return kept if self.top is None else kept.sub_(self.top.apply(vector, start))


def band(inputs: TensorJob, index: int, values: Mapping[str, float], rescale: str) -> Sparse:
    """The band of the ``floor(rho N)`` elements next to the ``floor(gamma N)`` largest, and its
    factor.

    With density 1 all are kept, the largest included.
    """
    # Model breadcrumbs (arXiv:2312.06795) masks both tails: with magnitudes from the largest, ranks
    # 1 to floor(gamma N) are outliers, the floor(rho N) after them are kept, the rest is noise.
    # Both counts are whole numbers, so the band is one cut minus another. Where both do not fit
    # into N the density counts, and fewer outliers are dropped.
    kept = math.floor(values["density"] * inputs.numel)
    if kept == 0:
        return None
    top = min(math.floor(values["gamma"] * inputs.numel), inputs.numel - kept)
    kept_band = Band(
        inputs.cut(index, top + kept), inputs.cut(index, top) if top > 0 else None
    ).apply
    return kept_band, 1.0 if rescale == "none" or kept == inputs.numel else l1_factor(
        inputs, index, kept_band
    )


@register_method(
    "breadcrumbs", parameters=_PARAMETERS, task_vectors=True, prepare=each(band), memory=4
)
def breadcrumbs(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """Model breadcrumbs: drop the largest and the smallest elements of each task vector, add up
    with the weights.

    Of each task vector ``d_i = x_i - base`` of N elements the ``floor(gamma * N)`` largest are
    dropped as outliers and the next ``floor(density * N)`` kept (arXiv:2312.06795); where both do
    not fit, fewer are dropped at the top.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import breadcrumbs
        >>> base, a = torch.zeros(4), torch.tensor([9.0, -3.0, 2.0, 0.1])
        >>> breadcrumbs(base, [a], density=0.5, gamma=0.25)
        tensor([ 0., -3.,  2.,  0.])
    """
    return add_sparse(base, vectors, call)


@register_method(
    "breadcrumbs_ties", parameters=_PARAMETERS, task_vectors=True, prepare=each(band), memory=4
)
def breadcrumbs_ties(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """Model breadcrumbs with the vote of TIES: what is neither too large nor too small elects a
    sign and is added up.

    Of each task vector ``d_i = x_i - base`` of N elements the ``floor(gamma * N)`` largest are
    dropped as outliers and the next ``floor(density * N)`` kept (arXiv:2312.06795); where both do
    not fit, fewer are dropped at the top. What is left is merged by the vote of `ties`.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import breadcrumbs_ties
        >>> base, a = torch.zeros(4), torch.tensor([9.0, -3.0, 2.0, 0.1])
        >>> breadcrumbs_ties(base, [a], density=0.5, gamma=0.25)
        tensor([ 0., -3.,  2.,  0.])
    """
    return vote_sparse(base, vectors, call)
