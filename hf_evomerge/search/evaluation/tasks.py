"""The tasks of a search, with its examples: prepared once for all candidates. Knows no live model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import FitnessError, SourceError
from ...fitness import ChoiceTask, DifferentiableTask, Example, FunctionTask, Task, TaskSpec, load_examples, make_task
from ...fitness.classification import ClassificationTask, Head
from ...fitness.pictures import SeeingTokenizer
from ...recipes.recipe import SourceRef
from ..file.config import SearchConfig
from ..file.splits import SPLITS, SplitName
from ..file.tasks import measured_on
from .sources import SearchSources, Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ...checkpoints.checkpoint import Parent

Batch = tuple[int, ...]


class SearchTasks:
    """The fitness of a search, the tasks of its stages and objectives, and their examples.

    Args:
        config: The search.
        sources: Its opened sources, whose tokenizers encode the examples.
        load: Loads a source, of which a classification needs the head.
        task_factory: Makes an unprepared task; the search file's by default.
        examples: The examples per split; read as the search file says by default.
    """

    def __init__(
        self,
        config: SearchConfig,
        sources: SearchSources,
        load: Callable[[Parent], PreTrainedModel],
        *,
        task_factory: Callable[[], Task] | None = None,
        examples: Mapping[str, Sequence[Example]] | None = None,
    ) -> None:
        self.config, self.sources, self._load = config, sources, load
        self._make_task = task_factory or (lambda: make_task(config.fitness))
        self._examples = dict(examples) if examples is not None else {}
        self._heads: dict[SourceRef, PreTrainedModel] = {}
        self._tasks: dict[Any, Task] = {}

    @property
    def splits(self) -> list[str]:
        """The splits that there are examples for."""
        there = {**self.config.splits, **self._examples}
        others = (split for split in there if SplitName.parse(split).kind != "own")
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
            self.prepared(self.config.sources[0], split, fitness=measured_on(self.config, split))
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

    def tokenizer(self, target: Target) -> Any:
        """The tokenizer that goes with a target; one that reads pictures where the examples have some."""
        owner = self.sources.tokenizer_owner(target)[1]
        if not any(example.pictures for split in self.splits for example in self.examples(split)):
            return owner.tokenizer()
        return SeeingTokenizer(owner.processor())

    def prepared(
        self,
        target: Target,
        split: str = "search",
        batch: Batch | None = None,
        fitness: TaskSpec | None = None,
        rows: int | None = None,
    ) -> Task:
        """Prepare a task on examples, tokenised once for all targets that share a tokenizer.

        Args:
            target: The recipe, or the parent.
            split: The split of the examples.
            batch: Only the examples with these numbers.
            fitness: The task; the search's own where None.
            rows: How many examples go together, where the task says more.
        """
        which = self.sources.tokenizer_owner(target)[0]
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
            name: Head(self.sources.open(ref).config, partial(self._head, ref))
            for name, ref in zip(names, self.config.sources, strict=False)
        }

    def _head(self, ref: SourceRef) -> PreTrainedModel:
        """A source without its body."""
        if ref not in self._heads:
            head = self._heads[ref] = self._load(self.sources.open(ref))
            setattr(head, head.base_model_prefix, None)
        return self._heads[ref]

    def check_scored(self, source: Parent) -> None:
        """Raise `SourceError` unless a source is a model of a kind that the fitness is for."""
        import transformers

        whole = source.whole
        if whole.entries:
            if self.config.space != "ps":
                raise SourceError(f"{whole}: a path runs through language models; of diffusion pipelines write space: ps")
            if not isinstance(self._make_task(), FunctionTask | ChoiceTask):
                raise SourceError(
                    f"{whole}: a diffusion pipeline, which {self.config.fitness.task} cannot score; give a Python function "
                    "(FunctionTask), or fitness: {task: choice} and `hf-evomerge choose`"
                )
            return
        kinds = set(self.config.fitness.kinds)
        if getattr(whole.config, "is_encoder_decoder", False):  # some may be had as a decoder alone, which this is not
            kinds.discard("MODEL_FOR_CAUSAL_LM_MAPPING")
        own = whole.trust_remote_code and "AutoModelForCausalLM" in (getattr(whole.config, "auto_map", None) or {})
        body = getattr(transformers.MODEL_MAPPING.get(type(whole.config), None), "__name__", None)
        headless = "MODEL_FOR_CAUSAL_LM_MAPPING" in kinds and whole.config.architectures == [body]
        if not own and (headless or not any(type(whole.config) in getattr(transformers, kind) for kind in kinds)):
            kind = ", ".join(whole.config.architectures or ["its architecture"]) + (", without a head" if headless else "")
            task = self.config.fitness.task
            raise SourceError(
                f"{whole}: {kind} (model type {whole.config.model_type!r}) is no model that the task {task} scores; give "
                "the language model alone, or take a task for it. `hf-evomerge merge` takes other models too"
            )
