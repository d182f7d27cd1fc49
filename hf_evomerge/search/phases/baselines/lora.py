"""Baseline: the best of LoRA fine-tunes of a parent, of the average or of the sum of the task
vectors, each at the cost of the search.

A training sees the examples that the search sees. The adapters stay in the study's folder, and can
be scored and used like any source with an adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....fitness.example import Example
from ....fitness.scores import Scores
from ....recipes.recipe import MergePart, Recipe, SourceRef
from ...evaluation.evaluator import Evaluator
from ...evaluation.sources import Target
from ...file.config import SearchConfig
from ...results.table import Against
from ..phase import Findings, Phase, PhasePlan, Planner, SearchRun, plain_merges, plain_models
from .finetune import Lora, fine_tune
from .trainings import Course, Trainings, best_training, check_training, schedule, seconds_of


class LoraTrainings(Phase):
    """Fine-tunes from several models and at several rates; the best on validation has a row."""

    name = "lora"
    title = "LoRA trainings"
    baseline = "lora"

    def check(self, config: SearchConfig, evaluator: Evaluator, findings: Findings) -> None:
        """Refuse tasks without a gradient, quantised bases and an environment without peft."""
        check_training("lora", config, evaluator)

    def plan(self, planner: Planner) -> PhasePlan:
        """Price a training as the search, and a score of it where models are chosen."""
        planner.rows += 1
        config = planner.config
        searched = [stage.name for stage in config.stages if not stage.control]
        starts = _starts(config, planner.evaluator.sources.layers)
        text = f"LoRA {schedule(starts, planner.evaluator.tasks)}"
        seconds = seconds_of(starts, searched, planner)
        return PhasePlan(self.name, text, seconds, at_once=1, like=config.stages[0].name)

    def run(self, run: SearchRun) -> None:
        """Train, and give the best a row; a warning where none could be trained."""
        assert run.evaluator is not None  # the search has been checked
        starts = _starts(run.config, run.sources.layers)
        trainings = Trainings(run, run.evaluator, self.name, run.searched, starts)
        finished = dict[Course, Trained]()

        def train(course: Course) -> Scores:
            """Train, and score the model."""
            name, start = starts[course.start]
            trained = fine_tuned(trainings, f"LoRA from {name}, {course}", start, course)
            finished[course] = trained
            return trained.scores

        names = {label: f"LoRA from {name}" for label, (name, _) in starts.items()}
        if (found := best_training(names, train, more=trainings.more)) is None:
            return
        course, count = found
        best = finished[course]
        said = against(best.name, best.model)
        run.rows.append(trainings.row("lora", best.name, count, best.label, said, best.model))


def _starts(config: SearchConfig, layers: Sequence[int]) -> dict[str, tuple[str, Target]]:
    """Models that a training may begin at: parents, their average and, as a search of weights has
    it, the sum of their task vectors."""
    return {**plain_models(config, layers), **plain_merges(config, layers)}


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
        model: The model.
        scores: Its scores where models are ranked.
    """

    name: str
    label: str
    model: SourceRef
    scores: Scores


def fine_tuned(trainings: Trainings, name: str, start: Target, course: Course) -> Trained:
    """Fine-tune with LoRA, and score the model; what the study has is not done again.

    Args:
        trainings: Trainings of the phase.
        name: Name of the fine-tune.
        start: Model that the training begins at.
        course: Course of the training.

    Raises:
        EvoMergeError: The start cannot be built, or the training fails, or its model cannot be
            scored.
    """
    evaluator = trainings.evaluator
    label, rate, split = course
    cost = trainings.cost_on(split)
    folder = trainings.folder / label.replace(":", "-")
    out = folder / f"lora-{rate:g}-{cost:g}"
    plain = _plain(start, folder / "model", evaluator.sources.trust_remote_code)
    examples = evaluator.tasks.examples(split)
    seed = evaluator.config.compute.seed
    lora = Lora.for_cost(trainings.cost, len(examples), rate=rate, seed=seed)

    def train(told: Callable[[float], None]) -> tuple[Target, Any]:
        return plain, tune(evaluator, plain, lora, examples, lambda share: told(cost * share))

    scored = f"lora:{label}:{rate:g}:{cost:g}"
    scores = trainings.ranked(scored, out, course, train, name)
    model = plain.model_copy(update={"adapter": str(out)})
    return Trained(name, scored, model, scores)


def tune(
    evaluator: Evaluator,
    model: Target,
    settings: Lora,
    examples: Sequence[Example],
    told: Callable[[float], None],
) -> Any:
    """Train LoRA adapters of a model on examples of the search.

    Args:
        evaluator: The search's evaluator.
        model: The model, which is read or merged.
        settings: Settings of the training.
        examples: The examples.
        told: Called after each step with the share of the steps that are done.
    """
    tasks = evaluator.tasks
    return fine_tune(
        evaluator.models.model(model),
        tasks.differentiable_task,
        examples,
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
