"""The merge part of a recipe laid out over the sources' headers: which tensors the result has, and
what each is merged from.

No weight is read. ``merged.py`` computes what is planned here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoints.checkpoint import Parent
from ..checkpoints.compatibility import check_mergeable
from ..checkpoints.headers import tensor_order
from ..errors import RecipeError, SourceError, told
from ..merging.checks import check_sources, complete
from ..merging.core import why_no_products
from ..merging.method import Call, MergeMethod, Values
from ..merging.registry import get_method, in_core
from ..merging.rows import row_count
from ..recipes.layer_groups import classify, parse_key, renumbered, resolve
from ..recipes.recipe import MergePart, Recipe, SlicePart, with_optional
from .planned import Input, Planned


@dataclass(frozen=True)
class MergePlan:
    """Plan of a merge, with all that it needs.

    Attributes:
        method: The merge method.
        sources: Sources that are merged, each once; the first gives the config.
        base: The base.
        tensors: The tensors of the result by their names, in their order.
        kept: Tensors of the sources that are not merged, see `MergePart.kept`.
        options: Complete options for the whole model; empty where the recipe has slices.
        stack: Index in `sources` and layer of each layer of the result; None: those of the first
            source in their order.
        core: Whether what adapters change is merged in core space, see `Core`; the rest is the
            base's.
    """

    method: MergeMethod
    sources: list[Parent]
    base: Parent | None
    tensors: dict[str, Planned]
    kept: Mapping[str, Parent]
    options: Values
    stack: list[tuple[int, int]] | None = None
    core: bool = False


def plan_merge(recipe: Recipe, sources: Sequence[Parent], base: Parent | None) -> MergePlan:
    """Lay the merge part of a recipe out.

    Args:
        recipe: The recipe.
        sources: Sources that are merged, in the order of ``recipe.merge_sources``.
        base: The base.

    Raises:
        RecipeError: Parameters do not fit the method or the model.
        SourceError: A tensor is missing or has another shape than its namesakes.
    """
    part = recipe.merge
    merged_sources = list(sources)
    if part is None:
        raise RecipeError("merge: the recipe has no merge part; there is nothing to merge")
    first = merged_sources[0]
    kept = part.kept(first.tensors, merged_sources)
    names = [name for name in first.tensors if name not in kept]
    method = get_method(part.method)
    has_base = base is not None
    if part.slices is None:
        everyone = [*merged_sources, *([base] if base is not None else [])]
        # Adapters of one folder need no component: numbers then hold for whole components.
        whole = bool(first.entries) and all(source.same_folder(first) for source in everyone)
        values, options = complete(
            method,
            part.parameters,
            part.options,
            sources=len(merged_sources),
            has_base=has_base,
            layer_count=0 if whole else first.layer_count,
            names=names,
            ignore=part.unmatched == "ignore",
        )
    for piece in part.slices or ():
        check_sources(method, len(piece.layers), has_base)
    check_mergeable(merged_sources, base, same_depth=part.slices is None)
    if part.slices is not None:
        return _plan_slices(recipe, part, part.slices, merged_sources, base)
    if part.core_space and (reason := why_no_products(merged_sources, base, kept)):
        raise SourceError(f"merge.core_space: {reason}; leave it out")
    core = in_core(part)
    tensors = dict[str, Planned]()
    merged = set(names)
    if core:
        merged = {name for source in merged_sources for name in source.changes}
    for name in sorted(first.tensors, key=tensor_order):
        if name not in merged:
            tensors[name] = Planned.copy(kept.get(name, first), name, recipe.dtype)
            continue
        inputs = tuple((source, name) for source in merged_sources)
        origin = (base, name) if base is not None else None
        tensors[name] = _planned(inputs, origin, values, options, recipe.dtype)
    return MergePlan(method, merged_sources, base, tensors, kept, options, core=core)


def _planned(
    inputs: tuple[Input, ...],
    base: Input | None,
    values: Sequence[Values],
    options: Values,
    dtype: str | None,
) -> Planned:
    """Plan one tensor, once its inputs are known to be there and alike."""
    first, own = inputs[0]
    others = with_optional(inputs[1:], base)
    info = first.tensors[own]
    if not info.is_float:  # not merged, so that others may lack it
        others = [pair for pair in others if pair[1] in pair[0].tensors]
    for source, there in others:
        if there not in source.tensors:
            raise SourceError(f"tensor {own} of {first} has no match in {source}: no {there}")
    for source, there in others:
        other = source.tensors[there]
        if other.shape != info.shape or other.is_float != info.is_float:
            raise SourceError(f"{own} is {info} in {first}, but {there} is {other} in {source}")
    if info.is_float:
        next(
            Call.of_tensor(own, values, options).runs(row_count(info.shape))
        )  # raises where there are more numbers than rows
    return Planned(info.converted(dtype), inputs, base, values, options, info.is_float)


def _plan_slices(
    recipe: Recipe,
    part: MergePart,
    slices: Sequence[SlicePart],
    sources: list[Parent],
    base: Parent | None,
) -> MergePlan:
    """Stack the slices: each layer from the layers that it names, what is outside the layers from
    the first and the last."""
    method = get_method(part.method)
    by_number = dict(zip(recipe.merge_sources, sources, strict=True))
    tensors: dict[str, Planned] = {}
    stack: list[tuple[int, int]] = []
    for position, piece in enumerate(slices):
        where = f"merge.slices[{position}]"
        merged_sources = [by_number[run[0][0]] for run in piece.runs()]
        kept = part.kept(merged_sources[0].tensors, merged_sources)
        names = [name for name in merged_sources[0].tensors if name not in kept]
        values, options = _slice_values(part, piece, names, base is not None, where)
        layers = [piece.base_layers()] if base is not None else []
        for run in piece.runs():
            layers.append([number for _, number in run])
        everyone = [*([base] if base is not None else []), *merged_sources]
        for source, numbers in zip(everyone, layers, strict=True):
            if (last := max(numbers)) >= source.layer_count:
                raise SourceError(
                    f"{where}: layer {last} of {source}, which has {source.layer_count} layers"
                )
        outside = {"embed"} if position == 0 else set()
        outside |= {"head"} if position == len(slices) - 1 else set()
        stacked = _Stacked(merged_sources, base, options, values, recipe.dtype, kept)
        tensors |= stacked.outside(outside)
        # Layer `offset` of the slice becomes layer len(stack) of the result. Names are those of the
        # result; parameters are resolved by the names in the sources, as the recipe's author sees
        # them, and ramps run over the slice, by `offset`.
        for offset, row in enumerate(zip(*layers, strict=True)):
            tensors |= stacked.layer(len(stack), offset, list(row))
            stack.append((sources.index(merged_sources[0]), row[1 if base is not None else 0]))
    tensors = {name: tensors[name] for name in sorted(tensors, key=tensor_order)}
    # Where every layer stays where it is, the result has the first source's config as it is.
    # Otherwise the config's lists with an entry a layer follow the stack.
    as_it_is = stack == [(0, layer) for layer in range(sources[0].layer_count)]
    kept = part.kept(sources[0].tensors, sources)
    return MergePlan(method, sources, base, tensors, kept, {}, None if as_it_is else stack)


def _slice_values(
    part: MergePart, piece: SlicePart, names: Sequence[str], has_base: bool, where: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The complete parameters of a slice, with gradients over its layers."""
    with told(RecipeError, RecipeError, f"{where}: "):
        count = len(piece.runs()[0])
        mappings: list[Values] = [part.options, piece.options, *piece.parameters]
        for mapping in mappings:
            for name, value in mapping.items():
                keys = list(value) if isinstance(value, Mapping) else []
                if grouped := [key for key in keys if parse_key(key).kind == "block"]:
                    raise RecipeError(
                        f"{name}.{grouped[0]}: slices name the layers themselves; use "
                        "patterns, or another slice"
                    )
        return complete(
            get_method(part.method),
            piece.parameters,
            {**part.options, **piece.options},
            sources=len(piece.layers),
            has_base=has_base,
            layer_count=count,
            names=names,
            ignore=part.unmatched == "ignore",
        )


