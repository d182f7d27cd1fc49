"""Phase that scores the winner without each of its sources: what its absence costs is what a source
gives."""

from __future__ import annotations

import logging

from ....errors import EvoMergeError, SearchError, one_line
from ....merging.registry import get_method
from ...evaluation.evaluator import Evaluator
from ...evaluation.sources import Target
from ...file.config import SearchConfig
from ...results.contributions import contributions, sentence, without
from ..phase import Findings, Phase, PhasePlan, Planner, SearchRun

logger = logging.getLogger(__name__)


class LeaveOneOut(Phase):
    """Scores of the winner without each of its sources."""

    name = "contributions"
    title = "contributions"

    @classmethod
    def wanted(cls, config: SearchConfig) -> list[Phase]:
        """Wanted where ``compare.contributions`` says so."""
        return [cls()] if config.compare.contributions else []

    def check(self, config: SearchConfig, evaluator: Evaluator, findings: Findings) -> None:
        """Refuse sources that cannot be left out."""
        count = len(config.merge_sources)
        where = "compare.contributions"
        if config.space != "ps" or count <= max(1, get_method(config.merge.method).count[0]):
            raise SearchError(
                f"{where}: goes with space: ps and a method that can merge one source less "
                f"(found {config.space}, {config.merge.method} of {count}); leave it out"
            )
        whole = config.recipe(merge=config.merge.part())
        for at, number in enumerate(config.merge_sources):
            try:
                evaluator.sources.checkpoint(without(whole, at))
            except EvoMergeError as cause:
                name = config.source_names[number]
                said = one_line(cause, 200)
                raise SearchError(
                    f"{where}: no merge is left without {name}; leave it out: {said}"
                ) from cause

    def plan(self, planner: Planner) -> PhasePlan:
        """Price a score of the winner, and one without each source."""
        split = planner.sizes.chosen_on
        count = len(planner.config.merge_sources)
        size = planner.sizes[split]
        text = f"the winner, and without each of its {count} sources, on {size} {split} examples"
        return PhasePlan(self.name, text, (count + 1) * planner.second * size)

    def run(self, run: SearchRun) -> None:
        """Measure what each source gives; a warning where a merge cannot be scored."""
        recipe = run.study.recipe(run.winner)
        names = [run.config.source_names[number] for number in recipe.merge_sources]
        recipes = [recipe, *(without(recipe, at) for at in range(len(names)))]
        targets: dict[str, Target] = {run.study.add_recipe(each): each for each in recipes}
        whole, *others = run.evaluate(targets, run.sizes.chosen_on, self.name).values()
        if error := next((each.error for each in (whole, *others) if each.error is not None), None):
            logger.warning(f"the results have no contributions: {error}")
            return
        run.contributions = contributions(names, whole, others)
        if run.contributions:
            run.notes.append(
                sentence(run.contributions, f"{whole.values.size} {run.sizes.chosen_on}")
            )
