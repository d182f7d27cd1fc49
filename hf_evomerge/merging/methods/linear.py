"""linear: the weighted mean of the sources (arXiv:2403.13187; model soups, arXiv:2203.05482)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import RecipeError
from ..method import Call
from ..registry import register_method
from .common import NORMALIZE, WEIGHT, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


def check(call: Call) -> None:
    """Refuse weights that cancel with ``normalize``."""
    if call.options["normalize"] and abs(total := sum(call.weights)) < 1e-8:
        raise RecipeError(
            f"the weights of linear add up to {total:g}; with normalize they must not be 0"
        )


@register_method(
    "linear", parameters=[WEIGHT, NORMALIZE.with_default(True)], check=check, is_sum=True
)
def linear(base: Tensor | None, sources: list[Tensor], call: Call) -> Tensor:
    """Weighted mean of the sources: ``sum w_i x_i / sum w_i``; without ``normalize`` the plain sum.
    Needs no base.

    With equal weights this is the uniform soup of arXiv:2203.05482. A source of weight 0 counts as
    absent.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import linear
        >>> linear([torch.tensor([0.0, 4.0]), torch.tensor([2.0, 0.0])], weights=[3, 1])
        tensor([0.5000, 3.0000])
    """
    merged = weighted_sum(sources, call.weights, call.owns)
    total = sum(call.weights) if call.options["normalize"] else 1.0
    # it is a tensor where differentiated
    return merged if isinstance(total, float) and total == 1 else merged.div_(total)
