"""dare_linear and dare_ties: drop task-vector elements at random and rescale (arXiv:2311.03099), then add up or vote.

dare_ties with one weight and one density per source (or per layer group) is the parameter-space merge of arXiv:2403.13187,
section 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..method import Call
from ..registry import register_method
from .common import DENSITY, DROP_RESCALE, LAMBDA, NORMALIZE, WEIGHT, Sparse, add_sparse, l1_factor, vote_sparse

if TYPE_CHECKING:
    from torch import Tensor

    from ..inputs import TensorInputs

_PARAMETERS = [WEIGHT, DENSITY, NORMALIZE, LAMBDA, DROP_RESCALE]


def drops(inputs: TensorInputs, call: Call) -> list[Sparse]:
    """Per source the mask that keeps each element with probability rho, and the factor that makes up for the rest."""
    return [_drop(inputs, index, values, call.options["rescale"]) for index, values in enumerate(call.sources)]


def _drop(inputs: TensorInputs, index: int, values: dict[str, float], rescale: str) -> Sparse:
    drop = inputs.drop(index, values["density"])
    if values["weight"] == 0 or drop.limit == 0:
        return None
    factor = 1.0
    if rescale == "expected":
        factor = drop.levels / drop.limit
    elif rescale == "l1" and not drop.keeps_all:
        factor = l1_factor(inputs, index, drop)
    return drop, factor


@register_method("dare_linear", parameters=_PARAMETERS, task_vectors=True, prepare=drops, memory=2)
def dare_linear(base: Tensor | None, vectors: list[Tensor], call: Call) -> Tensor:
    """DARE with task arithmetic: keep each element with probability rho, rescale, add up with the weights."""
    return add_sparse(base, vectors, call)


@register_method("dare_ties", parameters=_PARAMETERS, task_vectors=True, prepare=drops, memory=2)
def dare_ties(base: Tensor | None, vectors: list[Tensor], call: Call) -> Tensor:
    """DARE with the vote of TIES: keep each element with probability rho, rescale, add up those that agree in sign."""
    return vote_sparse(base, vectors, call)
