"""The ledger of a checkpoint: what became of every tensor of its sources, so that nothing is lost in silence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .checkpoint import Checkpoint, Parent


@dataclass(frozen=True)
class Ledger:
    """Account of what a checkpoint is made of.

    Attributes:
        merged: Tensors that are merged from several, and what from.
        copied: Tensors that are copied, and what from. Other dtypes count as copies.
        scaled: Copies that a factor was multiplied into, and what from.
        dropped: Tensors of the sources that the result does without, and why.
        copies: How many are copied from each source, by its short name.

    Example:
        >>> print(check_recipe(Recipe.load("recipe.yaml")).ledger)  # doctest: +ELLIPSIS
        21 tensors: 21 merged...
    """

    merged: dict[str, tuple[str, ...]]
    copied: dict[str, str]
    scaled: dict[str, str]
    dropped: dict[str, str]
    copies: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Ledger:
        """Account for every tensor of a checkpoint and of its sources."""
        ledger, used = cls({}, {}, {}, {}), set[tuple[int, str]]()
        for name in checkpoint.tensors:
            origin = checkpoint.origin(name)
            inputs = tuple(f"{source}: {own}" for source, own in origin.inputs)
            if origin.kind == "merged":
                ledger.merged[name] = inputs
            else:
                (ledger.copied if origin.kind == "copied" else ledger.scaled)[name] = inputs[0]
                ledger.copies[origin.inputs[0][0].ref.label] += origin.kind == "copied"
            used |= {(id(source), own) for source, own in origin.inputs}
        for source in checkpoint.sources:
            for own in source.tensors:
                if (id(source), own) not in used:
                    ledger.dropped[f"{source}: {own}"] = checkpoint.unused(source, own)
            for own in source.tied:
                ledger.dropped[f"{source}: {own}"] = "stored, but the head is the embeddings"
        return ledger

    def __str__(self) -> str:
        donors = list((+self.copies).items())
        copied = f"copied from {donors[0][0]}" if len(donors) == 1 else "copied"
        if len(donors) > 1:
            copied += f" ({', '.join(f'{count} from {label}' for label, count in donors)})"
        counts = [(len(self.merged), "merged"), (len(self.copied), copied), (len(self.scaled), "scaled")]
        total = sum(count for count, _ in counts)
        text = f"{total} tensors: " + ", ".join(f"{count} {what}" for count, what in counts if count)
        if self.dropped:
            reasons = Counter(self.dropped.values())
            text += f"; {len(self.dropped)} left out: " + ", ".join(f"{why} ({count})" for why, count in reasons.items())
        return text


def sources_of(*checkpoints: Checkpoint | None) -> list[Parent]:
    """The sources of several checkpoints, each once, in order."""
    found = [source for checkpoint in checkpoints if checkpoint is not None for source in checkpoint.sources]
    return list({id(source): source for source in found}.values())
