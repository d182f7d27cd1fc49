"""Difference of two checkpoints by layer group: norms and cosines of the weights, and of the task
vectors.

Memory does not grow with the model: one slice of each tensor is held at a time. Sums are float64.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..recipes.layer_groups import classify
from .checkpoint import Parent
from .headers import tensor_order
from .open import open_source

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

SLICE = 1 << 20  # elements; 8 MB of float64
FAR = 0.7  # of the base's norm; task vectors of unrelated models of one size have about sqrt(2)
UNRELATED = "hardly have a common ancestor, and merging their weights will not do"
_NOTES = 12
_BAR = 18  # characters, with which a line takes 80
_LEGEND = """\
A-base, B-base: |A-base|/|base|, |B-base|/|base|
task cos: cosine of the task vectors A-base and B-base"""


@dataclass(frozen=True)
class Agreement:
    """Agreement of two vectors x and y.

    Attributes:
        norm_x, norm_y: Lengths of x and y.
        relative: ``|y - x| / |x|``; None where x is 0 and y is not.
        cosine: Cosine of the angle between them; None where one is 0.
    """

    norm_x: float
    norm_y: float
    relative: float | None
    cosine: float | None


@dataclass(frozen=True)
class GroupDifference:
    """Comparison of a layer group or the model.

    Attributes:
        name: ``embed``, ``blocks.3``, ``head`` or ``all``.
        elements: Number of elements compared.
        weights: A as x, B as y.
        tasks: The task vectors ``A - base`` as x and ``B - base`` as y; None where the base has no
            such tensor, or zeros alone.
        base_norm: Length of the base's weights.
    """

    name: str
    elements: int
    weights: Agreement
    tasks: Agreement | None = None
    base_norm: float | None = None


@dataclass(frozen=True)
class Difference:
    """Difference of two checkpoints.

    Attributes:
        a, b, base: Names of what was compared.
        total: Comparison of all tensors as one vector.
        groups: Embeddings, each block, head.
        notes: Tensors that could not be compared, and why.
        warning: Warning that the task vectors are as large as the weights.
    """

    a: str
    b: str
    base: str | None
    total: GroupDifference
    groups: list[GroupDifference]
    notes: list[str]
    warning: str | None

    def to_json(self) -> str:
        """Format as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        """Format as text: a bar per layer group."""
        lines = [f"A     {self.a}", f"B     {self.b}"]
        if self.base:
            lines.append(f"base  {self.base}")
        lines.append("")
        if self.total.elements:
            lines += [*_table([*self.groups, self.total], self.base is not None), ""]
            lines += [_LEGEND, ""] if self.base else []
        else:
            lines += ["no tensor could be compared", ""]
        lines += [f"not compared: {note}" for note in self.notes[:_NOTES]]
        if (more := len(self.notes) - _NOTES) > 0:
            lines.append(f"not compared: {more} more; --json lists them")
        if self.warning:
            lines.append(f"warning: {self.warning}")
        return "\n".join(lines).rstrip()


def diff_models(
    a: str | Path, b: str | Path, *, base: str | Path | None = None, trust_remote_code: bool = False
) -> Difference:
    """Say how two checkpoints differ by layer group; with a base also how their task vectors do.

    Tensors that only one of them has, or whose shapes differ, are named in the notes.

    Args:
        a, b, base: Folders, or ids of repositories on the Hub.
        trust_remote_code: Whether Python files that come with the models may be run to read their
            configs, which say whether a stored head is the embedding matrix.

    Raises:
        SourceError: There is no such checkpoint, or a file cannot be read.

    Example:
        >>> difference = diff_models("japanese", "maths", base="base")
        >>> -1 <= difference.total.tasks.cosine <= 1
        True
    """
    from huggingface_hub.utils import tqdm

    references = [a, b] if base is None else [a, b, base]
    compared: Sequence[Parent] = [
        open_source(each, trust_remote_code=trust_remote_code) for each in references
    ]
    groups: dict[str, NDArray[np.float64]] = {}
    notes = list[str]()
    try:
        names = sorted(compared[0].tensors.keys() | compared[1].tensors.keys(), key=tensor_order)
        for name in tqdm(names, unit="tensor", desc="comparing", disable=None):
            if (reason := _reason(name, compared[0], compared[1], "B")) is not None:
                notes.append(f"{name}: {reason}")
                continue
            usable = compared
            if base is not None and (reason := _reason(name, compared[0], compared[2], "the base")):
                notes.append(f"task vectors of {name}: {reason}")
                usable = compared[:2]
            sums = _sums([each.read(name) for each in usable])
            if not np.isfinite(sums).all():
                notes.append(f"{name}: holds values that are not finite numbers")
                continue
            kind, block, _ = classify(name)
            group = kind if block is None else f"blocks.{block}"
            groups[group] = groups.get(group, 0) + sums
    finally:
        for each in compared:
            each.close()
    ordered = sorted(
        groups, key=lambda key: ({"embed": 0, "head": 2}.get(key, 1), tensor_order(key))
    )
    total = _row("all", sum(groups.values(), np.zeros(10)))
    warning = None
    if total.tasks is not None and total.base_norm:
        shares = [total.tasks.norm_x / total.base_norm, total.tasks.norm_y / total.base_norm]
        if max(shares) >= FAR:
            warning = (
                f"the task vectors are as large as the weights ({shares[0]:.2f} and "
                f"{shares[1]:.2f} of the base's norm): A, B and the base {UNRELATED}"
            )
    return Difference(
        str(compared[0]),
        str(compared[1]),
        None if base is None else str(compared[2]),
        total,
        [_row(group, groups[group]) for group in ordered],
        notes,
        warning,
    )


