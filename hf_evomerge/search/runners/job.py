"""A job: one evaluation of one target, in a form that can be sent to another process."""

from __future__ import annotations

from dataclasses import dataclass

from ...fitness import TaskSpec
from ...recipes.recipe import Recipe
from ..evaluation.evaluator import Batch
from ..evaluation.gradients import Slopes
from ..evaluation.sources import Target


@dataclass(frozen=True)
class Job:
    """Evaluation to run.

    Attributes:
        target: The recipe, or the parent.
        split: The split that it is scored on.
        batch: Numbers of the examples; all of the split where absent.
        slopes: The gradient that is wanted, if one is.
        fitness: The task, where it is not the search's.
        rows: How many examples go together at most.
        shots: How many search examples stand in the prompt, before each question.
    """

    target: Target
    split: str = "search"
    batch: Batch | None = None
    slopes: Slopes | None = None
    fitness: TaskSpec | None = None
    rows: int | None = None
    shots: int = 0

    def __str__(self) -> str:
        return f"recipe {self.target.key}" if isinstance(self.target, Recipe) else str(self.target)
