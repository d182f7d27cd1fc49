"""Names of splits: the search's own, ``retain:NAME`` of retained data, and further ones beside the
search's own."""

from __future__ import annotations

from dataclasses import dataclass

from ...fitness.data.spec import DataSpec
from ...fitness.registry import TaskSpec

SPLITS = ("search", "validation", "test")
RETAINED = "retain:"


@dataclass(frozen=True)
class ExtraSplit:
    """Split of examples beside one of the search's own.

    Attributes:
        name: Its name.
        beside: The search's own split that it goes with.
        data: Where its examples come from.
        fitness: The task that they are for; the search's own where None.
    """

    name: str
    beside: str
    data: DataSpec
    fitness: TaskSpec | None
