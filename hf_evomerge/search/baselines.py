"""What a sceptic compares a merge with: LoRA fine-tunes of the best parent and of the plain average, at the search's own cost.

A fine-tune sees the examples that the search sees. Its learning rate is the best of three on the validation split, each at the
full cost, so it has three times what the search had. What comes out are adapters in the search's folder, which are scored, and
can be used, like any source with an adapter.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..recipes.recipe import MergePart, Recipe, SourceRef
from .finetune import Lora, fine_tune

if TYPE_CHECKING:
    from .evaluation.evaluator import Evaluator

RATES = (2e-4, 1e-3, 5e-3)
FOLDER = "baselines"

Tune = Callable[[SourceRef | Recipe, str, float], dict[str, SourceRef]]
"""Fine-tunes a model, which has a name, at a cost; gives the tuned models by label, one for each learning rate."""


def tuned_models(evaluator: Evaluator, folder: Path, start: SourceRef | Recipe, name: str, cost: float) -> dict[str, SourceRef]:
    """Fine-tune a model at each of three learning rates, unless the folder holds its adapters already.

    Args:
        evaluator: Has the search's task, examples, dtype and device.
        folder: Where ``NAME/lora-RATE`` are written, and ``NAME/model`` where the model has to be built first.
        start: A parent; or a recipe, such as that of the plain average.
        name: What the model is called in the folder and in labels.
        cost: Of each fine-tune, in scores of all search examples.

    Returns:
        The model with each adapter, by label.

    Raises:
        SearchError: peft is not installed.
        EvoMergeError: The model cannot be built or trained.
    """
    plain = _plain(start, folder / name / "model", trust_remote_code=evaluator.sources.trust_remote_code)
    settings = [
        Lora.for_cost(cost, len(evaluator.tasks.examples("search")), rate=rate, seed=evaluator.config.seed) for rate in RATES
    ]
    found = {}
    for lora in settings:
        out = folder / name / f"lora-{lora.rate:g}"
        if not (out / "adapter_config.json").exists():
            _train(evaluator, plain, lora, out)
        found[f"lora:{name}:{lora.rate:g}"] = plain.model_copy(update={"adapter": str(out)})
    return found


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


def _train(evaluator: Evaluator, start: SourceRef, lora: Lora, out: Path) -> None:
    """Train one adapter, and write it in one piece; the model is left as it was."""
    model: Any = evaluator.models.model(start)
    examples, tokenizer = evaluator.tasks.examples("search"), evaluator.tasks.tokenizer(start)
    try:
        tuned = fine_tune(model, evaluator.tasks.differentiable_task, examples, tokenizer, lora)
        unfinished = out.with_name(f".{out.name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        tuned.save_pretrained(unfinished)
        os.replace(unfinished, out)
    finally:
        evaluator.models.forget_parents()  # peft has put its layers into the model
