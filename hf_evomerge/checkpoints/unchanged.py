"""Which tensors of a fine-tune are those of its base: what was frozen, or what a LoRA adapter left alone."""

from __future__ import annotations

from .source import Source

_BLOCK = 1 << 20  # elements that are compared at a time: most tensors differ in the first


def unchanged_tensors(source: Source, base: Source) -> frozenset[str]:
    """Names of the tensors that have the base's values. The weights are downloaded first.

    Args:
        source: The fine-tune.
        base: Its base, with tensors of the same names and shapes.
    """
    import torch

    source.download()
    base.download()
    kept = source.folder == base.folder and base.adapter is None  # then only the adapter's changes can differ
    unchanged = []
    for name, info in source.tensors.items():
        if not info.is_float or (kept and name not in source.changes):
            unchanged.append(name)
            continue
        ours, theirs = source.read(name).reshape(-1), base.read(name).reshape(-1)
        blocks = range(0, ours.numel(), _BLOCK)
        if all(torch.equal(ours[at : at + _BLOCK], theirs[at : at + _BLOCK]) for at in blocks):
            unchanged.append(name)
    return frozenset(unchanged)
