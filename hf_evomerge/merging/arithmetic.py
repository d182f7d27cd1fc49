"""One merged tensor: the code path that both executors share, so that they give the same bits.

A tensor is merged slice by slice: a slice fits the processor's cache, and what is held in memory stays small. What a method
must know of the whole tensor (`TensorJob.cut`, `TensorJob.drop`, ...) is computed first, in an order that does not depend on
slices or threads, and is kept for the next call with other parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .groups import resolve
from .registry import Call, MergeMethod
from .statistics import LEVELS, SUM_BLOCK, Cut, Drop, Magnitudes, RandomField, inner_product, sum_magnitudes

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

SLICE = 1 << 17  # elements; 512 KB of float32


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
        self.numel = sources[0].numel()
        with_base = [base, *sources] if base is not None and method.takes_base_as_first(len(sources)) else list(sources)
        self._base = base.reshape(-1) if base is not None and method.task_vectors else None
        self._inputs = [tensor.reshape(-1) for tensor in with_base]
        self._sums: dict[int, float] = {}
        self._products: dict[tuple[int, int], float] = {}
        self._fields = [RandomField(seed, index, name, self.numel, keep) for index in range(len(self._inputs))]
        self._magnitudes = [Magnitudes(self._blocks_of(index), self.numel, keep) for index in range(len(self._inputs))]
        self._kept_base: Tensor | None = None
        self._kept: list[Tensor] | None = None
        if keep:
            kept_base = self._float(self._base) if self._base is not None else None
            self._kept = [self._read(index, 0, self.numel) for index in range(len(self._inputs))]
            self._kept_base = kept_base

    def run(
        self, sources: Sequence[Mapping[str, Any]], options: Mapping[str, Any], out: Tensor, slice_size: int = SLICE
    ) -> None:
        """Merge the tensor into `out`.

        Args:
            sources: Complete per-source parameters; a value may be one number per layer group.
            options: Complete global options.
            out: Where the result goes, rounded to its dtype: contiguous, of the tensor's number of elements.
            slice_size: Elements per slice; the result does not depend on it.
        """
        call = self.call(sources, options)
        flat = out.view(-1)
        for start in range(0, self.numel, slice_size):
            flat[start : start + slice_size].copy_(self.merge_slice(call, start, min(start + slice_size, self.numel)))

    def call(self, sources: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Call:
        """The parameters that apply to this tensor, and the facts that the method wants."""
        name = self.name
        call = Call(
            {key: resolve(value, name) for key, value in options.items()},
            [{key: resolve(value, name) for key, value in values.items()} for values in sources],
        )
        if self.method.prepare is not None:
            call.facts = self.method.prepare(self, call)
        return call

    def merge_slice(self, call: Call, start: int, stop: int) -> Tensor:
        """One slice of the result, in float32."""
        call.start = start
        inputs = [self.tensor(index, start, stop) for index in range(len(self._inputs))]
        return self.method.function(self.base(start, stop), inputs, call)

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
        total = sum(sum_magnitudes(block) for _, block in self._blocks(index, change))
        if change is None:
            self._sums[index] = total
        return total

    def product(self, left: int, right: int) -> float:
        """The inner product of two inputs as flat vectors."""
        if (left, right) not in self._products:
            pairs = zip(self._blocks(left), self._blocks(right), strict=True)
            self._products[left, right] = sum(inner_product(a, b) for (_, a), (_, b) in pairs)
        return self._products[left, right]

    def _blocks_of(self, index: int) -> Callable[[], Iterator[tuple[int, NDArray[np.float32]]]]:
        return lambda: self._blocks(index)

    def _blocks(
        self, index: int, change: Callable[[Tensor, int], Tensor] | None = None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for start in range(0, self.numel, SUM_BLOCK):
            block = self.tensor(index, start, min(start + SUM_BLOCK, self.numel))
            yield start, (block if change is None else change(block, start)).numpy(force=True)

    def _read(self, index: int, start: int, stop: int) -> Tensor:
        values = self._float(self._inputs[index][start:stop])
        return values if self._base is None else values.sub(self._float(self._base[start:stop]))

    def _float(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self.device).float()


def memory_needed(method: MergeMethod, numel: int, sources: int, with_base: bool) -> int:
    """Bytes that `TensorJob` holds on to with ``keep``, at most."""
    per_source = 4 + (4 if method.name == "ties" else 2)
    return numel * (per_source * sources + (4 if with_base else 0))
