"""Plan of a result: for each tensor where it is read, and in which dtype and shape it is
written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from ..checkpoints.checkpoint import Checkpoint, Origin, pieces_of
from ..checkpoints.headers import TensorInfo, torch_dtype
from ..merging.method import Values

if TYPE_CHECKING:
    import torch

Input = tuple[Checkpoint, str]  # a checkpoint, and the raw name of one of its tensors


@dataclass(frozen=True, slots=True)
class Planned:
    """Tensor of a result: a copy of its one input, or merged from several.

    Attributes:
        info: Its dtype and shape.
        inputs: Inputs that it is made from: a checkpoint and the name there, of a merge one for
            each source.
        base: The base of a merge, and the name there.
        values: Complete per-source parameters of a merge.
        options: Complete options of a merge.
        is_merged: Whether it is merged; a mask or a table of positions is that of the first source,
            what `MergePart.kept` names that of one.
    """

    info: TensorInfo
    inputs: tuple[Input, ...]
    base: Input | None = None
    values: Sequence[Values] = ()
    options: Values = field(default_factory=dict)
    is_merged: bool = False

    @classmethod
    def copy(cls, checkpoint: Checkpoint, name: str, dtype: str | None) -> Planned:
        """A tensor of a checkpoint, in another dtype where it is a floating-point number and one is
        given."""
        return cls(checkpoint.tensors[name].converted(dtype), ((checkpoint, name),))


class PlannedCheckpoint(Checkpoint):
    """A checkpoint whose tensors are planned before one is read."""

    planned: dict[str, Planned]

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Dtype and shape of every tensor."""
        return {name: planned.info for name, planned in self.planned.items()}

    def origin(self, name: str) -> Origin:
        """Origin of a copied tensor."""
        checkpoint, own = self.planned[name].inputs[0]
        return checkpoint.origin(own)

    def stream(self, name: str) -> Iterator[torch.Tensor]:
        """Read a copy, and convert it where the dtype differs."""
        planned = self.planned[name]
        checkpoint, own = planned.inputs[0]
        dtype = torch_dtype(planned.info.dtype)
        pieces = (
            pieces_of(checkpoint.read(own, dtype))
            if checkpoint.is_stored
            else checkpoint.stream(own)
        )
        for piece in pieces:
            yield piece if dtype is None else piece.to(dtype)
