"""Scores recipes: keeps the sources resident, turns a recipe into a live model without copying layers, runs the task on it.

Knows nothing of genomes or of the study, and holds no state that changes a score: the same recipe on the same examples gives
the same numbers in any order and in any process.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

from ..errors import MAX_MESSAGE, EvoMergeError, FitnessError, SourceError, one_line
from ..fitness import (
    ChoiceTask,
    DifferentiableTask,
    Example,
    FunctionTask,
    Scores,
    Task,
    TaskSpec,
    load_examples,
    make_task,
)
from ..fitness.classification import ClassificationTask, Head
from ..fitness.encoding import encode_prompt, room
from ..fitness.pictures import SeeingTokenizer
from ..fitness.writing import WritingSpec, WritingTask
from ..recipes.layer_groups import merged_names
from ..recipes.recipe import MergePart, Recipe, SourceRef
from .config import RETAINED, SPLITS, SearchConfig
from .devices import places_of
from .objectives import OBJECTIVE, Taken, TaskObjective, measured_on
from .slopes import Slopes, recomputed
from .spaces import SourceSummary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..building.merged import Merged
    from ..checkpoints.checkpoint import Checkpoint
    from ..checkpoints.component import Component
    from ..checkpoints.source import Source
    from ..merging.gradient import MergeGradient
    from ..merging.live import LiveMerger
    from ..routing.pool import LayerPool

Target = Recipe | SourceRef
Batch = tuple[int, ...]


class Evaluator:
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
        import torch

        from ..checkpoints.component import as_parts

        torch.set_num_threads(config.threads)
        self.config = config
        self._task_factory = task_factory or (lambda: make_task(config.fitness))
        self._examples = dict(examples) if examples is not None else {}
        self.trust_remote_code, self.weights = trust_remote_code, weights
        self._opened: dict[SourceRef, Source] = {}
        parts = as_parts([self.open(ref) for ref in [*config.sources, *([config.base] if config.base is not None else [])]])
        self.sources = parts[: len(config.sources)]
        self.base = parts[-1] if config.base is not None else None
        self.dtype = getattr(torch, config.dtype) if config.dtype else self.sources[0].config.dtype or torch.float32
        self._resident: dict[SourceRef, PreTrainedModel] = {}
        self._visitor: tuple[SourceRef, PreTrainedModel] | None = None
        self._loaded_heads: dict[SourceRef, PreTrainedModel] = {}
        self._merged_models: dict[tuple[int, int], PreTrainedModel] = {}
        self._checkpoints: dict[Hashable, Checkpoint] = {}
        self._merger: tuple[Hashable, LiveMerger, PreTrainedModel] | None = None
        self._gradient: MergeGradient | None = None
        self._applied: MergePart | None = None
        self._pool: tuple[tuple[int | None, int], LayerPool] | None = None
        self._tasks: dict[Any, Task] = {}
        self.loading: Callable[[bool], object] = lambda loading: None

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """Where it evaluates; several where a model is spread over them."""
        return places_of(self.config)[0]

    @property
    def layers(self) -> list[int]:
        """Number of layers of each source."""
        return [source.layer_count for source in self.sources]

    @cached_property
    def summary(self) -> SourceSummary:
        """What the spaces must know of the sources; of a merge also where weights are the base's, if they may be read."""
        from ..checkpoints.unchanged import squared_distance, unchanged_tensors

        if self.config.space == "dfs":
            return SourceSummary(self.layers)
        plan = self.merged(self.config.merge_part()).plan
        merged, base = plan.sources, plan.base
        names = merged_names((name for name, info in merged[0].tensors.items() if info.is_float), self.config.ps.router)
        tensors = [name for name in names if ".rotary_emb.inv_freq" not in name]
        base = base if self.weights else None
        unchanged = [unchanged_tensors(source, base) for source in merged] if base is not None else []
        distances = []
        if base is not None and "metagpt" in self.config.ps.starts:
            distances = [squared_distance(source, base) for source in merged]
        return SourceSummary(self.layers, tensors, unchanged, distances)

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

    def task(self, target: Target, split: str = "search") -> Task:
        """The search's task, prepared with the examples of a split for a target."""
        return self._prepared(target, split, None, None)

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

    def _new_task(self, fitness: TaskSpec | None) -> Task:
        task: Task = self._task_factory() if fitness is None else make_task(fitness)
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
        if ref not in self._loaded_heads:
            head = self._loaded_heads[ref] = self._from_disk(self.open(ref))
            setattr(head, head.base_model_prefix, None)
        return self._loaded_heads[ref]

    def differentiable_task(self) -> DifferentiableTask:
        """An unprepared task that has a gradient: that of the first stage; raises `FitnessError` where it has none."""
        fitness = self.config.fitness_of(self.config.stages[0])
        self.check_gradient(fitness)
        task = self._new_task(fitness)
        assert isinstance(task, DifferentiableTask)  # checked
        return task

    def open(self, ref: SourceRef) -> Source:
        """A source of the search, or another model. Raises `SourceError`."""
        from ..checkpoints.source import Source

        if ref not in self._opened:
            self._opened[ref] = Source.open(ref, trust_remote_code=self.trust_remote_code)
        return self._opened[ref]

    def checkpoint(self, recipe: Recipe) -> Checkpoint:
        """A recipe as the build has it, with all its checks; raises as `open_recipe` does."""
        from ..building.build import open_recipe

        return open_recipe(recipe, opened=self.open)

    def merged(self, part: MergePart) -> Merged:
        """A merge of this kind, whatever its numbers are, as the build has it."""
        from ..building.composed import Composed
        from ..building.merged import Merged

        key = self._kind_of(part)
        if key not in self._checkpoints:
            self._checkpoints[key] = self.checkpoint(self.config.recipe(merge=part))
        found = self._checkpoints[key]
        merged = found.merged if isinstance(found, Composed) else found
        assert isinstance(merged, Merged)  # it has no path
        return merged

    def _kind_of(self, part: MergePart) -> Hashable:
        return part.method, tuple(sorted(part.options)), tuple(part.sources or range(len(self.sources))), part.router

    def tokenizer(self, target: Target) -> Any:
        """The tokenizer that goes with a target; one that reads pictures where the examples have some."""
        owner = self._tokenizer_owner(target)[1]
        if not any(example.pictures for split in self.splits for example in self.examples(split)):
            return owner.tokenizer()
        return SeeingTokenizer(owner.processor())

    def check_scored(self, source: Source) -> None:
        """Raise `SourceError` unless a source is a model of a kind that the fitness is for."""
        import transformers

        from ..checkpoints.component import whole_of
        from ..checkpoints.pipeline import Pipeline

        whole = whole_of(source)
        if isinstance(whole, Pipeline):
            if self.config.space != "ps":
                raise SourceError(f"{whole}: a path runs through language models; of diffusion pipelines write space: ps")
            if not isinstance(self._new_task(None), FunctionTask | ChoiceTask):
                raise SourceError(
                    f"{whole}: a diffusion pipeline, which {self.config.fitness.task} cannot score; give a Python function "
                    "(FunctionTask), or fitness: {task: choice} and `hf-evomerge choose`"
                )
            return
        kinds = set(self.config.fitness.kinds)
        if getattr(whole.config, "is_encoder_decoder", False):  # some may be had as a decoder alone, which this is not
            kinds.discard("MODEL_FOR_CAUSAL_LM_MAPPING")
        own = whole.trust_remote_code and "AutoModelForCausalLM" in (getattr(whole.config, "auto_map", None) or {})
        if not own and not any(type(whole.config) in getattr(transformers, kind) for kind in kinds):
            kind = ", ".join(whole.config.architectures or ["its architecture"])
            task = self.config.fitness.task
            raise SourceError(
                f"{whole}: {kind} (model type {whole.config.model_type!r}) is no model that the task {task} scores; give "
                "the language model alone, or take a task for it. `hf-evomerge merge` takes other models too"
            )

    def forget_parents(self) -> None:
        """Let go of the parent that was scored last."""
        self._visitor = None
        gc.collect()

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

    def model(self, target: Target) -> PreTrainedModel:
        """A live model of a recipe or a parent. It shares parameters with others made here: use it before the next one."""
        if isinstance(target, SourceRef):
            return self._parent(target)
        if target.flow is None:
            assert target.merge is not None  # a recipe has at least one part
            return self._merged(target.merge)
        return self.layer_pool(target).model(target.flow.to_path(), target.flow.scale_target)

    def answer(self, target: Target, example: Example, max_new_tokens: int = 64) -> str:
        """What a model writes after an example's prompt, greedily, as far as it has positions."""
        model, tokenizer = self.model(target), self.tokenizer(target)
        most = room(model, encode_prompt(example, tokenizer))
        task = WritingTask(WritingSpec(task="answer", max_new_tokens=max(1, min(max_new_tokens, most))))
        task.prepare([example], tokenizer)
        return task.write(model)[0][0].strip()

    def _parent(self, ref: SourceRef) -> PreTrainedModel:
        """The plain model of a parent. It is let go when another whole model is needed, unless paths run through it."""
        if ref in self._resident:
            return self._resident[ref]
        if self._visitor is None or self._visitor[0] != ref:
            self._visitor = None
            if self.config.space == "ps":  # one whole model at a time, where every candidate is written into the same one
                self._merger = self._gradient = self._applied = self._pool = None
                self._merged_models.clear()
            gc.collect()
            self._visitor = (ref, self._whole(ref))
        return self._visitor[1]

    @cached_property
    def _host(self) -> Component | None:
        """The model that a merged part, or the layers of a path, are put into; None where whole models are."""
        from ..checkpoints.component import Component

        dfs = self.config.space == "dfs"
        first = self.sources[(self.config.dfs.order or [0])[0] if dfs else self.config.ps_sources[0]]
        return first if isinstance(first, Component) and not first.is_whole else None

    def _whole(self, ref: SourceRef) -> PreTrainedModel:
        """A parent as it is; a plain language model beside one that sees is put into that one, or it could not see."""
        from ..checkpoints.component import Component
        from ..merging.live import write_part

        everyone = [*self.sources, *([self.base] if self.base is not None else [])]
        source = next((one for one in everyone if one.ref == ref), None)
        if not isinstance(source, Component) or self._host is None:
            return self._from_disk(self.open(ref))
        if not source.is_whole:
            return self._from_disk(source.whole)
        model = self._from_disk(self._host.whole)
        source.whole.download()
        write_part(source, self._host, model)
        return model

    def _resident_source(self, ref: SourceRef) -> PreTrainedModel:
        """The plain model of a source that paths run through; it stays."""
        if ref not in self._resident:
            model = self._parent(ref)
            self._visitor = None
            self._resident[ref] = model
        return self._resident[ref]

    @contextmanager
    def _unmeasured(self) -> Iterator[None]:
        """Say that models are loaded meanwhile."""
        self.loading(True)
        try:
            yield
        finally:
            self.loading(False)

    def _from_disk(self, source: Source) -> Any:
        """A plain model of its own, or a pipeline, ready to be scored."""
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        from ..checkpoints.architecture import model_class
        from ..checkpoints.pipeline import Pipeline
        from ..merging.live import write_adapter
        from ..merging.pipeline import load_pipeline

        self.check_scored(source)
        if isinstance(source, Pipeline):
            with self._unmeasured():
                dtype = getattr(torch, self.config.dtype) if self.config.dtype else None
                return load_pipeline(source, dtype).to(self.devices[0])
        kind: Any = model_class(source.config, (source.config.architectures or [""])[0])
        with self._unmeasured():
            source.download()
            sees = getattr(source.config, "has_parts", False)  # a merged model says it
            loaded: Any = (kind or (AutoModelForImageTextToText if sees else AutoModelForCausalLM)).from_pretrained(
                source.folder,
                dtype=self.dtype,
                attn_implementation=self.config.attn_implementation,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=self.trust_remote_code,
            )
        model, report = loaded
        if missing := sorted(report["missing_keys"]):  # transformers has made them up at random
            raise SourceError(f"{source}: has no tensor {missing[0]} ({len(missing)} are missing); download it again")
        write_adapter(source, model)
        if len(self.devices) > 1:
            from ..routing.spread import spread

            spread(model, self.devices)
        else:
            model.to(self.devices[0])
        ready: PreTrainedModel = model.eval().requires_grad_(False)
        return ready

    def merge_gradient(self, part: MergePart) -> tuple[MergeGradient, PreTrainedModel]:
        """What differentiates merges of this kind, and the resident model that it leaves merged."""
        from ..merging.gradient import MergeGradient

        merger, model = self._merger_of(part)
        if self._gradient is None or self._gradient.merger is not merger:
            self._gradient = MergeGradient(merger, model)
        self._applied = None
        return self._gradient, model

    def _merged(self, part: MergePart) -> PreTrainedModel:
        """The resident merged model with these parameters written into it; its config is that of the first source."""
        merger, model = self._merger_of(part)
        if self._applied != part:
            self._applied = None
            merger.apply(part.parameters, part.options)
            self._applied = part
        return model

    def _merger_of(self, part: MergePart) -> tuple[LiveMerger, PreTrainedModel]:
        """What writes merges of this kind, and the model that it writes into."""
        from ..merging.live import LiveMerger

        if part.slices is not None:
            raise SourceError("merge.slices: a stack is built on disk and not scored in memory; build it, and give its folder")
        numbers = list(part.sources or range(len(self.sources)))
        router: int | Literal["merge"] = numbers.index(part.router) if isinstance(part.router, int) else part.router or 0
        key = self._kind_of(part)
        if self._merger is None or self._merger[0] != key:
            self._applied = None
            merged = self.merged(part)
            first, rows, plan = (part.sources or [0])[0], merged.vocab_size, merged.plan
            if (first, rows) not in self._merged_models:
                self._visitor = None
                model = self._body(self.sources[first])
                if rows and model.get_input_embeddings().num_embeddings != rows:
                    model.resize_token_embeddings(rows, mean_resizing=False)
                self._merged_models[first, rows] = model
            model = self._merged_models[first, rows]
            with self._unmeasured():
                merger = LiveMerger(
                    plan.sources,
                    plan.base,
                    part.method,
                    part.options,
                    self.config.seed,
                    self._part_of(model, self.sources[first]),
                    router=router,
                    vocabulary=plan.vocabulary,
                )
            self._merger = (key, merger, model)
        return self._merger[1:]

    def _part_of(self, model: Any, source: Source) -> Any:
        """What merges are written into: of a pipeline the component."""
        from ..checkpoints.component import whole_of
        from ..checkpoints.pipeline import Pipeline

        return getattr(model, source.part) if isinstance(whole_of(source), Pipeline) and source.part else model

    def _body(self, first: Source) -> Any:
        """The model that merges are written into: the first source, with the parts that others give."""
        from ..checkpoints.component import Component, whole_of
        from ..checkpoints.pipeline import Pipeline
        from ..merging.live import write_part

        if not isinstance(first, Component):
            return self._from_disk(first)
        model = self._from_disk(first.whole)
        for part, number in (self.config.components or {}).items():
            whole = whole_of(self.sources[number])
            if isinstance(whole, Pipeline):
                model.register_modules(**{part: getattr(self._from_disk(whole), part)})
                continue
            whole.download()
            write_part(Component(whole, part), Component(first.whole, part), model)
        return model

    def layer_pool(self, recipe: Recipe, *, merge: bool = True) -> LayerPool:
        """The pool of all sources' layers, and the merged model's where the recipe has one.

        Args:
            recipe: What to run.
            merge: Whether its merge is written into the merged model's layers.
        """
        from ..routing.pool import LayerPool

        assert recipe.flow is not None  # the caller has looked
        embeddings = recipe.flow.embedding_source

        part = recipe.merge
        merged = [] if part is None else [self._merged(part) if merge else self._merger_of(part)[1]]
        key = (recipe.merge_sources[0] if merged else None, embeddings)
        if self._pool is None or self._pool[0] != key:
            models = [*(self._resident_source(ref) for ref in self.config.sources), *merged]
            self._pool = (key, LayerPool(models, embedding_source=embeddings, spread=len(self.devices) > 1))
        return self._pool[1]

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

    def _tokenizer_owner(self, target: Target) -> tuple[Hashable, Checkpoint]:
        """The checkpoint whose tokenizer goes with a target, and what is the same for all that share it."""
        if isinstance(target, SourceRef):
            owner = self.open(target)
            if self._host is not None and owner.config.model_type != self._host.whole.config.model_type:
                owner = self._host.whole  # which it is put into
            return owner.folder, owner
        merge = target.merge and tuple(target.merge_sources)
        key: Hashable = ("tokenizer of", merge, target.flow and target.flow.embedding_source)
        if key not in self._checkpoints:
            self._checkpoints[key] = self.checkpoint(target)
        return key, self._checkpoints[key]
