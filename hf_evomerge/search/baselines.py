"""Tunes what a merge is compared with: LoRAs of parents and average, and a LoRA beside the merge.

A training sees the examples that the search sees. The search takes the best of all starts and rates, each at the full cost. The
adapters stay in the study's folder, and can be scored and used like any source with an adapter.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..checkpoints.lora import CONFIG_FILE
from ..errors import EvoMergeError
from ..recipes.recipe import RECIPE_FILE, MergePart, Recipe, SourceRef
from .callbacks import Progress
from .file.stages import Stage
from .finetune import Lora, fine_tune
from .folder import build_winner
from .study.files import TOGETHER_FOLDER
from .together import learn_together, with_adapter

if TYPE_CHECKING:
    from .evaluation.evaluator import Evaluator

logger = logging.getLogger(__name__)

RATES = (1e-4, 3e-4, 5e-4, 1e-3)


@dataclass(frozen=True)
class Tuned:
    """A tuned model that the result is compared with.

    Attributes:
        stage: The stage of its row.
        name: Name of the model.
        model: The model.
        cost: What was spent to find it, in scores of all search examples.
    """

    stage: Literal["lora", "together"]
    name: str
    model: SourceRef
    cost: float


@dataclass(frozen=True)
class Tuner:
    """Tunes models on the search examples, in this process.

    Attributes:
        evaluator: Evaluator with the search's task, examples, dtype and device.
        folder: Where ``START/lora-RATE-COST`` are written, and ``START/model`` where a model has to be built first.
    """

    evaluator: Evaluator
    folder: Path

    def fine_tunes(
        self, starts: Mapping[str, tuple[str, SourceRef | Recipe]], cost: float, tell: Callable[[Progress], None]
    ) -> dict[str, Tuned]:
        """Fine-tune every start with LoRA at every rate, unless the folder holds the adapter already.

        What cannot be built or trained is left out, with a warning.

        Args:
            starts: Name of each start, and the model, by its label.
            cost: Cost of each training, in scores of all search examples.
            tell: Callback for the progress.

        Returns:
            The fine-tunes, by their labels.
        """
        trainings = [(label, rate) for label in starts for rate in RATES]
        found, begin, fresh, total = dict[str, Tuned](), time.perf_counter(), 0.0, len(trainings) * cost
        for number, (label, rate) in enumerate(trainings):
            which = f"from {starts[label][0]}, rate {rate:g}"
            examples, seed = len(self.evaluator.tasks.examples("search")), self.evaluator.config.compute.seed
            lora = Lora.for_cost(cost, examples, rate=rate, seed=seed)

            def told(step: int, _: object, number: int = number, which: str = which, steps: int = lora.steps) -> None:
                nonlocal fresh
                fresh += cost / steps
                done, seconds = round(cost * (number + step / steps), 2), time.perf_counter() - begin
                note = f"{which}, step {step} of {steps}"
                tell(Progress("lora", done, int(total), number, seconds=seconds, fresh=fresh, note=note))

            folder = self.folder / label.replace(":", "-")
            out = folder / f"lora-{rate:g}-{cost:g}"
            try:
                plain = self._plain(starts[label][1], folder / "model")
                if not (out / "adapter_config.json").exists():
                    self._train(plain, lora, out, told)
            except EvoMergeError as error:
                logger.warning(f"the results have no LoRA {which}: {error}")
            else:
                model = plain.model_copy(update={"adapter": str(out)})
                found[f"lora:{label}:{rate:g}:{cost:g}"] = Tuned("lora", f"LoRA {which}", model, cost)
        return found

    def together(self, stage: Stage, tell: Callable[[Progress], None]) -> dict[str, Tuned]:
        """Search the merge weights of a stage with LoRA beside them, unless the folder holds the model; none, with a warning,
        where that fails.

        Args:
            stage: The stage.
            tell: Callback for the progress.
        """
        begin, cost, evaluator = time.perf_counter(), stage.evaluations, self.evaluator
        adapter, folder = self.folder.resolve() / f"together-{cost}", self.folder.parent

        def told(spent: float) -> None:
            tell(Progress("together", round(spent, 2), cost, seconds=time.perf_counter() - begin, fresh=spent))

        try:
            if not (adapter / RECIPE_FILE).exists():
                evaluator.models.forget()
                try:
                    recipe, tuned = learn_together(evaluator, stage, after_step=told)
                    tuned.peft_config["default"].base_model_name_or_path = str(recipe.base and recipe.base.model)
                    _save(tuned, adapter, recipe)
                finally:
                    evaluator.models.forget()
            here = {"sources": evaluator.config.sources, "base": evaluator.config.base}  # a study may have been moved since
            recipe = with_adapter(Recipe.load(adapter / RECIPE_FILE).model_copy(update=here), adapter)
            how = {"trust_remote_code": evaluator.sources.trust_remote_code}
            whole = None if all(ref.adapter for ref in recipe.sources) else True
            build_winner(folder, recipe, TOGETHER_FOLDER, whole=whole, **how)
        except EvoMergeError as error:
            logger.warning(f"the results have no merge with LoRA beside it: {error}")
            return {}
        built = folder / TOGETHER_FOLDER
        is_adapter = (built / CONFIG_FILE).exists()
        model = recipe.sources[-1].model_copy(update={"adapter": str(built)}) if is_adapter else SourceRef(model=str(built))
        return {f"together:{cost}": Tuned("together", "merge with LoRA beside it", model, cost)}

    def _plain(self, start: SourceRef | Recipe, folder: Path) -> SourceRef:
        """A model that an adapter can be trained for: a parent as it is, or what has to be built first."""
        if isinstance(start, SourceRef):
            if start.adapter is None:
                return start
            start = Recipe(sources=[start], merge=MergePart(method="passthrough"))
        if not (folder / "config.json").exists():
            from ..building.build import build_model

            build_model(start, folder, progress=False, trust_remote_code=self.evaluator.sources.trust_remote_code, whole=True)
        return SourceRef(model=str(folder))

    def _train(self, start: SourceRef, lora: Lora, out: Path, told: Callable[[int, Any], None]) -> None:
        """Train one adapter, with no other model in memory, and write it in one piece."""
        models, tasks = self.evaluator.models, self.evaluator.tasks
        models.forget()
        tasks.prepared(start, fitness=self.evaluator.config.stages[0].fitness)  # runs what the task compares with
        model: Any = models.model(start)
        examples, tokenizer = tasks.examples("search"), tasks.tokenizer(start)
        try:
            tuned = fine_tune(model, tasks.differentiable_task, examples, tokenizer, lora, after_step=told)
            _save(tuned, out)
        finally:
            models.forget()  # peft has put its layers into the model


def _save(tuned: Any, out: Path, recipe: Recipe | None = None) -> None:
    """Write the adapters of a model, and a recipe beside them, as a folder that is there when it is whole."""
    unfinished = out.with_name(f".{out.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    tuned.save_pretrained(unfinished, save_embedding_layers=False)  # they are the model's, whatever their size
    (unfinished / "README.md").unlink(missing_ok=True)  # peft's names a folder as base model, which the Hub refuses
    if recipe is not None:
        recipe.save(unfinished / RECIPE_FILE)
    os.replace(unfinished, out)
