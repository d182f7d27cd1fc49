"""Difference of two checkpoints by layer group: lengths and cosines of the weights, and of the task
vectors.

Memory does not grow with the model: one slice of each tensor is held at a time. Sums are float64.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
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
_FAR = 0.7  # fine-tunes are a few per cent from their base, unrelated models of one size sqrt(2)
_COLUMNS = ("|B-A|/|A|", "cosine", "|A-base|/|base|", "|B-base|/|base|", "task cosine")


@dataclass(frozen=True)
class GroupDifference:
    """Comparison of a layer group or the model. A number is None where it has no value: a cosine
    with zeros, or what needs a base where there is none.

    Attributes:
        name: ``embed``, ``blocks.3``, ``head`` or ``all``.
        elements: Number of elements compared.
        distance: ``|B - A| / |A|``.
        cosine: Cosine of the angle between A and B.
        task_a, task_b: ``|A - base| / |base|`` and ``|B - base| / |base|``.
        task_cosine: Cosine of the angle between the task vectors ``A - base`` and ``B - base``.
    """

    name: str
    elements: int
    distance: float | None
    cosine: float | None
    task_a: float | None
    task_b: float | None
    task_cosine: float | None


@dataclass(frozen=True)
class Difference:
    """Difference of two checkpoints.

    Attributes:
        a, b, base: Names of what was compared.
        total: Comparison of all tensors as one vector.
        groups: Embeddings, each block, head.
        notes: Tensors that could not be compared, and why.
        warning: Warning that the checkpoints hardly have a common ancestor; empty without one.
    """

    a: str
    b: str
    base: str | None
    total: GroupDifference
    groups: list[GroupDifference]
    notes: list[str]
    warning: str

    def to_json(self) -> str:
        """Format as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        """Format as text: a line per layer group."""
        names = {"A": self.a, "B": self.b, "base": self.base}
        lines = [f"{key:<6}{name}" for key, name in names.items() if name]
        columns = _COLUMNS if self.base else _COLUMNS[:2]
        lines += ["", " " * 10 + "  ".join(columns)]
        for row in [*self.groups, self.total]:
            name, _, *numbers = astuple(row)
            line = f"{name:<10}"
            for column, number in zip(columns, numbers, strict=False):
                cell = "-" if number is None else f"{number:.4f}"
                line += f"{cell:>{len(column)}}  "
            lines.append(line.rstrip())
        lines.append("")
        lines += [f"not compared: {note}" for note in self.notes]
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
        >>> difference.total.distance < 1
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
    total = _row("all", sum(groups.values(), np.zeros(9)))
    distances = [total.distance] if base is None else [total.task_a, total.task_b]
    return Difference(
        str(compared[0]),
        str(compared[1]),
        None if base is None else str(compared[2]),
        total,
        [_row(group, groups[group]) for group in ordered],
        notes,
        strangers(max(each or 0.0 for each in distances)),
    )


def strangers(distance: float) -> str:
    """Warn of models whose weights have nothing in common; empty where they may have.

    Args:
        distance: Largest ``|x - base| / |base|`` of the models x; where there is no base, one of
            them is taken for it.
    """
    if not _FAR <= distance < math.inf:
        return ""
    return (
        f"the models differ by {distance:.2f} of the weights' length; they hardly have a common "
        "ancestor, and merging their weights will not do"
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
    """Sums over a tensor of A, B and perhaps the base: the number of elements, and the inner
    products that `_row` takes."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    sums = np.zeros(9)
    sums[0] = flat[0].numel()
    for start in range(0, flat[0].numel(), SLICE):
        a, b, *bases = (tensor[start : start + SLICE].double() for tensor in flat)
        pairs = [(a, a), (b, b), (b - a, b - a), (a, b)]
        for base in bases:
            x = a - base
            y = b - base
            pairs += [(base, base), (x, x), (y, y), (x, y)]
        sums[1 : 1 + len(pairs)] += [float(u.dot(v)) for u, v in pairs]
    return sums


def _row(name: str, sums: NDArray[np.float64]) -> GroupDifference:
    elements, aa, bb, change, ab, base, xx, yy, xy = sums.tolist()
    return GroupDifference(
        name,
        int(elements),
        distance=_ratio(change, aa),
        cosine=_cosine(ab, aa, bb),
        task_a=_ratio(xx, base),
        task_b=_ratio(yy, base),
        task_cosine=_cosine(xy, xx, yy),
    )


def _ratio(square: float, unit: float) -> float | None:
    """Ratio of two lengths that are given as squares."""
    return math.sqrt(square / unit) if unit else None


def _cosine(product: float, xx: float, yy: float) -> float | None:
    lengths = math.sqrt(xx) * math.sqrt(yy)
    return product / lengths if lengths else None
