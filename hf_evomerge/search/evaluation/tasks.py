"""The tasks of a search, with its examples: prepared once for all candidates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ...checkpoints.architecture import is_of_kind
from ...errors import FitnessError, SourceError
from ...fitness import (
    ClipTask,
    DifferentiableTask,
    Example,
    FunctionTask,
    Task,
    TaskSpec,
    load_examples,
    make_task,
)
from ...fitness.data.neighbours import neighbours
from ...fitness.data.shots import with_shots
from ...fitness.data.varied import varied
from ...fitness.pictures import SeeingTokenizer
from ...fitness.tasks.agreement import AgreementSpec, AgreementTask, Reference
from ...fitness.tasks.classification import ClassificationSpec, ClassificationTask, Head
from ...fitness.tasks.retrieval import RetrievalTask
from ...recipes.recipe import SourceRef
from ..file.config import SearchConfig
from ..file.splits import SPLITS, Sizes
from .model_pool import ModelPool
from .sources import SearchSources, Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ...checkpoints.checkpoint import Checkpoint, Parent

Batch = tuple[int, ...]
MORE = "more"
"""Split of the search's prompts and of more made ones, for a longer training."""
_TIMES = 8  # as many are made for it as for the search


class SearchTasks:
    """The fitness of a search, all its other tasks, and their examples.

    Args:
        config: The search.
        sources: Its opened sources, whose tokenizers encode the examples.
        models: Its live models: a classification needs the heads of sources, an agreement compares
            with parents.
        task_factory: Makes an unprepared task; the search file's by default.
        examples: The examples per split; read as the search file says by default.

    Attributes:
        parents: The models that an agreement may compare with, by the names that examples have for
            them.
        headed: The models whose heads a classification goes through, in the order of the heads'
            names.
    """

    def __init__(
        self,
        config: SearchConfig,
        sources: SearchSources,
        models: ModelPool,
        *,
        task_factory: Callable[[], Task] | None,
        examples: Mapping[str, Sequence[Example]] | None,
    ) -> None:
        self.config = config
        self.sources = sources
        self._models = models
        self._make_task = task_factory or (lambda: make_task(config.fitness))
        self._given = dict(examples) if examples is not None else {}
        self._examples: dict[str, Sequence[Example]] = {}
        self.parents = parents_of(config)
        self.headed = config.sources
        self._tokenizers: dict[Any, Any] = {}
        self._heads: dict[SourceRef, PreTrainedModel] = {}
        self._tasks: dict[Any, Task] = {}

    @property
    def splits(self) -> list[str]:
        """The splits that there are examples for."""
        names = {**self.config.splits, **self._given, **self._made}
        return [
            *(split for split in SPLITS if split in names),
            *(split for split in names if ":" in split),
        ]

    def examples(self, split: str) -> Sequence[Example]:
        """The examples of a split; raises `FitnessError` where the search file gives none."""
        if split not in self._examples:
            given = "search" if split == MORE else split
            made = self._made_more if split == MORE else self._made.get(split, [])
            only_made = split == "validation" and bool(made)
            self._examples[split] = [*([] if only_made else self._read(given)), *made]
        return self._examples[split]

    def _read(self, split: str) -> Sequence[Example]:
        """The examples of a split that are given."""
        if split not in self._given:
            if (spec := self.config.splits.get(split)) is None:
                raise FitnessError(f"data.{split}: not given; name a file or data set")
            found = load_examples(spec, trust_remote_code=self.sources.trust_remote_code)
            self._given[split] = found
        return self._given[split]

    @cached_property
    def _made(self) -> dict[str, list[Example]]:
        """Prompts that are made of the search's, per split."""
        fitness = self.config.fitness
        if not isinstance(fitness, AgreementSpec) or not fitness.vary:
            return {}
        names = {**self.config.splits, **self._given}
        if "test" in names or "validation" in names:
            return {"search": self._varied(fitness.vary)}
        # Where no other prompts are, models are chosen by every fourth that is made.
        made = self._varied(fitness.vary * 4 // 3)
        chosen_by = made[::4]
        searched = [each for each in made if each not in chosen_by]
        return {"search": searched, **({"validation": chosen_by} if chosen_by else {})}

    @property
    def _made_more(self) -> list[Example]:
        """More prompts that are made of the search's, but none that models are chosen by."""
        if not self._made:
            return []
        assert isinstance(self.config.fitness, AgreementSpec)  # as prompts are made
        return self._varied(_TIMES * self.config.fitness.vary, self._made.get("validation", ()))

    def _varied(self, count: int, avoid: Sequence[Example] = ()) -> list[Example]:
        """Make so many prompts of the search's, but none of other splits or of those to avoid."""
        names = {**self.config.splits, **self._given}
        others = [each for name in names if name != "search" for each in self._read(name)]
        tokenizer = self._owner.tokenizer()

        def unknown(prompt: str) -> int:
            """Count the unknown tokens of a prompt."""
            ids: list[int] = tokenizer(prompt)["input_ids"]
            return ids.count(tokenizer.unk_token_id)

        return varied(self._read("search"), count, [*others, *avoid], self._near, unknown)

    @property
    def _owner(self) -> Parent:
        """The model whose tokenizer and embeddings say what a word is: the search's base, or else
        its first source, whatever model is scored."""
        return self.sources.open(next(iter(self.parents.values()))).whole

    def _near(self, words: Collection[str]) -> Mapping[str, Sequence[str]]:
        """Find the neighbours of words by the embeddings of the base, or of the first source; none
        where no weights may be read, or transformers does not know where they are."""
        source = self._owner
        try:
            name = source.layout.embeddings if self.sources.weights else None
        except SourceError:
            return {}
        if name is None:
            return {}
        source.download()
        return neighbours(words, source.tokenizer(), source.read(name))

    def add(self, split: str, examples: Sequence[Example]) -> None:
        """Add examples under the name of a split that the search file does not have."""
        self._examples[split] = examples

    @property
    def of_splits(self) -> dict[str, Sequence[Example]]:
        """The examples of every split that there are some for."""
        return {split: self.examples(split) for split in self.splits}

    @property
    def sizes(self) -> Sizes:
        """Number of examples per split."""
        return Sizes({split: len(examples) for split, examples in self.of_splits.items()})

    @property
    def unit(self) -> str:
        """Unit of the fitness, such as ``nats per answer, weighted``; empty where it has none."""
        unit = self.config.fitness.unit
        weights = (each.weight for split in self.splits for each in self.examples(split))
        return f"{unit}, weighted" if unit and any(weight != 1.0 for weight in weights) else unit

    def check_examples(self, split: str) -> None:
        """Raise `FitnessError` where the task cannot use the examples of a split. Reads a tokenizer
        and no model."""
        own = {each.name: each.fitness for each in self.config.extra_splits}
        try:
            self.prepared(self.config.sources[0], split, fitness=own.get(split), ready=False)
        except FitnessError as error:
            if not str(error).startswith("data.chat:"):
                raise  # it names the file of the example
            raise FitnessError(f"{self.sources[0]}: {error}") from error

    def check_gradient(self, fitness: TaskSpec | None) -> None:
        """Raise `FitnessError` unless the fitness, the search's own where None, has a gradient."""
        if not isinstance(self._new_task(fitness), DifferentiableTask):
            task = (fitness or self.config.fitness).task
            raise FitnessError(
                f"fitness.task: {task} has no gradient; use likelihood, or by: cma, after a step "
                "{by: gradient, fitness: {task: likelihood}}"
            )

    def differentiable_task(self) -> DifferentiableTask:
        """An unprepared task that has a gradient: that of the first stage; raises `FitnessError`
        where it has none."""
        fitness = self.config.stages[0].fitness
        self.check_gradient(fitness)
        task = self._new_task(fitness)
        assert isinstance(task, DifferentiableTask)  # checked
        return task

    def tokenizer(self, target: Target) -> Any:
        """The tokenizer that goes with a target; one that reads pictures where the examples have
        some."""
        which, owner = self.sources.tokenizer_owner(target)
        if which not in self._tokenizers:
            examples = (example for split in self.splits for example in self.examples(split))
            seeing = any(example.pictures for example in examples)
            self._tokenizers[which] = (
                SeeingTokenizer(owner.processor()) if seeing else owner.tokenizer()
            )
        return self._tokenizers[which]

    def prepared(
        self,
        target: Target,
        split: str = "search",
        batch: Batch | None = None,
        fitness: TaskSpec | None = None,
        rows: int | None = None,
        shots: int = 0,
        *,
        ready: bool = True,
    ) -> Task:
        """Prepare a task on examples, tokenised once for all targets that share a tokenizer.

        Args:
            target: The recipe, or the parent.
            split: The split of the examples.
            batch: Only the examples with these numbers.
            fitness: The task; the search's own where None.
            rows: How many examples go together, where the task says more.
            shots: How many search examples stand before each question of a split of the search's
                own, where the task takes shots.
            ready: Whether the sources that the task compares with are run, unless they have been:
                on all examples of the split, and now, before a candidate takes the memory.
        """
        which, owner = self.sources.tokenizer_owner(target)
        # The cache. A prepared task holds token ids, which depend on the tokenizer, the examples
        # (split, batch and shots), the task's settings and the batch size, and on nothing of the
        # weights. These are the key, so all candidates of a generation share one entry. Entries for
        # older batches are never asked for again; they all go when there are more than one for each
        # metric.
        named = None if fitness is None else fitness.model_dump_json()
        key = (which, split, batch, named, rows, shots)
        if key not in self._tasks:
            if len(self._tasks) >= len(self.config.metrics):
                self._tasks.clear()
            examples = self.examples(split)
            task: Any = self._new_task(fitness, owner)
            if rows is not None and getattr(getattr(task, "spec", None), "batch_size", 0) > rows:
                task.spec = task.spec.model_copy(update={"batch_size": rows})
            if batch is not None:
                examples = [examples[i] for i in batch]
            if shots and split in SPLITS and takes_shots(task):
                examples = self._shown(examples, shots, task.spec, self.tokenizer(target))
            task.prepare(examples, self.tokenizer(target))
            self._tasks[key] = task
        prepared = self._tasks[key]
        if ready and isinstance(prepared, AgreementTask):
            prepared.read_references(self.examples(split))
        return prepared

    def _shown(
        self, examples: Sequence[Example], shots: int, spec: Any, tokenizer: Any
    ) -> Sequence[Example]:
        """Examples with so many search examples before them, in an order that the seed gives."""
        search = self.examples("search")
        order = np.random.default_rng(self.config.compute.seed).permutation(len(search))
        written = [spec, *(stage.fitness for stage in self.config.stages)]  # the first that says it
        separators = (getattr(each, "separator", None) for each in written)
        separator = next((each for each in separators if each is not None), None)
        end = tokenizer.eos_token if spec.append_eos else None
        solved = [search[number] for number in order]
        return with_shots(examples, solved, shots, separator=separator, end=end or "")

    def _new_task(self, fitness: TaskSpec | None, owner: Checkpoint | None = None) -> Task:
        task: Task = self._make_task() if fitness is None else make_task(fitness)
        if hasattr(task, "trust_remote_code"):
            task.trust_remote_code = self.sources.trust_remote_code
        if isinstance(task, ClassificationTask):
            task.heads = self._heads_of(task.spec.heads)
        if isinstance(task, AgreementTask):
            task.references = self._references
        if isinstance(task, RetrievalTask):
            task.sentence = (owner or self.sources[0]).sources[0].sentence
        return task

    @cached_property
    def _references(self) -> dict[str, Reference]:
        return {
            name: Reference(name, partial(self.tokenizer, ref), partial(self._models.model, ref))
            for name, ref in self.parents.items()
        }

    def _heads_of(self, names: Sequence[str]) -> dict[str, Head]:
        if len(names) > len(self.headed) or len(set(names)) < len(names):
            raise FitnessError(
                f"fitness.heads: {', '.join(names)}; give each of the {len(self.headed)} "
                "sources one name"
            )
        return {
            name: Head(self.sources.open(ref).config, partial(self._head, ref))
            for name, ref in zip(names, self.headed, strict=False)
        }

    def _head(self, ref: SourceRef) -> PreTrainedModel:
        """A source without its body."""
        if ref not in self._heads:
            head: Any = self._models.load(self.sources.open(ref))
            self._heads[ref] = head
            head.own_pooler = getattr(head.base_model, "pooler", None)
            setattr(head, head.base_model_prefix, None)
        return self._heads[ref]

    def check_scored(self, source: Parent) -> None:
        """Raise `SourceError` unless a source is a model of a kind that the fitness is for."""
        whole = source.whole
        if whole.entries:
            if self.config.space != "ps":
                raise SourceError(
                    f"{whole}: a path runs through language models; of diffusion pipelines "
                    "write space: ps"
                )
            if not isinstance(self._make_task(), ClipTask | FunctionTask):
                raise SourceError(
                    f"{whole}: a diffusion pipeline, which {self.config.fitness.task} cannot "
                    "score; give a Python function "
                    "(FunctionTask), or fitness: {task: clip, model: ...}"
                )
            return
        kinds = list(self.config.fitness.kinds)
        if any(example.head for split in self.splits[:1] for example in self.examples(split)):
            kinds.append("MODEL_MAPPING")  # scored through the sources' heads
        own = whole.trust_remote_code and "AutoModelForCausalLM" in (
            getattr(whole.config, "auto_map", None) or {}
        )
        if not own and not is_of_kind(whole.config, kinds):
            kind = ", ".join(whole.config.architectures or ["its architecture"])
            task = self.config.fitness.task
            advice = "give the language model alone, or take a task for it"
            if isinstance(self.config.fitness, ClassificationSpec):
                advice = (
                    "one without a head is scored through those of others, which fitness.heads "
                    "names"
                )
            raise SourceError(
                f"{whole}: {kind} (model type {whole.config.model_type!r}) is no model that "
                f"the task {task} scores; {advice}. "
                "`hf-evomerge merge` takes other models too"
            )


def takes_shots(task: Task) -> bool:
    """Tell whether solved examples may stand in a task's prompts."""
    return bool(getattr(getattr(task, "spec", None), "takes_shots", False))


def parents_of(config: SearchConfig) -> dict[str, SourceRef]:
    """The base and the sources of a search by name; the base is called ``base``."""
    base = {} if config.base is None else {"base": config.base}
    return {**base, **dict(zip(config.source_names, config.sources, strict=True))}
