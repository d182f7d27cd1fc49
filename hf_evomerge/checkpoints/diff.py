"""Difference of two checkpoints, tensor by tensor: lengths, angles and signs, of the weights and of
the task vectors.

Memory does not grow with the model: one slice of each tensor is held at a time. Sums are float64.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..recipes.layer_groups import classify
from .checkpoint import Parent
from .component import Component
from .headers import tensor_order
from .open import open_source

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

SLICE = 1 << 20  # elements; 8 MB of float64
FAR = 0.7  # of the base's norm; task vectors of unrelated models of one size have about sqrt(2)
UNRELATED = "hardly have a common ancestor, and merging their weights will not do"
_NOTES = 12
_LEGEND = """\
signs: share of equal signs; A-base, B-base: |A-base|/|base|, |B-base|/|base|
task: cosine and signs of the task vectors A-base and B-base"""


@dataclass(frozen=True)
class Agreement:
    """Agreement of two vectors x and y.

    Attributes:
        norm_x, norm_y: Lengths of x and y.
        relative: ``|y - x| / |x|``; None where x is 0 and y is not.
        cosine: Cosine of the angle between them; None where one is 0.
        equal_signs: Share of equal signs among the elements that are 0 in neither; None where there
            are none.
    """

    norm_x: float
    norm_y: float
    relative: float | None
    cosine: float | None
    equal_signs: float | None


@dataclass(frozen=True)
class Row:
    """Comparison of a tensor, a layer group or the model.

    Attributes:
        name: The tensor's raw name, ``embed``, ``blocks.3``, ``head`` or ``all``.
        elements: Number of elements compared.
        weights: A as x, B as y.
        tasks: The task vectors ``A - base`` as x and ``B - base`` as y; None where the base has no
            such tensor.
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
        tensors: Every tensor that was compared.
        notes: Tensors that could not be compared, and why.
        warning: Warning that the task vectors are as large as the weights.
    """

    a: str
    b: str
    base: str | None
    total: Row
    groups: list[Row]
    tensors: list[Row]
    notes: list[str]
    warning: str | None

    def to_json(self, *, tensors: bool = False) -> str:
        """Format as JSON; with every tensor if asked."""
        data = asdict(self)
        if not tensors:
            del data["tensors"]
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, *, tensors: bool = False) -> str:
        """Format as text: a bar per layer group, or per tensor."""
        lines = [
            f"A     {self.a}",
            f"B     {self.b}",
            *([f"base  {self.base}"] if self.base else []),
            "",
        ]
        if self.total.elements:
            lines += [
                _table(
                    [*(self.tensors if tensors else self.groups), self.total], self.base is not None
                ),
                "",
            ]
            lines += [_LEGEND, ""] if self.base else []
        else:
            lines += ["no tensor could be compared", ""]
        shown = self.notes if tensors else self.notes[:_NOTES]
        lines += [f"not compared: {note}" for note in shown]
        if len(shown) < len(self.notes):
            lines.append(f"not compared: {len(self.notes) - len(shown)} more; --tensors lists them")
        return "\n".join([*lines, *([f"warning: {self.warning}"] if self.warning else [])]).rstrip()


def _products(x: Tensor, y: Tensor) -> NDArray[np.float64]:
    """Sums over the elements of two slices in float64: x x, y y, x y, (y - x)^2, and how many signs
    count and are equal."""
    # Six sums say all that a row of the table needs, and they add up over slices, tensors and
    # groups, so every level of the table is exact and each file is read once. Signs count only
    # where both numbers are not 0.
    d = y - x
    counted = (x != 0) & (y != 0)
    alike = counted & ((x > 0) == (y > 0))
    return np.array(
        [
            *(float(u.dot(v)) for u, v in ((x, x), (y, y), (x, y), (d, d))),
            int(counted.sum()),
            int(alike.sum()),
        ]
    )


def _agreement(sums: NDArray[np.float64]) -> Agreement:
    xx, yy, xy, dd, counted, alike = map(float, sums)
    x = math.sqrt(xx)
    y = math.sqrt(yy)
    # Relative distance |y - x| / |x|, from the sum of (y - x)^2 itself: xx + yy - 2 xy would cancel
    # where the models are near. The cosine is clipped to [-1, 1], beyond which rounding may take
    # it.
    relative = None
    if x:
        relative = math.sqrt(dd) / x
    elif not y:
        relative = 0.0
    cosine = max(-1.0, min(1.0, xy / x / y)) if x and y else None
    return Agreement(x, y, relative, cosine, alike / counted if counted else None)


@dataclass
class _Sums:
    """Sums over one tensor, or several, and over task vectors where there is a base."""

    elements: int = 0
    weights: NDArray[np.float64] = field(default_factory=lambda: np.zeros(6))
    tasks: NDArray[np.float64] | None = None
    base: float = 0.0

    def plus(self, other: _Sums) -> None:
        """Add another's sums."""
        self.elements += other.elements
        self.weights = self.weights + other.weights
        self.base += other.base
        if other.tasks is not None:
            self.tasks = other.tasks + (0 if self.tasks is None else self.tasks)

    @property
    def is_finite(self) -> bool:
        return bool(
            np.isfinite(
                [*self.weights, *(() if self.tasks is None else self.tasks), self.base]
            ).all()
        )

    def row(self, name: str) -> Row:
        tasks = _agreement(self.tasks) if self.tasks is not None else None
        return Row(
            name,
            self.elements,
            _agreement(self.weights),
            tasks,
            math.sqrt(self.base) if tasks else None,
        )


