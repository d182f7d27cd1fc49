"""model_stock: between the base and the mean of the sources, as far as their angle says
(arXiv:2403.19522)."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..method import Call
from ..parameters import Parameter
from ..registry import register_method
from .common import plain_sum

if TYPE_CHECKING:
    from torch import Tensor

    from ..arithmetic import TensorJob
    from ..rows import Lines

FILTER_WISE = Parameter(
    "filter_wise",
    "flag",
    False,
    "global",
    "One angle per row of a tensor, rather than one per tensor.",
)


# Model stock (arXiv:2403.19522): fine-tunes of one base lie on a thin shell around a centre, at
# equal distances and equal angles theta, seen from the base. The point nearest to that centre, on
# the line from the base to the mean of N of them, is at the ratio
#
#   t = N cos(theta) / (1 + (N - 1) cos(theta))   (1)
#
# cos(theta) is the mean over all pairs, of the whole tensor or of each row.
def ratio(inputs: TensorJob, call: Call) -> float | Lines:
    """The interpolation ratio ``t = N cos(theta) / (1 + (N - 1) cos(theta))``, theta being the mean
    angle between sources."""
    rows = call.options["filter_wise"]
    count = len(call.sources)

    def inner(left: int, right: int) -> NDArray[np.float64]:
        return (
            inputs.line_products(left, right) if rows else np.array([inputs.product(left, right)])
        )

    cosines = [
        # The floor is mergekit's: task vectors that are nearly 0 count as perpendicular
        np.clip(inner(a, b) / np.maximum(np.sqrt(inner(a, a) * inner(b, b)), 1e-6), -1.0, 1.0)
        for a, b in combinations(range(count), 2)
    ]
    cosine = sum(cosines, np.zeros(1)) / len(cosines)
    below = 1 + (count - 1) * cosine
    singular = np.abs(below) < 1e-6  # no finite ratio: the base stays
    t = np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, below))  # (1)
    return inputs.lines(t) if rows else float(t[0])


@register_method(
    "model_stock", parameters=[FILTER_WISE], task_vectors=True, prepare=ratio, count=(2, None)
)
def model_stock(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """Model stock: ``base + t mean(d_i)``; the more the task vectors point the same way, the nearer
    t is to 1.

    ``t = N cos(theta) / (1 + (N - 1) cos(theta))`` for N sources (arXiv:2403.19522), theta being
    the mean angle between two task vectors; 0 where the denominator is.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import model_stock
        >>> base, a, b = torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
        >>> model_stock(base, [a, b])
        tensor([0.8284, 0.4142])
    """
    mean = plain_sum(vectors).div_(len(vectors))
    t = call.prepared
    return mean.mul_(t if isinstance(t, float) else t.slice(call.start, mean)).add_(base)
