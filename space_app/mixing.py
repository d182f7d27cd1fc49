"""Change of a merge's weights in memory: how much of each parent is in a tensor is found, changed,
and put back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from texts import SpaceError, number

from hf_evomerge.errors import RecipeError
from hf_evomerge.recipes.layer_groups import classify, is_tensor, parse_key

if TYPE_CHECKING:
    from torch import Tensor

ALL = "all layers"
MAX_FACTOR = 3.0
# what may be left of a tensor that neither a weighted sum of its parents nor rounding explains
_MOST_OFF = 1e-2

Factors = tuple[
    tuple[str, tuple[float, ...]], ...
]  # a group of layers, and what each parent's weight is multiplied by there


def groups(layers: int) -> list[str]:
    """The groups of layers that can be changed."""
    return [ALL, "embeddings and head", *(f"layer {layer}" for layer in range(layers))]


# Factors are kept per group, the last one changed at the end; neutral ones would only lengthen a
# link.
def with_factors(factors: Factors, group: str, values: Sequence[float]) -> Factors:
    """The same with other factors for a group; one that is 1 for every parent is left out."""
    kept = tuple(item for item in factors if item[0] != group)
    return kept if all(value == 1 for value in values) else (*kept, (group, tuple(values)))


def checked(factors: Any, layers: int, parents: int) -> Factors:
    """Factors that came from a link; raises `SpaceError` where they are none."""
    found: Factors = ()
    try:
        if len(factors) > layers + 2:
            raise ValueError
        for group, values in factors:
            good = [
                float(value)
                for value in values
                if type(value) in (int, float) and 0 <= value <= MAX_FACTOR
            ]
            if group not in groups(layers) or not len(good) == len(values) == parents:
                raise ValueError
            found = with_factors(found, group, good)
    except (TypeError, ValueError) as cause:
        raise SpaceError("The link's edit cannot be read.") from cause
    return found


def describe(factors: Factors, labels: Sequence[str]) -> str:
    """Describe what was changed, in one line."""
    if not factors:
        return "The weights are as published."

    def times(label: str, value: float) -> str:
        return f"{label} \N{MULTIPLICATION SIGN} {number(value)}"

    words = []
    for group, values in factors:
        pairs = zip(labels, values, strict=False)
        changed = ", ".join(times(label, value) for label, value in pairs if value != 1)
        words.append(f"{group}: {changed}")
    return f"Changed: {'; '.join(words)}."


def _factors_of(name: str, factors: Mapping[str, Sequence[float]], parents: int) -> list[float]:
    """Return the factor of each parent's weight in a tensor, or in a layer group."""
    block = classify(name)[1]
    own = factors.get("embeddings and head" if block is None else f"layer {block}", [1.0] * parents)
    return [a * b for a, b in zip(own, factors.get(ALL, [1.0] * parents), strict=True)]


def edited(merge: Mapping[str, Any], factors: Factors, layers: int) -> Mapping[str, Any] | None:
    """A recipe's merge of so many layers with its weights times factors.

    None where parents have no weights, or gradients, or keys that name no layers.
    """
    parameters = merge.get("parameters", [])
    weights = [item["weight"] for item in parameters if "weight" in item]
    if not weights or any(isinstance(weight, list) for weight in weights):
        return None
    changed = []
    try:
        for source, item in zip(
            merge.get("sources") or range(len(parameters)), parameters, strict=False
        ):
            own = {group: [values[source]] for group, values in factors if source < len(values)}
            changed.append(
                {**item, "weight": _edited(item["weight"], own, layers)}
                if "weight" in item
                else item
            )
    except RecipeError:  # keys that name no layers, or gradients over them
        return None
    return {**merge, "parameters": changed}


