"""Statistics of a whole tensor that a merge needs: the k-th largest magnitude, the random numbers
of DARE, sums.

Each of them is a function of the tensor, the seed and the tensor's name alone: not of threads,
chunks, order or processor. Sums are float64 in a fixed order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = 1 << 16  # DARE compares 16-bit random numbers with the density
SUM_BLOCK = 1 << 16  # elements that are added up at a time: part of the definition of a sum
_NONE = np.zeros(1 << 15, np.int64)

Blocks = Callable[[], Iterator[tuple[int, NDArray[np.float32]]]]
"""Yields a task vector's blocks, each with its position, from the first to the last."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Keeps the k elements of largest magnitude; where magnitudes tie at the threshold, the earlier
    elements.

    Attributes:
        keeps_all: Whether nothing is cut.
        threshold: The k-th largest magnitude; all larger ones are kept.
        end: Position of the first element that is cut although its magnitude equals the threshold.
    """

    keeps_all: bool
    threshold: float = 0.0
    end: int = 0

    def apply(self, vector: Tensor, start: int = 0) -> Tensor:
        """A new tensor: the slice of the task vector that begins at `start`, with 0 for what is
        cut."""
        if self.keeps_all:
            return vector.clone()
        # TIES keeps the k largest magnitudes (arXiv:2306.01708, Algorithm 1, step 1). In bfloat16
        # thousands of elements share the k-th magnitude t. Kept is |x| > t everywhere, and |x| = t
        # before position `end`: exactly k elements. hardshrink with the limit t keeps the former;
        # with the float32 number just below t it keeps both.
        below = float(
            np.nextafter(np.float32(self.threshold), np.float32(0))
        )  # hardshrink keeps what is larger
        here = self.end - start
        if here >= vector.numel():
            return vector.hardshrink(below)
        kept = vector.hardshrink(self.threshold)
        if here > 0:
            kept[:here] = vector[:here].hardshrink(below)
        return kept


# The k-th largest of N magnitudes, exactly, without sorting. A non-negative float32 number and its
# bits, read as a whole number, have the same order, so a histogram over bits selects as one over
# numbers does. Pass 1 counts the upper 16 bits (the sign is 0, which leaves 2^15 counts) and finds
# the one that holds rank k; pass 2 counts the lower 16 bits of its members. Measured: 0.7
# ns an element for a count, 48 for an argsort.
#
# A search asks for many k of the same vector. With `keep` the magnitudes are sorted once, and each
# further k is a look-up. Both ways return the same threshold and the same number of ties.
class Magnitudes:
    """The k-th largest magnitude of one task vector, for any k.

    Args:
        blocks: Yields the task vector.
        numel: Its number of elements.
        keep: Whether to sort the magnitudes once and keep them (4 bytes each): every further k is
            then a look-up.
    """

    def __init__(self, blocks: Blocks, numel: int, keep: bool = False) -> None:
        self.blocks = blocks
        self.numel = numel
        self.keep = keep
        self._sorted: NDArray[np.float32] | None = None
        self._counts: NDArray[np.int64] | None = None
        self._cuts: dict[int, Cut] = {}

    def cut(self, k: int) -> Cut:
        """The cut that keeps the `k` largest."""
        if k >= self.numel:
            return Cut(keeps_all=True)
        if k not in self._cuts:
            if len(self._cuts) >= 8:
                self._cuts.clear()
            self._cuts[k] = self._make(k)
        return self._cuts[k]

    @cached_property
    def nonzero(self) -> int:
        """Number of elements that are not 0."""
        return sum(int(np.count_nonzero(block)) for _, block in self.blocks())

    def _make(self, k: int) -> Cut:
        # NaN counts as the largest magnitude
        threshold, kept, count = self._by_sorting(k) if self.keep else self._by_counting(k)
        if threshold == 0:
            return Cut(keeps_all=True)  # else only zeros would be cut
        return Cut(
            False, float(threshold), self._position(threshold, kept) if kept < count else self.numel
        )

    def _position(self, threshold: np.float32, count: int) -> int:
        """The position of number `count`, from 0, of the elements of just this magnitude; the end
        if there are fewer."""
        for start, block in self.blocks():
            equal = np.flatnonzero(np.abs(block) == threshold)
            if count < equal.size:
                return start + int(equal[count])
            count -= equal.size
        return self.numel

    def _by_sorting(self, k: int) -> tuple[np.float32, int, int]:
        """The k-th largest magnitude, how many equal ones are among the k largest, and how many
        there are."""
        if self._sorted is None:
            self._sorted = np.concatenate([np.abs(block) for _, block in self.blocks()])
            self._sorted.sort()
        number = self._sorted[-k]
        first, end = (
            int(np.searchsorted(self._sorted, number, side)) for side in ("left", "right")
        )
        return number, k - (self.numel - end), end - first

    def _by_counting(self, k: int) -> tuple[np.float32, int, int]:
        """Two passes that count: magnitudes by their upper 16 bits, then the magnitudes of one
        count by the lower."""
        if self._counts is None:
            self._counts = sum(
                (np.bincount(_bits(block) >> 16, minlength=1 << 15) for _, block in self.blocks()),
                _NONE,
            )
        # rank: how many members of that count are among the k largest; the second pass looks for it
        # there.
        upper, rank = _of_count(self._counts, k)
        lower = np.zeros(1 << 16, np.int64)
        for _, block in self.blocks():
            bits = _bits(block)
            lower += np.bincount(bits[bits >> 16 == upper] & 0xFFFF, minlength=1 << 16)
        last, kept = _of_count(lower, rank)
        return np.int32(upper << 16 | last).view(np.float32), kept, int(lower[last])


def _of_count(counts: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """The largest index at which the counts from the last on add up to at least `rank`, and the
    rank within its count."""
    at_least = np.cumsum(counts[::-1])[::-1]
    index = int(np.flatnonzero(at_least >= rank)[-1])
    return index, rank - int(at_least[index] - counts[index])


def _bits(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """The magnitudes' bits as whole numbers: they order as the magnitudes do."""
    return np.abs(values).view(np.int32)