def _reason(name: str, a: Parent, other: Parent, called: str) -> str | None:
    """Say why a tensor of A and another checkpoint cannot be compared; None where it can."""
    x = a.tensors.get(name)
    y = other.tensors.get(name)
    if x is None or y is None:
        return f"not in {'A' if x is None else called}"
    if x.shape != y.shape:
        return f"shape {list(x.shape)} in A, {list(y.shape)} in {called}"
    if not (x.is_float and y.is_float):
        return (
            f"{x.dtype} in A, {y.dtype} in {called}; only plain floating-point numbers are compared"
        )
    return None


def _sums(tensors: Sequence[Tensor]) -> NDArray[np.float64]:
    """Sums over a tensor of A, B and perhaps the base: the number of elements, |base|^2, and four
    products each of the weights and of the task vectors, which are 0 without a base."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    sums = np.zeros(10)
    sums[0] = flat[0].numel()
    for start in range(0, flat[0].numel(), SLICE):
        x, y, *bases = (tensor[start : start + SLICE].double() for tensor in flat)
        sums[2:6] += _products(x, y)
        for base in bases:
            sums[1] += float(base.dot(base))
            sums[6:] += _products(x - base, y - base)
    return sums


def _products(x: Tensor, y: Tensor) -> list[float]:
    """Products x x, y y, x y and |y - x|^2."""
    change = y - x
    return [float(u.dot(v)) for u, v in ((x, x), (y, y), (x, y), (change, change))]


def _row(name: str, sums: NDArray[np.float64]) -> GroupDifference:
    elements, base, *products = sums.tolist()
    weights = _agreement(*products[:4])
    if not base:
        return GroupDifference(name, int(elements), weights)
    return GroupDifference(name, int(elements), weights, _agreement(*products[4:]), math.sqrt(base))


def _agreement(xx: float, yy: float, xy: float, change: float) -> Agreement:
    x = math.sqrt(xx)
    y = math.sqrt(yy)
    relative = None
    if x:
        relative = math.sqrt(change) / x
    elif not y:
        relative = 0.0
    return Agreement(x, y, relative, max(-1.0, min(1.0, xy / x / y)) if x and y else None)


def _table(rows: Sequence[GroupDifference], with_base: bool) -> list[str]:
    """Lines of numbers with a bar each, as long as the relative difference; the last row is the sum
    of the others."""
    columns = ["|B-A|/|A|", "cosine"]
    if with_base:
        columns += ["A-base", "B-base", "task cos"]
    lines = [" " * 10 + "".join(f"{column:>10}" for column in columns)]
    longest = max(row.weights.relative or 0.0 for row in rows) or 1.0
    for row in rows:
        numbers = [row.weights.relative, row.weights.cosine]
        if row.tasks is not None and row.base_norm:
            lengths = (row.tasks.norm_x, row.tasks.norm_y)
            numbers += [*(length / row.base_norm for length in lengths), row.tasks.cosine]
        numbers += [None] * (len(columns) - len(numbers))
        cells = "".join(f"{'-' if x is None else format(x, '.4f'):>10}" for x in numbers)
        bar = "█" * round(_BAR * (row.weights.relative or 0.0) / longest)
        lines.append(f"{row.name:<10}{cells}  {bar}".rstrip())
    return lines
