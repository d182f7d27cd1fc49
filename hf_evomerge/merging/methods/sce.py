"""sce: select the elements that vary most between sources, calculate weights, erase minority signs
(arXiv:2408.07990)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..method import Call
from ..parameters import Parameter
from ..registry import register_method
from ..statistics import Cut, add_up, inner_product
from .common import agreeing, elect, plain_sum

if TYPE_CHECKING:
    from torch import Tensor

    from ..arithmetic import TensorJob

SELECT_TOPK = Parameter(
    "select_topk",
    "number",
    1.0,
    "global",
    (
        "Share of the elements, of those that differ between the sources at all, that is merged: "
        "those of largest variance."
    ),
    low=0.0,
    high=1.0,
    search=(0.1, 1.0),
    grouped=True,
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Merged elements and source weights.

    Attributes:
        cut: The cut of the variances; None: everything is merged.
        weights: Weight of each source, adding up to 1; None: nothing is merged.
    """

    cut: Cut | None
    weights: list[float] | None


def variance(vectors: list[Tensor]) -> Tensor:
    """The variance of each element between the sources."""
    mean = plain_sum(vectors).div_(len(vectors))
    return plain_sum([vector.sub(mean).square_() for vector in vectors]).div_(len(vectors))


def selected(vectors: list[Tensor], cut: Cut | None, start: int) -> list[Tensor]:
    """The task vectors as new tensors, with 0 for what is not selected."""
    if cut is None:
        return [vector.clone() for vector in vectors]
    mask = cut.apply(variance(vectors), start).sign_()
    return [vector.mul(mask) for vector in vectors]


# SCE (arXiv:2408.07990) per tensor, on task vectors d_i of n sources:
#
#   Select:    v = var_i(d_i), element by element; keep the largest floor(share * count(v > 0))  (1)
#   Calculate: w_i = sum d_i^2 / sum_j sum d_j^2 over the kept elements   (2)
#   Erase:     drop d_i where its sign is not that of sum_i d_i        (3)
#
# What is left is averaged with the weights of the sources that are left for the element.
def selection(inputs: TensorJob, call: Call) -> Selection:
    """Select the elements that vary most, and weigh the sources by their shares of the squares that
    are left."""
    cut = None
    if call.options["select_topk"] < 1:

        def variances(start: int, stop: int) -> Tensor:
            return variance(inputs.tensors(start, stop))

        order = inputs.derived("variance", variances)
        k = math.floor(order.nonzero * call.options["select_topk"])
        if k == 0:
            return Selection(None, None)
        cut = order.cut(k)  # (1)
    squares = [_square(inputs, index, cut) for index in range(len(call.sources))]
    total = sum(squares)
    if not math.isfinite(total) or total / inputs.numel < 1e-6:  # mergekit's floor
        return Selection(cut, [1 / len(squares)] * len(squares))
    return Selection(cut, [square / total for square in squares])  # (2)


def _square(inputs: TensorJob, index: int, cut: Cut | None) -> float:
    """The sum of squares of what is selected of one task vector."""
    if cut is None:
        return inputs.product(index, index)

    def part(start: int, stop: int) -> Tensor:
        return selected(inputs.tensors(start, stop), cut, start)[index]

    return add_up(inner_product(block, block) for _, block in inputs.computed(part))


@register_method("sce", parameters=[SELECT_TOPK], task_vectors=True, prepare=selection, memory=4)
def sce(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """SCE: merge the elements of largest variance that agree with the sign of their sum, weighted
    by the sources' squares.

    The steps of arXiv:2408.07990. Select: the share ``select_topk`` of the elements whose variance
    between the task vectors ``d_i`` is largest. Calculate: ``w_i = sum d_i^2 / sum_j sum d_j^2``
    over these elements. Erase: elements whose sign is not that of ``sum_i d_i``. The rest is ``base
    + sum w_i d_i / sum w_i`` over the sources that are left for an element. As in mergekit, weights
    are equal in a tensor where the mean squares of the task vectors add up to less than 1e-6.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import sce
        >>> base, a, b = torch.zeros(2), torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 1.0])
        >>> sce(base, [a, b])
        tensor([3., 1.])
    """
    cut = call.prepared.cut
    weights = call.prepared.weights
    if weights is None:
        return base.clone()
    parts = selected(vectors, cut, call.start)
    sign = elect(parts)  # (3)
    there = [
        (part.mul_(weight), weight)
        for part, weight in zip(parts, weights, strict=True)
        if weight > 0
    ]
    return agreeing(
        [part for part, _ in there], sign, [weight for _, weight in there], normalize=True
    ).add_(base)
