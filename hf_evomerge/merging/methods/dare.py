"""dare_linear and dare_ties: drop task-vector elements at random and rescale (arXiv:2311.03099),
then add up or vote.

dare_ties with one weight and one density per source (or per layer group) is the parameter-space
merge of arXiv:2403.13187.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..method import Call
from ..registry import register_method
from ..statistics import LEVELS
from .common import (
    DENSITY,
    DROP_RESCALE,
    LAMBDA,
    NORMALIZE,
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

_PARAMETERS = [WEIGHT, DENSITY, NORMALIZE, LAMBDA, DROP_RESCALE]


# DARE (arXiv:2311.03099): d becomes f m d with m_e ~ Bernoulli(rho), rho = 1 - p. With f = 1 / rho
# the expectation of every element is d itself: E[f m d] = f rho d. `limit` / 65536 is rho as the
# 16-bit numbers have it, so that f is exact for the mask that is drawn.
def drop(inputs: TensorJob, index: int, values: Mapping[str, float], rescale: str) -> Sparse:
    """The mask that keeps each element with probability rho, and the factor that makes up for the
    rest."""
    mask = inputs.drop(index, values["density"])
    if mask.limit == 0:
        return None
    if rescale == "expected":
        return mask.apply, LEVELS / mask.limit
    return mask.apply, l1_factor(
        inputs, index, mask.apply
    ) if rescale == "l1" and not mask.keeps_all else 1.0


@register_method(
    "dare_linear",
    parameters=_PARAMETERS,
    task_vectors=True,
    prepare=each(drop),
    memory=2,
    random=True,
)
def dare_linear(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """DARE with task arithmetic: keep each element with probability rho, rescale, add up with the
    weights.

    ``base + lambda * sum_i D_i`` over ``D_i = w_i * f_i * m_i * d_i``, where ``d_i = x_i - base``,
    the mask ``m_i`` keeps an element with probability ``density`` (arXiv:2311.03099: 1 - p), and
    ``f_i`` makes up for what is dropped: ``1 / density`` in the paper (``rescale: expected``), the
    ratio of the sums of magnitudes before and after in mergekit (``l1``). Masks depend on seed,
    name and the source's position alone, and are nested: a larger density keeps all that a smaller
    one keeps.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import dare_linear
        >>> base, a = torch.zeros(6), torch.ones(6)
        >>> dare_linear(base, [a], density=0.5, name="model.norm.weight", seed=5)
        tensor([0., 0., 2., 0., 2., 2.])
    """
    return add_sparse(base, vectors, call)


@register_method(
    "dare_ties",
    parameters=_PARAMETERS,
    task_vectors=True,
    prepare=each(drop),
    memory=2,
    random=True,
)
def dare_ties(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """DARE with the vote of TIES: keep each element with probability rho, rescale, add up those
    that agree in sign.

    ``base + lambda * sum_{i: sign(D_i) = s} D_i`` over ``D_i = w_i * f_i * m_i * d_i``, where ``d_i
    = x_i - base``, the mask ``m_i`` keeps an element with probability ``density``
    (arXiv:2311.03099: 1 - p), and ``f_i`` makes up for what is dropped: ``1 / density`` in the
    paper (``rescale: expected``), the ratio of the sums of magnitudes before and after in mergekit
    (``l1``). The elected sign s is that of ``sum_i D_i``, and + where that is 0. The merge of
    arXiv:2403.13187. Masks depend on seed, name and the source's position alone, and are nested: a
    larger density keeps all that a smaller one keeps.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import dare_ties
        >>> base, a = torch.zeros(6), torch.ones(6)
        >>> dare_ties(base, [a], density=0.5, name="model.norm.weight", seed=5)
        tensor([0., 0., 2., 0., 2., 2.])
    """
    return vote_sparse(base, vectors, call)
