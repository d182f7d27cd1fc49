"""dare_linear and dare_ties: drop task-vector elements at random and rescale (arXiv:2311.03099), then add up or vote.

dare_ties with one weight and one density per source (or per layer group) is the parameter-space merge of arXiv:2403.13187,
section 3.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..registry import Call, Parameter, register_method
from ..statistics import Drop
from .common import DENSITY, LAMBDA, NORMALIZE, WEIGHT, divisor, onto_base, vote, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

    from ..arithmetic import TensorJob

RESCALE = Parameter(
    "rescale",
    "choice",
    "l1",
    "global",
    "After dropping: l1 restores the sum of the absolute values (mergekit's), expected divides by the density (the DARE "
    "paper's), none leaves the elements as they are.",
    choices=("l1", "expected", "none"),
)
_PARAMETERS = [WEIGHT, DENSITY, NORMALIZE, LAMBDA, RESCALE]


def drops(job: TensorJob, call: Call) -> list[tuple[Drop, float] | None]:
    """Per source the mask that keeps each element with probability rho, and the factor that makes up for the rest."""
    return [_drop(job, index, values, call.options["rescale"]) for index, values in enumerate(call.sources)]


def _drop(job: TensorJob, index: int, values: dict[str, float], rescale: str) -> tuple[Drop, float] | None:
    drop = job.drop(index, values["density"])
    if values["weight"] == 0 or drop.limit == 0:
        return None
    factor = 1.0
    if rescale == "expected":
        factor = drop.levels / drop.limit
    elif rescale == "l1" and not drop.keeps_all:
        kept = job.sum_abs(index, drop.apply)
        factor = job.sum_abs(index) / kept if kept > 0 else 1.0
    return drop, factor


def _dropped(vectors: list[Tensor], call: Call) -> tuple[list[Tensor], list[float]]:
    """The task vectors that are left, as new tensors, and their weights."""
    parts, weights = [], []
    for vector, values, dropped in zip(vectors, call.sources, call.facts, strict=True):
        if dropped is not None:
            drop, factor = dropped
            part = drop.apply(vector, call.start)
            parts.append(part.mul_(factor) if factor != 1 else part)
            weights.append(values["weight"])
    return parts, weights


@register_method("dare_linear", parameters=_PARAMETERS, task_vectors=True, prepare=drops)
def dare_linear(base: Tensor | None, vectors: list[Tensor], call: Call) -> Tensor:
    """DARE with task arithmetic: keep each element with probability rho, rescale, add up with the weights."""
    parts, weights = _dropped(vectors, call)
    mixed = weighted_sum(parts, weights) if parts else vectors[0].new_zeros(vectors[0].shape)
    if call.options["normalize"]:
        mixed.div_(divisor(call.weights))
    return onto_base(base, mixed, call)


@register_method("dare_ties", parameters=_PARAMETERS, task_vectors=True, prepare=drops)
def dare_ties(base: Tensor | None, vectors: list[Tensor], call: Call) -> Tensor:
    """DARE with the vote of TIES: keep each element with probability rho, rescale, add up those that agree in sign."""
    parts, weights = _dropped(vectors, call)
    for part, weight in zip(parts, weights, strict=True):
        part.mul_(weight)
    mixed = vote(parts, weights, call.options["normalize"]) if parts else vectors[0].new_zeros(vectors[0].shape)
    return onto_base(base, mixed, call)