def diff_models(
    a: str | Path,
    b: str | Path,
    *,
    base: str | Path | None = None,
    progress: bool = False,
    trust_remote_code: bool = False,
) -> Difference:
    """Say how two checkpoints differ, tensor by tensor; with a base also how their task vectors do.

    Tensors that only one of them has, or whose shapes differ, are named in the notes.

    Args:
        a, b, base: Folders, or ids of repositories on the Hub.
        progress: Whether to show a progress bar.
        trust_remote_code: Whether Python files that come with the models may be run to read their
            configs, which say whether a stored head is the embedding matrix.

    Raises:
        SourceError: There is no such checkpoint, or a file cannot be read.

    Example:
        >>> difference = diff_models("japanese", "maths", base="base")
        >>> -1 <= difference.total.tasks.cosine <= 1
        True
    """
    from tqdm import tqdm

    opened = partial(open_source, trust_remote_code=trust_remote_code)
    first: Parent = opened(str(a))
    second: Parent = opened(str(b))
    origin: Parent | None = opened(str(base)) if base is not None else None
    if (
        not first.tensors.keys() & second.tensors.keys()
    ):  # perhaps one body, under heads that call it otherwise
        everyone = [each for each in (first, second, origin) if each is not None]
        counts = [each.layout.count() for each in everyone]
        shared = set(counts[0]).intersection(*counts[1:])
        part = next((part for part in first.layout.parts if part in shared), None)
        if part is not None:
            first, second, origin = [*(Component(each, part) for each in everyone), None][:3]  # type: ignore[assignment]
    total = _Sums()
    groups = dict[str, _Sums]()
    tensors = list[Row]()
    notes = list[str]()
    try:
        names = sorted(first.tensors.keys() | second.tensors.keys(), key=tensor_order)
        for name in tqdm(names, unit="tensor", desc="comparing", disable=not progress):
            if (reason := _reason(first, second, name, ("A", "B"))) is not None:
                notes.append(f"{name}: {reason}")
                continue
            reason = _reason(first, origin, name, ("A", "the base")) if origin is not None else None
            if reason is not None:
                notes.append(f"task vectors of {name}: {reason}")
            sums = _compare(first, second, origin if reason is None else None, name)
            if not sums.is_finite:
                notes.append(f"{name}: holds values that are not finite numbers")
                continue
            kind, block, _ = classify(name)
            groups.setdefault(kind if block is None else f"blocks.{block}", _Sums()).plus(sums)
            total.plus(sums)
            tensors.append(sums.row(name))
    finally:
        for source in (first, second, origin):
            if source is not None:
                source.close()
    ordered = sorted(
        groups, key=lambda key: ({"embed": 0, "head": 2}.get(key, 1), tensor_order(key))
    )
    whole = total.row("all")
    rows = [groups[key].row(key) for key in ordered]
    return Difference(
        str(first),
        str(second),
        str(origin) if origin else None,
        whole,
        rows,
        tensors,
        notes,
        _warning(whole),
    )


