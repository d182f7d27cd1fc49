"""Baseline: the best of LoRA fine-tunes of a parent, of the average or of the sum of the task
vectors, each at the cost of the search.

Short trainings say from which models it is worth while. A training sees the examples that the
search sees. The adapters stay in the study's folder, and can be scored and used like any source
with an adapter.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import EvoMergeError, FitnessError, SearchError, optional
from ....recipes.recipe import RECIPE_FILE, MergePart, Recipe, SourceRef
from ...callbacks import Progress
from ...evaluation.sources import Target
from ...file.config import SearchConfig
from ...results.table import Against, Row
from ...spaces.space import task_vector_sum
from ..phase import Findings, Phase, PhasePlan, Planner, SearchRun, can_average, plain_models
from .finetune import Lora, fine_tune

if TYPE_CHECKING:
    from ...evaluation.evaluator import Evaluator

logger = logging.getLogger(__name__)

RATES = (1e-4, 3e-4, 5e-4, 1e-3)
HIGHER = (3e-3, 1e-2)  # tried one by one, each while the highest rate so far is the best one
TRIED = (3e-4, 1e-3)  # rates of the short trainings
SHARE = 0.25  # of the steps of a whole training, which a short one has
_SECONDS = "lora seconds"  # of all trainings of a study
Starts = Mapping[str, tuple[str, SourceRef | Recipe]]
"""Name and model of each start of a training, by its label."""


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
        spent = sum(stage.evaluations for stage in config.stages if stage.searches)
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
        return PhasePlan(self.name, text, seconds, at_once=1)

    def run(self, run: SearchRun) -> None:
        """Train, and give the best a row; a warning where none could be trained."""
        assert run.evaluator is not None  # the search has been checked
        starts = _starts(run.config, run.sources.layers)
        cost = run.searched
        size = run.sizes["search"]
        split = run.sizes.ranked_on
        short, whole = _counts(len(starts))
        trainer = LoraTrainer(
            run.evaluator,
            run.study.folder / "baselines",
            partial(run.report, size=size),
            total=(short * SHARE + whole) * cost,
        )

        before = run.study.meta(_SECONDS) or 0.0

        def train(pairs: Sequence[tuple[str, float]], cost: float) -> list[Trained]:
            """Train, and return what could be scored, the best first."""
            trained = trainer.fine_tunes(starts, pairs, cost)
            run.study.set_meta(_SECONDS, before + trainer.seconds)
            models: dict[str, Target] = {label: each.model for label, each in trained.items()}
            more = (trainer.total - trainer.done) * size
            scores = run.evaluate(models, split, "finalists", more=more)
            scored = [
                replace(trained[label], fitness=each.mean)
                for label, each in scores.items()
                if each.mean is not None
            ]
            return sorted(scored, key=lambda each: -each.fitness)

        tried = train([(label, rate) for label in starts for rate in TRIED], SHARE * cost)
        first, *others = dict.fromkeys(each.start for each in tried) or starts
        finished = train([(first, rate) for rate in RATES], cost)
        highest = RATES[-1]
        for rate in HIGHER:
            if not finished or finished[0].rate < highest:
                break
            highest = rate
            trainer.total += cost
            finished += train([(first, rate)], cost)
            finished.sort(key=lambda each: -each.fitness)
        if finished and others:
            finished += train([(others[0], finished[0].rate)], cost)
        if not finished:
            logger.warning("the results have no LoRA: none was trained and scored")
            return
        best = max(finished, key=lambda each: each.fitness)
        favoured = split == "test"
        favour = ", which favours it" if favoured else ""
        shown = (
            f"{best.name} (best of {len(finished)} on {split} examples{favour}, {cost:.0f} "
            "evaluations each)"
        )
        run.rows.append(
            Row(
                "lora",
                shown,
                evaluations=round((len(tried) * SHARE + len(finished)) * cost, 2),
                seconds=before + trainer.seconds,
                label=best.label,
                against=against(best.name, best.model),
                favoured=favoured,
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
        worse="here fine-tuning is worth more than merging",
        level="the best of several LoRAs, each at this cost, is as good",
        keep=f"take the LoRA in {model.adapter}, an adapter of {model.model}",
    )


@dataclass(frozen=True)
class Trained:
    """A fine-tune.

    Attributes:
        name: Name of the model: what it was trained from, at which rate.
        start: Label of what it was trained from.
        rate: Peak learning rate.
        cost: Cost of the training, in scores of all search examples.
        model: The model.
        fitness: Its score where models are chosen, once it is known.
    """

    name: str
    start: str
    rate: float
    cost: float
    model: SourceRef
    fitness: float = -math.inf

    @property
    def label(self) -> str:
        """Label of its scores in the study."""
        return f"lora:{self.start}:{self.rate:g}:{self.cost:g}"


# Finished trainings are folders whose name holds the start, rate and cost; a folder appears whole,
# so a resumed search trains only what is missing.
@dataclass
class LoraTrainer:
    """Trains adapters on the search examples, in this process.

    Attributes:
        evaluator: Evaluator with the search's task, examples, dtype and device.
        folder: Where ``START/lora-RATE-COST`` are written, and ``START/model`` where a model has to
            be built first.
        report: Callback for the progress.
        total: Cost of all trainings that are to come, in scores of all search examples.
        done: Cost of those that are done.
        seconds: Time that trainings took in this process.
    """

    evaluator: Evaluator
    folder: Path
    report: Callable[[Progress], None]
    total: float
    done: float = 0.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._fresh = 0.0
        self._begin = time.perf_counter()

    def fine_tunes(
        self, starts: Starts, pairs: Sequence[tuple[str, float]], cost: float
    ) -> dict[str, Trained]:
        """Fine-tune with LoRA, unless the folder holds the adapter already.

        What cannot be built or trained is left out, with a warning.

        Args:
            starts: Name of each start, and the model, by its label.
            pairs: Label of the start and peak rate of each training.
            cost: Cost of each training, in scores of all search examples.

        Returns:
            The fine-tunes, by their labels.
        """
        examples = len(self.evaluator.tasks.examples("search"))
        seed = self.evaluator.config.compute.seed
        trained: dict[str, Trained] = {}
        for label, rate in pairs:
            name, start = starts[label]
            which = f"from {name}, rate {rate:g}"
            lora = Lora.for_cost(cost, examples, rate=rate, seed=seed)
            folder = self.folder / label.replace(":", "-")
            out = folder / f"lora-{rate:g}-{cost:g}"
            try:
                plain = self._plain(start, folder / "model")
                if not (out / "adapter_config.json").exists():
                    after_step = partial(self._after_step, which, cost, lora.steps)
                    begin = time.perf_counter()
                    self._train(plain, lora, out, after_step)
                    self.seconds += time.perf_counter() - begin
            except EvoMergeError as error:
                logger.warning(f"the results have no LoRA {which}: {error}")
            else:
                model = plain.model_copy(update={"adapter": str(out)})
                one = Trained(f"LoRA {which}", label, rate, cost, model)
                trained[one.label] = one
            self.done += cost
        return trained

    def _after_step(self, which: str, cost: float, steps: int, step: int, _: object) -> None:
        """Report a step of a training."""
        self._fresh += cost / steps
        progress = Progress(
            LoraTrainings.name,
            round(self.done + cost * step / steps, 2),
            math.ceil(self.total),
            seconds=time.perf_counter() - self._begin,
            fresh=self._fresh,
            note=f"{which}, step {step} of {steps}",
        )
        self.report(progress)

    def _plain(self, start: SourceRef | Recipe, folder: Path) -> SourceRef:
        """A model that an adapter can be trained for: a parent as it is, or what has to be built
        first."""
        if isinstance(start, SourceRef):
            if start.adapter is None:
                return start
            start = Recipe(sources=[start], merge=MergePart(method="passthrough"))
        if not (folder / "config.json").exists():
            from ....building.build import build_model

            build_model(
                start,
                folder,
                trust_remote_code=self.evaluator.sources.trust_remote_code,
                whole=True,
            )
        return SourceRef(model=str(folder))

    def _train(
        self, start: SourceRef, lora: Lora, out: Path, after_step: Callable[[int, Any], None]
    ) -> None:
        """Train one adapter, with no other model in memory, and write it in one piece."""
        models = self.evaluator.models
        tasks = self.evaluator.tasks
        models.forget()
        tasks.prepared(
            start, fitness=self.evaluator.config.stages[0].fitness
        )  # runs what the task compares with
        model: Any = models.model(start)
        examples = tasks.examples("search")
        tokenizer = tasks.tokenizer(start)
        try:
            tuned = fine_tune(
                model, tasks.differentiable_task, examples, tokenizer, lora, after_step=after_step
            )
            save_adapter(tuned, out)
        finally:
            models.forget()  # peft has put its layers into the model


def save_adapter(tuned: Any, out: Path, recipe: Recipe | None = None) -> None:
    """Write the adapters of a model, and a recipe beside them, as a folder that is there when it is
    whole."""
    unfinished = out.with_name(f".{out.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    tuned.save_pretrained(
        unfinished, save_embedding_layers=False
    )  # they are the model's, whatever their size
    (unfinished / "README.md").unlink(
        missing_ok=True
    )  # peft's names a folder as base model, which the Hub refuses
    if recipe is not None:
        recipe.save(unfinished / RECIPE_FILE)
    shutil.rmtree(out, ignore_errors=True)  # of a search that was killed before its score
    os.replace(unfinished, out)


def check_training(baseline: str, config: SearchConfig, evaluator: Evaluator) -> None:
    """Refuse a baseline that trains where it cannot: raises `SearchError` with the reason."""
    if config.compute.quantization:
        raise SearchError(
            f"compare.baselines: {baseline} fine-tunes whole models; leave it out, or quantization"
        )
    try:
        evaluator.tasks.differentiable_task()
    except FitnessError as error:
        raise SearchError(
            f"compare.baselines: {baseline} follows a gradient; leave it out: {error}"
        ) from error
    optional("peft", "lora", "fine-tuning", SearchError)
