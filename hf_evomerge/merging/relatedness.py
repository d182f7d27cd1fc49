"""Relatedness of the sources of a merge: lengths of task vectors and angles between them.

For a summary in words only: float32 inner products over a part of each large tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..checkpoints.checkpoint import Findings
from ..checkpoints.diff import FAR, UNRELATED

if TYPE_CHECKING:
    from torch import Tensor

APART = 0.7  # cosine; fine-tunes of one base have nearly 1, unrelated models nearly 0
ALIKE = 0.4  # cosine of task vectors; a base that is swapped with a source gives them its own difference, .5 and more
_PAIRS = 6


class Relatedness:
    """Inner products of the merged vectors with each other, summed over the tensors.

    Args:
        names: Names of the vectors.
        task_vectors: Whether they are differences to a base, rather than weights.
    """

    def __init__(self, names: Sequence[str], *, task_vectors: bool) -> None:
        self.names = list(names)
        self.task_vectors = task_vectors
        self.base = 0.0
        self.products = np.zeros((len(self.names), len(self.names)))

    def add(self, base: Tensor | None, vectors: Sequence[Tensor]) -> None:
        """Count one slice of one tensor."""
        if len(vectors) != len(self.names):
            return  # a slice of the recipe in which other sources take part
        for i, left in enumerate(vectors):
            for j, right in enumerate(vectors):
                self.products[i, j] += float(left.dot(right))
        self.base += float(base.dot(base)) if base is not None else 0.0

    def findings(self) -> Findings:
        """Report lengths and angles, and warn where the sources are hardly related."""
        found = Findings()
        lengths = np.sqrt(np.diag(self.products))
        if not np.isfinite(self.products).all() or not lengths.any():
            return found
        if self.task_vectors and self.base > 0:
            shares = lengths / math.sqrt(self.base)
            listed = ", ".join(f"{name} {share:.3f}" for name, share in zip(self.names, shares, strict=True))
            found.notes.append(f"task vectors, in lengths of the base: {listed}")
            if (largest := float(shares.max())) >= FAR:
                found.warnings.append(
                    f"a task vector is as long as {largest:.2f} of the base: the sources and the base {UNRELATED}"
                )
        if cosines := self._cosines(lengths):
            what = "task vectors" if self.task_vectors else "weights"
            shown = ", ".join(f"{a} and {b} {cosine:.3f}" for (a, b), cosine in list(cosines.items())[:_PAIRS])
            more = "" if len(cosines) <= _PAIRS else f", ... (from {min(cosines.values()):.3f} to {max(cosines.values()):.3f})"
            found.notes.append(f"cosine between {what}: {shown}{more}")
            pair, most = max(cosines.items(), key=lambda item: item[1])
            if self.task_vectors and most > ALIKE:
                found.warnings.append(f"{' and '.join(pair)} differ from the base in the same direction: is it their base?")
            if not self.task_vectors and (least := min(cosines.values())) < APART:
                found.warnings.append(
                    f"the cosine between two sources' weights is {least:.2f}; that of fine-tunes of one base is "
                    f"nearly 1, so they {UNRELATED}"
                )
        return found

    def _cosines(self, lengths: np.ndarray) -> dict[tuple[str, str], float]:
        return {
            (self.names[j], self.names[i]): float(self.products[i, j] / (lengths[i] * lengths[j]))
            for i in range(len(self.names))
            for j in range(i)
            if lengths[i] > 0 and lengths[j] > 0
        }
