"""A plain loop that merges two checkpoints of one file, as a yardstick: read a slice, compute it in
float32, round, write.

No checks, no config, no threads, nothing of the package: the formulas as torch has them. What a
method must know of a whole tensor takes a pass of its own: for ties a count of the magnitudes'
upper 16 bits and a sort of those with the right ones, for dare_ties a mask and two sums, for slerp
three inner products, all in float32.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

SLICE = 1 << 16
WEIGHT = 0.6
DENSITY = 0.5
T = 0.4
Merge = Callable[[Tensor, Tensor, Tensor | None, slice], Tensor]


def merge(method: str, folders: list[Path], base: Path | None, out: Path) -> None:
    """Merge ``model.safetensors`` of two folders, in bfloat16, into a file."""
    files = [
        safe_open(folder / "model.safetensors", framework="pt")
        for folder in [*folders, *([base] if base else [])]
    ]
    names = list(files[0].keys())
    with out.open("wb") as stream, torch.inference_mode():
        stream.write(header({name: files[0].get_slice(name).get_shape() for name in names}))
        for name in names:
            a, b, *rest = (file.get_tensor(name).view(-1) for file in files)
            origin = rest[0] if rest else None
            compute = METHODS[method](a, b, origin)
            for here in slices(a):
                merged = compute(
                    a[here].float(),
                    b[here].float(),
                    None if origin is None else origin[here].float(),
                    here,
                )
                stream.write(merged.to(torch.bfloat16).view(torch.uint8).numpy().data)


def header(shapes: dict[str, list[int]]) -> bytes:
    """What stands before the tensors of a safetensors file."""
    fields = {}
    end = 0
    for name, shape in shapes.items():
        start = end
        end = end + 2 * math.prod(shape)
        fields[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def slices(tensor: Tensor) -> Iterator[slice]:
    """The slices of a flat tensor."""
    return (slice(start, start + SLICE) for start in range(0, tensor.numel(), SLICE))


def linear(a: Tensor, b: Tensor, base: Tensor | None) -> Merge:
    """Half of each."""
    return lambda x, y, _, __: x.mul_(0.5).add_(y.mul_(0.5))


def task_arithmetic(a: Tensor, b: Tensor, base: Tensor | None) -> Merge:
    """The base and the weighted task vectors."""
    return lambda x, y, z, _: x.sub_(z).mul_(WEIGHT).add_(y.sub_(z).mul_(WEIGHT)).add_(z)


def slerp(a: Tensor, b: Tensor, base: Tensor | None) -> Merge:
    """Along the great circle."""
    dot = first = second = 0.0
    for here in slices(a):
        x = a[here].float()
        y = b[here].float()
        dot = dot + float(x.dot(y))
        first = first + float(x.dot(x))
        second = second + float(y.dot(y))
    cosine = dot / math.sqrt(first * second)
    angle = math.acos(min(1.0, cosine))
    factors = (
        (1 - T, T)
        if cosine > 0.9995
        else (math.sin((1 - T) * angle) / math.sin(angle), math.sin(T * angle) / math.sin(angle))
    )
    return lambda x, y, _, __: x.mul_(factors[0]).add_(y.mul_(factors[1]))


def ties(a: Tensor, b: Tensor, base: Tensor | None) -> Merge:
    """Trim, elect, average those that agree."""
    assert base is not None
    below = [math.nextafter(threshold(tensor, base), 0) for tensor in (a, b)]

    def compute(x: Tensor, y: Tensor, z: Tensor | None, _: slice) -> Tensor:
        parts = [
            vector.sub_(z).hardshrink(least).mul_(WEIGHT)
            for vector, least in zip((x, y), below, strict=True)
        ]
        return vote(parts, normalize=True).add_(z)

    return compute


def threshold(tensor: Tensor, base: Tensor) -> float:
    """The magnitude of the last element of a task vector that is kept."""

    def magnitudes() -> Iterator[Tensor]:
        return (tensor[here].float().sub_(base[here]).abs_() for here in slices(tensor))

    counts = sum(
        torch.bincount(part.view(torch.int32) >> 16, minlength=1 << 15) for part in magnitudes()
    )
    at_least = counts.flip(0).cumsum(0).flip(0)
    kept = max(1, int(DENSITY * tensor.numel()))
    upper = int((at_least >= kept).nonzero()[-1])
    near = torch.cat([part[part.view(torch.int32) >> 16 == upper] for part in magnitudes()])
    return float(near.sort(descending=True).values[kept - int(at_least[upper] - counts[upper]) - 1])


def dare_ties(a: Tensor, b: Tensor, base: Tensor | None) -> Merge:
    """Drop at random, restore the sum of magnitudes, elect, add those that agree."""
    assert base is not None
    masks: list[dict[int, Tensor]] = []
    factors = []
    for tensor in (a, b):
        before = 0.0
        after = 0.0
        mask = {}
        for here in slices(tensor):
            size = tensor[here].float().sub_(base[here]).abs_()
            mask[here.start] = torch.rand(size.numel()) < DENSITY
            before = before + float(size.sum())
            after = after + float(size.mul_(mask[here.start]).sum())
        masks.append(mask)
        factors.append(before / after if after > 0 else 1.0)

    def compute(x: Tensor, y: Tensor, z: Tensor | None, here: slice) -> Tensor:
        pairs = zip((x, y), masks, factors, strict=True)
        return vote(
            [v.sub_(z).mul_(mask[here.start]).mul_(factor * WEIGHT) for v, mask, factor in pairs],
            normalize=False,
        ).add_(z)

    return compute


def vote(parts: list[Tensor], *, normalize: bool) -> Tensor:
    """The sum, or the mean, of those that have the sign of the sum of all."""
    sign = parts[0].add(parts[1]).sign_().add_(0.5).sign_()
    left, right = (part.mul_(sign).clamp_(min=0) for part in parts)
    count = left.sign().add_(right.sign()).mul_(WEIGHT).clamp_(min=WEIGHT) if normalize else None
    mixed = left.add_(right).mul_(sign)
    return mixed if count is None else mixed.div_(count)


METHODS = {
    "linear": linear,
    "task_arithmetic": task_arithmetic,
    "slerp": slerp,
    "ties": ties,
    "dare_ties": dare_ties,
}
