"""nuslerp: spherical interpolation of two sources, or of their task vectors, by weights; per
tensor, per row or per column."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..method import Call
from ..parameters import Parameter
from ..registry import register_method
from .common import WEIGHT, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

    from ..arithmetic import TensorJob
    from ..rows import Lines

Numbers = NDArray[np.float64]

FLATTEN = Parameter(
    "nuslerp_flatten",
    "flag",
    True,
    "global",
    "One angle per tensor, rather than one per row or column.",
)
ROW_WISE = Parameter(
    "nuslerp_row_wise",
    "flag",
    False,
    "global",
    "Without nuslerp_flatten, which vectors have an angle of their own: true: those along "
    "the first dimension of a tensor, "
    "false: those along the last (the name is mergekit's).",
)


def coefficients(inputs: TensorJob, call: Call) -> list[float] | list[Lines]:
    """The factors of the two tensors; numbers, or one per row or column."""
    first, second = call.weights
    total = first + second
    t = 0.5 if abs(total) < 1e-6 else second / total
    if call.options["nuslerp_flatten"]:
        products = [np.array([inputs.product(a, b)]) for a, b in ((0, 0), (1, 1), (0, 1))]
        return [float(factor[0]) for factor in _arc(t, *products)]
    columns = call.options["nuslerp_row_wise"]
    products = [inputs.line_products(a, b, columns) for a, b in ((0, 0), (1, 1), (0, 1))]
    return [inputs.lines(factor, columns) for factor in _arc(t, *products)]


# As in `slerp`, (1), with the products of vectors as arrays: one angle, or one per row or column.
# sin(theta)^2 = 1 - cos(theta)^2; where that is below float64's precision the vectors are parallel.
def _arc(t: float, first: Numbers, second: Numbers, dot: Numbers) -> list[Numbers]:
    """``sin((1-t) theta) / sin theta`` and ``sin(t theta) / sin theta``; straight where the two are
    parallel."""
    lengths = np.maximum(np.sqrt(first), 1e-7) * np.maximum(np.sqrt(second), 1e-7)
    cosine = np.clip(dot / lengths, -1.0, 1.0)
    parallel = 1 - cosine**2 <= 1e-16
    theta = np.arccos(np.where(parallel, 0.0, cosine))
    return [
        np.where(parallel, share, np.sin(share * theta) / np.sin(theta)) for share in (1 - t, t)
    ]


@register_method(
    "nuslerp",
    parameters=[WEIGHT, FLATTEN, ROW_WISE],
    task_vectors=True,
    base_optional=True,
    prepare=coefficients,
    count=(2, 2),
)
def nuslerp(base: Tensor | None, tensors: list[Tensor], call: Call) -> Tensor:
    """Spherical interpolation of two sources, or of their task vectors where a base is given; ``t =
    w_2 / (w_1 + w_2)``.

    Coefficients as of `slerp`, ``sin((1-t) theta) / sin theta`` and ``sin(t theta) / sin theta``,
    with one angle theta per tensor, per row or per column; straight only where the cosine is 1 to
    1e-16.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import nuslerp
        >>> nuslerp([torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])], weights=[1, 1])
        tensor([1.4142, 0.7071])
    """
    factors = call.prepared
    if call.options["nuslerp_flatten"]:
        mixed = weighted_sum(tensors, factors)
    else:
        first, second = (
            tensor.mul(lines.slice(call.start, tensor))
            for tensor, lines in zip(tensors, factors, strict=True)
        )
        mixed = first.add_(second)
    return mixed if base is None else mixed.add_(base)
