"""Vocabularies that differ by rows at their end: how many rows are merged, and whose rows follow. No torch.

The embeddings, and the head where it is not tied, have one row per token. Sources that were given further tokens at the end of
one vocabulary still agree about the rows that they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..checkpoints.checkpoint import Checkpoint, Parent
from ..checkpoints.compatibility import OTHER_VOCABULARY
from ..checkpoints.headers import TensorInfo
from ..errors import SourceError
from ..recipes.layer_groups import classify
from ..recipes.recipe import Recipe


@dataclass(frozen=True)
class Vocabulary:
    """What becomes of the rows.

    Attributes:
        shared: Number of rows that all sources have; these are merged.
        size: Number of rows of the result.
        donor: Whose rows follow those that are merged, as they are; None where none follow.
    """

    shared: int
    size: int
    donor: Parent | None = None

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor of the result."""
        return (self.size, *shape[1:])


def plan_vocabulary(recipe: Recipe, sources: Sequence[Parent], base: Parent | None) -> Vocabulary | None:
    """What the recipe says, for these sources; None where all vocabularies are of one size.

    Args:
        recipe: The recipe.
        sources: Those that are merged, in the order of ``recipe.merge_sources``.
        base: The base.

    Raises:
        SourceError: The sizes differ and the recipe does not say what to do.
    """
    everyone = [*sources, *([base] if base is not None else [])]
    sizes = [source.vocab_size for source in everyone]
    if len(set(sizes)) == 1:
        return None
    choice = recipe.vocabulary
    if choice is None or choice == "refuse":
        other = next(source for source in everyone if source.vocab_size != sizes[0])
        raise SourceError(
            f"vocabulary size differs: {sizes[0]} in {everyone[0]}, {other.vocab_size} in {other}; {OTHER_VOCABULARY}"
        )
    if isinstance(choice, str):
        return Vocabulary(min(sizes), min(sizes))
    number = choice["from"]
    donor = base if number == "base" else sources[recipe.merge_sources.index(int(number))]
    assert donor is not None  # the recipe was checked
    return Vocabulary(min(sizes), donor.vocab_size, donor if donor.vocab_size > min(sizes) else None)


def has_rows(name: str, info: TensorInfo, source: Checkpoint) -> bool:
    """Whether a tensor has one row per token: it is outside the blocks and its first dimension is the vocabulary's size."""
    return classify(name)[0] != "block" and bool(info.shape) and info.shape[0] == source.vocab_size
