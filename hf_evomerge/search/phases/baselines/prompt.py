"""Baseline: search examples in the prompt, before each question, without any search."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from ....errors import SearchError
from ....fitness.comparison import best_of
from ....fitness.data.shots import shot_counts
from ....fitness.text.encoding import positions
from ...evaluation.evaluator import Evaluator
from ...evaluation.sources import Target
from ...evaluation.tasks import takes_shots
from ...file.config import SearchConfig
from ...results.table import Against, Row
from ...runners.job import Job
from ..phase import Findings, Phase, PhasePlan, Planner, SearchRun, plain_models

logger = logging.getLogger(__name__)

TIMED = 16  # examples that are scored to measure the price
WHERE = "compare.baselines: prompt"


# No tuning is kept from this baseline: every plain model is tried with every number of shots that
# its positions have room for, and the best on the examples that models are chosen on is compared.
# Where these are the search examples themselves, none is shown to itself. Labels of scores say
# model and number of shots; the shots themselves follow from the seed.
class Prompt(Phase):
    """Scores of base, sources and average with 1, 4, 8 and 16 search examples in the prompt; the
    best has a row."""

    name = "prompt"
    title = "examples in the prompt"
    baseline = "prompt"

    def check(self, config: SearchConfig, evaluator: Evaluator, findings: Findings) -> None:
        """Refuse tasks, examples and models whose prompts take no examples; warn where none
        fits."""
        if (reason := _obstacle(config, evaluator)) is not None:
            raise SearchError(
                f"{WHERE} shows search examples before each question; leave it out: {reason}"
            )
        if not any(_counts(evaluator).values()):
            findings.warnings.append(
                f"{WHERE}: there is no example, or no room for one beside the longest question; "
                "the results have no such row"
            )

    def plan(self, planner: Planner) -> PhasePlan | None:
        """Measure a score with the most shots, and price the others between it and one without."""
        counts = _counts(planner.evaluator)
        tried = [count for own in counts.values() for count in own]
        if not tried:
            return None
        most = max(tried)
        models = plain_models(planner.config, planner.evaluator.sources.layers)
        model = next(models[label][1] for label, own in counts.items() if most in own)
        split = planner.sizes.chosen_on
        size = planner.sizes[split]
        batch = tuple(range(min(TIMED, size)))
        job = Job(model, split, batch, shots=most)
        longest = planner.seconds(job, job) / len(batch)
        rise = (longest - planner.second) / most  # of an example, by each shot
        planner.rows += 1
        planner.beyond += rise * most
        seconds = size * math.fsum(planner.second + rise * count for count in tried)
        shown = ", ".join(map(str, sorted(set(tried))))
        text = (
            f"{len(counts)} models with {shown} search examples in the prompt, on {size} {split} "
            "examples"
        )
        return PhasePlan(self.name, text, seconds)

    def run(self, run: SearchRun) -> None:
        """Score, and give the best a row; a warning where none could be scored."""
        assert run.evaluator is not None  # the search has been checked
        models = plain_models(run.config, run.sources.layers)
        targets: dict[str, Target] = {}
        names = dict[str, str]()
        shots = dict[str, int]()
        for label, counts in _counts(run.evaluator).items():
            name, model = models[label]
            for count in counts:
                own = f"prompt:{label}:{count}"
                targets[own] = model
                names[own] = f"{name} with {count} example{'s' * (count > 1)} in the prompt"
                shots[own] = count
        if not targets:
            return  # as the check has warned
        scores = run.evaluate(targets, run.sizes.chosen_on, self.name, shots=shots)
        alive = {label: each for label, each in scores.items() if each.error is None}
        if not alive:
            reason = next(each.error for each in scores.values())
            logger.warning(f"the results have no row with examples in the prompt: {reason}")
            return
        best = best_of(alive)
        share = run.sizes[run.sizes.chosen_on] / run.sizes["search"]
        against = Against(
            names[best],
            f"use {names[best]} instead",
            better=f"beats {names[best]}",
            level=f"examples in the prompt do as well: use {names[best]}",
            keep=f"use {names[best]}, and no merge",
        )
        run.rows.append(
            Row(
                "prompt",
                names[best],
                label=best,
                target=targets[best],
                evaluations=round(len(scores) * share, 2),
                seconds=math.fsum(each.seconds for each in scores.values()),
                against=against,
                shots=shots[best],
                optional=True,
            )
        )


def _obstacle(config: SearchConfig, evaluator: Evaluator) -> str | None:
    """The reason why a search's prompts take no examples; None where they do."""
    tasks = evaluator.tasks
    if not takes_shots(tasks.prepared(config.sources[0], ready=False)):
        return f"the task {config.fitness.task} has no prompts that take them"
    if any(example.pictures for example in tasks.examples("search")):
        return "they have pictures"
    for source in evaluator.sources.all:
        if getattr(source.whole.config, "is_encoder_decoder", False):
            return f"{source} reads prompts in an encoder"
    return None


def _counts(evaluator: Evaluator) -> dict[str, list[int]]:
    """The numbers of shots that each plain model has room for on the splits that it is scored on,
    by its label."""
    tasks = evaluator.tasks
    sizes = tasks.sizes
    splits = list(dict.fromkeys([sizes.chosen_on, sizes.judged_on]))
    models = plain_models(evaluator.config, evaluator.sources.layers)
    counts = shot_counts(tasks.examples("search"), among="search" in splits)
    return {
        label: _fitting(evaluator, model, counts, splits) for label, (_, model) in models.items()
    }


def _fitting(
    evaluator: Evaluator, model: Target, counts: Sequence[int], splits: Sequence[str]
) -> list[int]:
    """The numbers of shots with which a model has positions for the longest question and its
    answer."""
    _, owner = evaluator.sources.tokenizer_owner(model)
    limit = positions(owner.config)
    prepared: Any = evaluator.tasks.prepared  # tasks that take shots know their longest example
    for number in range(len(counts), 0, -1):  # the most first: what fits then fits with fewer
        shots = counts[number - 1]
        longest = max(prepared(model, split, shots=shots, ready=False).longest for split in splits)
        if limit is None or longest <= limit:
            return list(counts[:number])
    return []
