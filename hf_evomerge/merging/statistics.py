"""Statistics of a whole tensor that a merge needs: the k-th largest magnitude, the random numbers of DARE, sums.

Each of them is a function of the tensor, the seed and the tensor's name alone: not of threads, chunks, order or processor.
Sums are float64 in a fixed order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from dataclasses import field as field_of
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = 1 << 16  # DARE compares 16-bit random numbers with the density
SUM_BLOCK = 1 << 16  # elements that are added up at a time: part of the definition of a sum
_SAMPLE, _LARGE_SAMPLE = 1 << 14, 1 << 18  # elements that are sampled to guess a threshold
_MARGIN = 2.0  # half-width of the guess in units of sqrt(sample size): four standard deviations or more
_ROOM = 1 << 22  # elements near a guess that are held: 32 MB at most, for a tensor of 500 million elements
_NONE = np.zeros(1 << 15, np.int64)

Sample = Callable[[int], NDArray[np.float32]]
Blocks = Callable[[], Iterator[tuple[int, NDArray[np.float32]]]]
"""Yields a task vector's blocks, each with its position, from the first to the last."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Keeps the k elements of largest magnitude; where magnitudes tie at the threshold, the earlier elements.

    Attributes:
        keeps_all: Whether nothing is cut.
        threshold: The k-th largest magnitude; all larger ones are kept.
        end: Position of the first element that is cut although its magnitude equals the threshold.
    """

    keeps_all: bool
    threshold: float = 0.0
    end: int = 0

    def apply(self, vector: Tensor, start: int = 0) -> Tensor:
        """A new tensor: the slice of the task vector that begins at `start`, with 0 for what is cut."""
        if self.keeps_all:
            return vector.clone()
        below = float(np.nextafter(np.float32(self.threshold), np.float32(0)))  # hardshrink keeps what is larger
        here = self.end - start
        if here >= vector.numel():
            return vector.hardshrink(below)
        kept = vector.hardshrink(self.threshold)
        if here > 0:
            kept[:here] = vector[:here].hardshrink(below)
        return kept


class Magnitudes:
    """The k-th largest magnitude of one task vector, for any k.

    Args:
        blocks: Yields the task vector.
        numel: Its number of elements.
        keep: Whether to sort the magnitudes once and keep them (4 bytes each): every further k is then a look-up.
        sample: Makes about so many elements of the vector, spread over it; without it a large vector is read once more.
    """

    def __init__(self, blocks: Blocks, numel: int, keep: bool = False, sample: Sample | None = None) -> None:
        self.blocks = blocks
        self.numel = numel
        self.keep = keep
        self.sample = sample
        self._sorted: NDArray[np.float32] | None = None
        self._counts: NDArray[np.int64] | None = None
        self._cuts: dict[int, Cut] = {}
        self._nonzero: int | None = None

    def cut(self, k: int) -> Cut:
        """The cut that keeps the `k` largest."""
        if k >= self.numel:
            return Cut(keeps_all=True)
        if k not in self._cuts:
            if len(self._cuts) >= 8:
                self._cuts.clear()
            self._cuts[k] = self._make(k)
        return self._cuts[k]

    @property
    def nonzero(self) -> int:
        """How many elements are not 0."""
        if self._nonzero is None:
            self._nonzero = sum(int(np.count_nonzero(block)) for _, block in self.blocks())
        return self._nonzero

    def largest(self, k: int) -> float:
        """The `k`-th largest magnitude, from 1."""
        if k == self.numel:
            return min(float(np.abs(block).min()) for _, block in self.blocks())
        return float(self._threshold(k)[0])

    def _make(self, k: int) -> Cut:
        threshold, end = self._threshold(k)
        return Cut(keeps_all=True) if threshold == 0 else Cut(False, float(threshold), end())  # else only zeros would be cut

    def _threshold(self, k: int) -> tuple[np.float32, Callable[[], int]]:
        """The k-th largest magnitude, and what finds `Cut.end`; NaN counts as the largest."""
        if self.keep or self.numel <= SUM_BLOCK:
            ordered = self._sorted if self._sorted is not None else np.sort(self._all())
            self._sorted = ordered if self.keep else None
            threshold, equal = _of_rank(ordered, k)
            return threshold, lambda: self._position(threshold, equal)
        return self._near_guess(k) or self._by_counting(k)

    def _position(self, threshold: np.float32, count: int) -> int:
        """The position of number `count`, from 0, of the elements of just this magnitude; the end if there are fewer."""
        for start, block in self.blocks():
            equal = np.abs(block) == threshold
            found = int(np.count_nonzero(equal))
            if count < found:
                return start + int(np.flatnonzero(equal)[count])
            count -= found
        return self.numel

    def _all(self) -> NDArray[np.float32]:
        values = np.empty(self.numel, np.float32)
        for start, block in self.blocks():
            np.abs(block, out=values[start : start + block.size])
        return values

    def _near_guess(self, k: int) -> tuple[np.float32, Callable[[], int]] | None:
        """The threshold from one pass that keeps what lies between two guesses; None where they are wrong."""
        if self.sample is None:
            return None
        low, high = _bracket(self.sample(min(max(_SAMPLE, self.numel >> 6), _LARGE_SAMPLE)), self.numel, k)
        room = min(self.numel >> 4, _ROOM)
        near, places = np.empty(room, np.float32), np.empty(room, np.int32 if self.numel < 1 << 31 else np.int64)
        filled, rank = 0, k  # the rank of the k-th largest among those that are less than `high`
        for start, block in self.blocks():
            values = np.abs(block)
            less = values < high
            rank -= values.size - int(np.count_nonzero(less))
            less &= values > low
            inside = np.flatnonzero(less)
            if filled + inside.size > room:
                return None
            near[filled : filled + inside.size] = values[inside]
            places[filled : filled + inside.size] = start + inside
            filled += inside.size
        if not 1 <= rank <= filled:
            return self._if_it_is(high if rank < 1 else low, k)
        near, places = near[:filled], places[:filled]
        threshold, equal = _of_rank(np.sort(near), rank)

        def end() -> int:
            there = np.flatnonzero(near == threshold)
            return int(places[there[equal]]) if equal < there.size else self.numel

        return threshold, end

    def _if_it_is(self, threshold: np.float32, k: int) -> tuple[np.float32, Callable[[], int]] | None:
        """The threshold where it is just this number, as of many equal ones; None where it is another."""
        larger = equal = 0
        for _, block in self.blocks():
            values = np.abs(block)
            larger += values.size - int(np.count_nonzero(values <= threshold))
            equal += int(np.count_nonzero(values == threshold))
        if not larger < k <= larger + equal:
            return None
        return threshold, lambda: self._position(threshold, k - larger)

    def _by_counting(self, k: int) -> tuple[np.float32, Callable[[], int]]:
        """The threshold from two passes that count: magnitudes by their upper 16 bits, then those of one count by the lower."""
        if self._counts is None:
            self._counts = sum((np.bincount(_bits(block) >> 16, minlength=1 << 15) for _, block in self.blocks()), _NONE)
        upper, rank = _of_count(self._counts, k)
        lower = np.zeros(1 << 16, np.int64)
        for _, block in self.blocks():
            bits = _bits(block)
            lower += np.bincount(bits[bits >> 16 == upper] & 0xFFFF, minlength=1 << 16)
        last, equal = _of_count(lower, rank)
        threshold = np.int32(upper << 16 | last).view(np.float32)
        return threshold, lambda: self._position(threshold, equal)


def _of_rank(ordered: NDArray[np.float32], rank: int) -> tuple[np.float32, int]:
    """The number of this rank (1 is the largest) of sorted ones, and how many equal ones are among the `rank` largest."""
    number = ordered[-rank]
    return number, rank - ordered.size + int(np.searchsorted(ordered, number, "right"))


def _of_count(counts: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """The largest index at which the counts from the last on add up to at least `rank`, and the rank within its count."""
    at_least = np.cumsum(counts[::-1])[::-1]
    index = int(np.flatnonzero(at_least >= rank)[-1])
    return index, rank - int(at_least[index] - counts[index])


def _bracket(sample: NDArray[np.float32], numel: int, k: int) -> tuple[np.float32, np.float32]:
    """Two magnitudes between which the `k`-th largest of a vector probably lies, estimated from a sample of it."""
    margin, place = int(_MARGIN * math.sqrt(sample.size)), int((numel - k) / numel * sample.size)
    low, high = max(0, place - margin), min(sample.size - 1, place + margin)
    ordered = np.partition(np.abs(sample), (low, high))
    return ordered[low], ordered[high]


def sample_step(numel: int, count: int) -> int:
    """The distance between `count` evenly spaced samples of a vector; odd, so that they hit all columns of a matrix."""
    return max(1, numel // count) | 1


def _bits(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """The magnitudes' bits as whole numbers: they order as the magnitudes do."""
    return np.abs(values).view(np.int32)


