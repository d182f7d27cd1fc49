"""What a search found, as rows: the parents, what else one compares with, and the winner of each stage. And rows as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from ..fitness.scores import Scores
from ..recipes.recipe import Recipe

RowStage = Literal["base", "source", "average", "random", "ps-first", "ps", "dfs-first", "dfs"]


@dataclass(frozen=True)
class Row:
    """One model on the test split (the validation split where there is no test).

    Attributes:
        stage: Where the model comes from: ``base``, ``source``, the plain ``average`` of the sources, or the stage of the
            search that it won (``ps``, ``dfs``, ``random``, or ``ps-first`` and ``dfs-first`` before them). Whoever looks for a
            row looks for its stage.
        model: What the model is called in tables.
        scores: What it scored.
        evaluations: What was spent to find it, in scores of all search examples.
        seconds: Evaluation time of these trials.
        winner: Whether it is what the search ended with.
    """

    stage: RowStage
    model: str
    scores: Scores
    evaluations: float = 0
    seconds: float = 0.0
    winner: bool = False

    def to_json(self) -> dict[str, Any]:
        """The row without its scores per example, for ``results.json`` and the record."""
        return {
            "stage": self.stage,
            "model": self.model,
            "fitness": self.scores.mean,
            "fitness_se": self.scores.standard_error,
            "accuracy": self.scores.accuracy,
            "accuracy_se": self.scores.accuracy_error,
            "evaluations": int(self.evaluations) if self.evaluations == int(self.evaluations) else self.evaluations,
            "seconds": self.seconds,
            "winner": self.winner,
        }


@dataclass(frozen=True)
class Result:
    """What a search found.

    Attributes:
        winner: The recipe that scored best on the validation split (on the search split where there is none).
        split: What `rows` were measured on.
        rows: Base, sources, uniform average, the winner of each stage.
    """

    winner: Recipe
    split: str
    rows: list[Row] = field(default_factory=list)

    @property
    def examples(self) -> int:
        """Number of examples that the rows were measured on."""
        return max((row.scores.values.size for row in self.rows), default=0)

    def row(self, stage: RowStage) -> Row:
        """The first row of a stage; raises `KeyError` where there is none."""
        found = next((row for row in self.rows if row.stage == stage), None)
        if found is None:
            raise KeyError(stage)
        return found

    def to_json(self) -> dict[str, Any]:
        """The comparison, for ``results.json`` and the record."""
        return {"split": self.split, "examples": self.examples, "rows": [row.to_json() for row in self.rows]}

    def __str__(self) -> str:
        """The comparison as a table."""
        return rows_table(self.rows, f"{self.examples} {self.split} examples; ± is one standard error; * is the winner")


def rows_table(rows: Sequence[Row], caption: str) -> str:
    """Models side by side: fitness and accuracy with standard errors, and what they cost."""
    table = Table(box=None, header_style="bold", pad_edge=False, caption=caption, caption_justify="left")
    for heading in ("", "fitness", "accuracy", "evaluations", "seconds"):
        table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.model}{' *' if row.winner else ''}",
            fitness_text(row.scores),
            accuracy_text(row.scores),
            f"{row.evaluations:g}" if row.evaluations else "",
            f"{row.seconds:.0f}" if row.evaluations else "",
        )
    return render(table)


def fitness_text(scores: Scores) -> str:
    """Fitness and its standard error, or that the evaluation failed."""
    return plus_minus(scores.mean, scores.standard_error) or "failed"


def accuracy_text(scores: Scores) -> str:
    """Accuracy and its standard error; empty where the task cannot tell."""
    return plus_minus(scores.accuracy, scores.accuracy_error)


def plus_minus(value: float | None, error: float | None) -> str:
    """A number of a table with its standard error, where it has one; empty where there is no number.

    Example:
        >>> plus_minus(0.75, 0.02), plus_minus(0.75, None), plus_minus(None, None)
        ('0.750 ± 0.020', '0.750', '')
    """
    if value is None:
        return ""
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def render(table: Table) -> str:
    """A table as text, at most as wide as it needs."""
    console = Console(width=160, highlight=False, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())
