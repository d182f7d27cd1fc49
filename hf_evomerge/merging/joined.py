"""LoRA adapters of one base, run without merging them: ``y = W x + B (A x)``.

In a sum ``A`` stacks the factors of all adapters, and ``B`` holds their other factors times the
weights of the candidate: those of a run of rows scale rows of ``B``, so every kind of layer group
is the same arithmetic. Other methods merge in core space. A candidate costs a product of small
matrices: no copy of the model is made, and the backward pass computes no gradient of a large
weight.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ..checkpoints.checkpoint import Parent
from ..checkpoints.headers import tensor_order
from ..errors import SourceError
from ..recipes.recipe import ParameterValue
from .core import Core, factors_of, why_no_products
from .gradient import Number, Products, add_row_sums, by_number, check_no_ramp, zeros
from .live import MergeKind
from .method import Call, MergeMethod, Values
from .registry import get_method

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def why_merged(
    sources: Sequence[Parent],
    base: Parent | None,
    method: str,
    options: Values,
    *,
    core: bool = False,
    kept: Container[str] = (),
) -> str | None:
    """Reason why merges of this kind cannot run as adapters of one base; None where they can. Reads
    headers only.

    Args:
        sources: The merged sources.
        base: The recipe's base.
        method: Name of the merge method.
        options: Its options.
        core: Whether they are merged in core space (see `Core`).
        kept: Names of tensors that are not merged.
    """
    if not core and not get_method(method).adds(options):
        return f"{method} is not the sum of weighted task vectors that task_arithmetic is"
    if reason := why_no_products(sources, base, kept):
        return reason
    for source in sources:
        if source.whole.entries:
            return f"{source} is no LoRA adapter of a language model"
        for name, change in source.changes.items():
            if change.transposed:
                return f"{source} changes {name}, which is stored with its inputs as rows"
            if len(source.tensors[name].shape) > 2:
                return f"{source} changes {name}, a convolution"
    return None


class JoinedAdapters(MergeKind):
    """Runs merges of LoRA adapters on their base, which stays as it was loaded.

    Args:
        sources: The adapters, opened as sources.
        base: Their base.
        method: Name of the merge method: a sum of weighted task vectors, or any in core space.
        model: The base in memory, in the dtype that candidates run in; its linear layers, quantised
            or not, get a forward hook.
        kept: As for `MergeKind`.
        core: Whether they are merged in core space.
        seed: The recipe's seed.

    Raises:
        SourceError: The sources are not adapters of the base, or change what is no linear layer of
            the model.
    """

    def __init__(
        self,
        sources: list[Parent],
        base: Parent | None,
        method: str,
        model: PreTrainedModel,
        *,
        kept: Mapping[str, Parent] | None = None,
        core: bool = False,
        seed: int = 0,
    ) -> None:
        from torch import nn

        super().__init__(sources, base, method, {}, kept=kept)
        reason = why_merged(sources, base, method, {}, core=core, kept=self.kept)
        if reason is not None:
            raise SourceError(f"{reason}; write unmerged: false")
        modules = {
            f"{path}.weight": module
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear)
        }
        prefix = f"{model.base_model_prefix}."
        self.layers: list[_Layer] = []
        for name in sorted(
            {name for source in sources for name in source.changes}, key=tensor_order
        ):
            called = (
                own
                for moved in (False, True)
                for own in sources[0].parameters(name, prefix, moved=moved)
            )
            module = next((modules[own] for own in called if own in modules), None)
            if module is None:
                changing = next(source for source in sources if name in source.changes)
                raise SourceError(
                    f"{changing}: {name} is no linear layer of the model; write unmerged: false"
                )
            factors = factors_of(sources, name)
            device = module.weight.device
            layer: _Layer
            if core:
                small = Core(
                    name, self.method, factors, len(sources), seed=seed, keep=True, device=device
                )
                layer = _CoreLayer(name, module, small, model.dtype)
            else:
                layer = _SumLayer(name, module, factors, model.dtype, self.method)
            self.layers.append(layer)

    def apply(
        self, parameters: Sequence[Mapping[str, ParameterValue]], options: Values | None = None
    ) -> None:
        """Let the model run with other weights; see `LiveMerger.apply`."""
        complete, chosen = self.complete(parameters, options)
        for layer in self.layers:
            layer.write(complete, chosen)

    def run_alone(self, source: int | None) -> None:
        """Let the model run with one adapter alone, by its position among the sources, or with
        none."""
        for layer in self.layers:
            layer.write_alone(source)

    def gradient(
        self, parameters: Sequence[Values], options: Values | None, backward: Callable[[], object]
    ) -> dict[Number, float]:
        """Derivative with respect to every number that has one; see `MergeGradient`."""
        complete, chosen = self.complete(parameters, options)
        check_no_ramp(self.method, [chosen, *complete])
        found: dict[str, list[Products]] = {}
        try:
            for layer in self.layers:
                layer.write(complete, chosen)
                layer.weighted.requires_grad_(True)
            backward()
            for layer in self.layers:
                found[layer.name] = [layer.products(complete, chosen)]
        finally:
            for layer in self.layers:
                layer.weighted.requires_grad_(False)
                layer.weighted.grad = None
        return by_number(found, complete, chosen)


class _Layer:
    """A linear layer of the base with the merge of its adapters beside it.

    Attributes:
        name: Name of its weight.
        right: A: ranks x columns, in the dtype of the model.
        weighted: B of the candidate: rows x ranks, in the dtype of the model.
    """

    def __init__(self, name: str, module: nn.Linear, right: Tensor, dtype: torch.dtype) -> None:
        self.name = name
        self.right = right.to(module.weight.device, dtype)
        self.weighted = self.right.new_zeros(module.out_features, len(right))
        module.register_forward_hook(self._add)

    def _add(self, module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        import torch

        inner = args[0].flatten(0, -2) @ self.right.T
        return torch.addmm(output.flatten(0, -2), inner, self.weighted.T).view_as(output)  # (1)

    @abstractmethod
    def write(self, sources: Sequence[Values], options: Values) -> None:
        """Compute B of a candidate."""

    @abstractmethod
    def write_alone(self, source: int | None) -> None:
        """Take B of one adapter, by its position, or of none."""

    @abstractmethod
    def products(self, sources: Sequence[Values], options: Values) -> Products:
        """Derivatives with respect to the numbers of the candidate, after a backward pass."""

    @property
    def slope(self) -> Tensor:
        """The gradient with respect to B; 0 for an unused pooler."""
        import torch

        return torch.zeros_like(self.weighted) if self.weighted.grad is None else self.weighted.grad


# Source i adds B_i A_i to the weight W; a candidate adds sum_i w_i lambda B_i A_i. With A = [A_1;
# A_2; ...] and B = [w_1 lambda B_1, w_2 lambda B_2, ...]
#
#   y = W x + B (A x)                                                  (1)
#
# so a new candidate rewrites B, which has as many columns as all ranks together, and W is never
# touched: it may be quantised, and no copy of the model is made. A number for a run of rows scales
# these rows of B.
#
# Gradient: autograd gives S = dL/dB = G A', where G = dL/d(B A) is as large as W and is never
# formed. The product of row r of source i's task vector with that of G is
#
#   <(B_i A_i)_r, G_r> = <(B_i)_r, (G A_i')_r> = <(B_i)_r, (S_i)_r>    (2)
#
# S_i being the columns of S that belong to i. From these numbers `add_row_sums` goes on as after a
# merge.
class _SumLayer(_Layer):
    """Sum of weighted adapters.

    Attributes:
        method: The merge method.
        left: The factor of each source that changes the weight, times its scaling: float32, rows x
            rank.
    """

    def __init__(
        self,
        name: str,
        module: nn.Linear,
        factors: Mapping[int, tuple[Tensor, Tensor]],
        dtype: torch.dtype,
        method: MergeMethod,
    ) -> None:
        import torch

        super().__init__(name, module, torch.cat([right for _, right in factors.values()]), dtype)
        device = module.weight.device
        self.method = method
        self.left = {source: left.to(device) for source, (left, _) in factors.items()}

    def write(self, sources: Sequence[Values], options: Values) -> None:
        """Multiply the left factors by the weights of a call."""
        import torch

        call = Call.of_tensor(self.name, sources, options)
        with torch.no_grad():
            for first, last, here in call.runs(len(self.weighted)):
                for source, left, out in self._columns(self.weighted):
                    factor = here.options["lambda"] * here.sources[source]["weight"]
                    out[first:last].copy_(left[first:last] * factor)

    def write_alone(self, source: int | None) -> None:
        """Take one left factor."""
        for other, left, out in self._columns(self.weighted):
            out.copy_(left) if other == source else out.zero_()

    def products(self, sources: Sequence[Values], options: Values) -> Products:
        """Inner products of every row of the task vectors with the gradient, (2), in float64."""
        import torch

        call = Call.of_tensor(self.name, sources, options)
        totals = zeros(self.method, call)
        for source, left, part in self._columns(self.slope):
            sums = (left * part.float()).sum(1, dtype=torch.float64).numpy(force=True)
            add_row_sums(call, source, sums, totals)
        return totals

    def _columns(self, joined: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield each source with its left factor and its columns of a matrix like B."""
        parts = joined.split([left.shape[1] for left in self.left.values()], dim=1)
        for (source, left), part in zip(self.left.items(), parts, strict=True):
            yield source, left, part


class _CoreLayer(_Layer):
    """Merge in core space: A is V_A, and B is U_B M."""

    def __init__(self, name: str, module: nn.Linear, core: Core, dtype: torch.dtype) -> None:
        super().__init__(name, module, core.right, dtype)
        self.core = core

    def write(self, sources: Sequence[Values], options: Values) -> None:
        """Merge the small matrices."""
        self.weighted.copy_(self.core.merge(sources, options))

    def write_alone(self, source: int | None) -> None:
        """Take one small matrix."""
        self.weighted.copy_(self.core.alone(source))

    def products(self, sources: Sequence[Values], options: Values) -> Products:
        """Derivatives through the method's own function; see `Core.products`."""
        return self.core.products(self.slope, sources, options)
