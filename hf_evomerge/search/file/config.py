"""The search file: what is evolved, how, on which data. Read from YAML; every key is checked before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ...errors import RecipeError, SearchError
from ...fitness.data import DataSpec
from ...fitness.registry import AnyTaskSpec
from ...fitness.terms import TermsSpec
from ...fitness.writing import WritingSpec
from ...recipes.recipe import Dtype, FlowPart, MergePart, Recipe, SourceRef, Sources, TokenPart, Vocabulary, labels_of
from ...recipes.strict_yaml import Count, Index, StrictModel, dump_yaml, load_yaml, validate
from ...recipes.whole_file import write_whole
from .objectives import FITNESS, TAKEN, AnyObjective, TaskObjective, name_of, objective_splits
from .presets import completed, filled
from .sections import FlowSpaceConfig, LimitsConfig, ParameterSpaceConfig
from .splits import SplitName
from .stages import SpaceName, Stage, make_stages

_SPACES: dict[str, tuple[SpaceName, ...]] = {"ps": ("ps",), "dfs": ("dfs",), "hybrid": ("ps", "dfs")}
Baseline = Literal["average", "random", "lora"]


class SearchConfig(StrictModel):
    """One search, whole.

    Attributes:
        about: What the result is for, in one sentence; the model's card and its Space begin with it.
        preset: ``quick``: what the file leaves unsaid is filled in for a first look, at 48 scores of the search examples.
        space: ``ps``, ``dfs`` or ``hybrid`` (PS, then DFS over its winner and the sources).
        joint: Whether a hybrid search by gradient moves weights and gates together, in one stage with the budget of both.
        sources, base: As in a recipe. One source is enough for ``dfs``.
        dtype: The dtype that candidates are evaluated in and the winner is saved in; the first source's where absent.
        seed: Seed of the optimizer, of DARE's masks and of the batches.
        vocabulary, tokens, tokenizer, chat_template: As in a recipe: the winner's has them, and candidates are scored with the
            tokenizer that goes with the result. The first two are of merges; a path alone has the vocabulary of its embeddings.
        components, processor: As in a recipe, where a part of the sources is merged.
        ps, dfs: The two spaces; a space that takes part and is absent has its defaults.
        fitness: The task and its settings; see ``docs/fitness.md``.
        data: Where examples come from, per split. ``search`` is what candidates are scored on; the best are scored again on
            ``validation`` before a winner is named; ``test`` is touched once, at the end.
        objectives: What else counts, where there is no single best model: further tasks, and what a model takes: ``tokens`` of
            its answers, ``hops``, ``parameters``, ``seconds``. The search then finds the models that nothing beats in all of
            them, by ``nsga2``.
        retain: More data, by name, that the result may not forget, such as the sources' own tasks: every model of the table of
            results is scored on it too. Nothing is chosen by it.
        batch: Number of search examples per generation, drawn anew for each, or ``all``. Where absent 16, which without a
            gradient doubles after every 100 generations, up to half of the examples. A random search has all.
        finalists: How many of the best trials are scored on the validation split.
        baselines: What the result is compared with, beside base and sources: the plain ``average``; a ``random`` search of the
            same budget, in the space of the first stage; the best ``lora`` of fine-tunes of every parent and of the average
            at four rates, on the search examples, each at the same cost (extra ``lora``).
        threads: CPU threads per evaluation. Part of the study: another number may change the last bits of a score.
        limits: What one evaluation may take.
        report_to: Where the search is logged as it runs, pictures and table included: ``trackio``, ``wandb``, ``tensorboard``.
        project: The project of the run there.
        device: Where candidates are evaluated, such as ``cpu`` or ``cuda:0``; a list of devices, which workers take in turn; or
            ``auto``, every GPU of the machine, or its processor where there is none.
        devices_per_model: Over how many of these a model is spread, in runs of its layers, where one is too small for it. A
            worker then has as many.
        attn_implementation: What computes attention, by its name in transformers; its own choice where absent. Part of the
            study, for each has other last bits. Kernels of the Hub are none of them: a file brings no code.
        unmerged: Whether candidates of a ``ps`` search over LoRA adapters run as adapters on their base, instead of being
            merged into a copy of it. Where absent they do where all sources are adapters of ``base`` and the method is
            ``task_arithmetic``. Scores are the same up to rounding.
        quantization: Bits of the base that adapters run on, ``8bit`` or ``4bit`` (QLoRA's NF4), by bitsandbytes (extra
            ``quantization``). All scores of the study are then of adapters on that base.
        gradient_checkpointing: Whether the backward passes of ``gradient`` compute each layer's activations anew: the memory of
            one layer, and a third more time.
        gradient_parts: In how many parts a gradient's batch is evaluated, side by side by as many workers. Part of the study:
            another number may change the last bits of a gradient, the number of workers does not.
    """

    about: str | None = Field(default=None, min_length=1, max_length=300)
    preset: Literal["quick"] | None = None
    space: Literal["ps", "dfs", "hybrid"]
    joint: bool = False
    sources: Sources
    base: SourceRef | None = None
    dtype: Dtype | None = None
    seed: Index = 0
    vocabulary: Vocabulary | None = None
    tokens: TokenPart | None = None
    tokenizer: Index | Literal["base"] | None = None
    chat_template: str | None = Field(default=None, min_length=1)
    components: dict[str, Index] | None = None
    processor: Index | None = None
    ps: ParameterSpaceConfig = Field(default_factory=ParameterSpaceConfig)
    dfs: FlowSpaceConfig = Field(default_factory=FlowSpaceConfig)
    fitness: AnyTaskSpec
    data: dict[Literal["search", "validation", "test"], DataSpec] = Field(default_factory=dict)
    objectives: tuple[AnyObjective, ...] = ()
    retain: dict[str, DataSpec] = Field(default_factory=dict)
    batch: Count | Literal["all"] | None = None
    finalists: Count = 8
    baselines: tuple[Baseline, ...] = ("average",)
    threads: Annotated[Count, Field(le=1024)] = 1
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    report_to: list[Literal["trackio", "wandb", "tensorboard"]] = Field(default_factory=list)
    project: str = "hf-evomerge"
    device: str | Annotated[tuple[str, ...], Field(min_length=1)] = "cpu"
    devices_per_model: Annotated[Count, Field(le=64)] = 1
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = None
    unmerged: bool | None = None
    quantization: Literal["8bit", "4bit"] | None = None
    gradient_checkpointing: bool = False
    gradient_parts: Count = 1

    @property
    def splits(self) -> dict[str, DataSpec]:
        """Where the examples of each split come from, the retained ones among them."""
        retained = {str(SplitName(name, "retain")): spec for name, spec in self.retain.items()}
        return {**{str(split): spec for split, spec in self.data.items()}, **retained, **objective_splits(self.objectives)}

    @property
    def refs(self) -> list[SourceRef]:
        """The sources, and the base where there is one."""
        return [*self.sources, *([self.base] if self.base is not None else [])]

    @property
    def parents(self) -> dict[str, SourceRef]:
        """The base and the sources, by the labels of their scores: ``base``, ``source:0`` and so on."""
        base = {} if self.base is None else {"base": self.base}
        return {**base, **dict(zip(source_labels(len(self.sources)), self.sources, strict=True))}

    @property
    def parent_names(self) -> dict[str, str]:
        """What the parents are called in tables and plots, by the labels of their scores: ``source:0`` and so on, ``base``."""
        apart = [self.base] if self.base is not None and self.base not in self.sources else []
        names = labels_of([*self.sources, *apart])
        base = {} if self.base is None else {"base": names[-1 if apart else self.sources.index(self.base)]}
        return {**dict(zip(source_labels(len(self.sources)), names, strict=False)), **base}

    @property
    def source_names(self) -> list[str]:
        """What the sources are called, in their order."""
        return [self.parent_names[label] for label in source_labels(len(self.sources))]

    @property
    def objective_names(self) -> list[str]:
        """The fitness, and the other objectives."""
        return [FITNESS, *map(name_of, self.objectives)]

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        return completed(filled(data)) if isinstance(data, Mapping) else data

    @field_validator("about")
    @classmethod
    def _is_said(cls, about: str | None) -> str | None:
        if about is not None and about.startswith("..."):
            raise ValueError("still waits to be filled in; write what the model is for, one sentence in quotes")
        return about

    @model_validator(mode="before")
    @classmethod
    def _is_search(cls, data: Any) -> Any:
        given = data.keys() if isinstance(data, dict) and "space" not in data else set()
        if given & {"merge", "flow", "merge_method"}:
            raise ValueError("this is a recipe, not a search file; build it with `hf-evomerge merge FILE --out FOLDER`")
        return data

    @model_validator(mode="after")
    def _check_indices(self) -> SearchConfig:
        count = len(self.sources)
        for key, indices, limit in (
            ("ps.sources", self.ps.sources, count),
            ("dfs.order", self.dfs.order, count + (self.space == "hybrid")),
        ):
            if indices is not None and (
                not indices or len(set(indices)) != len(indices) or not set(indices) <= set(range(limit))
            ):
                raise ValueError(f"{key}: {indices} must be distinct numbers from 0 to {limit - 1}")
        if count == 1 and self.space != "dfs":
            raise ValueError(f"sources: {self.space} merges two or more models; with one write space: dfs (found 1)")
        wanted = len(self.dfs.order or self.sources) + (self.space == "hybrid" and self.dfs.order is None)
        if self.space != "ps" and self.dfs.terms not in (1, wanted):
            raise ValueError(f"dfs.terms: a hop has a layer of every source that is laid out, which are {wanted}, or of one")
        if self.space != "ps" and wanted > 1 and (one := "prune" if self.dfs.prune else "repeat" if self.dfs.repeat else None):
            raise ValueError(f"dfs.{one}: goes with one model; give one source, or name one in dfs.order (found {wanted})")
        if "metagpt" in self.ps.starts and self.base is None:
            raise ValueError("ps.starts: metagpt is made of task vectors; give a base, or leave it out")
        return self

    @model_validator(mode="after")
    def _check_recipe(self) -> SearchConfig:
        path = FlowPart(path=["0:0"]) if self.space == "dfs" else None
        try:
            validate(Recipe, self._recipe(None if self.space == "dfs" else self.merge_part(), path), RecipeError)
        except RecipeError as cause:
            raise ValueError(str(cause)) from cause
        return self

    @model_validator(mode="after")
    def _check_terms(self) -> SearchConfig:
        for term in self.fitness.terms if isinstance(self.fitness, TermsSpec) else ():
            if term.data and self.data and term.data.keys() != self.data.keys():
                has, wanted = ", ".join(term.data), ", ".join(self.data)
                raise ValueError(f"fitness.terms: {term.fitness.task} has data for {has}, and the search for {wanted}")
        firsts = {f"{name}.first": first.fitness for name in self.spaces if (first := self.part(name).first) is not None}
        more = {f"objectives: {each.name}": each.fitness for each in self.objectives if isinstance(each, TaskObjective)}
        for key, fitness in {**firsts, **more}.items():
            if isinstance(fitness, TermsSpec) and any(term.data for term in fitness.terms):
                raise ValueError(f"{key}: terms have data in the search's own fitness only; leave it out")
        return self

    @model_validator(mode="after")
    def _check_documents(self) -> SearchConfig:
        for split, spec in self.data.items() if self.fitness.task == "lm_eval" else ():
            if spec.lm_eval is None:
                raise ValueError(
                    f"data.{split}: the documents of fitness.task lm_eval are its own; write lm_eval: [a task, ...]"
                )
        return self

    @model_validator(mode="after")
    def _check_objectives(self) -> SearchConfig:
        algorithms = {f"{name}.optimizer": self.part(name).optimizer.algorithm for name in self.spaces}
        firsts = {f"{name}.first": first.algorithm for name in self.spaces if (first := self.part(name).first) is not None}
        nsga = [key for key, algorithm in {**algorithms, **firsts}.items() if algorithm == "nsga2"]
        if not self.objectives:
            if nsga:
                raise ValueError(f"{nsga[0]}.algorithm: nsga2 is for several objectives; name them in objectives, or write cma")
            return self
        names = [name_of(objective) for objective in self.objectives]
        if reserved := [name for name in names if names.count(name) > 1 or name == FITNESS]:
            raise ValueError(f"objectives: {reserved[0]} is there twice; the fitness is always the first objective")
        if named := [each.name for each in self.objectives if isinstance(each, TaskObjective) and each.name in TAKEN]:
            raise ValueError(f"objectives: {named[0]} is the name of what a model takes; call the task something else")
        if self.space == "ps" and (same := [name for name in names if name in ("hops", "parameters")]):
            raise ValueError(f"objectives: {same[0]} is the same for every merge of a ps search; leave it out, or search paths")
        if "tokens" in names and not isinstance(self.fitness, WritingSpec):
            raise ValueError(f"objectives: tokens counts those of answers, and {self.fitness.task} writes none; use generation")
        if self.joint or "nsga2" in firsts.values():
            raise ValueError("objectives: go with the optimizer of a space, not with joint or first")
        for key, algorithm in algorithms.items():
            if algorithm not in ("nsga2", "random"):
                raise ValueError(f"objectives: {key}.algorithm {algorithm} climbs one fitness; write nsga2, or leave it out")
        if {self.batch, *(self.part(name).optimizer.batch for name in self.spaces)} - {None, "all"}:
            raise ValueError("objectives: every generation is compared with the ones before, on all examples; leave batch out")
        for objective in self.objectives:
            if isinstance(objective, TaskObjective) and objective.data and objective.data.keys() != self.data.keys():
                has = ", ".join(objective.data)
                raise ValueError(f"objectives: {objective.name} has data for {has}, and the search for {', '.join(self.data)}")
        return self

    @model_validator(mode="after")
    def _check_devices(self) -> SearchConfig:
        if self.devices_per_model > 1 and self.dfs.terms > 1:
            raise ValueError("devices_per_model: the terms of a hop run on one device; write 1, or dfs.terms: 1")
        return self

    @model_validator(mode="after")
    def _check_unmerged(self) -> SearchConfig:
        if self.unmerged and self.space != "ps":
            raise ValueError(f"unmerged: is for ps, as paths run through whole layers (found {self.space}); leave it out")
        return self

    @model_validator(mode="after")
    def _check_joint(self) -> SearchConfig:
        by_gradient = self.ps.optimizer.algorithm == self.dfs.optimizer.algorithm == "gradient"
        if self.joint and not (self.space == "hybrid" and by_gradient):
            raise ValueError(
                "joint: moves weights and gates by their gradient; write space: hybrid, and optimizer: {algorithm: gradient} "
                f"under ps and dfs (found {self.space}, {self.ps.optimizer.algorithm}, {self.dfs.optimizer.algorithm})"
            )
        if self.joint and self.dfs.order is not None and len(self.sources) not in self.dfs.order:
            raise ValueError(
                f"joint: dfs.order {self.dfs.order} is without the merged model, which has number {len(self.sources)}"
            )
        if self.joint and (self.ps.first is not None or self.dfs.first is not None):
            raise ValueError("joint: there is one stage, and none before it; leave first out under ps and dfs")
        return self

    @property
    def stages(self) -> list[Stage]:
        """The stages in the order they run."""
        return make_stages(self.spaces, self.ps, self.dfs, batch=self.batch, random="random" in self.baselines)

    @property
    def spaces(self) -> tuple[SpaceName, ...]:
        """What is searched, one after the other."""
        return ("joint",) if self.joint else _SPACES[self.space]

    def part(self, name: SpaceName) -> ParameterSpaceConfig | FlowSpaceConfig:
        """The section of a space; of both together, that of parameter space."""
        return self.dfs if name == "dfs" else self.ps

    @property
    def ps_sources(self) -> list[int]:
        """The sources that a PS search merges, as indices."""
        return list(range(len(self.sources))) if self.ps.sources is None else self.ps.sources

    def recipe(self, merge: MergePart | None = None, flow: FlowPart | None = None) -> Recipe:
        """The recipe of a candidate: these parts, of the search's sources."""
        return Recipe(**self._recipe(merge, flow))

    def merge_part(self) -> MergePart:
        """A merge of the kind that is searched, with the method's defaults for numbers."""
        return MergePart(method=self.ps.method, sources=self.ps.sources, router=self.ps.router)

    def _recipe(self, merge: MergePart | None, flow: FlowPart | None) -> dict[str, Any]:
        shared = [key for key in Recipe.model_fields if key in SearchConfig.model_fields]
        return {**{key: getattr(self, key) for key in shared}, "merge": merge, "flow": flow}

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the search to a YAML file."""
        write_whole(file, dump_yaml(self))

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> SearchConfig:
        """Read a search file; raises `SearchError` with the keys that are wrong."""
        return load_yaml(cls, file, SearchError)


def source_labels(count: int) -> list[str]:
    """The labels of so many sources in a study."""
    return [f"source:{number}" for number in range(count)]
