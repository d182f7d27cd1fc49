"""Baseline: merges that need no search: the plain average of the sources, and the sum of their task
vectors."""

from __future__ import annotations

from ...results.table import Against, Row
from ...spaces.parameter import SUM
from ..phase import Phase, PhasePlan, Planner, SearchRun, plain_merges

NAMES = {"average": ("uniform average", "the plain average"), "sum": (SUM, f"the {SUM}")}
"""Names of the merges in the table and in sentences."""


class Average(Phase):
    """Rows of merges that need no search, which cost a score of the test split each."""

    name = "average"
    title = "average"
    baseline = "average"

    def plan(self, planner: Planner) -> PhasePlan | None:
        """Count the rows."""
        planner.rows += len(plain_merges(planner.config, planner.evaluator.sources.layers))
        return None

    def run(self, run: SearchRun) -> None:
        """Add the rows, where the sources have one depth."""
        for key, (_, recipe) in plain_merges(run.config, run.sources.layers).items():
            name, called = NAMES[key]
            label = run.study.add_recipe(recipe)
            said = against(called)
            run.rows.append(
                Row("average", name, label=label, against=said, target=recipe, optional=True)
            )


def against(called: str) -> Against:
    """Sentences about a merge that needs no search."""
    return Against(
        called,
        worse=f"{called} is the better merge",
        level=f"{called} does as well: take it, no search is needed",
        keep=f"take {called}",
    )
