"""Relatedness of the sources of a merge: warns where task vectors are too long, or angles say that
something is wrong.

For words only: float32 inner products over a part of each large tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..checkpoints.diff import FAR, UNRELATED

if TYPE_CHECKING:
    from torch import Tensor

APART = 0.7  # cosine; fine-tunes of one base have nearly 1, unrelated models nearly 0
# cosine of task vectors; a base that is swapped with a source gives them its own difference, .7
# where both are as long
ALIKE = 0.5


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
        # Lengths and cosines of the whole model follow from the sums of its tensors' products.
        for i, left in enumerate(vectors):
            for j, right in enumerate(vectors):
                self.products[i, j] += float(left.dot(right))
        self.base += float(base.dot(base)) if base is not None else 0.0

    def warnings(self) -> list[str]:
        """Warn where the sources are hardly related, or the base looks like one of them."""
        found = list[str]()
        lengths = np.sqrt(np.diag(self.products))
        if not np.isfinite(self.products).all() or not lengths.any():
            return found
        if (
            self.task_vectors
            and self.base > 0
            and (largest := float(lengths.max()) / math.sqrt(self.base)) >= FAR
        ):
            found.append(
                f"a task vector is as long as {largest:.2f} of the base: the sources and the "
                f"base {UNRELATED}"
            )
        cosines = {
            (self.names[j], self.names[i]): float(self.products[i, j] / (lengths[i] * lengths[j]))
            for i in range(len(self.names))
            for j in range(i)
            if lengths[i] > 0 and lengths[j] > 0
        }
        if cosines:
            pair, most = max(cosines.items(), key=lambda item: item[1])
            if self.task_vectors and most > ALIKE:
                found.append(
                    f"{' and '.join(pair)} differ from the base in the same direction (cosine "
                    f"{most:.2f}; fine-tunes of one base have nearly 0): is it their base?"
                )
            if not self.task_vectors and (least := min(cosines.values())) < APART:
                found.append(
                    f"the cosine between two sources' weights is {least:.2f}; that of "
                    "fine-tunes of one base is "
                    f"nearly 1, so they {UNRELATED}"
                )
        return found
