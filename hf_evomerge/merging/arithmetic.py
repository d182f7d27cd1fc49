"""Merge of one tensor: its inputs, slice by slice, and the code path that gives every executor the
same bits.

A slice fits the processor's cache, and what is held in memory stays small. The statistics of a
whole tensor (`TensorJob.cut`, `TensorJob.product`, ...) are computed in an order that does not
depend on slices or threads, and are kept for the next merge of the same tensors with other
parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING

import numpy as np

from .method import Call, MergeMethod, Values
from .rows import Lines, RankDrop, Ranks, row_count, row_spans
from .statistics import (
    LEVELS,
    SUM_BLOCK,
    Cut,
    Drop,
    Magnitudes,
    RandomField,
    add_up,
    inner_product,
    sum_magnitudes,
)

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

SLICE = 1 << 16  # elements; 256 KB of float32: those of all inputs are near enough to the processor


# Given: the tensors x_i of one name, the base's x_0 where there is a base, and the numbers of a
# recipe. The inputs of a method are the task vectors d_i = x_i - x_0, or the x_i themselves.
#
# A merge has two passes. `MergeMethod.prepare` reads the whole tensor and returns what no slice
# knows: a threshold, a factor, an angle. `MergeMethod.function` then computes one slice after the
# other from that. So memory stays at a few slices, and a candidate of a search that changes numbers
# alone repeats only what those numbers change: statistics of the inputs are kept under their index.
#
# Invariant: an element of the result is the same chain of float32 operations, and a statistic the
# same chain of float64 additions, whatever the slice size, the number of threads and `keep`. A
# search in memory, a build on disk and a rebuild from the record therefore give equal bits. Sums go
# over blocks of `SUM_BLOCK` elements from the first to the last, because float addition is not
# associative: the blocks are part of the definition.
#
# With `keep` the inputs are made once, in float32, and `_origin` is None. Without it they stay as
# the files have them, and every read subtracts `_origin`, which is the base.
class TensorJob:
    """Job that computes one tensor of the merged model, once or many times.

    Its inputs are the sources' tensors, or for methods on task vectors their differences to the
    base's.

    Args:
        name: Raw name of the tensor.
        method: The merge method.
        base: The base's tensor, if there is a base.
        sources: The tensors of the merged sources, in the order of the recipe; of any float dtype,
            all of one shape.
        seed: The recipe's seed.
        device: Where to compute; where the tensors are, by default.
        keep: Whether to hold the inputs as float32, and all statistics, for the next call (see
            `memory_needed`).
    """

    def __init__(
        self,
        name: str,
        method: MergeMethod,
        base: Tensor | None,
        sources: Sequence[Tensor],
        *,
        seed: int,
        device: torch.device | None = None,
        keep: bool = False,
    ) -> None:
        if base is not None and method.takes_base_as_first(len(sources)):
            sources = [base, *sources]
        self.method = method
        self.name = name
        self.device = device if device is not None else sources[0].device
        self.keep = keep
        self.shape = tuple(sources[0].shape)
        self.numel = sources[0].numel()
        self._base = base.reshape(-1) if base is not None and method.task_vectors else None
        self._inputs = [tensor.reshape(-1) for tensor in sources]
        self._sums: dict[int, float] = {}
        self._products: dict[tuple[int, int], float] = {}
        self._line_products: dict[tuple[int, int, bool], NDArray[np.float64]] = {}
        self._ranks: dict[int, Ranks] = {}
        self._derived: dict[str, Magnitudes] = {}
        self._whole: dict[str, Tensor] = {}
        self._fields = [
            RandomField(seed, index, name, self.numel, keep) for index in range(len(self._inputs))
        ]
        self._magnitudes = [
            Magnitudes(partial(self.blocks, index), self.numel, keep)
            for index in range(len(self._inputs))
        ]
        self._origin = self._base  # what inputs are differences to, where they are not made yet
        if keep:
            self._inputs = self.tensors(0, self.numel)
            self._base = self.base(0, self.numel)
            self._origin = None

    def run(
        self,
        sources: Sequence[Values],
        options: Values,
        out: Tensor,
        *,
        slice_size: int | None = None,
    ) -> None:
        """Merge the tensor into `out`.

        Args:
            sources: Complete per-source parameters; a value may be one number per layer group, or
                per run of rows.
            options: Complete global options.
            out: Tensor for the result, rounded to its dtype: contiguous, of the tensor's number of
                elements.
            slice_size: Elements per slice, by default as in `slices`; the result does not depend on
                it.
        """
        self.fill(self.call(sources, options), out, slice_size)

    def fill(self, call: Call, out: Tensor, slice_size: int | None = None) -> None:
        """Merge the tensor into `out` by a call of `call`; see `run`."""
        flat = out.view(-1)
        for start, stop, here in self.slices(call, slice_size):
            flat[start:stop].copy_(self.method.function(*self.parts(start, stop), here))

    def call(self, sources: Sequence[Values], options: Values) -> Call:
        """The parameters that apply to this tensor, and what the method computes from the whole of
        it."""
        call = Call.of_tensor(self.name, sources, options)
        if self.method.prepare is not None and self.numel > 0:
            call.prepared = self.method.prepare(self, call)
        return call

    def slices(self, call: Call, size: int | None = None) -> Iterator[tuple[int, int, Call]]:
        """Cut the tensor into slices of `size` elements at most: start, stop, and the call for its
        elements.

        By default those of few inputs are longer, so that there are fewer calls, and all inputs
        together as near as four.
        """
        size = size or max(SLICE, 4 * SLICE // len(self._inputs))
        for first, last, here in call.runs(row_count(self.shape)):
            end = last * self.width
            for here.start in range(first * self.width, end, size):
                yield here.start, min(here.start + size, end), here

    def parts(self, start: int, stop: int) -> tuple[Tensor | None, list[Tensor]]:
        """A slice of the base and of all inputs, as `base` and `tensors` give them; the base is
        converted once."""
        base = self.base(start, stop)
        if base is None or self._origin is None:
            return base, self.tensors(start, stop)
        return base, [self._difference(tensor[start:stop], base) for tensor in self._inputs]

    def release(self) -> None:
        """Let go of the inputs, which would stay in memory until Python collects the cycle that a
        job is in."""
        self._inputs = []
        self._base = None
        self._origin = None

    @property
    def is_fresh(self) -> bool:
        """True where `parts` makes tensors that nobody else has."""
        converted = all(
            each.element_size() != 4 or each.device != self.device for each in self._inputs
        )
        return not self.keep and (self._origin is not None or converted)

    def tensors(self, start: int, stop: int) -> list[Tensor]:
        """A slice of all inputs, as `tensor` gives it."""
        return [self.tensor(index, start, stop) for index in range(len(self._inputs))]

    def base(self, start: int, stop: int) -> Tensor | None:
        """A slice of the base in float32, for methods on task vectors."""
        return self._float(self._base[start:stop]) if self._base is not None else None

    def tensor(self, index: int, start: int, stop: int) -> Tensor:
        """A slice of one input in float32: of a task vector or of a source. Do not write to it."""
        values = self._inputs[index][start:stop]
        return (
            self._float(values)
            if self._origin is None
            else self._difference(values, self._float(self._origin[start:stop]))
        )

    def cut(self, index: int, k: int) -> Cut:
        """Return the cut that keeps one input's `k` elements of largest magnitude."""
        return self._magnitudes[index].cut(k)

    def drop(self, index: int, density: float) -> Drop:
        """Make a mask that keeps each element of one input with probability `density` (rounded to a
        multiple of 1/65536)."""
        return Drop(min(max(round(density * LEVELS), 0), LEVELS), self._fields[index])

    def sum_abs(self, index: int, change: Callable[[Tensor, int], Tensor] | None = None) -> float:
        """The sum of the magnitudes of one input, after `change` of each slice where it is
        given."""
        if change is not None:
            changed = self.computed(
                lambda start, stop: change(self.tensor(index, start, stop), start)
            )
            return add_up(sum_magnitudes(block) for _, block in changed)
        if index not in self._sums:
            self._sums[index] = add_up(sum_magnitudes(block) for _, block in self.blocks(index))
        return self._sums[index]

    def product(self, left: int, right: int) -> float:
        """The inner product of two inputs as flat vectors."""
        import torch

        if (left, right) not in self._products:
            # An angle is cos(theta) = <a, b> / sqrt(<a, a> <b, b>), so who asks for one product
            # soon asks for the other two. They are summed in the same pass. Blocks are converted to
            # float64, where the product of two float32 numbers is exact: only the additions round.
            keys = dict.fromkeys(
                [(left, right), (left, left), (right, right)]
            )  # an angle takes all three: one pass
            sums = dict.fromkeys((key for key in keys if key not in self._products), 0.0)
            blocks = {
                index: torch.empty(SUM_BLOCK, dtype=torch.float64)
                for index in dict.fromkeys([left, right])
            }
            spare = np.empty(SUM_BLOCK)
            for start in range(0, self.numel, SUM_BLOCK):
                stop = min(start + SUM_BLOCK, self.numel)
                for index, room in blocks.items():
                    # in the dtype of the file where that takes no arithmetic
                    stored = self._inputs[index][start:stop]
                    own = self.tensor(index, start, stop) if self._origin is not None else stored
                    room[: stop - start].copy_(own)
                block = {index: room[: stop - start].numpy() for index, room in blocks.items()}
                for first, second in sums:
                    sums[first, second] += inner_product(block[first], block[second], spare)
            self._products.update(sums)
        return self._products[left, right]

    @property
    def width(self) -> int:
        """Length of a row, which is a vector along the last dimension; a tensor of one dimension is
        one row."""
        return self.shape[-1] if len(self.shape) > 1 else self.numel

    @property
    def column_width(self) -> int:
        """Number of columns, which are vectors along the first dimension; a tensor of one dimension
        is one column."""
        return self.numel // self.shape[0] if len(self.shape) > 1 else 1

    def line_products(self, left: int, right: int, columns: bool = False) -> NDArray[np.float64]:
        """The inner products of the rows of two inputs, or of their columns."""
        key = (left, right, columns)
        if key not in self._line_products:
            width = self.column_width if columns else self.width
            # Rows are complete within a run of rows, so their sums are laid end to end. A column
            # goes through all runs, so its sums are added run after run.
            sums = self._line_sums(left, right, width, axis=0 if columns else 1)
            self._line_products[key] = (
                reduce(np.add, sums, np.zeros(width)) if columns else np.concatenate(list(sums))
            )
        return self._line_products[key]

    def _line_sums(
        self, left: int, right: int, width: int, axis: int
    ) -> Iterator[NDArray[np.float64]]:
        """Sums of the products of two inputs' elements along an axis, run of rows after run."""
        for span in row_spans(self.numel, width):
            first = self.tensor(left, *span).numpy(force=True)
            second = self.tensor(right, *span).numpy(force=True)
            products = np.multiply(first, second, dtype=np.float64)
            yield products.reshape(-1, width).sum(axis=axis)

    def lines(self, values: NDArray[np.float64], columns: bool = False) -> Lines:
        """Lay one number per row, or per column, along the slices of the tensor."""
        return Lines(
            values.astype(np.float32), self.column_width if columns else self.width, columns
        )

    def rank_drop(
        self, index: int, probabilities: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    ) -> RankDrop:
        """Make the mask that keeps each element of one input with a probability that depends on its
        rank within its row.

        Args:
            index: The input.
            probabilities: Function from relative ranks (0: the smallest of the row, 1: the largest)
                to probabilities.
        """
        if index not in self._ranks:
            self._ranks[index] = Ranks(
                lambda *span: self.tensor(index, *span), self.numel, self.width, self.keep
            )
        # Rank j of n stands at j / (n - 1); in a row of one element there is no order, so it is in
        # the middle. The probabilities become whole numbers out of 65536, which 16-bit random
        # numbers meet exactly.
        relative = np.linspace(0.0, 1.0, self.width) if self.width > 1 else np.full(self.width, 0.5)
        limits = np.clip(np.rint(probabilities(relative) * LEVELS), 0, LEVELS)
        return RankDrop(limits, self._ranks[index], self._fields[index])

    def derived(self, key: str, compute: Callable[[int, int], Tensor]) -> Magnitudes:
        """The order of magnitudes that a method computes from the inputs alone, slice by slice;
        kept under a key."""
        if key not in self._derived:
            self._derived[key] = Magnitudes(partial(self.computed, compute), self.numel, self.keep)
        return self._derived[key]

    def once(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return what a method computes from the inputs alone; kept under a key with `keep`."""
        if key in self._whole:
            return self._whole[key]
        value = compute()
        if self.keep:
            self._whole[key] = value
        return value

    def computed(
        self, compute: Callable[[int, int], Tensor]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield what `compute` makes of the spans of the tensor, in blocks of `SUM_BLOCK` elements
        with their positions."""
        for start in range(0, self.numel, SUM_BLOCK):
            yield start, compute(start, min(start + SUM_BLOCK, self.numel)).numpy(force=True)

    def blocks(self, index: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield one input in blocks of `SUM_BLOCK` elements with their positions."""
        return self.computed(partial(self.tensor, index))

    def _difference(self, values: Tensor, base: Tensor) -> Tensor:
        vector = self._float(values)
        # not in the source's own memory
        return vector.sub(base) if vector is values else vector.sub_(base)

    def _float(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device).float()


def memory_needed(method: MergeMethod, numel: int, sources: int, with_base: bool) -> int:
    """Bytes that `TensorJob` holds on to with ``keep``, at most."""
    return numel * ((4 + method.memory) * sources + (4 if with_base and method.task_vectors else 0))
