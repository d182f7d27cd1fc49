"""Models side by side, as rows and as text: the parents, what else one compares with, and the
winner of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.table import Table

from ... import record
from ...fitness.comparison import compare, main_measure
from ...fitness.scores import Scores, plus_minus
from ...recipes.stage_names import StageName
from ...record import Contribution, Figures
from ..evaluation.sources import Target
from .constant import Constant
from .kept import Kept, kept, mean_kept

_NAME = 26  # columns, into which longer names of models are folded
RowStage = (
    StageName | Literal["base", "source", "average", "prompt", "alone", "noise", "lora", "together"]
)


@dataclass(frozen=True)
class Against:
    """Sentences of the verdict about the winner and a row.

    Attributes:
        name: What the row is called in the sentence.
        worse: Advice where the winner is worse.
        better: What the winner does where it is better, such as ``beats the prompt``; None says
            that it is better.
        level: Of a simpler model what is said where no difference is seen, with advice behind a
            colon.
        keep: Next step where the row is a simpler model that does as well, in place of publishing.
    """

    name: str
    worse: str
    better: str | None = None
    level: str | None = None
    keep: str | None = None


@dataclass(frozen=True)
class Row:
    """Result of one model on the test split (the validation split where there is no test).

    Attributes:
        stage: Where the model comes from: ``base``, ``source``, the plain ``average`` of the
            sources, one of these with examples in its ``prompt``, one source ``alone``, ``noise``
            in place of the sources, a ``lora``, the merge
            ``together`` with one, or the stage of the search that it won (``ps``, ``dfs``,
            or ``ps-first`` and ``dfs-first`` before them). A row is found by its stage.
        model: What the model is called in tables.
        scores: What it scored; failed until it is scored.
        evaluations: What was spent to find it, in scores of all search examples.
        seconds: Evaluation time of these trials.
        winner: Whether it is what the search ended with.
        retained: What it scored on the examples of `SearchConfig.compare`, by name.
        constant: One answer that does as well as the model, on all examples or on a skill; None
            where none does.
        label: Key by which its scores are kept in the study; see `Study.evaluation`.
        against: How the verdict compares the winner with it; None where no sentence is said.
        target: The model, where it lies today.
        shots: Number of search examples in its prompts.
        favoured: Whether the model was chosen, among some, by the examples of the table.
        optional: Whether the row is left out, with a warning, where the model cannot be scored.
    """

    stage: RowStage
    model: str
    scores: Scores = field(default_factory=lambda: Scores.failed("not scored yet"))
    evaluations: float = 0
    seconds: float = 0.0
    winner: bool = False
    retained: dict[str, Scores] = field(default_factory=dict)
    constant: Constant | None = None
    label: str = ""
    against: Against | None = None
    target: Target | None = field(default=None, compare=False)
    shots: int = 0
    favoured: bool = False
    optional: bool = False


def kept_by(row: Row, rows: Sequence[Row]) -> list[Kept]:
    """Shares of the parents' skills that the model of one of the rows keeps."""
    parents = {each.model: each.retained for each in rows if each.stage in ("base", "source")}
    return kept(row.retained, parents)


def base_name(name: str) -> str:
    """The row of the base, by its name."""
    return name if name == "base" else f"base ({name})"


def published(rows: Sequence[Row], row: Row) -> record.Row:
    """Return one of the rows as it is published: without its scores per example, and with the
    winner's lead over it."""
    winner = next((each for each in rows if each.winner and each is not row), None)
    lead = None
    if winner is not None:
        lead = compare(winner.scores, row.scores, main_measure(*(each.scores for each in rows)))
    return record.Row(
        stage=row.stage,
        model=row.model,
        label=row.label,
        **record.Row.scored(row.scores),
        retained={name: Figures.of(scores) for name, scores in row.retained.items()},
        evaluations=int(row.evaluations)
        if row.evaluations == int(row.evaluations)
        else row.evaluations,
        seconds=row.seconds,
        winner=row.winner,
        lead=lead,
    )


def rows_table(rows: Sequence[Row], caption: str, instead: Row | None = None) -> str:
    """Models side by side: fitness and accuracy with standard errors, and what they cost.

    A star marks the winner, and a plus what is to be taken ``instead``. Where there are several
    metrics, answers cut at the limit of their length, or retained examples, there are columns for
    these.
    """
    others = list(dict.fromkeys(name for row in rows for name in row.scores.others))
    retained = list(dict.fromkeys(name for row in rows for name in row.retained))
    columns = {
        "": [f"{row.model}{_mark(row, instead)}" for row in rows],
        "fitness": [Figures.of(row.scores).fitness_text for row in rows],
    }
    if any(row.scores.accuracy is not None for row in rows):
        columns["accuracy"] = [Figures.of(row.scores).accuracy_text for row in rows]
    for name in others:
        columns[name] = [other_text(row.scores.others.get(name)) for row in rows]
    columns["evaluations"] = [f"{row.evaluations:.0f}" if row.evaluations else "" for row in rows]
    spent = "to search, s" if "seconds" in others else "seconds"
    columns[spent] = [f"{row.seconds:.0f}" if row.seconds else "" for row in rows]
    answers = {}
    for name in retained:
        scores = answers[name] = [row.retained.get(name) for row in rows]
        columns[f"on {name}"] = [Figures.of(each).best_text if each else "" for each in scores]
    for name, scores in answers.items():
        _add_cut(columns, f"on {name}, cut", scores)
    shares = [mean_kept(kept_by(row, rows)) for row in rows]
    if any(shares):
        columns["kept"] = shares
    _add_cut(columns, "answers cut", [row.scores for row in rows])
    figures = _with_columns(*columns)
    for cells in zip(*columns.values(), strict=True):
        figures.add_row(*cells)
    return f"{render(figures)}\n\n{caption}"


def _mark(row: Row, instead: Row | None) -> str:
    """Mark the winner, and what is to be taken instead."""
    if row.winner:
        return " *"
    is_it = instead is not None and (row.stage, row.model) == (instead.stage, instead.model)
    return " +" if is_it else ""


def _add_cut(columns: dict[str, list[str]], heading: str, scores: Sequence[Scores | None]) -> None:
    """Add shares of answers that were cut at the limit of their length, where any was."""
    shares = [each and (each.truncated_share or 0.0) for each in scores]
    if any(shares):
        columns[heading] = ["" if share is None else f"{share:.1%}" for share in shares]


def contributions_table(contributions: Sequence[Contribution]) -> str:
    """Sources side by side: what their absence costs."""
    table = _with_columns(*Contribution.HEADS)
    for each in contributions:
        table.add_row(*each.cells)
    return render(table)


def _with_columns(*headings: str) -> Table:
    """A table with a column of names, and columns of figures."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(headings[0], max_width=_NAME, overflow="fold")
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def other_text(scores: Scores | None) -> str:
    """The value of a metric beside the fitness, with its standard error where it has one; empty
    where there is none."""
    if scores is None or scores.mean is None:
        return ""
    if scores.values.size == 1:
        return f"{scores.mean:,.3f}".rstrip("0").rstrip(".")
    return plus_minus(scores.mean, scores.standard_error)


def render(table: Table, width: int = 400) -> str:
    """A table as text, at most as wide as it needs."""
    console = Console(
        width=width, highlight=False, force_terminal=False, force_jupyter=False, color_system=None
    )
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())
