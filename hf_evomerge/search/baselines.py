"""Tunes what a sceptic compares a merge with: LoRAs of the parents and of the plain average, and a parent's temperature.

A training sees the examples that the search sees. The search takes the best of all starts and rates, each at the full cost. The
adapters stay in the search's folder, and can be scored and used like any source with an adapter.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import EvoMergeError
from ..fitness import TaskSpec
from ..recipes.recipe import MergePart, Recipe, SourceRef
from .callbacks import Progress
from .finetune import Lora, fine_tune

if TYPE_CHECKING:
    from .evaluation.evaluator import Evaluator

logger = logging.getLogger(__name__)

RATES = (1e-4, 3e-4, 5e-4, 1e-3)
TEMPERATURES = 6  # that are scored at most, beside 1
FOLDER = "baselines"

Told = Callable[[int, int], None]
"""Is told how many steps of a training are done, and how many there are."""

Tune = Callable[[SourceRef | Recipe, str, float, float, Told], SourceRef]
"""Fine-tunes a model, which has a name, at a learning rate and a cost."""


@dataclass(frozen=True)
class Tuner:
    """Tunes models on the search examples.

    Attributes:
        train: Fine-tunes with LoRA.
        fitness: What is scored, where the search file says it.
    """

    train: Tune
    fitness: TaskSpec | None


@dataclass(frozen=True)
class Tuned:
    """A tuned model that the result is compared with.

    Attributes:
        stage: The stage of its row.
        name: What it is called.
        model: The model.
        cost: What was spent to find it, in scores of all search examples.
        fitness: What to score it by, where that is not the search's.
    """

    stage: Literal["lora", "temperature"]
    name: str
    model: SourceRef
    cost: float
    fitness: TaskSpec | None = None


def best_temperature(score: Callable[[Sequence[float]], Sequence[float]]) -> float:
    """The temperature that scores best: among powers of two, then half a step beside the best, then on the parabola there.

    A log-probability is a concave function of 1 / temperature, so it has one peak.

    Args:
        score: Gives the score at each temperature.
    """
    coarse = [0.5, 1.0, 2.0, 4.0, 8.0]
    best = coarse[int(np.argmax(score(coarse)))]
    low, top, high = score([best / 2**0.5, best, best * 2**0.5])
    bend = low - 2 * top + high
    octaves = (low - high) / (4 * bend) if bend < 0 else 0.0
    return float(f"{best * 2 ** min(1.0, max(-1.0, octaves)):.3g}")


def fine_tunes(
    starts: Mapping[str, tuple[str, SourceRef | Recipe]], tune: Tune, cost: float, tell: Callable[[Progress], None]
) -> dict[str, tuple[str, SourceRef]]:
    """Fine-tune every start at every rate. What cannot be trained is left out, with a warning.

    Args:
        starts: What each start is called, and the model, by its label.
        tune: Trains one.
        cost: Of each training, in scores of all search examples.
        tell: Is told of the progress.

    Returns:
        What each fine-tune is called, and the model, by its label.
    """
    trainings = [(label, rate) for label in starts for rate in RATES]
    found, begin, fresh, total = dict[str, tuple[str, SourceRef]](), time.perf_counter(), 0.0, len(trainings) * cost
    for number, (label, rate) in enumerate(trainings):
        name = f"LoRA from {starts[label][0]}, rate {rate:g}"

        def told(step: int, steps: int, number: int = number, name: str = name) -> None:
            nonlocal fresh
            fresh += cost / steps
            done, seconds = round(cost * (number + step / steps), 2), time.perf_counter() - begin
            note = f"{name.removeprefix('LoRA ')}, step {step} of {steps}"
            tell(Progress("lora", done, int(total), number, seconds=seconds, fresh=fresh, note=note))

        try:
            model = tune(starts[label][1], label.replace(":", "-"), rate, cost, told)
        except EvoMergeError as error:
            logger.warning(f"the results have no {name}: {error}")
        else:
            found[f"lora:{label}:{rate:g}:{cost:g}"] = (name, model)
    return found


def tuned_model(
    evaluator: Evaluator, folder: Path, start: SourceRef | Recipe, name: str, rate: float, cost: float, told: Told
) -> SourceRef:
    """Fine-tune a model with LoRA, unless the folder holds the adapter already.

    Args:
        evaluator: Has the search's task, examples, dtype and device.
        folder: Where ``NAME/lora-RATE-COST`` is written, and ``NAME/model`` where the model has to be built first.
        start: A parent; or a recipe, such as that of the plain average.
        name: What the model is called in the folder.
        rate: Learning rate.
        cost: In scores of all search examples.
        told: Called after each step.

    Returns:
        The model with the adapter.

    Raises:
        SearchError: peft is not installed.
        EvoMergeError: The model cannot be built or trained.
    """
    plain = _plain(start, folder / name / "model", trust_remote_code=evaluator.sources.trust_remote_code)
    out = folder / name / f"lora-{rate:g}-{cost:g}"
    if not (out / "adapter_config.json").exists():
        lora = Lora.for_cost(cost, len(evaluator.tasks.examples("search")), rate=rate, seed=evaluator.config.seed)
        _train(evaluator, plain, lora, out, told)
    return plain.model_copy(update={"adapter": str(out)})


def _plain(start: SourceRef | Recipe, folder: Path, *, trust_remote_code: bool) -> SourceRef:
    """A model that an adapter can be trained for: a parent as it is, or what has to be built first."""
    if isinstance(start, SourceRef):
        if start.adapter is None:
            return start
        start = Recipe(sources=[start], merge=MergePart(method="passthrough"))
    if not (folder / "config.json").exists():
        from ..building.build import build_model

        build_model(start, folder, progress=False, trust_remote_code=trust_remote_code)
    return SourceRef(model=str(folder))


def _train(evaluator: Evaluator, start: SourceRef, lora: Lora, out: Path, told: Told) -> None:
    """Train one adapter, with no other model in memory, and write it in one piece."""
    evaluator.models.forget()
    model: Any = evaluator.models.model(start)
    examples, tokenizer = evaluator.tasks.examples("search"), evaluator.tasks.tokenizer(start)
    try:
        tuned = fine_tune(
            model,
            evaluator.tasks.differentiable_task,
            examples,
            tokenizer,
            lora,
            after_step=lambda step, _: told(step, lora.steps),
        )
        unfinished = out.with_name(f".{out.name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        tuned.save_pretrained(unfinished)
        os.replace(unfinished, out)
    finally:
        evaluator.models.forget()  # peft has put its layers into the model
