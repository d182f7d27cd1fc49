"""Scores recipes and parents: the tasks of a search, prepared once for all candidates, run on its live models.

Knows nothing of genomes or of the study, and holds no state that changes a score: the same recipe on the same examples gives
the same numbers in any order and in any process.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import MAX_MESSAGE, EvoMergeError, FitnessError, one_line
from ...fitness import DifferentiableTask, Example, Scores, Task, TaskSpec, load_examples, make_task
from ...fitness.classification import ClassificationTask, Head
from ...fitness.encoding import encode_prompt, room
from ...fitness.pictures import SeeingTokenizer
from ...fitness.writing import WritingSpec, WritingTask
from ...recipes.recipe import Recipe, SourceRef
from ..file.config import RETAINED, SPLITS, SearchConfig
from ..file.objectives import OBJECTIVE, Taken, TaskObjective
from ..file.tasks import measured_on
from .gradients import Slopes, recomputed
from .model_pool import LiveModels
from .source_pool import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = tuple[int, ...]


class Evaluator(LiveModels):
    """Scores candidates and parents.

    Args:
        config: The search: sources, dtype, devices (of the first worker, where there are several), threads, task and data.
        task_factory: Makes an unprepared task; the search file's by default.
        examples: The examples per split; read as the search file says by default.
        trust_remote_code: Whether Python files that come with the sources may be run.
        weights: Whether weights may be downloaded and read; nothing can be evaluated without.

    Attributes:
        sources, base: The opened checkpoints.
        loading: Called when the loading of models begins and ends, whose time is not an evaluation's.

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
        make = task_factory or (lambda: make_task(config.fitness))
        super().__init__(config, make, trust_remote_code=trust_remote_code, weights=weights)
        self._examples = dict(examples) if examples is not None else {}
        self._heads: dict[SourceRef, PreTrainedModel] = {}
        self._tasks: dict[Any, Task] = {}

    @property
    def splits(self) -> list[str]:
        """The splits that there are examples for."""
        there = {**self.config.splits, **self._examples}
        others = (split for split in there if split.startswith((RETAINED, OBJECTIVE)))
        return [*(split for split in SPLITS if split in there), *others]

    def examples(self, split: str) -> Sequence[Example]:
        """The examples of a split; raises `FitnessError` where the search file gives none."""
        if split not in self._examples:
            spec = self.config.splits.get(split)
            if spec is None:
                raise FitnessError(f"data.{split}: not given; name a file or data set")
            self._examples[split] = load_examples(spec)
        return self._examples[split]

    def check_examples(self, split: str) -> None:
        """Raise `FitnessError` where the task cannot use the examples of a split. Reads a tokenizer and no model."""
        try:
            self._prepared(self.config.sources[0], split, None, measured_on(self.config, split))
        except FitnessError as error:
            if not str(error).startswith("data.chat:"):
                raise  # it names the file of the example
            raise FitnessError(f"{self.sources[0]}: {error}") from error

    def check_gradient(self, fitness: TaskSpec | None = None) -> None:
        """Raise `FitnessError` unless the fitness, the search's own where None, has a gradient."""
        if not isinstance(self._new_task(fitness), DifferentiableTask):
            task = (fitness or self.config.fitness).task
            raise FitnessError(
                f"fitness.task: {task} has no gradient; use likelihood, or optimizer: {{algorithm: cma}}, after a "
                "first: {fitness: {task: likelihood}}"
            )

    def differentiable_task(self) -> DifferentiableTask:
        """An unprepared task that has a gradient: that of the first stage; raises `FitnessError` where it has none."""
        fitness = self.config.stages[0].fitness
        self.check_gradient(fitness)
        task = self._new_task(fitness)
        assert isinstance(task, DifferentiableTask)  # checked
        return task

    def evaluate(
        self,
        target: Target,
        split: str = "search",
        batch: Batch | None = None,
        slopes: Slopes | None = None,
        fitness: TaskSpec | None = None,
        rows: int | None = None,
    ) -> Scores:
        """Score one recipe, or one parent as it is.

        Args:
            target: What to score.
            split: On which examples.
            batch: Only the examples with these indices.
            slopes: Of what the scores' gradient is wanted, if it is.
            fitness: What to score on it; the search's own fitness where None.
            rows: How many examples go together, where the tasks say more.

        Returns:
            The scores. Whatever goes wrong inside, out of memory included, is their error: one bad candidate must not end a
            search.
        """
        begin = time.perf_counter()
        try:
            task = self._prepared(target, split, batch, fitness, rows)
            scores = task.evaluate(self.model(target)) if slopes is None else self._differentiated(task, target, slopes)
            if (count := len(batch) if batch is not None else len(self.examples(split))) != scores.values.size:
                raise FitnessError(
                    f"the task gave {scores.values.size} scores for {count} examples; there must be one per example"
                )
            scores = scores.timed(time.perf_counter() - begin)
            if split in SPLITS and batch is None and slopes is None and fitness is None:
                scores = scores.with_others(self._others(target, split, scores, rows))
            return scores
        except (Exception, SystemExit, GeneratorExit) as error:
            gc.collect()  # an out-of-memory error leaves tensors in its frames
            kind = "" if isinstance(error, EvoMergeError) else f"{type(error).__name__}: "
            return Scores.failed(f"{kind}{one_line(error, MAX_MESSAGE)}", time.perf_counter() - begin)

    def answer(self, target: Target, example: Example, max_new_tokens: int = 64) -> str:
        """What a model writes after an example's prompt, greedily, as far as it has positions."""
        model, tokenizer = self.model(target), self.tokenizer(target)
        most = room(model, encode_prompt(example, tokenizer))
        task = WritingTask(WritingSpec(task="answer", max_new_tokens=max(1, min(max_new_tokens, most))))
        task.prepare([example], tokenizer)
        return task.write(model)[0][0].strip()

    def task(self, target: Target, split: str = "search") -> Task:
        """The search's task, prepared with the examples of a split for a target."""
        return self._prepared(target, split, None, None)

    def tokenizer(self, target: Target) -> Any:
        """The tokenizer that goes with a target; one that reads pictures where the examples have some."""
        owner = self._tokenizer_owner(target)[1]
        if not any(example.pictures for split in self.splits for example in self.examples(split)):
            return owner.tokenizer()
        return SeeingTokenizer(owner.processor())

    def _prepared(
        self, target: Target, split: str, batch: Batch | None, fitness: TaskSpec | None, rows: int | None = None
    ) -> Task:
        """The task on these examples, tokenised once for all candidates."""
        which = self._tokenizer_owner(target)[0]
        key = (which, split, batch, None if fitness is None else fitness.model_dump_json(), rows)
        if key not in self._tasks:
            if len(self._tasks) > len(self.config.objectives):
                self._tasks.clear()
            examples = self.examples(split)
            task: Any = self._new_task(fitness)
            if rows is not None and getattr(getattr(task, "spec", None), "batch_size", 0) > rows:
                task.spec = task.spec.model_copy(update={"batch_size": rows})
            task.prepare(examples if batch is None else [examples[i] for i in batch], self.tokenizer(target))
            self._tasks[key] = task
        return self._tasks[key]

    def _new_task(self, fitness: TaskSpec | None) -> Task:
        task: Task = self._make_task() if fitness is None else make_task(fitness)
        if isinstance(task, ClassificationTask):
            task.heads = self._heads_of(task.spec.heads)
        return task

    def _heads_of(self, names: Sequence[str]) -> dict[str, Head]:
        """The heads of the sources by these names."""
        if len(names) > len(self.sources) or len(set(names)) < len(names):
            raise FitnessError(f"fitness.heads: {', '.join(names)}; give each of the {len(self.sources)} sources one name")
        return {
            name: Head(self.open(ref).config, partial(self._head, ref))
            for name, ref in zip(names, self.config.sources, strict=False)
        }

    def _head(self, ref: SourceRef) -> PreTrainedModel:
        """A source without its body."""
        if ref not in self._heads:
            head = self._heads[ref] = self._from_disk(self.open(ref))
            setattr(head, head.base_model_prefix, None)
        return self._heads[ref]

    def _others(self, target: Target, split: str, scores: Scores, rows: int | None) -> dict[str, Scores]:
        """The scores of the objectives beside the fitness, by name."""
        found: dict[str, Scores] = {}
        for objective in self.config.objectives:
            if isinstance(objective, TaskObjective):
                task = self._prepared(target, objective.split(split), None, objective.fitness, rows)
                found[objective.name] = task.evaluate(self.model(target))
            else:
                found[objective] = self._taken(objective, target, scores)
        return found

    def _taken(self, what: Taken, target: Target, scores: Scores) -> Scores:
        """What a model took to be scored."""
        if what == "tokens":
            if scores.outputs is None:
                raise FitnessError("objectives: tokens counts those of answers, and the task keeps none")
            tokenizer = self.tokenizer(target)
            return Scores([len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in scores.outputs])
        if what == "seconds":
            return Scores([scores.seconds])
        if what == "parameters":
            return Scores([sum(parameter.numel() for parameter in self.model(target).parameters())])
        if isinstance(target, Recipe) and target.flow is not None:
            return Scores([len(target.flow.path)])
        ref = target if isinstance(target, SourceRef) else target.sources[target.merge_sources[0]]
        return Scores([self.open(ref).layer_count])

    def _differentiated(self, task: Task, target: Target, slopes: Slopes) -> Scores:
        """Scores with their gradient."""
        assert isinstance(task, DifferentiableTask)  # the search has been checked
        assert isinstance(target, Recipe)  # parents have no numbers
        found: list[Scores] = []

        def backward(model: PreTrainedModel) -> None:
            with recomputed(model) if self.config.gradient_checkpointing else nullcontext():
                found.append(task.backward(model))

        gradient = slopes.take(self, target, backward)
        return found[0].with_gradient(gradient)