def _edited(
    weight: float | Mapping[str, float], factors: Mapping[str, Sequence[float]], layers: int
) -> Any:
    """Scale one parent's weight, a number or one per layer group, by its factors: groups of layers
    that differ are split."""
    if not isinstance(weight, Mapping):
        if set(factors) <= {ALL}:
            return weight * _factors_of("", factors, 1)[0]
        weight = dict.fromkeys(("embed", f"blocks.0-{layers - 1}", "head"), weight)
    products = dict[str, float | list[float]]()
    for key, value in weight.items():
        group = parse_key(key)
        names = [key]
        if group.kind == "block" and group.first < group.last and set(factors) - {ALL}:
            half = f".{group.half}" if group.half else ""
            names = [
                f"blocks.{block}{half}" for block in range(group.first, min(group.last, layers) + 1)
            ]
        if isinstance(value, list) and not is_tensor(key):
            raise RecipeError(f"{key}: a gradient over the layers")
        numbers = value if isinstance(value, list) else [value]
        for name in names:
            scaled = [
                number * _factors_of(f"{name}.weight", factors, 1)[0] + 0.0 for number in numbers
            ]  # no minus before a 0
            products[name] = scaled if isinstance(value, list) else scaled[0]
    return products


# Turning a parent up or down without its recipe. Given are a merged tensor M, the base B and
# parents P_i, d_i = P_i - B. If M - B = sum_i w_i d_i, least squares finds the w_i: the normal
# equations
#   G w = s,   G_ij = <d_i, d_j>,   s_i = <d_i, M - B>
# are n x n for n parents, whatever the size of the tensor. One w for the tensor is tried first,
# then one per row (merges by runs of rows). What is left must be explained by rounding, or the
# merge is of another kind and is refused. The change sum_i (f_i - 1) w_i d_i is added to the stored
# bits. A copy of these is put back at the end, since subtracting the change would round
# differently.
@contextmanager
def mixed(model: Any, parents: Sequence[Any], base: Any | None, factors: Factors) -> Iterator[None]:
    """Multiply the weights that the parents have in a merge, for as long as the context lasts.

    A tensor of the merge is base + sum_i w_i (parent_i - base); no base is zero. The w_i are found
    by least squares, whatever the groups of the recipe are, and become f_i w_i. Afterwards the same
    bits are in the model.

    Raises:
        SpaceError: The merge is no weighted sum of these models.
    """
    import torch

    tensors = [dict(parent.named_parameters()) for parent in parents]
    ground = dict(base.named_parameters()) if base is not None else {}
    by_group = dict(factors)
    kept = []
    try:
        for name, parameter in model.named_parameters():
            wanted = _factors_of(name, by_group, len(parents))
            if all(value == 1 for value in wanted) or any(name not in each for each in tensors):
                continue
            merged = parameter.detach().float()
            zero = ground[name].detach().float() if name in ground else torch.zeros_like(merged)
            if (
                any(each[name].shape != merged.shape for each in tensors)
                or zero.shape != merged.shape
            ):
                continue
            vectors = torch.stack([each[name].detach().float() - zero for each in tensors])
            # most of a small change to a large weight
            rounding = torch.finfo(parameter.dtype).eps * merged.abs()
            for rows in dict.fromkeys(
                (1, math.prod(merged.shape[:-1]))
            ):  # one set of weights, or one for each row
                parts = shares(vectors, merged - zero, rows)
                off = ((merged - zero - parts.sum(0)).abs() - rounding).clamp(min=0).norm()
                fits = off <= _MOST_OFF * max(
                    float((merged - zero).norm()), float(vectors.norm()) * 1e-3, 1e-12
                )
                if fits:
                    break
            else:
                raise SpaceError(
                    "This merge is no weighted sum of its parents, so there is nothing to "
                    "turn up or down."
                )
            kept.append((parameter, parameter.detach().clone()))
            less = sum(
                ((factor - 1) * part for factor, part in zip(wanted, parts, strict=True)),
                torch.zeros_like(merged),
            )
            parameter.data.add_(less.to(parameter.dtype))
        yield
    finally:
        for parameter, before in kept:
            parameter.data.copy_(before)


def shares(vectors: Tensor, change: Tensor, rows: int) -> Tensor:
    """Find w_i d_i of each source by least squares, where change = sum_i w_i d_i, with weights for
    each of `rows` equal parts.

    `vectors` are the d_i, of shape (sources, ...).
    """
    import torch

    parts = vectors.reshape(len(vectors), rows, -1)
    wanted = change.reshape(rows, -1)
    grams = torch.einsum("irc,jrc->rij", parts, parts).double().cpu()
    sides = torch.einsum("irc,rc->ri", parts, wanted).double().cpu()
    weights = (
        torch.linalg.lstsq(grams, sides[..., None], driver="gelsd").solution[..., 0].T.to(vectors)
    )
    return (weights[..., None] * parts).reshape(vectors.shape)
