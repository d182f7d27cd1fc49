"""task_arithmetic: the base plus the weighted task vectors (arXiv:2212.04089; arXiv:2403.13187)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..method import Call
from ..registry import register_method
from .common import LAMBDA, NORMALIZE, WEIGHT, divisor, onto_base, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@register_method(
    "task_arithmetic", parameters=[WEIGHT, NORMALIZE, LAMBDA], task_vectors=True, is_sum=True
)
def task_arithmetic(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """Base plus weighted task vectors: ``base + lambda * sum w_i d_i`` (``normalize``: divided by
    ``sum w_i``).

    ``d_i = x_i - base`` is the task vector of source i (arXiv:2212.04089). The weights need not add
    up to 1; a negative one takes what a source has learnt away.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import task_arithmetic
        >>> base, a, b = torch.tensor([[1.0, 1.0], [3.0, 1.0], [1.0, 2.0]])
        >>> task_arithmetic(base, [a, b], weights=[0.5, 2.0])
        tensor([2., 3.])
    """
    mixed = weighted_sum(vectors, call.weights, call.owns)
    if call.options["normalize"]:
        mixed.div_(divisor(call.weights))
    return onto_base(base, mixed, call)
