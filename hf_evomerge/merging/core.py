"""Core space (arXiv:2509.17786): what LoRA adapters change of one weight, as small matrices that
any method can merge, so that the result is an adapter again."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING

from ..checkpoints.checkpoint import Parent
from ..checkpoints.source import Source
from ..recipes.layer_groups import classify
from .arithmetic import TensorJob
from .gradient import Products, add_by_runs, zeros
from .method import Call, MergeMethod, Values
from .statistics import SUM_BLOCK

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def why_no_products(
    sources: Sequence[Parent],
    base: Parent | None,
    kept: Container[str] = (),
    *,
    base_too: bool = False,
) -> str | None:
    """Reason why sources are more than sums of the base and products of two factors; None where
    they are not. Reads headers only.

    Args:
        sources: The merged sources.
        base: The recipe's base; without one the sources need only have one base.
        kept: Names of tensors that are not merged.
        base_too: Whether a source may be the base itself, without an adapter.
    """
    origin = base if base is not None else sources[0]
    if base is not None and base.adapter is not None:
        return f"{base} is no plain base: it has an adapter"
    for source in sources:
        own = source.whole if source.whole.entries else source
        has_adapter = isinstance(own, Source) and own.adapter is not None
        if not (has_adapter or base_too):
            return f"{source} is no LoRA adapter"
        if not source.same_folder(origin):
            return f"{source} is no adapter of {origin.folder}"
        if source.sentence.has_weights and source.sentence.folder != source.folder:
            return f"{source} has modules after the encoder of its own"
        for name, change in source.changes.items():
            beyond = change.beyond
            if beyond or name in kept or classify(name)[2] == "experts":
                more = beyond or "experts, or a tensor that is not merged"
                return (
                    f"{source} changes {name} by more than the product of two factors of a "
                    f"linear layer or a convolution ({more})"
                )
    return None


def factors_of(sources: Sequence[Parent], name: str) -> dict[int, tuple[Tensor, Tensor]]:
    """The two factors of each source's change of a weight, by its position; see
    `Adapter.scaled_factors`."""
    found = {}
    for number, source in enumerate(sources):
        if source.adapter is not None and name in source.changes:
            found[number] = source.adapter.scaled_factors(source.changes[name])
    return found


# Adapter t changes a weight by B_t A_t, with the scaling alpha / r in B_t. A weight that is stored
# with its inputs as rows is changed by A_t' B_t', and has the transpose of M_t below. With the thin
# singular value decompositions
#
#   [B_1 ... B_T] = U_B S_B X',   [A_1; ...; A_T] = Y S_A V_A                          (1)
#
# every B_t is in the span of U_B and every A_t in that of V_A, so
#
#   M_t = U_B' B_t A_t V_A',   U_B M_t V_A = B_t A_t                                   (2)
#
# loses nothing: M_t is at most (sum of ranks) x (sum of ranks). Methods merge the M_t as they would
# merge weights, with a base of zeros: M = merge(0, M_1, ..., M_T), and the change of the weight is
#
#   (U_B M) V_A                                                                        (3)
#
# Numbers for runs of the weight's rows give an M for each run, from which these rows of U_B M are
# made.
#
# What a method looks at (magnitudes, signs, angles of single elements) depends on the basis. Its
# order is that of the singular values, the largest entry of each vector is positive, and vectors of
# singular values that float32 does not tell from 0 are 0. So two equal adapters give the same M,
# and chance has no say.
class Core:
    """The changes of one weight in core space.

    Args:
        name: Raw name of the weight.
        method: The merge method.
        factors: Those of `factors_of`; the change of the other sources is 0.
        sources: Number of merged sources.
        seed: The recipe's seed.
        keep, device: As for `TensorJob`.

    Attributes:
        left: U_B: float64, or on a device float32; rows of the weight x at most the sum of the
            ranks.
        right: V_A: likewise, at most the sum of the ranks x columns of the weight.
    """

    def __init__(
        self,
        name: str,
        method: MergeMethod,
        factors: Mapping[int, tuple[Tensor, Tensor]],
        sources: int,
        *,
        seed: int,
        keep: bool = False,
        device: torch.device | None = None,
    ) -> None:
        import torch

        pairs = {at: (left.double(), right.double()) for at, (left, right) in factors.items()}
        self.left = _basis(torch.cat([left for left, _ in pairs.values()], dim=1))
        self.right = _basis(torch.cat([right for _, right in pairs.values()]).T).T
        zero = torch.zeros(self.left.shape[1], self.right.shape[0])
        cores = [zero] * sources
        for at, (left, right) in pairs.items():
            cores[at] = ((self.left.T @ left) @ (right @ self.right.T)).float()  # (2)
        if device is not None:
            self.left = self.left.to(device, torch.float32)
            zero = zero.to(device)
            cores = [core.to(device) for core in cores]
        self.cores = cores
        self.job = TensorJob(name, method, zero, cores, seed=seed, keep=keep)

    def merge(self, sources: Sequence[Values], options: Values) -> Tensor:
        """Merge: U_B M of (3), whose product with `right` is the change of the weight.

        Args:
            sources, options: As `TensorJob.call` takes them.

        Raises:
            RecipeError: A parameter has more numbers than the weight has rows.
        """
        import torch

        rows = len(self.left)
        out = self.left.new_empty(rows, self.job.shape[1])
        core = torch.empty(self.job.shape, device=self.left.device)
        call = self.job.call(sources, options)
        with torch.no_grad():
            for first, last, here in call.runs(rows):
                self.job.fill(here, core)
                out[first:last] = self.left[first:last] @ core.to(out.dtype)
        return out

    def alone(self, source: int | None) -> Tensor:
        """Return what `merge` would for one source's change alone, by its position, or for none."""
        if source is None:
            return self.left.new_zeros(len(self.left), self.job.shape[1])
        return self.left @ self.cores[source].to(self.left.dtype)

    def products(self, slope: Tensor, sources: Sequence[Values], options: Values) -> Products:
        """Derivatives of a loss with respect to the smooth parameters; see `products` of
        ``gradient.py``.

        Args:
            slope: The loss's gradient S with respect to what `merge` returns. That with respect to
                M is U_B' S, over the rows that M is for.
            sources, options: As for `merge`.
        """

        def gradient(first: int, last: int) -> tuple[Tensor, range]:
            of_core = self.left[first:last].T @ slope[first:last].to(self.left.dtype)
            return of_core.flatten(), range(0, self.job.numel, SUM_BLOCK)

        call = Call.of_tensor(self.job.name, sources, options)
        totals = zeros(self.job.method, call)
        add_by_runs(self.job, call, len(self.left), gradient, totals)
        return totals


def _basis(vectors: Tensor) -> Tensor:
    """Left singular vectors as columns, by falling singular values; see `Core` for signs and
    zeros."""
    import torch

    u, values, _ = torch.linalg.svd(vectors, full_matrices=False)
    signs = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    # Factors are rounded to float32, which moves a singular value by no more than this.
    there = values > torch.finfo(torch.float32).eps * vectors.norm()
    return u * signs * there