@dataclass(frozen=True)
class _Stacked:
    """Settings that the tensors of one slice share."""

    sources: list[Parent]
    base: Parent | None
    options: Values
    values: Sequence[Values]
    dtype: str | None
    kept: Mapping[str, Parent]

    def outside(self, kinds: set[str]) -> dict[str, Planned]:
        """The tensors of these kinds, from outside the blocks."""
        names = [name for name in self.sources[0].tensors if classify(name)[0] in kinds]
        return {name: self._tensor(name, [name] * len(self.sources), name, None) for name in names}

    def layer(self, number: int, offset: int, numbers: list[int]) -> dict[str, Planned]:
        """The tensors of layer `number` of the result, the slice's `offset`-th, from these layers
        of base and sources."""
        base, *layers = numbers if self.base is not None else [0, *numbers]
        planned = {}
        for name in self.sources[0].tensors:
            if classify(name)[1] == layers[0]:
                there = [renumbered(name, layer) for layer in layers]
                own = renumbered(name, number)
                planned[own] = self._tensor(own, there, renumbered(name, base), offset)
        return planned

    def _tensor(self, name: str, there: list[str], base: str, offset: int | None) -> Planned:
        if there[0] in self.kept:
            return Planned.copy(self.kept[there[0]], there[0], self.dtype)
        inputs = tuple((source, own) for source, own in zip(self.sources, there, strict=True))
        origin = (self.base, base) if self.base is not None else None
        options = {key: resolve(value, name, offset) for key, value in self.options.items()}
        values = []
        for mapping, own in zip(self.values, there, strict=True):
            values.append({key: resolve(value, own, offset) for key, value in mapping.items()})
        return _planned(inputs, origin, values, options, self.dtype)
