"""ram: the mean of the task vectors that change an element, in place of the mean of all
(arXiv:2601.13572)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..method import Call
from ..parameters import Parameter
from ..registry import register_method

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = Parameter(
    "epsilon",
    "number",
    1e-5,
    "global",
    "A source changes the elements that it moves by more than this.",
    low=0.0,
)


@register_method("ram", parameters=[EPSILON], task_vectors=True)
def ram(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """RAM: each element moves by the mean over the sources that change it; the whole step of the
    only one that does.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import ram
        >>> ram(torch.zeros(2), [torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])])
        tensor([1., 3.])
    """
    total = base.new_zeros(base.shape)
    count = base.new_zeros(base.shape)
    for vector in vectors:
        changed = vector.abs().gt(call.options["epsilon"])
        total.add_(vector.mul(changed))
        count.add_(changed)
    return total.div_(count.clamp_(min=1)).add_(base)
