"""Splits of the examples: the search's own, ``retain:NAME`` of retained data, and further ones
beside the search's own."""

from __future__ import annotations

from dataclasses import dataclass

from ...fitness.data.spec import DataSpec
from ...fitness.registry import TaskSpec

SPLITS = ("search", "validation", "test")
RETAINED = "retain:"


class Sizes(dict[str, int]):
    """Number of examples per split."""

    @property
    def chosen_on(self) -> str:
        """Split that models are chosen on: validation, or search where there is none."""
        return "validation" if "validation" in self else "search"

    @property
    def judged_on(self) -> str:
        """Split that the table of results is measured on."""
        return next((split for split in ("test", "validation") if split in self), "search")

    # A fine-tune that has learned its examples by heart is the best on them. Where no validation
    # split is there, trainings are ranked on the test split: too kind to LoRA, and never too hard.
    @property
    def ranked_on(self) -> str:
        """Split that trainings are ranked on."""
        return "validation" if "validation" in self else self.judged_on


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
