"""Baseline: the best of LoRA fine-tunes of every parent and of the average, each at the cost of the
search.

A training sees the examples that the search sees. The adapters stay in the study's folder, and can
be scored and used like any source with an adapter.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import EvoMergeError, FitnessError, SearchError, optional
from ...recipes.recipe import RECIPE_FILE, MergePart, Recipe, SourceRef
from ..callbacks import Progress
from ..file.config import SearchConfig
from ..results.table import Against
from .finetune import Lora, fine_tune
from .phase import Entry, Findings, Phase, PhasePlan, Planner, SearchRun, parents_once, plain_models

if TYPE_CHECKING:
    from ..evaluation.evaluator import Evaluator

logger = logging.getLogger(__name__)

RATES = (1e-4, 3e-4, 5e-4, 1e-3)
Starts = Mapping[str, tuple[str, SourceRef | Recipe]]
"""Name and model of each start of a training, by its label."""


class LoraTrainings(Phase):
    """Trainings from every start at every rate; the best on validation has a row."""

    name = "lora"
    title = "LoRA trainings"

    @classmethod
    def wanted(cls, config: SearchConfig) -> list[Phase]:
        """Wanted where ``compare.baselines`` names ``lora``."""
        return [cls()] if "lora" in config.compare.baselines else []

    def check(self, config: SearchConfig, evaluator: Evaluator, findings: Findings) -> None:
        """Refuse tasks without a gradient, quantised bases and an environment without peft."""
        check_training("lora", config, evaluator)

    def plan(self, planner: Planner) -> PhasePlan:
        """Price each training as the search, and a score where models are chosen."""
        planner.rows += 1
        config = planner.config
        sizes = planner.sizes
        spent = sum(stage.evaluations for stage in config.stages if stage.searches)
        starts = len(parents_once(config)) + planner.can_average
        count = starts * len(RATES)
        text = (
            f"{count} trainings, {starts} starts at {len(RATES)} rates, each of {spent} evaluations"
        )
        seconds = count * (spent * sizes["search"] + sizes[planner.chosen_on]) * planner.second
        return PhasePlan(self.name, text, seconds, at_once=1, steps=True)

    def run(self, run: SearchRun) -> None:
        """Train, and give the best a row; a warning where none could be trained."""
        assert run.evaluator is not None  # the search has been checked
        starts = plain_models(run.config, run.sources.layers)
        cost = run.searched
        trainer = LoraTrainer(run.evaluator, run.study.folder / "baselines")
        scored = run.sizes[run.chosen_on] * len(starts) * len(RATES)
        report = partial(run.report, size=run.sizes["search"], steps=True, more=scored)
        trained = trainer.fine_tunes(starts, cost, report)
        targets = {label: each.model for label, each in trained.items()}
        scores = run.evaluate(targets, run.chosen_on, "finalists")
        fitness = {label: each.mean for label, each in scores.items() if each.mean is not None}
        if not fitness:
            reason = next((each.error for each in scores.values()), "none was trained")
            logger.warning(f"the results have no LoRA: {reason}")
            return
        best = max(fitness, key=fitness.__getitem__)
        name = trained[best].name
        shown = (
            f"{name} (best of {len(fitness)} on {run.chosen_on} examples, {cost:g} evaluations "
            "each)"
        )
        spent = len(trained) * cost
        run.entries.append(
            Entry(
                "lora",
                shown,
                best,
                targets[best],
                evaluations=spent,
                against=against(name, trained[best].model),
            )
        )


def against(name: str, model: SourceRef) -> Against:
    """Sentences about a LoRA that was trained at the cost of the search."""
    return Against(
        f"a {name}",
        worse="here fine-tuning is worth more than merging",
        level="LoRA at the same cost is as good",
        keep=f"take the LoRA in {model.adapter}",
    )


@dataclass(frozen=True)
class Trained:
    """A fine-tune, by its name.

    Attributes:
        name: Name of the model: what it was trained from, at which rate.
        model: The model.
    """

    name: str
    model: SourceRef


# A baseline must not lose because it was tuned less. LoRA is trained from every parent and from the
# average, at each of several rates, every time at the cost of the whole search; the best on the
# examples that models are chosen on is compared. Finished trainings are folders whose name holds
# the start, rate and cost; a folder appears whole, so a resumed search trains only what is missing.
@dataclass(frozen=True)
class LoraTrainer:
    """Trains adapters on the search examples, in this process.

    Attributes:
        evaluator: Evaluator with the search's task, examples, dtype and device.
        folder: Where ``START/lora-RATE-COST`` are written, and ``START/model`` where a model has to
            be built first.
    """

    evaluator: Evaluator
    folder: Path

    def fine_tunes(
        self, starts: Starts, cost: float, report: Callable[[Progress], None]
    ) -> dict[str, Trained]:
        """Fine-tune every start with LoRA at every rate, unless the folder holds the adapter
        already.

        What cannot be built or trained is left out, with a warning.

        Args:
            starts: Name of each start, and the model, by its label.
            cost: Cost of each training, in scores of all search examples.
            report: Callback for the progress.

        Returns:
            The fine-tunes, by their labels.
        """
        trainings = [(label, rate) for label in starts for rate in RATES]
        examples = len(self.evaluator.tasks.examples("search"))
        seed = self.evaluator.config.compute.seed
        total = int(len(trainings) * cost)
        begin = time.perf_counter()
        fresh = 0.0
        trained: dict[str, Trained] = {}
        for number, (label, rate) in enumerate(trainings):
            which = f"from {starts[label][0]}, rate {rate:g}"
            lora = Lora.for_cost(cost, examples, rate=rate, seed=seed)

            def after_step(
                step: int,
                _: object,
                number: int = number,
                which: str = which,
                steps: int = lora.steps,
            ) -> None:
                nonlocal fresh
                fresh += cost / steps
                done = round(cost * (number + step / steps), 2)
                seconds = time.perf_counter() - begin
                note = f"{which}, step {step} of {steps}"
                report(
                    Progress("lora", done, total, number, seconds=seconds, fresh=fresh, note=note)
                )

            folder = self.folder / label.replace(":", "-")
            out = folder / f"lora-{rate:g}-{cost:g}"
            try:
                plain = self._plain(starts[label][1], folder / "model")
                if not (out / "adapter_config.json").exists():
                    self._train(plain, lora, out, after_step)
            except EvoMergeError as error:
                logger.warning(f"the results have no LoRA {which}: {error}")
            else:
                model = plain.model_copy(update={"adapter": str(out)})
                trained[f"lora:{label}:{rate:g}:{cost:g}"] = Trained(f"LoRA {which}", model)
        return trained

    def _plain(self, start: SourceRef | Recipe, folder: Path) -> SourceRef:
        """A model that an adapter can be trained for: a parent as it is, or what has to be built
        first."""
        if isinstance(start, SourceRef):
            if start.adapter is None:
                return start
            start = Recipe(sources=[start], merge=MergePart(method="passthrough"))
        if not (folder / "config.json").exists():
            from ...building.build import build_model

            build_model(
                start,
                folder,
                progress=False,
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
