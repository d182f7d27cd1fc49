"""Parts that several merge methods share: declarations of parameters, the sum, the vote on signs,
sparse task vectors.

All arithmetic is float32, one rounding per multiplication and per addition (no fused multiply-add),
so that the same recipe gives the same bits on every processor. Nothing here imports torch: tensors
bring their own operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..method import Call, Prepare
from ..parameters import Parameter

if TYPE_CHECKING:
    from torch import Tensor

    from ..arithmetic import TensorJob

WEIGHT = Parameter(
    "weight",
    "number",
    1.0,
    "source",
    "Factor of the source (of its task vector, where the method works on task vectors).",
    search=(0.0, 1.0),
    grouped=True,
    smooth=True,
    argument="weights",
)
DENSITY = Parameter(
    "density",
    "number",
    1.0,
    "source",
    "Share of the task vector's elements that is kept, per tensor; 0 keeps nothing.",
    low=0.0,
    high=1.0,
    search=(0.0, 1.0),
    grouped=True,
)
NORMALIZE = Parameter(
    "normalize",
    "flag",
    False,
    "global",
    "Divide by the sum of the weights (of those that count for the element).",
)
LAMBDA = Parameter(
    "lambda",
    "number",
    1.0,
    "global",
    "Factor of the merged task vector, applied after the division.",
    smooth=True,
    argument="lambda_",
)
TRIM_RESCALE = Parameter(
    "rescale",
    "choice",
    "none",
    "global",
    (
        "After trimming: l1 restores the sum of the absolute values, none leaves the elements as "
        "they are."
    ),
    choices=("none", "l1"),
)
DROP_RESCALE = Parameter(
    "rescale",
    "choice",
    "l1",
    "global",
    "After dropping: l1 restores the sum of the absolute values (mergekit's), expected "
    "divides by the density (the DARE "
    "paper's), none leaves the elements as they are.",
    choices=("l1", "expected", "none"),
)


Mask = Callable[["Tensor", int], "Tensor"]
"""Gives a slice of a task vector, which begins at a position, as a new tensor with 0 for what is
not kept."""
Sparse = tuple[Mask, float] | None
"""What is kept of a task vector, and the factor on it; None: nothing."""


def weighted_sum(tensors: list[Tensor], weights: list[float], owns: bool = False) -> Tensor:
    """``sum_i w_i x_i``, in a tensor of its own or, where it `owns` them, in one of these; weight 0
    is as good as absent."""
    total: Tensor | None = None
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight != 0:
            part = tensor.mul_(weight) if owns else tensor.mul(weight)
            total = part if total is None else total.add_(part)
    return total if total is not None else tensors[0].new_zeros(tensors[0].shape)


def divisor(weights: list[float]) -> float:
    """The sum of the weights, or 1 where it is nearly 0."""
    total = sum(weights)
    return total if abs(total) >= 1e-8 else 1.0


def plain_sum(tensors: list[Tensor]) -> Tensor:
    """``sum_i x_i``, a new tensor."""
    total = tensors[0].add(tensors[1]) if len(tensors) > 1 else tensors[0].clone()
    for tensor in tensors[2:]:
        total.add_(tensor)
    return total


# Steps 2 and 3 of TIES (arXiv:2306.01708, Algorithm 1), on weighted parts D_i = w_i trim(d_i), as
# mergekit has it:
#
#   s = sign(sum_i D_i), and + where the sum is 0                                       (1)
#   A = {i : sign(D_i) = s}, element by element                                         (2)
#   mixed = sum_{i in A} D_i, with normalize divided by sum_{i in A} w_i                (3)
#
# The paper votes with the d_i and takes a plain mean; weights that are searched should count in the
# vote.
def elect(parts: list[Tensor]) -> Tensor:
    """The sign of the sum of the parts, and + where that is 0; a new tensor."""
    # Only float operations: comparisons that make bool tensors cost several times as much.
    return plain_sum(parts).sign_().add_(0.5).sign_()  # (1): -1, 0, 1 become -.5, .5, 1.5


def agreeing(parts: list[Tensor], sign: Tensor, weights: list[float], normalize: bool) -> Tensor:
    """TIES' merge (arXiv:2306.01708): the sum of the weighted parts that have the elected sign, a
    new tensor.

    Args:
        parts: ``D_i = w_i * trimmed d_i``; overwritten.
        sign: The elected sign of each element.
        weights: ``w_i``, none of them 0.
        normalize: Divide by the sum of the weights of the parts that agree with the sign.
    """
    mixed: Tensor | None = None
    count: Tensor | None = None
    for part, weight in zip(parts, weights, strict=True):
        # s D_i is |D_i| in A and not positive elsewhere, so a clamp is (2), and the sign comes back
        # at the end.
        part.mul_(sign).clamp_(min=0)  # |D_i| where it agrees, else 0
        if normalize and count is None:
            count = part.sign().mul_(weight)
        mixed = part if mixed is None else mixed.add_(part)
        if count is not None and mixed is not part:
            count.add_(part.sign_().mul_(weight))
    assert mixed is not None
    mixed.mul_(sign)  # (3): s |D_i| = D_i
    if count is not None:
        if min(weights) > 0:
            count.clamp_(
                min=min(weights)
            )  # where none agrees the sum is 0, and so is what is divided
        else:
            count.masked_fill_(count == 0, 1.0)
        mixed.div_(count)
    return mixed


def onto_base(base: Tensor, mixed: Tensor, call: Call) -> Tensor:
    """``base + lambda * mixed``, in the memory of `mixed`."""
    if call.options["lambda"] != 1:
        mixed.mul_(call.options["lambda"])
    return mixed.add_(base)


# f = sum |d| / sum |m d| over the tensor, so that what is left has the old L1 norm (mergekit's
# rescale). For a random mask of density rho it tends to the 1 / rho of the papers.
def l1_factor(inputs: TensorJob, index: int, mask: Mask) -> float:
    """Compute what restores the sum of the absolute values after a mask."""
    kept = inputs.sum_abs(index, mask)
    return inputs.sum_abs(index) / kept if kept > 0 else 1.0


def each(pick: Callable[[TensorJob, int, Mapping[str, float], str], Sparse]) -> Prepare:
    """Make the ``prepare`` of a sparse method: `pick` says what is kept of each source that has a
    weight."""

    def prepare(inputs: TensorJob, call: Call) -> list[Sparse]:
        rescale = call.options["rescale"]
        return [
            pick(inputs, n, values, rescale) if values["weight"] else None
            for n, values in enumerate(call.sources)
        ]

    return prepare


def sparse(vectors: list[Tensor], call: Call) -> tuple[list[Tensor], list[float]]:
    """The task vectors that ``call.prepared`` leaves, as new tensors, and their weights."""
    parts = []
    weights = []
    for vector, weight, kept in zip(vectors, call.weights, call.prepared, strict=True):
        if kept is not None:
            mask, factor = kept
            part = mask(vector, call.start)
            parts.append(part.mul_(factor) if factor != 1 else part)
            weights.append(weight)
    return parts, weights


def add_sparse(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """Task arithmetic on what ``call.prepared`` leaves of the task vectors."""
    parts, weights = sparse(vectors, call)
    mixed = weighted_sum(parts, weights) if parts else vectors[0].new_zeros(vectors[0].shape)
    if call.options["normalize"]:
        mixed.div_(divisor(call.weights))
    return onto_base(base, mixed, call)


def vote_sparse(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """The vote of TIES on what ``call.prepared`` leaves of the task vectors; see `elect` and
    `agreeing`."""
    parts, weights = sparse(vectors, call)
    if not parts:
        return onto_base(base, vectors[0].new_zeros(vectors[0].shape), call)
    parts = [part.mul_(weight) for part, weight in zip(parts, weights, strict=True)]
    return onto_base(base, agreeing(parts, elect(parts), weights, call.options["normalize"]), call)
