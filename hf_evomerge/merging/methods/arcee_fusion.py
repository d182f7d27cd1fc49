"""arcee_fusion: takes over from a source only what changed most, and where rows changed most
(https://arcee.ai)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..method import Call
from ..registry import register_method
from ..rows import Lines, row_spans

if TYPE_CHECKING:
    from torch import Tensor

    from ..arithmetic import TensorJob


@dataclass(frozen=True, slots=True)
class Fusion:
    """Elements to take over: those whose importance reaches the threshold.

    Attributes:
        divergence: The Kullback-Leibler divergence of each row from the base's.
        threshold: median + 1.5 * interquartile range of the importance.
    """

    divergence: Lines
    threshold: float

    def importance(self, vector: Tensor, start: int) -> Tensor:
        """``|d|`` times the divergence of the row."""
        return vector.abs().mul_(self.divergence.slice(start, vector))


def fusion(inputs: TensorJob, call: Call) -> Fusion:
    """The importance of a tensor's elements, and how much of it is enough."""
    whole = Fusion(
        inputs.lines(
            np.concatenate(
                [_divergence(inputs, *span) for span in row_spans(inputs.numel, inputs.width)]
            )
        ),
        math.inf,
    )
    order = inputs.derived(
        "importance", lambda start, stop: whole.importance(inputs.tensor(0, start, stop), start)
    )
    # A quantile q of n sorted numbers is number floor(q (n - 1)) from the smallest, which is number
    # n - floor(q (n - 1)) from the largest: what `Magnitudes.largest` counts. Outliers begin at
    # median + 1.5 (q3 - q1), Tukey's fence with the median in the place of q3.
    q1, median, q3 = (
        order.largest(inputs.numel - math.floor(q * (inputs.numel - 1))) for q in (0.25, 0.5, 0.75)
    )
    return Fusion(whole.divergence, median + 1.5 * (q3 - q1))


def _divergence(inputs: TensorJob, start: int, stop: int) -> NDArray[np.float64]:
    """``sum p log(p / q)`` of each row, p and q being the softmax of the source's row and of the
    base's."""
    origin = inputs.base(start, stop)
    assert origin is not None
    base = origin.numpy(force=True).astype(np.float64).reshape(-1, inputs.width)
    # KL(p || q) = sum p log(p / q), p and q being the softmax of a row. 1e-8 keeps the logarithm
    # finite; the sum may then be slightly negative, hence the floor at 0.
    p = (
        _softmax(base + inputs.tensor(0, start, stop).numpy(force=True).reshape(-1, inputs.width))
        + 1e-8
    )
    q = _softmax(base) + 1e-8
    return np.maximum((p * np.log(p / q)).sum(axis=1), 0.0)


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@register_method("arcee_fusion", task_vectors=True, prepare=fusion, memory=4, count=(1, 1))
def arcee_fusion(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """The base, and the source's elements where ``abs(d)`` times the divergence of their row is far
    above the median.

    The importance of an element is ``|d|`` times the Kullback-Leibler divergence of the softmax of
    the source's row from that of the base's row. Taken over is what reaches ``median + 1.5 * (q3 -
    q1)`` of the tensor's importance.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import arcee_fusion
        >>> base = torch.zeros(1, 8)
        >>> arcee_fusion(base, [torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 4.0]])])
        tensor([[0., 0., 0., 0., 0., 0., 0., 4.]])
    """
    taken = call.prepared.importance(vectors[0], call.start).ge(call.prepared.threshold)
    return vectors[0].mul(taken).add_(base)
