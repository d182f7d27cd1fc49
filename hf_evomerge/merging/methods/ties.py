"""ties: trim each task vector to its largest elements, elect a sign, merge those that agree (arXiv:2306.01708).

Two meanings are in use, and ``semantics`` names the one that is meant. ``mergekit``: each tensor is trimmed by itself, a sum
of 0 elects +, and the mean is weighted. ``paper``: a source's whole task vector is trimmed at once, a sum of 0 elects the sign
that most elements of the model have, and the mean is a plain one, of the weighted task vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...errors import RecipeError
from ..method import Call
from ..parameters import Parameter
from ..registry import register_method
from ..statistics import Cut
from .common import DENSITY, LAMBDA, NORMALIZE, TRIM_RESCALE, WEIGHT, Sparse, l1_factor, plain_sum, vote_sparse, weighted

if TYPE_CHECKING:
    from torch import Tensor

    from ..arithmetic import ModelJob, TensorJob

SEMANTICS = Parameter(
    "semantics",
    "choice",
    "mergekit",
    "global",
    "mergekit: trim per tensor, weighted mean. paper: trim the whole task vector at once, plain mean, ties go to the majority. "
    "peft's, whose vote does not count the weights, is neither where weights are unequal.",
    choices=("mergekit", "paper"),
)


@dataclass(slots=True)
class Whole:
    """What the paper's semantics need to know of the whole model: a cut per source, and the sign that most elements elect."""

    cuts: list[Cut | None]
    offsets: dict[str, int]
    majority: float = 1.0


def check(sources: Sequence[Mapping[str, Any]], options: Mapping[str, Any], names: Sequence[str] = ()) -> None:
    """The paper's semantics trim the whole model at once: there is one density per source, and no rescaling."""
    if options["semantics"] != "paper":
        return
    if options["rescale"] != "none":
        raise RecipeError(f"merge.options.rescale: {options['rescale']!r} does not go with semantics paper; write none")
    for index, values in enumerate(sources):
        if not isinstance(values["density"], (int, float)):
            raise RecipeError(
                f"merge.parameters[{index}].density: semantics paper trims the whole model at once; give one number"
            )


def survey(model: ModelJob, sources: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Whole | None:
    """The cuts and the majority of the paper's semantics."""
    if options["semantics"] != "paper":
        return None
    check(sources, options)
    cuts: list[Cut | None] = []
    for index, values in enumerate(sources):
        density = values["density"]
        taken = density > 0 and values["weight"] != 0
        cuts.append(model.cut(index, max(1, math.floor(density * model.numel))) if taken else None)
    whole = Whole(cuts, model.offsets)
    balance = 0  # elements that elect + less those that elect -
    for inputs in model.tensors:
        call = Call.of_tensor(inputs.name, sources, options, whole)
        call.prepared = trims(inputs, call)
        for call.start in range(0, inputs.numel, 1 << 16):
            parts, _ = weighted(inputs.tensors(call.start, min(call.start + (1 << 16), inputs.numel)), call)
            if parts:
                balance += int(plain_sum(parts).sign().sum().item())  # at most 65536: exact in float32
    whole.majority = 1.0 if balance >= 0 else -1.0
    return whole


def trims(inputs: TensorJob, call: Call) -> list[Sparse]:
    """Per source the cut that keeps the ``k = max(1, floor(rho N))`` largest elements, and the factor of ``rescale``."""
    if call.model is None:
        return [_trim(inputs, index, values, call.options["rescale"]) for index, values in enumerate(call.sources)]
    offset = call.model.offsets[inputs.name]
    return [
        None if cut is None or weight == 0 else (replace(cut, end=cut.end - offset), 1.0)
        for cut, weight in zip(call.model.cuts, call.weights, strict=True)
    ]


def _trim(inputs: TensorJob, index: int, values: dict[str, float], rescale: str) -> Sparse:
    density = values["density"]
    if values["weight"] == 0 or density <= 0:
        return None
    cut = inputs.cut(index, max(1, math.floor(density * inputs.numel)))
    return cut, 1.0 if rescale == "none" or cut.keeps_all else l1_factor(inputs, index, cut)


@register_method(
    "ties",
    parameters=[WEIGHT, DENSITY, NORMALIZE.with_default(True), LAMBDA, TRIM_RESCALE, SEMANTICS],
    task_vectors=True,
    prepare=trims,
    survey=survey,
    check=check,
    memory=4,
)
def ties(base: Tensor | None, vectors: list[Tensor], call: Call) -> Tensor:
    """TIES: keep the largest elements of each task vector, elect a sign by their weighted sum, average those that agree.

    The vote is on ``D_i = w_i * trimmed d_i``. With ``normalize`` the sum of the D_i that agree is divided by the sum of
    their weights, or by their number (``semantics: paper``).

    The steps are those of arXiv:2306.01708. Trim: of each task vector ``d_i = x_i - base`` the ``k = max(1, floor(density *
    N))`` elements of largest magnitude stay, the earlier ones where magnitudes tie, and none with density 0. Elect: ``s =
    sign(sum_i D_i)``, and + where the sum is 0. Merge: ``base + lambda * sum_{i: sign(D_i) = s} D_i / sum of their w_i``.
    ``semantics: paper`` trims the task vector of the whole model at once, and where a sum is 0 elects the sign that most
    elements have.

    peft's ``ties`` elects the sign by the unweighted ``d_i``, and multiplies by the weights afterwards: a source's weight does
    not count in its vote, so that other signs win where weights are unequal. Where they are equal its result is this one's with
    ``semantics: paper``, and the weight times the one with ``semantics: mergekit``.

    Example:
        >>> import torch
        >>> from hf_evomerge.merging import ties
        >>> base = torch.zeros(4)
        >>> a, b = torch.tensor([4.0, -3.0, 1.0, 0.5]), torch.tensor([2.0, 5.0, 0.1, -0.2])
        >>> ties(base, [a, b], weights=[0.6, 0.4], density=0.5)
        tensor([3.2000, 5.0000, 0.0000, 0.0000])
    """
    return vote_sparse(base, vectors, call, None if call.model is None else call.model.majority)