def _reason(a: Parent, b: Parent, name: str, called: tuple[str, str]) -> str | None:
    """Say why a tensor of two checkpoints cannot be compared; None where it can."""
    x = a.tensors.get(name)
    y = b.tensors.get(name)
    if x is None or y is None:
        return f"not in {called[0] if x is None else called[1]}"
    if x.shape != y.shape:
        return f"shape {list(x.shape)} in {called[0]}, {list(y.shape)} in {called[1]}"
    if not (x.is_float and y.is_float):
        return (
            f"{x.dtype} in {called[0]}, {y.dtype} in {called[1]}; only plain floating-point "
            "numbers are compared"
        )
    return None


def _compare(a: Parent, b: Parent, base: Parent | None, name: str) -> _Sums:
    flat = [
        source.read(name).reshape(-1) for source in (a, b, *([base] if base is not None else []))
    ]
    sums = _Sums(elements=flat[0].numel(), tasks=np.zeros(6) if base is not None else None)
    for start in range(0, sums.elements, SLICE):
        x, y, *rest = (tensor[start : start + SLICE].double() for tensor in flat)
        sums.weights += _products(x, y)
        if sums.tasks is not None:
            sums.tasks += _products(x - rest[0], y - rest[0])
            sums.base += float(rest[0].dot(rest[0]))
    return sums


def _warning(total: Row) -> str | None:
    if total.tasks is None or not total.base_norm:
        return None
    a = total.tasks.norm_x / total.base_norm
    b = total.tasks.norm_y / total.base_norm
    if max(a, b) < FAR:
        return None
    return (
        f"the task vectors are as large as the weights ({a:.2f} and {b:.2f} of the base's norm): "
        f"A, B and the base {UNRELATED}"
    )


def _table(rows: Sequence[Row], with_base: bool) -> str:
    """Rows with a bar each, as long as the relative difference; the last row is the sum of the
    others."""
    from rich.bar import Bar
    from rich.console import Console
    from rich.table import Table

    table = Table(
        box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0 if with_base else 1)
    )
    signs, width = (
        ("signs", 8) if with_base else ("equal signs", 30)
    )  # so that it fits into 80 columns
    task_headings = ("A-base", "B-base", "task cos", "task signs") if with_base else ()
    for position, heading in enumerate(("", "|B-A|/|A|", "", "cosine", signs, *task_headings)):
        table.add_column(heading, justify="left" if position in (0, 2) else "right", no_wrap=True)
    longest = max((row.weights.relative or 0.0 for row in rows), default=0.0) or 1.0
    for row in rows:
        weights = row.weights
        tasks = row.tasks
        bar = Bar(longest, 0, weights.relative or 0.0, width=width)
        cells = [_number(weights.cosine), _number(weights.equal_signs)]
        if with_base:
            scale = row.base_norm or math.nan
            lengths = [tasks.norm_x / scale, tasks.norm_y / scale] if tasks else [None, None]
            cells += map(
                _number,
                [*lengths, tasks.cosine if tasks else None, tasks.equal_signs if tasks else None],
            )
        table.add_row(row.name, _number(weights.relative), bar, *cells)
    console = Console(
        width=240, highlight=False, force_terminal=False, force_jupyter=False, color_system=None
    )
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
