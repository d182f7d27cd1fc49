"""linear: the weighted mean of the sources (arXiv:2403.13187, section 2; model soups, arXiv:2203.05482)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import RecipeError
from ..groups import one_of_each, parse_key, resolve
from ..registry import Call, register_method
from .common import NORMALIZE, WEIGHT, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


def check(sources: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> None:
    """With ``normalize`` the weights must not cancel, in no layer group."""
    weights = [values["weight"] for values in sources]
    keys = [parse_key(key) for weight in weights if isinstance(weight, Mapping) for key in weight]
    blocks = 1 + max((key.last for key in keys), default=0)  # how many the model has is not known here: those that are named
    if options["normalize"]:
        for name in one_of_each(blocks) if keys else one_of_each(1)[:1]:
            _total([resolve(weight, name) for weight in weights])


def _total(weights: Sequence[float]) -> float:
    total = sum(weights)
    if abs(total) < 1e-8:
        raise RecipeError(f"merge.parameters: the weights of linear add up to {total:g}; with normalize they must not be 0")
    return total


@register_method("linear", parameters=[WEIGHT, NORMALIZE.with_default(True)], check=check)
def linear(base: Tensor | None, sources: list[Tensor], call: Call) -> Tensor:
    """Weighted mean of the sources: ``sum w_i x_i / sum w_i``; without ``normalize`` the plain sum. Needs no base."""
    merged = weighted_sum(sources, call.weights)
    if not call.options["normalize"]:
        return merged
    total = _total(call.weights)
    return merged if total == 1 else merged.div_(total)
