"""iso_c: all directions of the summed task vectors get one length (Iso-C, arXiv:2502.04959)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...recipes.layer_groups import classify
from ..method import Call
from ..registry import register_method
from .common import LAMBDA, onto_base, plain_sum

if TYPE_CHECKING:
    from torch import Tensor

    from ..arithmetic import TensorJob

_SCALE = replace(LAMBDA, search=(0.0, 2.0), grouped=True)


# Iso-C (arXiv:2502.04959): with the singular value decomposition of the sum of a matrix's task
# vectors,
#
#   X = sum_i d_i = U S V',   iso = mean(S) U V'                                       (1)
#
# U V' is the polar factor X (X'X)^(-1/2), so an eigendecomposition of the smaller of X'X and X X'
# is enough, Q diag(S^2) Q': iso = mean(S) X Q diag(1 / S) Q'. In float64 that tells values from 0
# down to 1e-8 of the largest. Values that float32 does not tell from 0 have no direction of their
# own. They are left out, of the mean too, so that chance has no say. Experts are a stack of
# matrices; any other tensor is averaged, as the authors' program does.
def isotropic(inputs: TensorJob, call: Call) -> Tensor:
    """The merged task vector before ``lambda``, flat."""

    def compute() -> Tensor:
        total = plain_sum(inputs.tensors(0, inputs.numel))
        is_stack = len(inputs.shape) == 3 and classify(inputs.name)[2] == "experts"
        if len(inputs.shape) != 2 and not is_stack:
            return total.div_(len(call.sources))
        matrices = total.double().view(inputs.shape)
        wide = matrices.shape[-2] < matrices.shape[-1]
        return _equalised(matrices.mT).mT.reshape(-1) if wide else _equalised(matrices).view(-1)

    return inputs.once("isotropic", compute)


def _equalised(matrices: Tensor) -> Tensor:
    """Equation (1) for matrices with no fewer rows than columns, in float64; the result in
    float32."""
    import torch

    squares, q = torch.linalg.eigh(matrices.mT @ matrices)
    values = squares.clamp(min=0).sqrt()
    least = values.amax(-1, keepdim=True) * (values.shape[-1] * torch.finfo(torch.float32).eps)
    there = values > least
    inverse = torch.where(there, 1 / values, 0.0)
    mean = (values * there).sum(-1) / there.sum(-1).clamp(min=1)
    polar = (q * inverse[..., None, :]) @ q.mT
    return (matrices @ (polar * mean[..., None, None])).float()


@register_method(
    "iso_c", parameters=[_SCALE], task_vectors=True, prepare=isotropic, memory=4, full_rank=True
)
def iso_c(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """Iso-C: ``base + lambda * mean(S) * U V'``, where ``U S V'`` is the singular value
    decomposition of the sum of the task vectors.

    The sum has long directions, which sources share, and short ones, which are one source's; here
    all get the same length (arXiv:2502.04959). Tensors that are no matrices are averaged, and
    directions of length 0 left out. It takes one whole tensor in float64. What adapters change has
    few directions, so adapters are merged in core space alone.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import iso_c
        >>> base, a, b = torch.zeros(2, 2), torch.tensor([[3.0, 0], [0, 0]]), torch.eye(2)
        >>> iso_c(base, [a, b])
        tensor([[2.5000, 0.0000],
                [0.0000, 2.5000]])
    """
    mixed = call.prepared[call.start : call.start + vectors[0].numel()]
    return onto_base(base, mixed.to(vectors[0], copy=True), call)
