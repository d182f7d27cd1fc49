"""The ledger of a checkpoint: how many tensors of its sources became what, so that nothing is lost
in silence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .checkpoint import Checkpoint, Parent


@dataclass(frozen=True)
class Ledger:
    """Counts of the tensors that a checkpoint is made of.

    Attributes:
        kinds: Tensors of the result that are ``merged``, ``scaled``, ``zero`` or, perhaps in
            another dtype, ``copied from`` a source.
        dropped: Tensors of the sources that the result does without, by the reason.

    Example:
        >>> print(check_recipe(Recipe.load("recipe.yaml")).ledger)  # doctest: +ELLIPSIS
        21 tensors: 21 merged...
    """

    kinds: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Ledger:
        """Count every tensor of a checkpoint and of its sources."""
        ledger = cls()
        used = set[tuple[int, str]]()
        for name in checkpoint.tensors:
            origin = checkpoint.origin(name)
            donor = f" from {origin.inputs[0][0].ref.label}" if origin.kind == "copied" else ""
            ledger.kinds[origin.kind + donor] += 1
            used |= {(id(source), own) for source, own in origin.inputs}
        for source in checkpoint.sources:
            left = [own for own in source.tensors if (id(source), own) not in used]
            ledger.dropped.update(checkpoint.unused(source, own) for own in left)
            ledger.dropped.update("stored, but the head is the embeddings" for _ in source.tied)
        return ledger

    def __str__(self) -> str:
        kinds = [f"{count} {kind}" for kind, count in self.kinds.items()]
        text = f"{self.kinds.total()} tensors: {', '.join(kinds)}"
        if self.dropped:
            reasons = [f"{why} ({count})" for why, count in self.dropped.items()]
            text += f"; {self.dropped.total()} left out: {', '.join(reasons)}"
        return text


def sources_of(*checkpoints: Checkpoint | None) -> list[Parent]:
    """The sources of several checkpoints, each once, in order."""
    found = [
        source
        for checkpoint in checkpoints
        if checkpoint is not None
        for source in checkpoint.sources
    ]
    return list({id(source): source for source in found}.values())
