"""Names of splits: the search's own, of retained data, and of an objective's own examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SPLITS = ("search", "validation", "test")


@dataclass(frozen=True)
class SplitName:
    """The name of a split of examples. Its text is the key of the split in a study.

    Attributes:
        split: ``search``, ``validation`` or ``test``; for retained data the name of the data.
        kind: ``own``: the search's; ``retain``: data that the search does not look at; ``objective``: an objective's own.
        objective: The name of that objective.
    """

    split: str
    kind: Literal["own", "retain", "objective"] = "own"
    objective: str = ""

    def __str__(self) -> str:
        return ":".join(part for part in ("" if self.kind == "own" else self.kind, self.objective, self.split) if part)

    @classmethod
    def parse(cls, text: str) -> SplitName:
        """Read the text of a name."""
        kind, _, rest = text.partition(":")
        if kind == "retain" and rest:
            return cls(rest, "retain")
        objective, _, split = rest.partition(":")
        return cls(split, "objective", objective) if kind == "objective" and split else cls(text)
