"""task_arithmetic: the base plus the weighted task vectors (arXiv:2212.04089; arXiv:2403.13187, section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..method import Call
from ..registry import register_method
from .common import LAMBDA, NORMALIZE, WEIGHT, divisor, onto_base, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@register_method("task_arithmetic", parameters=[WEIGHT, NORMALIZE, LAMBDA], task_vectors=True)
def task_arithmetic(base: Tensor | None, vectors: list[Tensor], call: Call) -> Tensor:
    """Base plus weighted task vectors: ``base + lambda * sum w_i d_i`` (``normalize``: divided by ``sum w_i``)."""
    mixed = weighted_sum(vectors, call.weights)
    if call.options["normalize"]:
        mixed.div_(divisor(call.weights))
    return onto_base(base, mixed, call)
