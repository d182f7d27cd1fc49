"""Result of a search: the winner, the comparison that it was measured in, and what that says in
words."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ... import record
from ...recipes.recipe import Recipe
from ..front.results import Front
from .kept import what_is_kept
from .table import Row, RowStage, contributions_table, kept_by, published, rows_table
from .verdict import RULE, instead, lost_skills, solves_nothing, verdict


@dataclass(frozen=True)
class Result:
    """Result of a search.

    Attributes:
        winner: The recipe that scored best on the validation split (on the search split where there
            is none).
        split: What `rows` were measured on.
        rows: Base, sources, uniform average, the winner of each stage.
        front: The models that no other beats in all metrics, where there are several; the best
            fitness first.
        unit: What the fitness is measured in, such as ``nats per answer``; empty where it has no
            unit.
        looks: How often the test split was scored: again where the search was given more
            evaluations, or its table more rows, after its results.
        notes: Sentences after those of the comparison, such as what a source gives the winner.
        warnings: What was warned of before the search.
        contributions: What each source gives the winner, where that was asked for.
        by_heart: Whether the winner has learned some of the search examples by heart.
    """

    winner: Recipe
    split: str
    rows: list[Row] = field(default_factory=list)
    front: Front = field(default_factory=Front)
    unit: str = ""
    looks: int = 1
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    contributions: list[record.Contribution] = field(default_factory=list)
    by_heart: bool = False

    @property
    def examples(self) -> int:
        """Number of examples that the rows were measured on."""
        return max((row.scores.values.size for row in self.rows), default=0)

    def row(self, stage: RowStage) -> Row:
        """The first row of a stage; raises `KeyError` where there is none."""
        first = next((row for row in self.rows if row.stage == stage), None)
        if first is None:
            raise KeyError(stage)
        return first

    @property
    def verdict(self) -> list[str]:
        """Verdict of the comparison on the winner, in sentences."""
        if not self.front:
            said = verdict(self.rows, self.split, self.unit, self.looks)
            winner = next((row for row in self.rows if row.winner), None)
            shares = [] if winner is None else kept_by(winner, self.rows)
            said += what_is_kept(shares)
            if other := self.instead:
                name = other.model.partition(" (")[0]
                said += what_is_kept(kept_by(other, self.rows), name[:1].upper() + name[1:])
            return [*said, *self.notes]
        return [*self.front.verdict(self.rows, self.split), *self.notes]

    @property
    def instead(self) -> Row | None:
        """The simplest model that does as well as the winner; None where there is none, or a
        front, or where one answer for all examples does as well. What to do about it is
        ``row.against.keep``."""
        return None if self.front else instead(self.rows)

    @property
    def doubt(self) -> str:
        """The sentence that speaks against publishing the winner; empty where none does."""
        winner = next((row for row in self.rows if row.winner), None)
        if self.front or winner is None:
            return ""
        if lost_skills(self.rows, winner):
            return what_is_kept(kept_by(winner, self.rows))[0]
        has_doubt = winner.constant or self.instead or solves_nothing(self.rows)
        return self.verdict[0] if has_doubt else ""

    def published(self) -> record.Results:
        """The comparison for the record. Each row has the winner's lead over it; the LoRA beside
        the merge, which lies built beside the winner, has the verdict on itself."""
        rows = list[record.Row]()
        for row in self.rows:
            told: dict[str, Any] = {}
            if row.winner:
                told = {"doubt": self.doubt}
            elif row.stage == "together" and not self.front:
                own = self._won_by(row)
                told = {"doubt": own.doubt, "verdict": own.verdict}
            told = {key: value for key, value in told.items() if value}
            rows.append(published(self.rows, row).model_copy(update=told))
        given = {
            "front": self.front.published(),
            "contributions": self.contributions,
            "warnings": self.warnings,
        }
        more: dict[str, Any] = {key: value for key, value in given.items() if value}
        return record.Results(
            split=self.split, examples=self.examples, rows=rows, verdict=self.verdict, **more
        )

    def _won_by(self, row: Row) -> Result:
        """Make the same comparison with another model as its winner."""
        rows = [replace(each, winner=False) for each in self.rows]
        place = self.rows.index(row)
        rows[place] = replace(row, winner=True, model=row.model.partition(" (")[0])
        return replace(self, rows=rows, notes=[])

    def to_json(self) -> dict[str, Any]:
        """The comparison for ``results.json``."""
        return {"unit": self.unit, **self.front.facts, **self.published().to_json()}

    def __str__(self) -> str:
        """The comparison as a table, and what it says."""
        caption = (
            f"{self.examples} {self.split} examples; ± is one standard error, (...) an interval "
            "of 95 %; * is the search's winner; PS searches weights, DFS a path through the layers"
        )
        if self.instead:
            caption += "; + is what to take instead"
        caption += f"\n{RULE}" if self.verdict else ""
        more = ["", self.front.table(self.split)] if self.front else []
        more += ["", contributions_table(self.contributions)] if self.contributions else []
        said = [*self.verdict, *(f"Warned before the search: {each}" for each in self.warnings)]
        return "\n".join(
            [
                rows_table(self.rows, caption, self.instead),
                *more,
                "",
                *(f"- {each}" for each in said),
            ]
        )
