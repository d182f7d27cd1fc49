"""linear: the weighted mean of the sources (arXiv:2403.13187, section 2; model soups, arXiv:2203.05482)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import RecipeError
from ..registry import Call, register_method
from .common import NORMALIZE, WEIGHT, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@register_method("linear", parameters=[WEIGHT, NORMALIZE.with_default(True)])
def linear(base: Tensor | None, sources: list[Tensor], call: Call) -> Tensor:
    """Weighted mean of the sources: ``sum w_i x_i / sum w_i``; without ``normalize`` the plain sum. Needs no base."""
    merged = weighted_sum(sources, call.weights)
    if not call.options["normalize"]:
        return merged
    total = sum(call.weights)
    if abs(total) < 1e-8:
        raise RecipeError(f"merge.parameters: the weights of linear add up to {total:g}; with normalize they must not be 0")
    return merged if total == 1 else merged.div_(total)
