"""Baseline: the best of LoRA fine-tunes of a parent, of the average or of the sum of the task
vectors, each at the cost of the search.

Short trainings say from which models it is worth while. A training sees the examples that the
search sees. The adapters stay in the study's folder, and can be scored and used like any source
with an adapter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import EvoMergeError
from ....recipes.recipe import MergePart, Recipe, SourceRef
from ...evaluation.evaluator import Evaluator
from ...evaluation.sources import Target
from ...file.config import SearchConfig
from ...results.table import Against, Row
from ...spaces.space import task_vector_sum
from ..phase import Findings, Phase, PhasePlan, Planner, SearchRun, can_average, plain_models
from .finetune import Lora, fine_tune
from .trainings import Trainings, check_training

logger = logging.getLogger(__name__)

RATES = (1e-4, 3e-4, 5e-4, 1e-3)
HIGHER = (3e-3, 1e-2)  # tried one by one, each while the highest rate so far is the best one
TRIED = (3e-4, 1e-3)  # rates of the short trainings
SHARE = 0.25  # of the steps of a whole training, which a short one has


# A baseline must not lose because it was tuned less, and must not take longer than all the rest.
# Trainings are of (start, rate). Starts are screened, rates are not:
#
#   1. every start is trained for a quarter of the steps, its whole schedule in them, at two rates;
#   2. the best start (by its better rate) is trained in full at every rate, and at a higher one
#      as long as the highest is the best: small models want more than is usual for LoRA;
#   3. the second best start is trained in full at the rate that was best in 2.
#
# The best of 2 and 3 has the row. Every comparison is by the examples that models are chosen on.
#
# Why not by what the starts score untrained: that misleads. On the demo the average scores best of
# four and the maths parent nearly worst, from which LoRA is best by far. Why not rates by short
# trainings: Adam moves each number by about rate x steps, so in a quarter of the steps a high rate
# goes as far as a low one in all of them, and the low rates, which validation often chooses in
# full, have hardly moved. At the highest rate a quarter of the steps goes as far as a whole
# training at a rate among `RATES`: there starts can be compared. The second rate stands in where
# the highest diverges.
class LoraTrainings(Phase):
    """Trainings from the starts that short ones name, at every rate; the best on validation has a
    row."""

    name = "lora"
    title = "LoRA trainings"
    baseline = "lora"

    def check(self, config: SearchConfig, evaluator: Evaluator, findings: Findings) -> None:
        """Refuse tasks without a gradient, quantised bases and an environment without peft."""
        check_training("lora", config, evaluator)

    def plan(self, planner: Planner) -> PhasePlan:
        """Price a whole training as the search, a short one as a part of it, and a score of each
        where models are chosen."""
        planner.rows += 1
        config = planner.config
        sizes = planner.sizes
        spent = sum(stage.evaluations for stage in config.stages if not stage.control)
        starts = len(_starts(config, planner.evaluator.sources.layers))
        short, whole = _counts(starts)
        cost = spent * (short * SHARE + whole)
        text = (
            f"{whole} trainings of {spent} evaluations each, and {short} of a quarter of that, "
            f"which say from which of {starts} starts: {cost:.0f} evaluations; up to {len(HIGHER)} "
            "more trainings where the highest rate is the best"
        )
        scores = (short + whole) * sizes[sizes.ranked_on]
        seconds = (cost * sizes["search"] + scores) * planner.second
        return PhasePlan(self.name, text, seconds, at_once=1, like=config.stages[0].name)

    def run(self, run: SearchRun) -> None:
        """Train, and give the best a row; a warning where none could be trained."""
        assert run.evaluator is not None  # the search has been checked
        starts = _starts(run.config, run.sources.layers)
        cost = run.searched
        short, whole = _counts(len(starts))
        total = (short * SHARE + whole) * cost
        trainings = Trainings(run, run.evaluator, self.name, total)

        def train(pairs: Sequence[tuple[str, float]], cost: float) -> list[Trained]:
            """Train, and return what could be trained, the best first."""
            trained = []
            for label, rate in pairs:
                name, start = starts[label]
                which = f"LoRA from {name}, rate {rate:g}"
                try:
                    trained.append(fine_tuned(trainings, which, label, start, rate, cost))
                except EvoMergeError as error:
                    logger.warning(f"the results have no {which}: {error}")
            return sorted(trained, key=lambda each: -each.fitness)

        tried = train([(label, rate) for label in starts for rate in TRIED], SHARE * cost)
        first, *others = dict.fromkeys(each.start for each in tried) or starts
        finished = train([(first, rate) for rate in RATES], cost)
        highest = RATES[-1]
        for rate in HIGHER:
            if not finished or finished[0].rate < highest:
                break
            highest = rate
            trainings.total += cost
            finished += train([(first, rate)], cost)
            finished.sort(key=lambda each: -each.fitness)
        if finished and others:
            finished += train([(others[0], finished[0].rate)], cost)
        if not finished:
            logger.warning("the results have no LoRA: none was trained and scored")
            return
        trainings.end()
        best = max(finished, key=lambda each: each.fitness)
        chosen = trainings.best_of(len(finished))
        run.rows.append(
            Row(
                "lora",
                f"{best.name} ({chosen}, {cost:.0f} evaluations each)",
                evaluations=round((len(tried) * SHARE + len(finished)) * cost, 2),
                seconds=trainings.seconds,
                label=best.label,
                against=against(best.name, best.model),
                favoured=trainings.favoured,
                target=best.model,
            )
        )


def _starts(config: SearchConfig, layers: Sequence[int]) -> dict[str, tuple[str, Target]]:
    """Models that a training may begin at: parents, their average and, as a search of weights has
    it, the sum of their task vectors."""
    starts = plain_models(config, layers)
    if config.base is not None and can_average(config, layers):
        starts["sum"] = ("the sum", task_vector_sum(config))
    return starts


def _counts(starts: int) -> tuple[int, int]:
    """Number of short and of whole trainings."""
    return starts * len(TRIED), len(RATES) + (starts > 1)


def against(name: str, model: SourceRef) -> Against:
    """Sentences about a LoRA that was trained at the cost of the search."""
    return Against(
        f"a {name}",
        worse="here training is worth more than a search of merge weights",
        level="the best of several LoRAs, each at this cost, is as good",
        keep=f"take the LoRA in {model.adapter}, an adapter of {model.model}",
    )


@dataclass(frozen=True)
class Trained:
    """A fine-tune.

    Attributes:
        name: Name of the model: what it was trained from, at which rate.
        label: Key of its score in the study.
        start: Label of what it was trained from.
        rate: Peak learning rate.
        model: The model.
        fitness: Its score where models are ranked.
    """

    name: str
    label: str
    start: str
    rate: float
    model: SourceRef
    fitness: float


def fine_tuned(
    trainings: Trainings, name: str, label: str, start: Target, rate: float, cost: float
) -> Trained:
    """Fine-tune with LoRA, and score the model; what the study has is not done again.

    Args:
        trainings: Trainings of the phase.
        name: Name of the fine-tune.
        label: Label of the start.
        start: Model that the training begins at.
        rate: Peak learning rate.
        cost: Cost of the training, in scores of all search examples.

    Raises:
        EvoMergeError: The start cannot be built, or the training fails, or its model cannot be
            scored.
    """
    evaluator = trainings.evaluator
    examples = evaluator.tasks.examples("search")
    folder = trainings.folder / label.replace(":", "-")
    out = folder / f"lora-{rate:g}-{cost:g}"
    plain = _plain(start, folder / "model", evaluator.sources.trust_remote_code)
    lora = Lora.for_cost(cost, len(examples), rate=rate, seed=evaluator.config.compute.seed)

    def train(told: Callable[[float], None]) -> tuple[Target, Any]:
        return plain, tune(evaluator, plain, lora, lambda share: told(cost * share))

    scored = f"lora:{label}:{rate:g}:{cost:g}"
    fitness = trainings.ranked(scored, out, cost, train, name)
    model = plain.model_copy(update={"adapter": str(out)})
    return Trained(name, scored, label, rate, model, fitness)


def tune(evaluator: Evaluator, model: Target, settings: Lora, told: Callable[[float], None]) -> Any:
    """Train LoRA adapters of a model on the search examples.

    Args:
        evaluator: The search's evaluator.
        model: The model, which is read or merged.
        settings: Settings of the training.
        told: Called after each step with the share of the steps that are done.
    """
    tasks = evaluator.tasks
    return fine_tune(
        evaluator.models.model(model),
        tasks.differentiable_task,
        tasks.examples("search"),
        tasks.tokenizer(model),
        settings,
        after_step=lambda step, _: told(step / settings.steps),
    )


def _plain(start: Target, folder: Path, trust_remote_code: bool) -> SourceRef:
    """Return a start as a plain model, which is built where it is an adapter or a merge."""
    if isinstance(start, SourceRef):
        if start.adapter is None:
            return start
        start = Recipe(sources=[start], merge=MergePart(method="passthrough"))
    if not (folder / "config.json").exists():
        from ....building.build import build_model

        build_model(start, folder, trust_remote_code=trust_remote_code, whole=True)
    return SourceRef(model=str(folder))
