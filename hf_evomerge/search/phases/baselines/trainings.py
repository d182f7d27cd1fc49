"""Trainings of a baseline: each is run and scored once, and lies in the study's folder."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ....checkpoints.lora import CONFIG_FILE
from ....errors import EvoMergeError, FitnessError, SearchError, optional
from ....fitness.comparison import best_of
from ....fitness.scores import Scores
from ....recipes.recipe import RECIPE_FILE, Recipe
from ...callbacks import Progress
from ...evaluation.evaluator import Evaluator
from ...evaluation.sources import Target
from ...file.config import SearchConfig
from ..phase import SearchRun

logger = logging.getLogger(__name__)

Train = Callable[[Callable[[float], None]], tuple[Target, Any]]
"""Trains adapters. It is given what to call with the cost so far, and returns the target whose live
model has the adapters now, and that model (peft's)."""

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # of AdamW, the lowest first
USUAL = 1e-3  # the highest rate that is always tried
SHARE = 0.25  # of the steps of a whole training, which a short one has


# A baseline must not lose because it was tuned less, and must not take longer than all the rest.
# Trainings are of (start, rate). Rates above `USUAL` are tried while the highest rate so far is the
# best: small models want more than is usual for LoRA.
#
#   1. from every start short trainings at all rates but the lowest, each with its whole schedule in
#      a quarter of the steps;
#   2. from the best start whole trainings at all rates;
#   3. from the second best start a whole training at the rate that was best in 2.
#
# The best of 2 and 3 is taken; see `best_of`. By log-likelihood alone two of five small pairs got a
# training with .23 and .21 of unseen problems where another had .32 and .49.
#
# Why not by what the starts score untrained: that misleads. Why is no start dropped at one rate:
# Adam moves each number by about rate x steps. What is far from the task needs a high rate to get
# anywhere in a quarter of the steps: at 1e-3 the sum of the task vectors was third on a pair where
# it has .39 in full, at 3e-3, and the next best start .28. Nor do short trainings say the rate: the
# best of a pair of SmolLM2-135M was at 3e-3, where a whole one has .75 and one at 3e-4 .85.
def best_training(
    starts: Mapping[str, str], train: Callable[[str, float, float], Scores]
) -> tuple[str, float, int] | None:
    """Find what to begin at and the rate, and count the whole trainings; None, with warnings, where
    none could be scored.

    Args:
        starts: Names of trainings, by the key of what they begin at.
        train: Trains from a start, at a rate, for a share of the steps, and scores the model.
    """

    def tried(start: str, rates: Sequence[float], share: float) -> dict[tuple[str, float], Scores]:
        """Train at rates, and return the scores."""
        done: dict[tuple[str, float], Scores] = {}
        highest = rates[0]
        for rate in rates:
            if rate > max(USUAL, rates[0]) and (not done or best_of(done)[1] < highest):
                break
            highest = rate
            try:
                done[start, rate] = train(start, rate, share)
            except EvoMergeError as error:
                logger.warning(f"the results have no {starts[start]}, rate {rate:g}: {error}")
        return done

    short: dict[tuple[str, float], Scores] = {}
    for start in starts:
        if done := tried(start, RATES[1:], SHARE):
            best = best_of(done)
            short[best] = done[best]
    if not short:
        return None
    first = best_of(short)
    del short[first]
    whole = tried(first[0], RATES, 1.0)
    if short and whole:
        whole |= tried(best_of(short)[0], [best_of(whole)[1]], 1.0)
    return (*best_of(whole), len(whole)) if whole else None


def usual_cost(starts: int) -> float:
    """The usual cost of `best_training`, in whole trainings: three short ones of each start, and
    five whole ones."""
    return 3 * SHARE * starts + 5


def schedule(starts: int) -> str:
    """Describe the trainings of `best_training`, after the name of what is trained."""
    return (
        f"from {starts} starts, briefly, at rates that rise while that helps, then in full from "
        f"the best two; about {usual_cost(starts):.0f} times the cost of the search"
    )


@dataclass
class Trainings:
    """Trains adapters one after the other, and scores each where models are ranked.

    Attributes:
        run: The search.
        evaluator: Its evaluator.
        phase: Name of the phase that trains.
        total: Cost of all its trainings, in scores of all search examples.
        done: Cost of the trainings so far.
        seconds: Time that they took, in a killed process too.
    """

    run: SearchRun
    evaluator: Evaluator
    phase: str
    total: float
    done: float = 0.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._fresh = 0.0
        self._begin = time.perf_counter()

    @property
    def folder(self) -> Path:
        """Folder of the adapters."""
        return self.run.study.folder.resolve() / "baselines"

    @property
    def favoured(self) -> bool:
        """True where the examples of the table rank the trainings."""
        return self.run.sizes.ranked_on == "test"

    def best_of(self, count: int) -> str:
        """Say that a training is the best of so many, and on which examples."""
        favour = ", which favours it" if self.favoured else ""
        return f"best of {count} on {self.run.sizes.ranked_on} examples{favour}"

    # The live model is scored, with the adapters inside it: nothing has to be built. A score is
    # stored after its adapter, so a killed search has both or trains again.
    def ranked(self, label: str, out: Path, cost: float, train: Train, note: str) -> Scores:
        """Train and score, unless adapter and score are there, and return the scores.

        Args:
            label: Key by which the score is kept in the study.
            out: Folder for the adapter; it appears whole.
            cost: Cost of the training, in scores of all search examples.
            train: Trains.
            note: What the progress says of the training.

        Raises:
            EvoMergeError: The training failed, or its model cannot be scored.
        """
        study = self.run.study
        split = self.run.sizes.ranked_on
        tell = partial(self.tell, before=self.done, note=note)
        self.done += cost
        self.total = max(self.total, self.done)
        scores = study.evaluation(label, split)
        if scores is None or not (out / CONFIG_FILE).exists():
            begin = time.perf_counter()
            fresh = self._fresh

            def told(spent: float) -> None:
                self._fresh = fresh + spent
                tell(spent)

            # sources that answer later would take the place of the trained model
            config = self.evaluator.config
            tasks = self.evaluator.tasks
            tasks.prepared(config.sources[0], fitness=config.stages[0].fitness)
            tasks.prepared(config.sources[0], split)
            models = self.evaluator.models
            models.forget()  # no other model is in memory
            try:
                target, tuned = train(told)
                save_adapter(tuned, out, target if isinstance(target, Recipe) else None)
                scores = self.evaluator.evaluate(target, split)
            finally:
                models.forget()  # peft has put its layers into the model
            scores = scores.replace(seconds=time.perf_counter() - begin)
            study.add_evaluation(label, split, scores)
        self.seconds += scores.seconds
        if scores.error is not None:
            raise SearchError(f"cannot be evaluated: {scores.error}")
        return scores

    def end(self) -> None:
        """Report that no training follows."""
        self.total = self.done
        self.tell(before=self.done)

    def tell(self, spent: float = 0.0, *, before: float, note: str = "") -> None:
        """Report how much of the trainings is done.

        Args:
            spent: Cost of the current training so far.
            before: Cost of those before it.
            note: What is said of it.
        """
        progress = Progress(
            self.phase,
            round(before + spent, 2),
            math.ceil(self.total),
            seconds=time.perf_counter() - self._begin,
            fresh=self._fresh,
            note=note,
        )
        self.run.report(progress, size=self.run.sizes["search"])


def save_adapter(tuned: Any, out: Path, recipe: Recipe | None = None) -> None:
    """Write the adapters of a model as a folder that is there when it is whole; those that were
    trained inside a merge as adapters of its base, with its recipe."""
    unfinished = out.with_name(f".{out.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    if recipe is not None and recipe.base is not None:
        tuned.peft_config["default"].base_model_name_or_path = str(recipe.base.model)
    # embeddings are the model's, whatever their size
    tuned.save_pretrained(unfinished, save_embedding_layers=False)
    # peft's README.md names a folder as base model, which the Hub refuses
    (unfinished / "README.md").unlink(missing_ok=True)
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
