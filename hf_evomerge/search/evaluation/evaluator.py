"""Scores recipes and parents: the tasks of a search, prepared once for all candidates, run on its
live models.

Knows nothing of genomes or of the study, and holds no state that changes a score: the same recipe
on the same examples gives the same numbers in any order and in any process.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ...building.noise import is_noise
from ...errors import (
    MAX_MESSAGE,
    EvoMergeError,
    FitnessError,
    MachineError,
    is_of_machine,
    one_line,
)
from ...fitness import DifferentiableTask, Example, Scores, Task, TaskSpec
from ...fitness.tasks.writing import WritingSpec, WritingTask
from ...fitness.text.encoding import encode_prompt, room
from ...recipes.recipe import Recipe
from ..file.config import SearchConfig
from ..file.splits import SPLITS
from ..front.evaluation import measured
from .gradients import Slopes, recomputed
from .model_pool import ModelPool
from .sources import SearchSources, Target
from .tasks import Batch, SearchTasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Evaluator:
    """Scores candidates and parents.

    Args:
        config: The search: sources, dtype, devices (of the first worker, where there are several),
            threads, task and data.
        task_factory: Makes an unprepared task; the search file's by default.
        examples: The examples per split; read as the search file says by default.
        trust_remote_code: Whether Python files that come with the sources may be run.
        weights: Whether weights may be downloaded and read; nothing can be evaluated without.

    Attributes:
        sources: The opened sources and base.
        tasks: What is measured, with its examples.
        models: The live models.

    Raises:
        EvoMergeError: A source or the data cannot be read.
    """

    def __init__(
        self,
        config: SearchConfig,
        *,
        task_factory: Any = None,
        examples: Mapping[str, Sequence[Example]] | None = None,
        trust_remote_code: bool = False,
        weights: bool = True,
    ) -> None:
        self.config = config
        self.sources = SearchSources(config, trust_remote_code=trust_remote_code, weights=weights)
        self.models = ModelPool(config, self.sources)
        self.tasks = SearchTasks(
            config, self.sources, self.models, task_factory=task_factory, examples=examples
        )
        self.models.check = self.tasks.check_scored

    def evaluate(
        self,
        target: Target,
        split: str = "search",
        batch: Batch | None = None,
        slopes: Slopes | None = None,
        fitness: TaskSpec | None = None,
        rows: int | None = None,
        shots: int = 0,
    ) -> Scores:
        """Score one recipe, or one parent as it is.

        Args:
            target: Model to score: a recipe of the search's own sources, or any model.
            split: Split to score on.
            batch: Only the examples with these indices.
            slopes: Gradient request for the scores, if there is one.
            fitness: Task to score on it; the search's own fitness where None.
            rows: How many examples go together, where the tasks say more.
            shots: Number of search examples in the prompt, before each question.

        Returns:
            The scores. Whatever goes wrong inside, a GPU out of memory included, is their error:
            one bad candidate must not end a search.

        Raises:
            MachineError: The machine has failed, not the candidate.
        """
        begin = time.perf_counter()
        try:
            if isinstance(target, Recipe) and not self._knows(target):
                raise FitnessError(
                    "the recipe is of other sources than the search; build it, and score the model"
                )
            task = self.tasks.prepared(target, split, batch, fitness, rows, shots)
            scores = (
                task.evaluate(self._models(target).model(target))
                if slopes is None
                else self._differentiated(task, target, slopes)
            )
            if (
                count := len(batch) if batch is not None else len(self.tasks.examples(split))
            ) != scores.values.size:
                raise FitnessError(
                    f"the task gave {scores.values.size} scores for {count} examples; there "
                    "must be one per example"
                )
            scores = scores.replace(seconds=time.perf_counter() - begin)
            if split in SPLITS and batch is None and slopes is None and fitness is None:
                new = measured(self.tasks, self._models(target), target, split, scores, rows, shots)
                scores = scores.replace(others=scores.others | new)
            return scores
        # The candidate's fault, unless `is_of_machine` knows the error. Whatever stays referenced
        # by the traceback keeps its memory, so the error is raised anew outside of this block, or
        # put into a line.
        except (Exception, SystemExit, GeneratorExit) as error:
            gc.collect()  # an out-of-memory error leaves tensors in its frames
            kind = "" if isinstance(error, EvoMergeError) else f"{type(error).__name__}: "
            line = f"{kind}{one_line(error, MAX_MESSAGE)}"
            is_machines = is_of_machine(error)
        if is_machines:
            raise MachineError(f"the machine has failed, not the model: {line}")
        return Scores.failed(line, time.perf_counter() - begin)

    def _knows(self, recipe: Recipe) -> bool:
        """Tell whether a recipe is of the search's sources, or of noise in their place."""
        if recipe.base is not None and recipe.base != self.config.base:
            return False
        return recipe.sources == self.config.sources or all(map(is_noise, recipe.sources))

    def _models(self, target: Target) -> ModelPool:
        """The live models that a target is made of."""
        if isinstance(target, Recipe):
            return self.models.of(target)
        return self.models

    def answer(self, target: Target, example: Example, max_new_tokens: int = 64) -> str:
        """Return what a model writes after an example's prompt, greedily, as far as it has
        positions."""
        model = self.models.model(target)
        tokenizer = self.tasks.tokenizer(target)
        most = room(model, encode_prompt(example, tokenizer))
        task = WritingTask(
            WritingSpec(task="answer", max_new_tokens=max(1, min(max_new_tokens, most)))
        )
        task.prepare([example], tokenizer)
        return task.write(model)[0][0].strip()

    def _differentiated(self, task: Task, target: Target, slopes: Slopes) -> Scores:
        assert isinstance(task, DifferentiableTask)  # the search has been checked
        assert isinstance(target, Recipe)  # parents have no numbers
        passes: list[Scores] = []

        def backward(model: PreTrainedModel) -> None:
            with recomputed(model) if self.config.compute.gradient_checkpointing else nullcontext():
                passes.append(task.backward(model))

        gradient = slopes.take(self._models(target), target, backward)
        return passes[0].replace(gradient=gradient)
