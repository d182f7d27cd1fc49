"""della and della_linear: drop at random, small elements more often than large ones
(arXiv:2406.11617), then vote or add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..method import Call
from ..parameters import Parameter
from ..registry import register_method
from .common import (
    DENSITY,
    DROP_RESCALE,
    LAMBDA,
    NORMALIZE,
    WEIGHT,
    Sparse,
    add_sparse,
    each,
    l1_factor,
    vote_sparse,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..arithmetic import TensorJob

EPSILON = Parameter(
    "epsilon",
    "number",
    0.15,
    "source",
    "The smallest element of a row is kept with probability density - epsilon, the largest "
    "with density + epsilon, and what "
    "is between by its rank; probabilities end at 0 and 1.",
    low=0.0,
    high=0.5,
    grouped=True,
)
RESCALE = replace(
    DROP_RESCALE,
    help="After dropping: l1 restores the sum of the absolute values (mergekit's), expected "
    "divides each element by its own "
    "probability (the DELLA paper's), none leaves the elements as they are.",
)
_PARAMETERS = [WEIGHT, DENSITY, EPSILON, NORMALIZE, LAMBDA, RESCALE]


def drop(inputs: TensorJob, index: int, values: Mapping[str, float], rescale: str) -> Sparse:
    """The mask of MagPrune (arXiv:2406.11617), and the factor that makes up for what is dropped."""
    rho = values["density"]
    epsilon = values["epsilon"]
    if rho in (0, 1):
        return None if rho == 0 else (inputs.drop(index, rho).apply, 1.0)
    # MagPrune (arXiv:2406.11617, step 1). Element of rank j in a row of n is kept with probability
    #
    #   rho_j = rho - epsilon + 2 epsilon j / (n - 1)
    #
    # whose mean over the row is rho. Divided by its own rho_j, the expectation of each element is
    # d.
    mask = inputs.rank_drop(index, lambda relative: rho - epsilon + 2 * epsilon * relative)
    mask.divide = rescale == "expected"
    return mask.apply, l1_factor(inputs, index, mask.apply) if rescale == "l1" else 1.0


@register_method(
    "della",
    parameters=[
        NORMALIZE.with_default(True) if item is NORMALIZE else item for item in _PARAMETERS
    ],
    task_vectors=True,
    prepare=each(drop),
    memory=6,
    random=True,
)
def della(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """DELLA: keep elements at random, large ones of a row more often than small ones, rescale,
    average those that agree.

    As `dare_ties` with a mask that looks at magnitudes (MagPrune, arXiv:2406.11617): element j of a
    row of n is kept with probability ``density - epsilon + 2 epsilon * rank_j / (n - 1)``, rank 0
    being the smallest magnitude of the row. A row is a vector along the last dimension. ``rescale:
    expected`` divides each element by its own probability.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import della
        >>> base, a = torch.zeros(6), torch.ones(6)
        >>> della(base, [a], density=0.5, name="model.norm.weight", seed=5)
        tensor([0., 0., 2., 0., 2., 2.])
    """
    return vote_sparse(base, vectors, call)


@register_method(
    "della_linear",
    parameters=_PARAMETERS,
    task_vectors=True,
    prepare=each(drop),
    memory=6,
    random=True,
)
def della_linear(base: Tensor, vectors: list[Tensor], call: Call) -> Tensor:
    """DELLA without the vote: keep elements at random, large ones of a row more often, rescale, add
    up with the weights.

    As `dare_linear` with a mask that looks at magnitudes (MagPrune, arXiv:2406.11617): element j of
    a row of n is kept with probability ``density - epsilon + 2 epsilon * rank_j / (n - 1)``, rank 0
    being the smallest magnitude of the row. A row is a vector along the last dimension. ``rescale:
    expected`` divides each element by its own probability.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import della_linear
        >>> base, a = torch.zeros(6), torch.ones(6)
        >>> della_linear(base, [a], density=0.5, name="model.norm.weight", seed=5)
        tensor([0., 0., 2., 0., 2., 2.])
    """
    return add_sparse(base, vectors, call)
