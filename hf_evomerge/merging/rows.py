"""Rows of a tensor: where they lie, one number for each of them, and the ranks of magnitudes within
a row.

A row is a vector along the last dimension: in a linear layer's weight, what one output unit reads.
Like those of whole tensors they depend on the tensor alone, and sums are float64 in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .statistics import LEVELS, SUM_BLOCK, RandomField

if TYPE_CHECKING:
    from torch import Tensor


def row_count(shape: Sequence[int]) -> int:
    """Number of rows of a tensor; one of a single dimension is one row."""
    return math.prod(shape[:-1]) if len(shape) > 1 else 1


def row_spans(numel: int, width: int) -> Iterator[tuple[int, int]]:
    """Start and end of runs of whole rows, of about `SUM_BLOCK` elements."""
    step = max(1, SUM_BLOCK // width) * width
    for start in range(0, numel, step):
        yield start, min(start + step, numel)


@dataclass(slots=True)
class Lines:
    """Numbers, one per row or per column of a tensor.

    Attributes:
        values: The numbers.
        width: Elements per row.
        columns: Whether there is one number per column.
    """

    values: NDArray[np.float32]
    width: int
    columns: bool = False

    def slice(self, start: int, like: Tensor) -> Tensor:
        """The number of each element of the slice that begins at `start`, for the device and the
        length of `like`."""
        import torch

        positions = np.arange(start, start + like.numel())
        lines = positions % self.width if self.columns else positions // self.width
        return torch.from_numpy(self.values[lines]).to(like.device)


class Ranks:
    """The rank of each element's magnitude within its row, from 0 for the smallest; ties are ranked
    by position.

    Args:
        read: Reads a span of the tensor.
        numel: Number of elements of the tensor.
        width: Elements per row.
        keep: Whether to keep all ranks (4 bytes each) for the next use.
    """

    def __init__(
        self, read: Callable[[int, int], Tensor], numel: int, width: int, keep: bool = False
    ) -> None:
        self.read = read
        self.numel = numel
        self.width = width
        self.keep = keep
        self._first = 0
        self._block: NDArray[np.int32] = np.zeros(0, np.int32)

    def slice(self, start: int, stop: int) -> NDArray[np.int32]:
        """The ranks of a span; computed for all rows that it touches."""
        if start < self._first or stop > self._first + self._block.size:
            first = 0 if self.keep else start // self.width * self.width
            last = self.numel if self.keep else -(-stop // self.width) * self.width
            self._first = first
            self._block = np.empty(last - first, np.int32)
            for low, high in row_spans(last - first, self.width):
                self._block[low:high] = self._of_rows(first + low, first + high)
        return self._block[start - self._first : stop - self._first]

    def _of_rows(self, start: int, stop: int) -> NDArray[np.int32]:
        """Sorts magnitude and position as one whole number each: exact, and much faster than a
        stable argsort."""
        magnitudes = (
            np.abs(self.read(start, stop).numpy(force=True)).view(np.int32).reshape(-1, self.width)
        )
        # Key of an element: the bits of its magnitude, above its position. Keys are all different,
        # so any sort gives one order, with ties by position. The lower half of the j-th smallest
        # key is the position p with rank j; writing j at p inverts the permutation.
        keys = (magnitudes.astype(np.int64) << 32) | np.arange(self.width)
        keys.sort(axis=1)
        ranks = np.empty(keys.shape, np.int32)
        order = np.arange(self.width, dtype=np.int32)[None].repeat(len(keys), axis=0)
        np.put_along_axis(ranks, keys & 0xFFFFFFFF, order, axis=1)
        return ranks.reshape(-1)


@dataclass(slots=True)
class RankDrop:
    """Keeps the elements whose 16-bit random number is below a limit that depends on their rank
    within the row.

    Attributes:
        limits: Probability * 65536 of each rank, rounded.
        ranks: The ranks.
        field: The random numbers: those of `Drop`, so that masks are nested here as well.
        divide: Whether what is kept is divided by its probability.
    """

    limits: NDArray[np.float64]
    ranks: Ranks
    field: RandomField
    divide: bool = False

    def apply(self, vector: Tensor, start: int = 0) -> Tensor:
        """A new tensor: the slice of the task vector that begins at `start`, with 0 for what is
        dropped."""
        import torch

        ranks = self.ranks.slice(start, start + vector.numel())
        # limit - u is a whole number, at least 1 exactly where u < limit; cut off at 0 and 1 it is
        # the mask (as in `Drop`). Both sides are shifted by 32768.
        limits = torch.from_numpy((self.limits - LEVELS // 2).astype(np.float32)[ranks]).to(vector)
        kept = limits.sub_(self.field.slice(start, vector)).clamp_(0, 1).mul_(vector)
        if self.divide:
            factors = (LEVELS / np.maximum(self.limits, 1)).astype(np.float32)
            kept.mul_(torch.from_numpy(factors[ranks]).to(vector.device))
        return kept
