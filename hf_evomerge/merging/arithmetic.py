"""One merged tensor: the code path that both executors share, so that they give the same bits.

A tensor is merged slice by slice: a slice fits the processor's cache, and what is held in memory stays small. What a method
must know of the whole tensor (`TensorJob.cut`, `TensorJob.drop`, ...) is computed first, in an order that does not depend on
slices or threads, and is kept for the next call with other parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from ..recipes.layer_groups import resolve
from .registry import Call, MergeMethod
from .rows import Lines, RankDrop, Ranks, column_sums, row_spans, row_sums
from .statistics import LEVELS, SUM_BLOCK, Cut, Drop, Magnitudes, RandomField, inner_product, sample_step, sum_magnitudes

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

SLICE = 1 << 16  # elements; 256 KB of float32: fits the cache, and allocators reuse it rather than give it back


class TensorJob:
    """One tensor of the merged model, to be computed once or many times.

    Args:
        name: Raw name of the tensor.
        method: The merge method.
        base: The base's tensor, if there is a base.
        sources: The tensors of the sources that take part, in the order of the recipe.
        seed: The recipe's seed.
        device: Where to compute; where the tensors are, by default.
        keep: Whether to hold the inputs as float32 and all facts for the next call (see `memory_needed`).
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
        self.name = name
        self.method = method
        self.seed = seed
        self.device = device if device is not None else sources[0].device
        self.keep = keep
        self.shape = tuple(sources[0].shape)
        self.numel = sources[0].numel()
        with_base = [base, *sources] if base is not None and method.takes_base_as_first(len(sources)) else list(sources)
        self._base = base.reshape(-1) if base is not None and method.task_vectors else None
        self._inputs = [tensor.reshape(-1) for tensor in with_base]
        self._sums: dict[int, float] = {}
        self._products: dict[tuple[int, int], float] = {}
        self._line_products: dict[tuple[int, int, bool], NDArray[np.float64]] = {}
        self._ranks: dict[int, Ranks] = {}
        self._derived: dict[str, Magnitudes] = {}
        self._fields = [RandomField(seed, index, name, self.numel, keep) for index in range(len(self._inputs))]
        self._magnitudes = [
            Magnitudes(self._blocks_of(index), self.numel, keep, self._sample_of(index)) for index in range(len(self._inputs))
        ]
        self._kept_base: Tensor | None = None
        self._kept: list[Tensor] | None = None
        if keep:
            kept_base = self._float(self._base) if self._base is not None else None
            self._kept = [self._read(index, 0, self.numel) for index in range(len(self._inputs))]
            self._kept_base = kept_base

    def run(
        self,
        sources: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        out: Tensor,
        *,
        model: Any = None,
        slice_size: int = SLICE,
    ) -> None:
        """Merge the tensor into `out`.

        Args:
            sources: Complete per-source parameters; a value may be one number per layer group.
            options: Complete global options.
            out: Where the result goes, rounded to its dtype: contiguous, of the tensor's number of elements.
            model: What the method's ``survey`` found out about the whole model.
            slice_size: Elements per slice; the result does not depend on it.
        """
        call = self.call(sources, options, model)
        flat = out.view(-1)
        for start in range(0, self.numel, slice_size):
            flat[start : start + slice_size].copy_(self.merge_slice(call, start, min(start + slice_size, self.numel)))

    def call(self, sources: Sequence[Mapping[str, Any]], options: Mapping[str, Any], model: Any = None) -> Call:
        """The parameters that apply to this tensor, and the facts that the method wants."""
        name = self.name
        call = Call(
            {key: resolve(value, name) for key, value in options.items()},
            [{key: resolve(value, name) for key, value in values.items()} for values in sources],
            model=model,
        )
        if self.method.prepare is not None:
            call.facts = self.method.prepare(self, call)
        return call

    def merge_slice(self, call: Call, start: int, stop: int) -> Tensor:
        """One slice of the result, in float32."""
        call.start = start
        return self.method.function(*self.parts(start, stop), call)

    def parts(self, start: int, stop: int) -> tuple[Tensor | None, list[Tensor]]:
        """A slice of the base and of all inputs, as `base` and `tensors` give them; the base is converted once."""
        base = self.base(start, stop)
        if base is None or self._kept is not None:
            return base, self.tensors(start, stop)
        return base, [self._difference(tensor[start:stop], base) for tensor in self._inputs]

    def tensors(self, start: int, stop: int) -> list[Tensor]:
        """A slice of all inputs, as `tensor` gives it."""
        return [self.tensor(index, start, stop) for index in range(len(self._inputs))]

    def base(self, start: int, stop: int) -> Tensor | None:
        """A slice of the base in float32, for methods on task vectors."""
        if self._kept_base is not None:
            return self._kept_base if start == 0 and stop == self.numel else self._kept_base[start:stop]
        return self._float(self._base[start:stop]) if self._base is not None else None

    def tensor(self, index: int, start: int, stop: int) -> Tensor:
        """A slice of one input in float32: of a task vector or of a source. Do not write to it."""
        if self._kept is not None:
            return self._kept[index] if start == 0 and stop == self.numel else self._kept[index][start:stop]
        return self._read(index, start, stop)

    def cut(self, index: int, k: int) -> Cut:
        """What keeps the `k` elements of largest magnitude of one input."""
        return self._magnitudes[index].cut(k)

    def drop(self, index: int, density: float) -> Drop:
        """What keeps each element of one input with probability `density` (rounded to a multiple of 1/65536)."""
        return Drop(min(max(round(density * LEVELS), 0), LEVELS), self._fields[index])

    def sum_abs(self, index: int, change: Callable[[Tensor, int], Tensor] | None = None) -> float:
        """The sum of the magnitudes of one input, after `change` of each slice where it is given."""
        if change is None and index in self._sums:
            return self._sums[index]
        if change is None:
            self._sums[index] = sum(sum_magnitudes(block) for _, block in self.blocks(index))
            return self._sums[index]
        before, after = 0.0, 0.0
        for start in range(0, self.numel, SUM_BLOCK):  # both in one pass: whoever asks for one needs the other
            block = self.tensor(index, start, min(start + SUM_BLOCK, self.numel))
            if index not in self._sums:
                before += sum_magnitudes(block.numpy(force=True))
            after += sum_magnitudes(change(block, start).numpy(force=True))
        self._sums.setdefault(index, before)
        return after

    def product(self, left: int, right: int) -> float:
        """The inner product of two inputs as flat vectors."""
        if (left, right) not in self._products:
            keys = dict.fromkeys([(left, right), (left, left), (right, right)])  # an angle takes all three: one pass
            sums = dict.fromkeys((key for key in keys if key not in self._products), 0.0)
            for (_, a), (_, b) in zip(self.blocks(left), self.blocks(right), strict=True):
                for first, second in sums:
                    sums[first, second] += inner_product(a if first == left else b, a if second == left else b)
            self._products.update(sums)
        return self._products[left, right]

    @property
    def width(self) -> int:
        """Length of a row, which is a vector along the last dimension; a tensor of one dimension is one row."""
        return self.shape[-1] if len(self.shape) > 1 else self.numel

    @property
    def column_width(self) -> int:
        """Number of columns, which are vectors along the first dimension; a tensor of one dimension is one column."""
        return self.numel // self.shape[0] if len(self.shape) > 1 else 1

    def line_products(self, left: int, right: int, columns: bool = False) -> NDArray[np.float64]:
        """The inner products of the rows of two inputs, or of their columns."""
        key = (left, right, columns)
        if key not in self._line_products:
            width = self.column_width if columns else self.width
            pairs = (
                (self.tensor(left, start, stop).numpy(force=True), self.tensor(right, start, stop).numpy(force=True))
                for start, stop in row_spans(self.numel, width)
            )
            self._line_products[key] = column_sums(pairs, width) if columns else row_sums(pairs, width)
        return self._line_products[key]

    def lines(self, values: NDArray[np.float64], columns: bool = False) -> Lines:
        """One number per row, or per column, to be laid along the slices of the tensor."""
        return Lines(values.astype(np.float32), self.column_width if columns else self.width, columns)

    def rank_drop(self, index: int, probabilities: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> RankDrop:
        """What keeps each element of one input with a probability that depends on how large it is within its row.

        Args:
            index: The input.
            probabilities: From relative ranks (0: the smallest of the row, 1: the largest) to probabilities.
        """
        if index not in self._ranks:
            self._ranks[index] = Ranks(lambda *span: self.tensor(index, *span), self.numel, self.width, self.keep)
        relative = np.linspace(0.0, 1.0, self.width) if self.width > 1 else np.full(self.width, 0.5)
        limits = np.clip(np.rint(probabilities(relative) * LEVELS), 0, LEVELS)
        return RankDrop(limits, self._ranks[index], self._fields[index])

    def derived(self, key: str, compute: Callable[[int, int], Tensor]) -> Magnitudes:
        """The order of magnitudes that a method computes from the inputs alone, slice by slice; kept under a key."""
        if key not in self._derived:
            self._derived[key] = Magnitudes(lambda: self.computed(compute), self.numel, self.keep)
        return self._derived[key]

    def computed(self, compute: Callable[[int, int], Tensor]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """What `compute` makes of the spans of the tensor, in blocks of `SUM_BLOCK` elements with their positions."""
        for start in range(0, self.numel, SUM_BLOCK):
            yield start, compute(start, min(start + SUM_BLOCK, self.numel)).numpy(force=True)

    def _blocks_of(self, index: int) -> Callable[[], Iterator[tuple[int, NDArray[np.float32]]]]:
        return lambda: self.blocks(index)

    def _sample_of(self, index: int) -> Callable[[int], NDArray[np.float32]]:
        def sample(count: int) -> NDArray[np.float32]:
            some = slice(None, None, sample_step(self.numel, count))
            values = self._inputs[index][some]
            vector = self._float(values) if self._base is None else self._difference(values, self._float(self._base[some]))
            return vector.numpy(force=True)

        return sample

    def blocks(
        self, index: int, change: Callable[[Tensor, int], Tensor] | None = None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """One input in blocks of `SUM_BLOCK` elements with their positions, after `change` where it is given."""
        for start in range(0, self.numel, SUM_BLOCK):
            block = self.tensor(index, start, min(start + SUM_BLOCK, self.numel))
            yield start, (block if change is None else change(block, start)).numpy(force=True)

    def _read(self, index: int, start: int, stop: int) -> Tensor:
        values = self._inputs[index][start:stop]
        return self._float(values) if self._base is None else self._difference(values, self._float(self._base[start:stop]))

    def _difference(self, values: Tensor, base: Tensor) -> Tensor:
        vector = self._float(values)
        return vector.sub(base) if vector is values else vector.sub_(base)  # not in the source's own memory

    def _float(self, tensor: Tensor) -> Tensor:
        return (tensor if tensor.device == self.device else tensor.to(self.device)).float()


class ModelJob:
    """All tensors of the merged model as one long vector, for methods that look at a whole task vector at once.

    Args:
        jobs: The tensors in the order of `tensor_order`, or what makes them when they are first asked for.
    """

    def __init__(self, jobs: Sequence[TensorJob] | Callable[[], Sequence[TensorJob]]) -> None:
        self._given = jobs
        self._magnitudes: dict[int, Magnitudes] = {}

    @cached_property
    def jobs(self) -> list[TensorJob]:
        """The tensors."""
        return list(self._given() if callable(self._given) else self._given)

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Position of each tensor in the vector."""
        return dict(zip((job.name for job in self.jobs), accumulate((job.numel for job in self.jobs), initial=0), strict=False))

    @property
    def numel(self) -> int:
        """Number of elements."""
        return sum(job.numel for job in self.jobs)

    def survey(self, sources: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Any:
        """What the method wants to know of the whole model; None for most."""
        survey = self.jobs[0].method.survey if self.jobs else None
        return survey(self, sources, options) if survey is not None else None

    def cut(self, index: int, k: int) -> Cut:
        """What keeps the `k` elements of largest magnitude of one input; positions count through all tensors."""
        if index not in self._magnitudes:
            keep = all(job.keep for job in self.jobs)
            self._magnitudes[index] = Magnitudes(lambda: self._blocks(index), self.numel, keep)
        return self._magnitudes[index].cut(k)

    def _blocks(self, index: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for job in self.jobs:
            for start, block in job.blocks(index):
                yield self.offsets[job.name] + start, block


def memory_needed(method: MergeMethod, numel: int, sources: int, with_base: bool) -> int:
    """Bytes that `TensorJob` holds on to with ``keep``, at most."""
    return numel * ((4 + method.memory) * sources + (4 if with_base and method.task_vectors else 0))