@dataclass(slots=True)
class Drop:
    """Keeps the elements whose 16-bit random number is below a limit.

    Masks of one field are nested: a larger density keeps all that a smaller one keeps, so that a
    search sees no noise.

    Attributes:
        limit: density * 65536, rounded.
        field: The random numbers.
    """

    limit: int
    field: RandomField

    @property
    def keeps_all(self) -> bool:
        """True where nothing is dropped."""
        return self.limit >= LEVELS

    def apply(self, vector: Tensor, start: int = 0) -> Tensor:
        """A new tensor: the slice of the task vector that begins at `start`, with 0 for what is
        dropped."""
        if self.keeps_all:
            return vector.clone()
        # limit - u is a whole number, at least 1 exactly where u < limit: the mask, without a bool
        # tensor
        mask = self.field.slice(start, vector)
        return mask.neg_().add_(float(self.limit - LEVELS // 2)).clamp_(0, 1).mul_(vector)


# Number e belongs to element e of the tensor, and depends on (seed, source, name, e) alone: not on
# slices, threads, or how many numbers were drawn before. A generator with a state could not do that
# without drawing all that come before; Philox computes step n of its counter from n and the key.
# One step gives four 64-bit words, which are sixteen 16-bit numbers, so element e is in step e //
# 16.
#
# Nested masks follow: element e is kept where u_e < density * 65536, so a larger density keeps all
# that a smaller one kept. A search then sees a fitness that changes only where the mask does, and
# the winner can be built again to the bit.
class RandomField:
    """Uniform 16-bit numbers, one per element of one task vector, the same on every machine.

    Philox, a counter-based generator, so that any slice can be made by itself. Its key is the
    SHA-256 of the recipe's seed, the position of the source among those that take part, and the
    name of the tensor.

    Args:
        seed: The recipe's seed.
        source: Position of the source among those that take part in the merge, from 0.
        name: Raw name of the tensor.
        numel: Number of elements of the tensor.
        keep: Whether to hold on to the numbers (2 bytes each) for the next use.
    """

    def __init__(self, seed: int, source: int, name: str, numel: int, keep: bool = False) -> None:
        self._named = f"{seed}\0{source}\0{name}"
        self._generator: np.random.Philox | None = None
        self._counter = -1  # of the generator; -1: it stands between two counts
        self.numel = numel
        self.keep = keep
        self._kept: Tensor | None = None

    def numbers(self, start: int, stop: int) -> NDArray[np.uint16]:
        """The numbers of the elements from `start` to `stop`."""
        block, skip = divmod(start, 16)  # one step of the counter gives 4 numbers of 64 bits
        words = (skip + stop - start + 3) // 4
        # Slices are mostly read in order. The generator is only made anew where its counter stands
        # elsewhere.
        if self._generator is None or self._counter != block:
            key = int.from_bytes(hashlib.sha256(self._named.encode()).digest()[:16], "little")
            self._generator = np.random.Philox(key=key, counter=block)
        self._counter = block + words // 4 if words % 4 == 0 else -1
        raw = self._generator.random_raw(words)
        return raw.astype("<u8", copy=False).view("<u2")[skip : skip + stop - start]

    def slice(self, start: int, like: Tensor) -> Tensor:
        """The numbers minus 32768 as a new float32 tensor of the length and on the device of
        `like`."""
        stop = start + like.numel()
        if self.keep:
            if self._kept is None:
                self._kept = _shifted(self.numbers(0, self.numel), like)
            return self._kept[start:stop].to(like.dtype)
        return _shifted(self.numbers(start, stop), like).to(like.dtype)


def _shifted(numbers: NDArray[np.uint16], like: Tensor) -> Tensor:
    import torch

    # torch computes little on uint16. u xor 2^15, read as int16, is u - 32768; `Drop` and
    # `RankDrop` shift their limits by as much.
    return torch.from_numpy((numbers ^ np.uint16(1 << 15)).view(np.int16)).to(like.device)


def add_up(numbers: Iterable[float]) -> float:
    """The sum of numbers one after the other; Python's own adds up otherwise from 3.12 on."""
    return reduce(add, numbers, 0.0)


def sum_magnitudes(values: NDArray[np.float32]) -> float:
    """The sum of the magnitudes of one block of `SUM_BLOCK` numbers, in float64 by one thread in
    numpy's fixed order."""
    return float(np.add.reduce(np.abs(values), dtype=np.float64))


def inner_product(
    left: NDArray[np.floating[Any]],
    right: NDArray[np.floating[Any]],
    room: NDArray[np.float64] | None = None,
) -> float:
    """The inner product of one block, in float64 by one thread; quicker where the blocks are, and
    with room for one more."""
    out = None if room is None else room[: left.size]
    return float(np.add.reduce(np.multiply(left, right, out=out, dtype=np.float64)))
