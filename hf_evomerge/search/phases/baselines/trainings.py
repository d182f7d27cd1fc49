"""Trainings of a baseline: each is run and scored once, and lies in the study's folder."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ....checkpoints.lora import CONFIG_FILE
from ....errors import EvoMergeError, FitnessError, SearchError, optional
from ....fitness.comparison import best_of
from ....fitness.scores import Scores
from ....recipes.recipe import RECIPE_FILE, Recipe
from ...callbacks import Progress
from ...evaluation.evaluator import Evaluator
from ...evaluation.sources import Target
from ...evaluation.tasks import MORE, SearchTasks
from ...file.config import SearchConfig
from ...results.table import Against, Row, RowStage
from ..phase import Planner, SearchRun

logger = logging.getLogger(__name__)

Train = Callable[[Callable[[float], None]], tuple[Target, Any]]
"""Trains adapters. It is given what to call with the cost so far, and returns the target whose live
model has the adapters now, and that model (peft's)."""

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # of AdamW
USUAL = (1, 2)  # places in `RATES` of those that are always tried


class Course(NamedTuple):
    """Course of a training.

    Attributes:
        start: Key of what it begins at.
        rate: Peak learning rate.
        split: Split of the examples that it sees.
    """

    start: str
    rate: float
    split: str = "search"

    def __str__(self) -> str:
        """Name rate and split, such as ``rate 0.001 on more made prompts``."""
        more = " on more made prompts" if self.split == MORE else ""
        return f"rate {self.rate:g}{more}"


# A baseline must not lose because it was tuned less, and must not take longer than all the rest.
#
#   1. From the sum of the task vectors trainings at the usual rates, and at the next lower or
#      higher one while its neighbour is the best: small models want more than is usual for LoRA.
#   2. From every other start one training, at the rate that is the best so far.
#   3. If that from another start is the best of all, the other rates from there too.
#
#   4. Where the search makes prompts of a few, the best once more on more of these, with as many
#      steps for each, at the next lower rate. What is learned from sixteen prompts fails at words
#      that stand in none of them, and more steps on the same prompts learn these by heart. So many
#      more steps get as far at a lower rate: beside a merge whose best rate was 3e-3, 1e-3 had .97
#      of unseen problems, and 3e-3 .85.
#
# The best is taken; see `best_of`. By log-likelihood alone two of five small pairs got one with .23
# and .21 of unseen problems where another had .32 and .49.
#
# Why the sum first? A LoRA from it is the best on seven of eight pairs. Why is no start tried
# briefly? What is far from the task needs rate x steps to get anywhere, for Adam moves each number
# by about that: in a quarter of the steps the sum was the best on four of the eight, and .12 was
# chosen where it has .29. Nor do short trainings say the rate: the best of a pair of SmolLM2-135M
# was at 3e-3, where a whole one has .75 and one at 3e-4 .85.
def best_training(
    starts: Mapping[str, object], train: Callable[[Course], Scores], *, more: bool = False
) -> tuple[Course, int] | None:
    """Find the best course, and count the trainings; None, with warnings, where none could be
    scored.

    Args:
        starts: What is trained, by the key of what it begins at. A key that ends in ``sum`` is the
            sum of the task vectors; without one the first start stands for it.
        train: Trains, and scores the model.
        more: Whether there are more made prompts than the search's.
    """
    done: dict[Course, Scores] = {}

    def add(course: Course) -> None:
        """Train, and keep the scores unless it fails."""
        try:
            if course not in done:
                done[course] = train(course)
        except EvoMergeError as error:
            logger.warning(f"the results have no {starts[course.start]}, {course}: {error}")

    def add_rates(start: str) -> None:
        """Train at the usual rates, and at those beside the best."""
        untried = set(range(len(RATES)))
        wanted = set(USUAL)
        while wanted:
            for place in sorted(wanted):
                add(Course(start, RATES[place]))
            untried -= wanted
            wanted = set()
            if own := {course: done[course] for course in done if course.start == start}:
                best = RATES.index(best_of(own).rate)
                wanted = untried & {best - 1, best + 1}

    full = _in_full(starts)
    for start in full:
        add_rates(start)
    rate = best_of(done).rate if done else RATES[USUAL[0]]
    for start in starts:
        if start not in full:
            add(Course(start, rate))
    if done and (start := best_of(done).start) not in full:
        add_rates(start)
    if done and more:
        best = best_of(done)
        lower = RATES[max(RATES.index(best.rate) - 1, 0)]
        add(best._replace(rate=lower, split=MORE))
    return (best_of(done), len(done)) if done else None


def _in_full(starts: Collection[str]) -> list[str]:
    """The starts from which all rates are tried: sums, or the first."""
    return [start for start in starts if start.endswith("sum")] or list(starts)[:1]


def usual_cost(starts: Collection[str], tasks: SearchTasks) -> float:
    """Cost of the usual trainings, in trainings on the search examples: four from a sum, one from
    every other start, and the one on more made prompts."""
    more = share_of(tasks, MORE)
    return len(starts) + 3 * len(_in_full(starts)) + (more if more > 1 else 0)


def share_of(tasks: SearchTasks, split: str) -> float:
    """Number of the examples of a split, over that of the search examples."""
    return len(tasks.examples(split)) / len(tasks.examples("search"))


def seconds_of(starts: Collection[str], stages: Collection[str], planner: Planner) -> float:
    """Price the trainings: each takes what the stages of these names do, and a score where models
    are ranked."""
    searched = math.fsum(phase.seconds for phase in planner.phases if phase.name in stages)
    sizes = planner.sizes
    cost = usual_cost(starts, planner.evaluator.tasks)
    return cost * (searched + sizes[sizes.ranked_on] * planner.second)


def schedule(starts: Collection[str], tasks: SearchTasks) -> str:
    """Describe the trainings of `best_training`, after the name of what is trained."""
    return (
        f"from {len(starts)} starts, at rates that go on while that helps; about "
        f"{usual_cost(starts, tasks):.0f} times the cost of the search"
    )


@dataclass
class Trainings:
    """Trains adapters one after the other, and scores each where models are ranked.

    Attributes:
        run: The search.
        evaluator: Its evaluator.
        phase: Name of the phase that trains.
        cost: Cost of a training on the search examples, in scores of all of them.
        starts: Keys of what trainings begin at.
        total: Usual cost of all trainings, or what they have cost where that is more.
        done: Cost of the trainings so far.
        seconds: Time that they took, in a killed process too.
    """

    run: SearchRun
    evaluator: Evaluator
    phase: str
    cost: float
    starts: Collection[str]
    done: float = 0.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.total = usual_cost(self.starts, self.evaluator.tasks) * self.cost
        self._fresh = 0.0
        self._begin = time.perf_counter()

    @property
    def more(self) -> bool:
        """Tell whether more prompts can be made than the search has."""
        return self.cost_on(MORE) > self.cost

    def cost_on(self, split: str) -> float:
        """Cost of a training on the examples of a split, with as many steps for each, in scores of
        all search examples."""
        return self.cost * share_of(self.evaluator.tasks, split)

    @property
    def folder(self) -> Path:
        """Folder of the adapters."""
        return self.run.study.folder.resolve() / "baselines"

    def row(
        self, stage: RowStage, name: str, count: int, label: str, against: Against, model: Target
    ) -> Row:
        """End the trainings, and make the row of the best.

        Args:
            stage: Stage of the row.
            name: Name of the training.
            count: Number of trainings.
            label: Key by which the scores of the model are kept.
            against: Sentences about it.
            model: The model.
        """
        self.total = self.done
        self.tell(before=self.done)
        split = self.run.sizes.ranked_on
        return Row(
            stage,
            f"{name} (best of {count} on {split} examples)",
            evaluations=round(self.done, 2),
            seconds=self.seconds,
            label=label,
            against=against,
            favoured=split == "test",
            target=model,
        )

    # The live model is scored, with the adapters inside it: nothing has to be built. A score is
    # stored after its adapter, so a killed search has both or trains again.
    def ranked(self, label: str, out: Path, course: Course, train: Train, name: str) -> Scores:
        """Train and score, unless adapter and score are there, and return the scores.

        Args:
            label: Key by which the score is kept in the study.
            out: Folder for the adapter; it appears whole.
            course: Course of the training.
            train: Trains.
            name: Name of the training, for the progress.

        Raises:
            EvoMergeError: The training failed, or its model cannot be scored.
        """
        study = self.run.study
        split = self.run.sizes.ranked_on
        tell = partial(self.tell, before=self.done, note=name)
        self.done += self.cost_on(course.split)
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
            tasks.prepared(config.sources[0], course.split, fitness=config.stages[0].fitness)
            tasks.prepared(config.sources[0], split)
            models = self.evaluator.models
            models.forget()  # no other model is in memory
            try:
                target, tuned = train(told)
                save_adapter(tuned, out, target if isinstance(target, Recipe) else None)
                del tuned  # which nothing holds then, when models are forgotten
                scores = self.evaluator.evaluate(target, split)
            finally:
                models.forget()  # peft has put its layers into the model
            scores = scores.replace(seconds=time.perf_counter() - begin)
            study.add_evaluation(label, split, scores)
        self.seconds += scores.seconds
        if scores.error is not None:
            raise SearchError(f"cannot be evaluated: {scores.error}")
        return scores

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
