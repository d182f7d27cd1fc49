"""Extract a LoRA adapter from a whole fine-tune: the best part of a rank of every linear weight's
change.

Nothing else is in such an adapter: what changed in norms, embeddings and biases is lost, and named.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.checkpoint import Origin, Parent
from ..checkpoints.compatibility import check_mergeable
from ..checkpoints.headers import tensor_order
from ..checkpoints.open import open_source
from ..checkpoints.unchanged import unchanged_tensors
from ..checkpoints.writer import check_target, write_checkpoint
from ..errors import EvoMergeError, SourceError
from ..recipes.recipe import SourceRef
from .adapter import AdapterCheckpoint, Factors, Module, truncate
from .build_record import write_build_record

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

_STANDS = 1e-6  # the energy stands where a block of directions adds no more than this share of it


def extract_adapter(
    fine_tune: SourceRef | str | Path,
    base: SourceRef | str | Path,
    out: str | Path,
    *,
    rank: int = 16,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> ExtractedAdapter:
    """Write what a fine-tune changed as an adapter of its base.

    Args:
        fine_tune, base: The two models: folders, or repositories on the Hub.
        out: The folder to make.
        rank: The rank of every module.
        overwrite, trust_remote_code: As for `build_model`.

    Returns:
        The adapter; as text, what it keeps and what it loses.

    Raises:
        SourceError: One of the models cannot be read, they are no fine-tune and base, a number of
            them is not finite, or nothing linear has changed.
        EvoMergeError: The folder exists, or the rank is less than 1.

    Example:
        >>> report = extract_adapter("japanese", "base", "japanese-lora", rank=4)
        >>> print(report)  # doctest: +ELLIPSIS
        layer...
    """
    check_target(Path(out), overwrite=overwrite)
    models = [open_source(ref, trust_remote_code=trust_remote_code) for ref in (fine_tune, base)]
    adapter = ExtractedAdapter(models[0], models[1], rank)

    def finish(folder: Path) -> None:
        write_build_record(folder, f"the change from {models[1]} to {models[0]}", adapter.energy)

    write_checkpoint(adapter, out, max_shard_size=sys.maxsize, overwrite=overwrite, finish=finish)
    return adapter


class ExtractedAdapter(AdapterCheckpoint):
    """The change of every linear weight, cut to a rank.

    Args:
        source: The fine-tune.
        base: Its base.
        rank: The largest rank of a module.

    Raises:
        EvoMergeError: The rank is less than 1.
        SourceError: They are no fine-tune and base, or no linear weight has changed.
    """

    def __init__(self, source: Parent, base: Parent, rank: int) -> None:
        if rank < 1:
            raise EvoMergeError(f"rank: an adapter has at least 1, not {rank}")
        check_mergeable([source], base)
        if base.adapter is not None:
            raise SourceError(
                f"--base: {base} is a model with an adapter, which the result could not "
                "name; merge it first"
            )
        self.ref = source.ref
        self.tokenizer_source = source
        self.base = base.pinned
        self._source = source
        self._base = base
        self.settings = (rank,)
        unchanged = unchanged_tensors(source, base)
        linear = linear_layers(base)
        changed = [name for name in sorted(base.tensors, key=tensor_order) if name not in unchanged]
        lost = [name for name in changed if name not in linear]
        self.lost = {name: (float(self._change(name).square().sum()), 0.0) for name in lost}
        self.layers = [name for name, info in base.tensors.items() if len(info.shape) > 1]
        self.modules = {}
        for name in changed:
            if name in linear:
                module, transposed = linear[name]
                shape = base.tensors[name].shape
                self.modules[name] = Module(module, shape, min(rank, *shape), transposed)
        if not self.modules:
            raise SourceError(
                f"{source}: no linear weight differs from {base}; there is nothing to extract"
            )
        self.measured = list(self.modules)
        super().__init__()

    def factors(self, name: str) -> Factors:
        """Truncate the SVD of a change, found by a block Krylov method from fixed random
        directions.

        The space of the rows of ``R A``, ``R A (A'A)``, ``R A (A'A)^2``, ... grows by a block until
        the energy of the best `rank` directions in it stands. Other than subspace iteration, which
        keeps the last block alone, it converges on a flat spectrum too (Musco and Musco,
        arXiv:1504.05477); once it has as many directions as ``A`` has rows or columns, it is exact.
        """
        import torch

        # Block Krylov iteration (Musco and Musco, arXiv:1504.05477, Algorithm 2), with A = `change`
        # and random R of rank + 8 rows:
        #
        #   K = [R A, R A (A'A), R A (A'A)^2, ...]    rows, a block at a time       (1)
        #   Q an orthonormal basis of K,   A Q = `image`                            (2)
        #   energy = sum of the `rank` largest eigenvalues of (A Q)'(A Q)           (3)
        #
        # (3) is what the best approximation of that rank within Q keeps of |A|^2. It can only grow
        # with Q, so it stands when a block adds nothing. A Q is all that is needed of A after that.
        # R comes from a fixed seed, so an adapter is the same each time it is extracted.
        change = self._change(name)
        rank = self.modules[name].rank
        directions = min(change.shape)
        width = rank + 8
        energy = 0.0
        random = torch.Generator().manual_seed(0)
        block = change.T @ torch.randn(len(change), width, generator=random, dtype=change.dtype)
        basis = block[:, :0]
        image = change[:, :0]  # orthonormal columns, and what A makes of them
        for start in range(0, directions, width):
            joined = torch.cat([basis, block[:, : directions - start]], 1)
            block = torch.linalg.qr(joined)[0][:, start:]  # orthonormal also where nothing is new
            moved = change @ block  # (2)
            basis = torch.cat([basis, block], 1)
            image = torch.cat([image, moved], 1)
            before = energy
            energy = float(torch.linalg.eigvalsh(image.T @ image)[-rank:].sum())  # (3)
            if energy - before <= _STANDS * energy:
                break
            block = change.T @ moved  # (1)
        left, right, squares = truncate(image, basis.T, rank)
        self.squares[name] = float(change.square().sum()), float(squares[:rank].sum())
        return left, right

    def _change(self, name: str) -> Tensor:
        import torch

        after, before = (one.read(name, torch.float32) for one in self.sources)
        change = after.double() - before.double()
        if not change.isfinite().all():
            raise SourceError(
                f"not all numbers are finite in {name}: {self._source} or its base has NaN or "
                "infinite ones (hf-evomerge diff names them)"
            )
        return change

    @property
    def config(self) -> PretrainedConfig:
        """The base's config."""
        return self._base.config

    @property
    def sources(self) -> list[Parent]:
        """The fine-tune and its base."""
        return [self._source, self._base]

    def origin(self, name: str) -> Origin:
        """The weight of both that a matrix is made of."""
        weight = self._matrices[name][0]
        return Origin("merged", ((self._source, weight), (self._base, weight)))

    def to_json(self) -> dict[str, Any]:
        """Return the rank and the shares of the whole change's energy.

        They are ``kept`` (by the adapter), ``energy`` (kept by each module) and ``lost`` (by each
        tensor that no adapter changes).
        """
        pairs = [pair for _, pair in self._all_squares] + list(self.lost.values())
        whole, kept = (sum(numbers) for numbers in zip(*pairs, strict=True))
        lost = {name: round(own / whole, 6) for name, (own, _) in self.lost.items()}
        figures = {"rank": self._rank, "kept": round(kept / whole, 6)}
        return {**figures, "energy": self.energy, "lost": lost}

    def __str__(self) -> str:
        """Table of the energy that is kept, by kind of layer, as shares of the whole change's."""
        rows: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
        for name, pair in [*self._all_squares, *self.lost.items()]:
            kind = name.removesuffix(".weight").rpartition(".")[2] + (
                " (lost)" if name in self.lost else ""
            )
            for key in (kind, "total"):
                rows[key] = [have + more for have, more in zip(rows[key], (1, *pair), strict=True)]
        rows["total"] = whole = rows.pop("total")
        width = max(len(kind) for kind in rows)
        lines = [
            f"{kind:{width}}  {n:7}  {own / whole[1]:13.1%}  {kept / own:6.1%}"
            for kind, (n, own, kept) in rows.items()
        ]
        return "\n".join([f"{'layer':{width}}  weights  of the change    kept", *lines])


def linear_layers(base: Parent) -> dict[str, tuple[str, bool]]:
    """The weights of linear layers, by raw name: the module's name in the model, and whether it
    stores its inputs as rows."""
    modules = {
        raw: live.removesuffix(".weight")
        for raw, live in base.layout.modules.items()
        if live.endswith(".weight")
    }
    linear = base.layout.linear
    return {
        raw: (module, linear[module])
        for raw, module in modules.items()
        if module in linear and raw in base.tensors
    }
