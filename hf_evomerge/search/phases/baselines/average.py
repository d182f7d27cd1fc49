"""Baseline: the plain average of the sources."""

from __future__ import annotations

from ...results.table import Against, Row
from ...spaces.space import uniform_average
from ..phase import Phase, PhasePlan, Planner, SearchRun, can_average

AGAINST = Against(
    "the plain average",
    worse="the average is the better merge",
    level="the plain average does as well: take it, no search is needed",
    keep="take the plain average",
)


class Average(Phase):
    """Row of the uniform average, which costs a score of the test split alone."""

    name = "average"
    title = "average"
    baseline = "average"

    def plan(self, planner: Planner) -> PhasePlan | None:
        """Count the row."""
        planner.rows += can_average(planner.config, planner.evaluator.sources.layers)
        return None

    def run(self, run: SearchRun) -> None:
        """Add the row, where the sources have one depth."""
        if not can_average(run.config, run.sources.layers):
            return
        recipe = uniform_average(run.config)
        label = run.study.add_recipe(recipe)
        name = "uniform average"
        run.rows.append(
            Row("average", name, label=label, against=AGAINST, target=recipe, optional=True)
        )
