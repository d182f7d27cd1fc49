"""Changes of a fine-tune: which tensors are still its base's (frozen, or left alone by LoRA), and
how far it has gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .checkpoint import Parent

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 1 << 20  # elements that are compared at a time: most tensors differ in the first


def unchanged_tensors(source: Parent, base: Parent) -> frozenset[str]:
    """Names of the tensors that have the base's values. The weights are downloaded first.

    Args:
        source: The fine-tune.
        base: Its base, with tensors of the same names; where one has more rows, they are left out.
    """
    import torch

    source.download()
    base.download()
    # then only the adapter's changes can differ
    kept = source.same_folder(base) and base.adapter is None
    unchanged = []
    for name, info in source.tensors.items():
        if not info.is_float or (kept and name not in source.changes):
            unchanged.append(name)
            continue
        # An adapter of this very base: a product is 0 where one factor is, as B is before training.
        # No weight has to be read.
        if kept and source.adapter is not None and not (change := source.changes[name]).beyond:
            if not all(factor.any() for factor in source.adapter.factors(change)):
                unchanged.append(name)
            continue
        if all(torch.equal(ours, theirs) for ours, theirs in _blocks(source, base, name)):
            unchanged.append(name)
    return frozenset(unchanged)


def twins(sources: Sequence[Parent], names: Sequence[str], *, download: bool) -> list[str]:
    """A line for each source that has the weights of another before it, bit for bit: they have
    nothing to give each other.

    Stops at the first difference, which fine-tunes have in their first tensors.

    Args:
        sources: The sources.
        names: Names of the sources.
        download: Whether weights may be downloaded; without it those of repositories are the same
            where their commits are.
    """
    lines = []
    for later, source in enumerate(sources):
        for earlier, other in enumerate(sources[:later]):
            if _same(other, source, download=download):
                lines.append(
                    f"sources: {names[earlier]} and {names[later]} are the same model, every "
                    "weight alike: there is nothing to "
                    "merge between them; name another model, or leave one out"
                )
                break
    return lines


def _kinds(source: Parent) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of each tensor."""
    return {name: (info.dtype, info.shape) for name, info in source.tensors.items()}


def _same(one: Parent, other: Parent, *, download: bool) -> bool:
    import torch

    if one.pinned == other.pinned:
        return True
    if _kinds(one) != _kinds(other):
        return False
    away = [
        source
        for source in (one, other)
        if source.repository is not None or source.adapter is not None
    ]
    if away and not download:
        return False
    for source in away:
        source.download()
    # Tensors that an adapter changes come first, then all in order. Fine-tunes differ in the first
    # block that is read, so this costs little unless the models are the same.
    blocks = (pair for name in [*one.changes, *one.tensors] for pair in _blocks(one, other, name))
    return all(torch.equal(ours, theirs) for ours, theirs in blocks)


def _blocks(source: Parent, base: Parent, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """A tensor of both, block by block, as far as both have rows."""
    ours = source.read(name)
    theirs = base.read(name)
    if ours.shape != theirs.shape:
        rows = min(len(ours), len(theirs))
        ours = ours[:rows]
        theirs = theirs[:rows]
    yield from zip(ours.reshape(-1).split(_BLOCK), theirs.reshape(-1).split(_BLOCK), strict=True)
