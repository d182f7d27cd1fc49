"""Baseline: the same search over noise in place of the sources, which says whether it needs what
they have learned."""

from __future__ import annotations

from ....building.noise import check_noise
from ...evaluation.evaluator import Evaluator
from ...file.config import SearchConfig
from ...results.table import Against
from ..phase import Findings, Phase, PhasePlan, Planner, SearchRun
from ..stages import winner_row
from ..winner import best_of

AGAINST = Against(
    "random changes in place of its sources",
    worse="what was found needs none of its sources",
    better="needs more than random changes of its sources' size: it beats them",
    level="random changes in place of its sources do as well: it needs none of them",
    keep="fine-tune the base, or take other sources: random changes do as well",
)


class Noise(Phase):
    """Row of the search over noise; its stages are run by `StagePhase`."""

    name = "noise"
    title = "noise"
    baseline = "noise"

    def check(self, config: SearchConfig, evaluator: Evaluator, findings: Findings) -> None:
        """Refuse sources that noise cannot stand for."""
        base = evaluator.sources.base
        for source, name in zip(evaluator.sources, config.source_names, strict=True):
            if base is not None:
                check_noise(source, base, name)

    def plan(self, planner: Planner) -> PhasePlan | None:
        """Count the row; the stages are priced where they run."""
        planner.rows += 1
        return None

    def run(self, run: SearchRun) -> None:
        """Add the row, where the search ended."""
        stages = [stage for stage in run.main_stages if stage.control == self.name]
        if stages:
            best = best_of(run, stages)
            name = "noise in place of the sources"
            run.rows.append(winner_row(run, best, "noise", name, AGAINST, optional=True))
