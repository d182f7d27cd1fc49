"""One merged tensor: the code path that both executors and the functions share, so that they give the same bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .inputs import ModelInputs, TensorInputs
from .method import Call, MergeMethod
from .rows import row_count

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SLICE = 1 << 17  # elements; 512 KB of float32: near enough to the processor, and allocators reuse it rather than give it back


class TensorJob(TensorInputs):
    """One tensor of the merged model, to be computed once or many times.

    Args:
        name: Raw name of the tensor.
        method: The merge method.
        base: The base's tensor, if there is a base.
        sources: The tensors of the merged sources, in the order of the recipe.
        seed: The recipe's seed.
        device: Where to compute; where the tensors are, by default.
        keep: Whether to hold the inputs as float32, and all statistics, for the next call (see `memory_needed`).
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
        self.method = method
        if base is not None and method.takes_base_as_first(len(sources)):
            sources = [base, *sources]
        super().__init__(name, base if method.task_vectors else None, sources, seed=seed, device=device, keep=keep)

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
            sources: Complete per-source parameters; a value may be one number per layer group, or per run of rows.
            options: Complete global options.
            out: Where the result goes, rounded to its dtype: contiguous, of the tensor's number of elements.
            model: What the method's ``survey`` computed from the whole model.
            slice_size: Elements per slice; the result does not depend on it.
        """
        call = self.call(sources, options, model)
        flat = out.view(-1)
        for start, stop, here in self.slices(call, slice_size):
            flat[start:stop].copy_(self.method.function(*self.parts(start, stop), here))

    def call(self, sources: Sequence[Mapping[str, Any]], options: Mapping[str, Any], model: Any = None) -> Call:
        """The parameters that apply to this tensor, and what the method computes from the whole of it."""
        call = Call.of_tensor(self.name, sources, options, model)
        if self.method.prepare is not None and self.numel > 0:
            call.prepared = self.method.prepare(self, call)
        return call

    def slices(self, call: Call, size: int = SLICE) -> Iterator[tuple[int, int, Call]]:
        """Cut the tensor into slices of `size` elements at most: start, stop, and the call for its elements."""
        for first, last, here in call.runs(row_count(self.shape)):
            end = last * self.width
            for here.start in range(first * self.width, end, size):
                yield here.start, min(here.start + size, end), here


class ModelJob(ModelInputs):
    """All tensors of a merged model, each of them a `TensorJob`."""

    def survey(self, sources: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Any:
        """What the method computes from the whole model; None for most."""
        method = next((tensor.method for tensor in self.tensors if isinstance(tensor, TensorJob)), None)
        return method.survey(self, sources, options) if method is not None and method.survey is not None else None


def memory_needed(method: MergeMethod, numel: int, sources: int, with_base: bool) -> int:
    """Bytes that `TensorJob` holds on to with ``keep``, at most."""
    return numel * ((4 + method.memory) * sources + (4 if with_base and method.task_vectors else 0))
