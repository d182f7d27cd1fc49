"""Change of a merge's weights: how much of each parent is in each layer, in the recipe and in
memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from texts import SpaceError, number

from hf_evomerge.building.build import open_merge
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import RecipeError
from hf_evomerge.merging.live import live_tensors
from hf_evomerge.recipes.layer_groups import classify, expand, is_tensor, parse_key, resolve
from hf_evomerge.recipes.recipe import Recipe

ALL = "all layers"
MAX_FACTOR = 3.0

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


def _factor_of(name: str, factors: Mapping[str, float]) -> float:
    """The factor of a parent's weight in a tensor, or in a layer group."""
    block = classify(name)[1]
    own = "embeddings and head" if block is None else f"layer {block}"
    return factors.get(own, 1.0) * factors.get(ALL, 1.0)


def edited(merge: Mapping[str, Any], factors: Factors, layers: int) -> Mapping[str, Any] | None:
    """A recipe's merge of so many layers with its weights times factors.

    None where parents have no weights, or keys that name more than some layers.
    """
    parameters = merge.get("parameters", [])
    if not any("weight" in item for item in parameters):
        return None
    changed = []
    try:
        taking_part = merge.get("sources") or range(len(parameters))
        for source, item in zip(taking_part, parameters, strict=False):
            own = {group: values[source] for group, values in factors if source < len(values)}
            changed.append({**item, "weight": _edited(item.get("weight", 1.0), own, layers)})
    except RecipeError:
        return None
    return {**merge, "parameters": changed}


def _edited(weight: Any, factors: Mapping[str, float], layers: int) -> Any:
    """Scale one parent's weight by its factors: groups of layers that differ are split."""
    if set(factors) <= {ALL}:
        return _times(weight, factors.get(ALL, 1.0))
    if isinstance(weight, Mapping) and weight.keys() == {"default"}:
        weight = weight["default"]
    if not isinstance(weight, Mapping):
        weight = dict.fromkeys(("embed", f"blocks.0-{layers - 1}", "head"), weight)
    products = {}
    for key, value in weight.items():
        group = parse_key(key)
        if is_tensor(key):
            products[key] = _times(value, _factor_of(key, factors))
            continue
        if group.kind in ("default", "pattern"):
            raise RecipeError(f"{key}: names more than some layers")
        half = f".{group.half}" if group.half else ""
        names: dict[str, int | None] = {key: None}
        if group.kind == "block":
            last = min(group.last, layers)
            names = {f"blocks.{block}{half}": block for block in range(group.first, last + 1)}
        over = expand({key: value}, 0, layers - 1)[key]
        for name, block in names.items():
            weight = resolve(over, "", block)
            products[name] = _times(weight, _factor_of(f"{name}.weight", factors))
    return products


def _times(weight: Any, factor: float) -> Any:
    """Multiply a weight: a number, a gradient over the layers, or one of these per key."""
    if isinstance(weight, Mapping):
        return {key: _times(value, factor) for key, value in weight.items()}
    if isinstance(weight, list):
        return [_times(value, factor) for value in weight]
    return weight * factor + 0.0  # no minus before a 0


@contextmanager
def mixed(model: Any, recipe: Recipe) -> Iterator[None]:
    """Hold the merge of another recipe in a model, for as long as the context lasts.

    Every tensor is merged as `hf-evomerge merge` does it. Afterwards the same bits as before are in
    the model.

    Raises:
        EvoMergeError: A parent cannot be read, or does not fit the model.
    """
    merged = open_merge(recipe, open_source)
    targets = live_tensors(merged.plan.sources[0], model)
    before = {name: target.clone() for name, target in targets.items()}
    try:
        for name, target in targets.items():
            target.copy_(merged.read(name))
        yield
    finally:
        for name, target in targets.items():
            target.copy_(before[name])
        merged.close()
