"""linear: the weighted mean of the sources (arXiv:2403.13187; model soups, arXiv:2203.05482)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import RecipeError
from ...recipes.layer_groups import resolve
from ..method import Call
from ..registry import register_method
from .common import NORMALIZE, WEIGHT, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


_FINE = 1 << 40  # rows: the weights of a real tensor change at fewer places, and have no other sums


def check(sources: Sequence[Mapping[str, Any]], options: Mapping[str, Any], names: Sequence[str]) -> None:
    """With ``normalize`` the weights must not cancel, for no tensor."""
    weights = [values["weight"] for values in sources]
    if not options["normalize"]:
        return
    if all(isinstance(weight, (int, float)) for weight in weights):
        _total(weights)
    for name in names:
        call = Call({}, [{"weight": resolve(weight, name)} for weight in weights])
        for _, _, here in call.runs(_FINE):
            _total(here.weights)


def _total(weights: Sequence[float]) -> float:
    total = sum(weights)
    if abs(total) < 1e-8:
        raise RecipeError(f"merge.parameters: the weights of linear add up to {total:g}; with normalize they must not be 0")
    return total


@register_method("linear", parameters=[WEIGHT, NORMALIZE.with_default(True)], check=check, is_sum=True)
def linear(base: Tensor | None, sources: list[Tensor], call: Call) -> Tensor:
    """Weighted mean of the sources: ``sum w_i x_i / sum w_i``; without ``normalize`` the plain sum. Needs no base.

    With equal weights this is the uniform soup of arXiv:2203.05482. A source of weight 0 counts as absent.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import linear
        >>> linear([torch.tensor([0.0, 4.0]), torch.tensor([2.0, 0.0])], weights=[3, 1])
        tensor([0.5000, 3.0000])
    """
    merged = weighted_sum(sources, call.weights, call.owns)
    if not call.options["normalize"]:
        return merged
    total = _total(call.weights)
    return merged if isinstance(total, float) and total == 1 else merged.div_(total)  # it is a tensor where differentiated
