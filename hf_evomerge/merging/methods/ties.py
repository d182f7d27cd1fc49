"""ties: trim each task vector to its largest elements, elect a sign, merge those that agree (arXiv:2306.01708)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..registry import Call, Parameter, register_method
from ..statistics import Cut
from .common import DENSITY, LAMBDA, NORMALIZE, WEIGHT, onto_base, vote

if TYPE_CHECKING:
    from torch import Tensor

    from ..arithmetic import TensorJob

RESCALE = Parameter(
    "rescale",
    "choice",
    "none",
    "global",
    "After trimming: l1 restores the sum of the absolute values, none leaves the elements as they are.",
    choices=("none", "l1"),
)


def trims(job: TensorJob, call: Call) -> list[tuple[Cut, float] | None]:
    """Per source the cut that keeps its ``k = max(1, floor(rho N))`` largest elements, and the factor of ``rescale``."""
    return [_trim(job, index, values, call.options["rescale"]) for index, values in enumerate(call.sources)]


def _trim(job: TensorJob, index: int, values: dict[str, float], rescale: str) -> tuple[Cut, float] | None:
    density = values["density"]
    if values["weight"] == 0 or density <= 0:
        return None
    cut = job.cut(index, max(1, math.floor(density * job.numel)))
    factor = 1.0
    if rescale == "l1" and not cut.keeps_all:
        kept = job.sum_abs(index, lambda vector, start: cut.apply(vector, start))
        factor = job.sum_abs(index) / kept if kept > 0 else 1.0
    return cut, factor


@register_method(
    "ties", parameters=[WEIGHT, DENSITY, NORMALIZE.with_default(True), LAMBDA, RESCALE], task_vectors=True, prepare=trims
)
def ties(base: Tensor | None, vectors: list[Tensor], call: Call) -> Tensor:
    """TIES: keep the largest elements of each task vector, elect a sign by their weighted sum, average those that agree.

    Trimming is per tensor, the vote is on ``D_i = w_i * trimmed d_i`` and a zero sum elects +; with ``normalize`` the sum of
    the D_i that agree is divided by the sum of their weights.
    """
    parts, weights = [], []
    for vector, values, trim in zip(vectors, call.sources, call.facts, strict=True):
        if trim is not None:
            cut, factor = trim
            part = cut.apply(vector, call.start)
            parts.append((part.mul_(factor) if factor != 1 else part).mul_(values["weight"]))
            weights.append(values["weight"])
    mixed = vote(parts, weights, call.options["normalize"]) if parts else vectors[0].new_zeros(vectors[0].shape)
    return onto_base(base, mixed, call)