@dataclass(slots=True)
class Drop:
    """Keeps the elements whose 16-bit random number is below a limit.

    Masks of one field are nested: a larger density keeps all that a smaller one keeps, so that a search sees no noise.

    Attributes:
        limit: density * 65536, rounded.
        field: The random numbers.
        levels: How many different numbers there are.
        masks: One bit per element of the blocks that were asked for, by start and end: a second pass over a tensor then
            need not draw the numbers again.
    """

    limit: int
    field: RandomField
    levels: int = LEVELS
    masks: dict[tuple[int, int], NDArray[np.uint8]] = field_of(default_factory=dict)

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is dropped."""
        return self.limit >= self.levels

    def apply(self, vector: Tensor, start: int = 0) -> Tensor:
        """A new tensor: the slice of the task vector that begins at `start`, with 0 for what is dropped."""
        if self.keeps_all:
            return vector.clone()
        if self.field.keep:
            # limit - u is a whole number, at least 1 exactly where u < limit: the mask, without a bool tensor
            mask = self.field.slice(start, vector)
            return mask.neg_().add_(float(self.limit - self.levels // 2)).clamp_(0, 1).mul_(vector)
        import torch

        stop = start + vector.numel()
        bits = [self._mask(first, min(first + SUM_BLOCK, stop)) for first in range(start, stop, SUM_BLOCK)]
        return torch.from_numpy(bits[0] if len(bits) == 1 else np.concatenate(bits)).to(vector).mul_(vector)

    def _mask(self, start: int, stop: int) -> NDArray[np.uint8]:
        """1 for the elements that are kept, and 0."""
        if (start, stop) not in self.masks:
            self.masks[start, stop] = np.packbits(self.field.numbers(start, stop) < self.limit)
        return np.unpackbits(self.masks[start, stop], count=stop - start)


class RandomField:
    """One uniform 16-bit number per element of one task vector, the same on every machine.

    Philox, a counter-based generator, so that any slice can be made by itself. Its key is the SHA-256 of the recipe's seed, the
    position of the source among those that take part, and the name of the tensor.

    Args:
        seed: The recipe's seed.
        source: Position of the source among those that take part in the merge, from 0.
        name: Raw name of the tensor.
        numel: Number of elements of the tensor.
        keep: Whether to hold on to the numbers (2 bytes each) for the next use.
    """

    def __init__(self, seed: int, source: int, name: str, numel: int, keep: bool = False) -> None:
        self._seed = f"{seed}\0{source}\0{name}"
        self._generator: np.random.Philox | None = None
        self._counter = -1  # of the generator; -1: it stands between two counts
        self.numel = numel
        self.keep = keep
        self._kept: Tensor | None = None

    @cached_property
    def _key(self) -> int:
        return int.from_bytes(hashlib.sha256(self._seed.encode()).digest()[:16], "little")

    def numbers(self, start: int, stop: int) -> NDArray[np.uint16]:
        """The numbers of the elements from `start` to `stop`."""
        block, skip = divmod(start, 16)  # one step of the counter gives 4 numbers of 64 bits
        words = (skip + stop - start + 3) // 4
        if self._generator is None or self._counter != block:
            self._generator = np.random.Philox(key=self._key, counter=block)
        self._counter = block + words // 4 if words % 4 == 0 else -1
        raw = self._generator.random_raw(words)
        return raw.astype("<u8", copy=False).view("<u2")[skip : skip + stop - start]

    def slice(self, start: int, like: Tensor) -> Tensor:
        """The numbers minus 32768 as a new float32 tensor of the length and on the device of `like`."""
        stop = start + like.numel()
        if self.keep:
            if self._kept is None:
                self._kept = _shifted(self.numbers(0, self.numel), like)
            return self._kept[start:stop].to(like.dtype)
        return _shifted(self.numbers(start, stop), like).to(like.dtype)


def _shifted(numbers: NDArray[np.uint16], like: Tensor) -> Tensor:
    import torch

    return torch.from_numpy((numbers ^ np.uint16(1 << 15)).view(np.int16)).to(like.device)


def sum_magnitudes(values: NDArray[np.float32]) -> float:
    """The sum of the magnitudes of one block of `SUM_BLOCK` numbers, in float64 by one thread in numpy's fixed order."""
    return float(np.add.reduce(np.abs(values), dtype=np.float64))


def inner_product(left: NDArray[np.floating[Any]], right: NDArray[np.floating[Any]]) -> float:
    """The inner product of one block, in float64 by one thread; quicker where the blocks are float64 already."""
    return float(np.add.reduce(np.multiply(left, right, dtype=np.float64)))
