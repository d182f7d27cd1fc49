"""Noise in place of what a fine-tune has learned: a control, for what a search finds by directions
alone.

"The Appeal and Reality of Recycling LoRAs with Adaptive Merging" (arXiv:2602.12323) found that a
pool of random adapters does nearly as well as one of real ones.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoints.checkpoint import PIECE, Checkpoint, Origin, Parent
from ..checkpoints.headers import TensorInfo
from ..checkpoints.lora import CONFIG_FILE, WEIGHTS_FILE
from ..checkpoints.model_folder import make_readable
from ..checkpoints.writer import write_checkpoint
from ..errors import SourceError
from ..recipes.recipe import SourceRef

if TYPE_CHECKING:
    from torch import Tensor

NOISE_FILE = "noise.txt"  # in a folder of noise: what it stands for


# Let d = W - W_0 be what a fine-tune changed in a tensor of n elements. In its place stands
#   d' = s z,   s = sqrt(sum d^2 / n),   z_i ~ N(0, 1),
# which has the length of d in expectation and no direction of it. Of an adapter, whose change is
# s B A, each factor is replaced like this, so that the product keeps its rank. The generator of a
# tensor is keyed by the seed, the number of the source and the tensor's name: the bits depend on
# nothing else.
class NoiseCheckpoint(Checkpoint):
    """A fine-tune whose differences from its base are noise of the same size, tensor by tensor.

    A tensor that equals the base's stays so; one that the base lacks is the fine-tune's.

    Args:
        source: The fine-tune.
        base: Its base.
        seed: Seed of the noise.
        number: Number of the source in its search.
    """

    def __init__(self, source: Parent, base: Parent, seed: int, number: int) -> None:
        self.ref = source.ref
        self.tokenizer_source = source
        self.settings = (seed, number)
        self._source = source
        self._base = base
        self._key = f"{seed}\0{number}"

    @property
    def config(self) -> Any:
        """The fine-tune's config."""
        return self._source.config

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """The fine-tune's tensors, in their dtypes."""
        return {name: info.converted(None) for name, info in self._source.tensors.items()}

    @property
    def sources(self) -> list[Parent]:
        """The fine-tune and its base."""
        return [self._source, self._base]

    def origin(self, name: str) -> Origin:
        """Return the tensors that give a tensor its noise's size and its place: fine-tune, base."""
        both = [each for each in self.sources if name in each.tensors]
        kind = "merged" if len(both) > 1 else "copied"
        return Origin(kind, tuple((each, name) for each in both))  # type: ignore[arg-type]

    def stream(self, name: str) -> Iterator[Tensor]:
        """Read the base's tensor, and add noise."""
        own = self._source.read(name)
        if name not in self._base.tensors or not self.tensors[name].is_float:
            yield own.reshape(-1)
            return
        base = self._base.read(name).reshape(-1)
        pairs = zip(own.reshape(-1).split(PIECE), base.split(PIECE), strict=True)
        squares = [float((a.double() - b.double()).square().sum()) for a, b in pairs]
        size = math.sqrt(math.fsum(squares) / max(1, own.numel()))
        generator = _generator(f"{self._key}\0{name}")
        for piece in base.split(PIECE):
            yield _noisy(piece, size, generator).to(own.dtype)

    def write_companions(self, folder: Path) -> None:
        """Copy what lies beside the fine-tune's weights."""
        self._source.write_companions(folder)


def check_noise(source: Parent, base: Parent, name: str) -> None:
    """Raise `SourceError` where noise of the size of a source's changes is not defined."""
    reason = ""
    if source.entries or not source.is_whole or source.part is not None:
        reason = "it is a part of a model, or has components"
    elif _is_adapter(source, base):
        beyond = {change.beyond for change in source.changes.values()}
        beyond &= {"DoRA", "a bias", "a whole tensor"}
        reason = f"the adapter has {beyond.pop()} beside its factors" if beyond else ""
    else:
        shared = source.tensors.keys() & base.tensors.keys()
        if any(source.tensors[each].shape != base.tensors[each].shape for each in shared):
            reason = "it has another vocabulary than the base"
    if reason:
        raise SourceError(
            f"compare.baselines: noise cannot stand for {name}: {reason}; leave noise out"
        )


def write_noise(source: Parent, base: Parent, out: Path, *, seed: int, number: int) -> SourceRef:
    """Write noise in place of a source into a folder, unless it is there: a whole model, or an
    adapter where the source is one of the base.

    The folder appears when it is whole. The same seed and number give the same bits.

    Args:
        source: The source.
        base: Its base.
        out: The folder.
        seed: Seed of the noise.
        number: Number of the source in its search.

    Returns:
        The reference that a recipe has for it.

    Raises:
        SourceError: The source cannot be read.
    """
    text = f"noise of the size of the changes of {source.ref.label}, seed {seed}\n"
    if not _is_adapter(source, base):
        if not (out / NOISE_FILE).exists():
            noise = NoiseCheckpoint(source, base, seed, number)
            write_checkpoint(noise, out, files={NOISE_FILE: text})
        return SourceRef(model=str(out))
    if not (out / NOISE_FILE).exists():
        _write_adapter(source, out, text, f"{seed}\0{number}")
    return base.ref.model_copy(update={"adapter": str(out)})


def is_noise(ref: SourceRef) -> bool:
    """Tell whether a source is noise, written by `write_noise`."""
    return os.path.isfile(os.path.join(ref.adapter or ref.model, NOISE_FILE))


def _is_adapter(source: Parent, base: Parent) -> bool:
    return source.adapter is not None and source.same_folder(base) and base.adapter is None


def _write_adapter(source: Parent, out: Path, text: str, key: str) -> None:
    from safetensors.torch import load_file, save_file

    adapter = source.adapter
    assert adapter is not None  # the caller has looked
    adapter.download()
    factors = {name for change in source.changes.values() for name in (change.a, change.b)}
    tensors = load_file(adapter.folder / adapter.file)
    for name in factors:
        own = tensors[name]
        size = math.sqrt(float(own.double().square().mean()))
        flat = own.new_zeros(own.numel())
        noise = _noisy(flat, size, _generator(f"{key}\0{name}"))
        tensors[name] = noise.to(own.dtype).reshape(own.shape)
    unfinished = out.with_name(f".{out.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_file(tensors, unfinished / WEIGHTS_FILE, metadata={"format": "pt"})
    shutil.copyfile(adapter.folder / CONFIG_FILE, unfinished / CONFIG_FILE)
    (unfinished / NOISE_FILE).write_text(text, encoding="utf-8")
    make_readable(unfinished)
    os.replace(unfinished, out)


def _generator(key: str) -> np.random.Generator:
    number = int.from_bytes(sha256(key.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=number))


def _noisy(piece: Tensor, size: float, generator: np.random.Generator) -> Tensor:
    """Numbers with noise of a size added, in float32; themselves where the size is 0."""
    import torch

    if size == 0.0:
        return piece
    drawn = generator.standard_normal(piece.numel(), dtype=np.float32)
    return piece.float() + torch.from_numpy(drawn) * size
