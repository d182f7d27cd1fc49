"""LoRA adapters of one base, run without merging them: ``y = W x + B (A x)``.

``A`` stacks the factors of all adapters, ``B`` holds their other factors times the weights of the
candidate: those of a run of rows scale rows of ``B``, so every kind of layer group is the same
arithmetic. A candidate costs a product of small matrices: no copy of the model is made, and the
backward pass computes no gradient of a large weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..checkpoints.checkpoint import Parent
from ..checkpoints.headers import tensor_order
from ..checkpoints.source import Source
from ..errors import RecipeError, SourceError
from ..recipes.layer_groups import Rows, classify
from ..recipes.recipe import ParameterValue
from .gradient import Number, Products, add_row_sums, by_number, check_no_ramp, zeros
from .live import MergeKind
from .method import Call
from .registry import get_method

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def why_merged(
    sources: Sequence[Parent], base: Parent | None, method: str, options: Mapping[str, Any]
) -> str | None:
    """Reason why merges of this kind cannot run as adapters of one base; None where they can. Reads
    headers only.

    Args:
        sources: The merged sources.
        base: The recipe's base.
        method: Name of the merge method.
        options: Its options.
    """
    if not (get_method(method).is_sum and get_method(method).task_vectors) or options.get(
        "normalize"
    ):
        return f"{method} is not the sum of weighted task vectors that task_arithmetic is"
    for source in sources:
        if not isinstance(source, Source) or source.adapter is None or source.entries:
            return f"{source} is no LoRA adapter of a language model"
        if base is None or base.adapter is not None or not source.same_folder(base):
            return f"{source} is an adapter of another model than the base"
        if source.sentence.has_weights and source.sentence.folder != source.folder:
            return f"{source} has modules after the encoder of its own"
        for name, change in source.changes.items():
            if change.beyond or change.transposed or classify(name)[2] == "experts":
                more = change.beyond or "rows of several layers, or of inputs"
                return (
                    f"{source} changes {name} by more than the product of two factors of a "
                    f"linear layer ({more})"
                )
    return None


class JoinedAdapters(MergeKind):
    """Runs weighted sums of LoRA adapters on their base, which stays as it was loaded.

    Args:
        sources: The adapters, opened as sources.
        base: Their base.
        method: Name of the merge method, which must be a sum of weighted task vectors.
        model: The base in memory, in the dtype that candidates run in; its linear layers, quantised
            or not, get a forward hook.
        router: As for `MergeKind`.

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
        router: int | Literal["merge"] = 0,
    ) -> None:
        from torch import nn

        super().__init__(sources, base, method, {}, router=router)
        if (reason := why_merged(sources, base, method, {})) is not None:
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
            changing = [
                number
                for number, source in enumerate(sources)
                if source.adapter and name in source.changes
            ]
            called = (
                own
                for moved in (False, True)
                for own in sources[0].parameters(name, prefix, moved=moved)
            )
            module = next((modules[own] for own in called if own in modules), None)
            if module is None:
                raise SourceError(
                    f"{sources[changing[0]]}: {name} is no linear layer of the model; write "
                    "unmerged: false"
                )
            factors = {}
            for number in changing:
                adapter = sources[number].adapter
                assert adapter is not None  # it changes this tensor
                factors[number] = adapter.scaled_factors(sources[number].changes[name])
            self.layers.append(_Layer(name, module, factors, model.dtype))

    def apply(
        self,
        parameters: Sequence[Mapping[str, ParameterValue]],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Let the model run with other weights; see `LiveMerger.apply`."""
        complete, chosen = self.complete(parameters, options)
        for layer, call in self._calls(complete, chosen):
            layer.write(call)

    def _calls(
        self, sources: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> list[tuple[_Layer, Call]]:
        return [(layer, Call.of_tensor(layer.name, sources, options)) for layer in self.layers]

    def run_alone(self, source: int | None) -> None:
        """Let the model run with one adapter alone, by its position among the sources, or with
        none."""
        weights = [{"weight": float(number == source)} for number in range(self.source_count)]
        self.apply(weights, {"lambda": 1.0})

    def gradient(
        self,
        parameters: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any] | None,
        backward: Callable[[], object],
    ) -> dict[Number, float]:
        """Derivative with respect to every number that has one; see `MergeGradient`."""
        complete, chosen = self.complete(parameters, options)
        check_no_ramp(self.method, [chosen, *complete])
        calls = self._calls(complete, chosen)
        found: dict[str, list[Products]] = {}
        try:
            for layer, call in calls:
                layer.write(call)
                layer.weighted.requires_grad_(True)
            backward()
            for layer, call in calls:
                totals = zeros(self.method, call)
                for source, sums in layer.row_sums():
                    add_row_sums(call, source, sums, totals)
                found[layer.name] = [totals]
        finally:
            for layer in self.layers:
                layer.weighted.requires_grad_(False)
                layer.weighted.grad = None
        return by_number(found, complete, chosen)


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
class _Layer:
    """The adapters of one linear layer.

    Attributes:
        name: Name of its weight.
        left: The factor of each source that changes it, times its scaling: float32, rows x rank.
        right: Right factors, one below the other: ranks x columns, in the dtype of the model.
        weighted: The left factors times their weights, side by side: rows x ranks, in the dtype of
            the model.
    """

    def __init__(
        self,
        name: str,
        module: nn.Linear,
        factors: Mapping[int, tuple[Tensor, Tensor]],
        dtype: torch.dtype,
    ) -> None:
        import torch

        device = module.weight.device
        self.name = name
        self.left = {source: left.to(device) for source, (left, _) in factors.items()}
        self.right = torch.cat([right for _, right in factors.values()]).to(device, dtype)
        self.weighted = torch.zeros(
            module.out_features, len(self.right), dtype=dtype, device=device
        )
        module.register_forward_hook(self._add)

    def _add(self, module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        import torch

        inner = args[0].flatten(0, -2) @ self.right.T
        return torch.addmm(output.flatten(0, -2), inner, self.weighted.T).view_as(output)  # (1)

    def write(self, call: Call) -> None:
        """Multiply the left factors by the weights of a call."""
        import torch

        with torch.no_grad():
            for (source, left), out in zip(
                self.left.items(), self._columns(self.weighted), strict=True
            ):
                weight = call.sources[source]["weight"]
                numbers = (
                    _of_rows(weight, len(left)) if isinstance(weight, Rows) else np.full(1, weight)
                )
                factors = torch.from_numpy((call.options["lambda"] * numbers).astype(np.float32))
                out.copy_(left * factors.to(left.device)[:, None])

    def row_sums(self) -> list[tuple[int, Any]]:
        """Compute for each source the inner product of every row of its task vector with the
        gradient."""
        import torch

        slope = (
            torch.zeros_like(self.weighted) if self.weighted.grad is None else self.weighted.grad
        )  # of an unused pooler
        # (2), row by row, in float64.
        parts = zip(self.left.items(), self._columns(slope), strict=True)
        return [
            (source, (left * part.float()).sum(1, dtype=torch.float64).numpy(force=True))
            for (source, left), part in parts
        ]

    def _columns(self, joined: Tensor) -> Sequence[Tensor]:
        return joined.split([left.shape[1] for left in self.left.values()], dim=1)


def _of_rows(value: Rows, rows: int) -> Any:
    if (count := len(value.numbers)) > rows:
        raise RecipeError(
            f"merge.parameters: {count} numbers for the {rows} rows of a tensor; give fewer"
        )
    return np.array(value.numbers)[np.arange(rows) * count // rows]
