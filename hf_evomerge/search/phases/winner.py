"""Phase that names the winner: the best of the stages' winners on the validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...fitness.scores import Scores
from ..file.config import SearchConfig
from ..file.stages import Stage
from ..front.optimizers import best_point
from ..front.results import finalists
from ..optimizers.descent import checks_of
from ..results.table import Row
from .phase import Phase, PhasePlan, Planner, SearchRun


class Winner(Phase):
    """Choice among the best recipes of each stage, and then among the stages' winners."""

    name = "finalists"
    title = "best, validated"

    def plan(self, planner: Planner) -> PhasePlan | None:
        """Price the finalists of every stage but first ones on the validation split."""
        if "validation" not in planner.sizes:
            return None
        config = planner.config
        stages = [stage for stage in config.stages if stage.main]
        count = sum(most_finalists(config, stage, planner.sizes["search"]) for stage in stages)
        size = planner.sizes["validation"]
        text = (
            f"up to {count} of the best models on {size} validation examples, which name the winner"
        )
        return PhasePlan(self.name, text, count * planner.second * size)

    def run(self, run: SearchRun) -> None:
        """Choose the winner, and mark its row."""
        stages = [stage for stage in run.main_stages if not stage.control]
        if keys := finalists(run.config, run.study):
            run.winner = choose(run, keys)
        else:
            run.winner = run.winners[best_of(run, stages).name]
        main = {stage.name for stage in stages}
        for at, row in enumerate(run.rows):
            if row.stage in main and row.label == run.winner:
                run.rows[at] = replace(row, winner=True)
                return
        # it may be on the front of all stages, and of none the knee
        name = "knee of the whole front"
        target = run.study.recipe(run.winner)
        space = run.config.spaces[-1]
        run.rows.append(Row(space, name, label=run.winner, target=target, winner=True))


def most_finalists(config: SearchConfig, stage: Stage, examples: int) -> int:
    """Most finalists of a stage: of a gradient on batches, as many as averages that are scored on
    all examples."""
    most = config.compare.finalists
    if stage.algorithm != "gradient" or stage.batch_sizes(examples)[0] >= examples:
        return most
    return min(most, 1 + len(checks_of(stage.evaluations)))


def best_of(run: SearchRun, stages: Sequence[Stage]) -> Stage:
    """Choose the stage with the best winner of some, as `choose` does.

    Without a validation split it is the best in the search; of equals the earlier stage's.
    """
    names = [stage.name for stage in stages]
    if "validation" not in run.sizes:
        names.sort(key=lambda stage: -(run.study.best(stage)[0].fitness or 0.0))
    key = choose(run, [run.winners[stage] for stage in names])
    return next(stage for stage in stages if run.winners[stage.name] == key)


def choose(run: SearchRun, keys: Sequence[str]) -> str:
    """Choose the best of some recipes on the validation split.

    Of equals, and where there is no such split, it is the first. Where the search has a front, it
    is the knee of these recipes' front, on the search split where there is no other.
    """
    if len(keys) == 1 or not (run.config.has_front or "validation" in run.sizes):
        return keys[0]
    scores = _scores(run, keys, run.sizes.chosen_on)
    return keys[best_point([run.config.vector(scores[key]) for key in keys])]


def _scores(run: SearchRun, keys: Sequence[str], split: str) -> dict[str, Scores]:
    """Scores of recipes on a split; on the search split they are the trials' own."""
    if split != "search":
        return run.evaluate(run.recipes(keys), split, Winner.name)
    trials = [trial for stage in run.config.stages for trial in run.study.trials(stage.name)]
    first = {
        trial.recipe_key: trial.scores for trial in reversed(trials) if trial.fitness is not None
    }
    return {key: first[key] for key in keys}
