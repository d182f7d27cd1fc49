"""Last phase: scores every model of the table of results on the test split, once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from ...fitness.scores import Scores
from ..evaluation.sources import Target
from ..file.splits import RETAINED
from ..file.stages import STAGES
from ..front.results import finalists, front
from ..results.constant import Constant
from ..results.result import Result
from .phase import Phase, PhasePlan, Planner, SearchRun

logger = logging.getLogger(__name__)

_IMITATED = (
    "Right means here: a model writes what the prompt's own source writes; whether that is true "
    "was not asked"
)
_MADE = (
    "The validation prompts are made of the search's, by exchanging words: on others all of this "
    "may be much worse"
)
_MUCH = 0.1  # of accuracy, that the search examples are ahead of others


class HeldOut(Phase):
    """Scores of all rows on examples that chose nothing."""

    name = "test"
    title = "held-out test"

    def plan(self, planner: Planner) -> PhasePlan:
        """Price a score of each row on the test split and the retained examples."""
        sizes = planner.sizes
        splits = [sizes.judged_on, *(name for name in sizes if name.startswith(RETAINED))]
        examples = " + ".join(f"{sizes[name]} {name}" for name in splits)
        text = f"{planner.rows} models on {examples} examples: all rows of the table"
        seconds = planner.rows * planner.second * sum(sizes[name] for name in splits)
        longer = planner.beyond * sizes[sizes.judged_on]
        return PhasePlan(self.name, text, seconds + longer)

    def run(self, run: SearchRun) -> None:
        """Score the rows and the front, and make the result; the rows of stages come last."""
        config = run.config
        unscored = sorted(run.rows, key=lambda row: row.stage in STAGES)
        points = front(config, run.study)
        targets = {row.label: row.target for row in unscored if row.target is not None}
        if points:
            targets |= run.recipes([*finalists(config, run.study), run.winner])
        shots = {row.label: row.shots for row in unscored}
        more = sum(run.sizes[f"{RETAINED}{name}"] for name in config.compare.retain)
        scores = run.evaluate(
            targets, run.sizes.judged_on, self.name, shots=shots, more=more * len(targets)
        )
        retained = _retained(run, targets)
        for name, places in _skills(run).items():
            for label in targets:
                retained[label][name] = scores[label].take(places)
        rows = []
        for row in unscored:
            outcome = scores[row.label]
            if row.optional and outcome.error is not None:
                logger.warning(f"the results have no {row.model}: {outcome.error}")
                continue
            constant = None if outcome.error is not None else _constant(run, outcome)
            if constant is not None and not constant.suffices:
                constant = None
            rows.append(
                replace(row, scores=outcome, retained=retained[row.label], constant=constant)
            )
        if config.fitness.task == "agreement" and scores[run.winner].correct is not None:
            run.notes.append(_IMITATED)
        if run.evaluator is not None and run.evaluator.tasks.examples(run.sizes.judged_on)[0].made:
            run.notes.append(_MADE)
        heart = _learned_by_heart(run, scores[run.winner])
        run.notes += heart
        run.result = Result(
            run.study.recipe(run.winner),
            run.sizes.judged_on,
            rows,
            front=points.judged(scores, run.winner),
            unit=config.fitness.unit if run.evaluator is None else run.evaluator.tasks.unit,
            looks=run.study.meta("looks") or 1,
            notes=run.notes,
            warnings=run.study.meta("warnings") or [],
            contributions=run.contributions,
            by_heart=bool(heart),
        )


# With accuracies a and b on n search examples and m others, the standard error of a - b is
# sqrt(p (1 - p) (1 / n + 1 / m)) at the pooled share p. Beyond two of them, and beyond what a
# reader would call little, the winner has learned its examples and not the task.
def _learned_by_heart(run: SearchRun, held_out: Scores) -> list[str]:
    """Say that the winner is much better on the search examples; nothing where it is not."""
    sizes = run.sizes
    searched = None
    examples = [] if run.evaluator is None else run.evaluator.tasks.examples("search")
    given = sizes["search"] - sum(example.made for example in examples)  # these come first
    for trial in run.study.trials():
        if trial.recipe_key == run.winner and trial.scores.values.size == sizes["search"]:
            searched = trial.scores.take(range(given)).accuracy
    solved = held_out.accuracy
    if searched is None or solved is None or run.sizes.judged_on == "search":
        return []
    counts = [given, held_out.values.size]
    pooled = (searched * counts[0] + solved * counts[1]) / sum(counts)
    error = (pooled * (1 - pooled) * sum(1 / count for count in counts)) ** 0.5
    if searched - solved < max(_MUCH, 2 * error):
        return []
    return [
        f"It solves {searched:.3f} of the search examples and {solved:.3f} of the others: it has "
        "learned some by heart; more search examples may help, more evaluations alone do not"
    ]


def _constant(run: SearchRun, model: Scores) -> Constant | None:
    """Find what one answer scores: for the first skill of which a model is no better, or else
    for all examples."""
    if run.evaluator is None:
        return None
    searched = run.evaluator.tasks.examples("search")
    judged = run.evaluator.tasks.examples(run.sizes.judged_on)
    for name, places in _skills(run).items():
        constant = Constant.of(
            [each for each in searched if each.source == name],
            [judged[place] for place in places],
            model.take(places),
            name,
        )
        if constant is not None and constant.suffices:
            return constant
    return Constant.of(searched, judged, model)


def _skills(run: SearchRun) -> dict[str, list[int]]:
    """Places of each skill's examples in the split that rows are judged on; none where the data
    names no skills."""
    if run.evaluator is None:
        return {}
    places: dict[str, list[int]] = {}
    for place, example in enumerate(run.evaluator.tasks.examples(run.sizes.judged_on)):
        if example.source:
            places.setdefault(example.source, []).append(place)
    return places


def _retained(run: SearchRun, targets: Mapping[str, Target]) -> dict[str, dict[str, Scores]]:
    """Scores on the examples that the search did not look at, without shots, by label and name."""
    retained: dict[str, dict[str, Scores]] = {label: {} for label in targets}
    for name in run.config.compare.retain:
        split = f"{RETAINED}{name}"
        for label, scores in run.evaluate(targets, split, split).items():
            retained[label][name] = scores
    return retained
