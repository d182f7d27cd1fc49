"""The search file: what is evolved, how, on which data. Read from YAML; every key is checked before
anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ...errors import RecipeError, SearchError
from ...fitness.data.spec import DataSpec
from ...fitness.registry import AnyTaskSpec, TaskSpec
from ...fitness.scores import FITNESS, Scores
from ...merging.registry import all_methods
from ...recipes.recipe import (
    FlowPart,
    MergePart,
    Recipe,
    SourceRef,
    Sources,
    labels_of,
    with_optional,
)
from ...recipes.strict_yaml import StrictModel, dump_yaml, load_yaml, validate
from ...recipes.whole_file import write_whole
from ..front.file import AnyObjective, check, extra_splits, only_tasks, units, vector
from ..optimizers.ask_tell import Vector
from .paths import AnyPath, GatesPath, PrunePath
from .presets import SPACES, completed, filled
from .sections import CompareConfig, ComputeConfig, MergeConfig, OutputConfig
from .splits import RETAINED, ExtraSplit
from .stages import Algorithm, Control, SpaceName, Stage, Step, make_stages

_BY: dict[str, tuple[Algorithm, ...]] = {
    "ps": ("cma", "gradient", "random"),
    "gates": ("cma", "gradient", "random"),
    "prune": ("cma", "gradient", "random", "sweep"),
    "paper": ("cma", "random"),
}
"""The algorithms that search merges, and each kind of paths, for one objective."""


def _is_list(steps: Any) -> Any:
    if not isinstance(steps, list | tuple):
        raise ValueError("must be quick, or a list of steps such as [{by: cma, evaluations: 500}]")
    return steps


_Steps = Annotated[
    tuple[Step, ...],
    BeforeValidator(_is_list, json_schema_input_type=Literal["quick"] | tuple[Step, ...]),
]


class SearchConfig(StrictModel):
    """Settings of a whole search."""

    about: str | None = Field(default=None, min_length=1, max_length=300)
    """Purpose of the result, in one sentence; the model's card and its Space begin with it."""
    space: Literal["ps", "dfs", "hybrid"]
    """``ps``: merges. ``dfs``: paths. ``hybrid``: merges, then paths through the winner and the
    sources."""
    sources: Sources
    """The models that are merged or followed, or the checkpoints of a run as in a recipe. One is
    enough for ``dfs``; for ``ps`` with a base, towards which and away from which it is rescaled
    (WiSE-FT, arXiv:2109.01903)."""
    base: SourceRef | None = None
    """Their common ancestor; methods that merge task vectors need it."""
    merge: MergeConfig = Field(default_factory=MergeConfig)
    """Parameter space: the merge method, and what is evolved of it."""
    path: AnyPath = GatesPath(kind="gates")
    """Data flow space: the kind of paths, ``gates`` by default."""
    optimize: _Steps = ()
    """The optimizers, one after the other, at most two for each space. ``quick``: a first look, at
    48 scores of the search examples, by gradient where there is one. By ``cma`` with 1,000
    evaluations where absent."""
    fitness: AnyTaskSpec
    """The task and its settings; see ``docs/fitness.md``."""
    data: dict[Literal["search", "validation", "test"], DataSpec] = Field(default_factory=dict)
    """Where examples come from, per split. ``search`` is what candidates are scored on; the best
    are scored again on ``validation`` before a winner is named; ``test`` is touched once, at the
    end."""
    compare: CompareConfig = Field(default_factory=CompareConfig)
    """The models that the result is compared with, and further data to compare on."""
    objectives: tuple[AnyObjective, ...] = ()
    """More objectives, where there is no single best model: further tasks, and what a model takes:
    ``tokens`` of its answers, ``hops``, ``parameters``, ``seconds``. The search then finds the
    models that nothing beats in all of them, by ``nsga2``."""
    output: OutputConfig = Field(default_factory=OutputConfig)
    """Dtype, tokenizer, vocabulary and other parts of the result."""
    compute: ComputeConfig = Field(default_factory=ComputeConfig)
    """Seed, devices, and limits of evaluations."""
    report_to: list[Literal["trackio", "wandb", "tensorboard"]] = Field(default_factory=list)
    """Trackers that log the search as it runs, pictures and table included."""

    @property
    def splits(self) -> dict[str, DataSpec]:
        """Origin of the examples of each split, the retained ones among them."""
        retained = {f"{RETAINED}{name}": spec for name, spec in self.compare.retain.items()}
        return {
            **{str(split): spec for split, spec in self.data.items()},
            **retained,
            **{extra.name: extra.data for extra in self.extra_splits},
        }

    @property
    def extra_splits(self) -> list[ExtraSplit]:
        """Splits of tasks that have examples of their own."""
        return extra_splits(self.objectives)

    @property
    def refs(self) -> list[SourceRef]:
        """The sources, and the base where there is one."""
        return with_optional(self.sources, self.base)

    @property
    def parents(self) -> dict[str, SourceRef]:
        """The base and the sources, by the labels of their scores: ``base``, ``source:0`` and so
        on."""
        base = {} if self.base is None else {"base": self.base}
        return {**base, **{f"source:{number}": ref for number, ref in enumerate(self.sources)}}

    @property
    def parent_names(self) -> dict[str, str]:
        """Names of the parents in tables and plots, by the labels of their scores: ``source:0`` and
        so on, ``base``."""
        apart = [self.base] if self.base is not None and self.base not in self.sources else []
        names = labels_of([*self.sources, *apart])
        of_sources = names[: len(self.sources)]
        by_label = {f"source:{number}": name for number, name in enumerate(of_sources)}
        if self.base is not None:
            by_label["base"] = names[-1 if apart else self.sources.index(self.base)]
        return by_label

    @property
    def source_names(self) -> list[str]:
        """Names of the sources, in their order."""
        return list(self.parent_names.values())[: len(self.sources)]

    @property
    def metrics(self) -> dict[str, str]:
        """Units of all that the search optimises by their names, the fitness first; empty where a
        task does not say one."""
        return {FITNESS: self.fitness.unit, **units(self.objectives, self.fitness)}

    @property
    def has_front(self) -> bool:
        """True where the search optimises several metrics, and so ends in a front."""
        return bool(self.objectives)

    def vector(self, scores: Scores) -> Vector:
        """The metrics of scores as numbers to be maximised, the fitness first; NaN where there is
        none."""
        return vector(scores, self.metrics)

    @property
    def task_specs(self) -> list[TaskSpec]:
        """The fitness, those of the stages and those of the objectives."""
        tasks = [self.fitness, *(stage.fitness for stage in self.stages)]
        tasks += [each.fitness for each in only_tasks(self.objectives)]
        return [task for task in tasks if task is not None]

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if "space" not in data and data.keys() & {"merge", "flow", "merge_method"}:
            raise ValueError(
                "this is a recipe, not a search file; build it with `hf-evomerge merge FILE "
                "--out FOLDER`"
            )
        by = "nsga2" if data.get("objectives") else ""
        return completed(filled(data, by), "objectives")

    @field_validator("about")
    @classmethod
    def _is_said(cls, about: str | None) -> str | None:
        if about is not None and about.startswith("..."):
            raise ValueError(
                "still waits to be filled in; write what the model is for, one sentence in quotes"
            )
        return about

    # A candidate is a recipe, and recipes have rules of their own. One is made here, with any path
    # where paths are searched, so that a search which could only fail is refused when the file is
    # read.
    @model_validator(mode="after")
    def _check_recipe(self) -> SearchConfig:
        merge = None if self.space == "dfs" else self.merge.part()
        try:
            validate(
                Recipe,
                self._recipe(merge, FlowPart(path=["0:0"]) if merge is None else None),
                RecipeError,
            )
        except RecipeError as cause:
            key = str(cause).partition(":")[0].partition(".")[0]
            raise ValueError(
                f"{'output.' if key in OutputConfig.model_fields else ''}{cause}"
            ) from cause
        return self

    # One source is rescaled: base + w (source - base), towards the base with w < 1 and away from it
    # with w > 1 (WiSE-FT, arXiv:2109.01903). That takes a base, and a method that is handed the
    # difference, or the base as one of two models.
    @model_validator(mode="after")
    def _check_controls(self) -> SearchConfig:
        if "noise" in self.compare.baselines and self.base is None:
            raise ValueError(
                "compare.baselines: noise takes the place of what sources have changed of their "
                "base; name the base, or leave noise out"
            )
        asked = "alone" in self.compare.baselines
        one = len(self.searched_sources) == 1
        if asked and one:
            raise ValueError(
                "compare.baselines: alone searches each of several sources by itself (found 1); "
                "leave it out"
            )
        method = all_methods().get(self.merge.method)
        if not (asked or one) or self.space == "dfs" or method is None:
            return self
        key = "compare.baselines: alone" if asked else "sources"
        leave = ", or leave alone out" if asked else ", or write space: dfs"
        if self.base is None:
            raise ValueError(
                f"{key}: one source is rescaled towards its base and away from it; name the "
                f"base{leave}"
            )
        if not method.merges_one:
            raise ValueError(
                f"{key}: {method.name} cannot rescale one source; write method: "
                f"task_arithmetic{leave}"
            )
        return self

    @model_validator(mode="after")
    def _check_path(self) -> SearchConfig:
        if self.space == "ps":
            return self
        count = len(self.sources) + (self.space != "dfs")
        order = self.path.order or list(range(count))
        if max(order) >= count:
            raise ValueError(f"path.order: {order} must be distinct numbers from 0 to {count - 1}")
        if isinstance(self.path, PrunePath) and len(order) > 1:
            raise ValueError(
                f"path.kind: prune goes with one model; name it in path.order (found {len(order)})"
            )
        return self

    @model_validator(mode="after")
    def _check_steps(self) -> SearchConfig:
        for space in self.spaces:
            if len(steps := self.steps(space)) > 2:
                raise ValueError(f"optimize: {space} has 2 steps at most (found {len(steps)})")
            if steps[-1].fitness is not None:
                raise ValueError(
                    "optimize: the last step of a space climbs the search's own fitness; "
                    "leave fitness out there"
                )
        for stage in (stage for stage in self.stages if not stage.control):
            by = _BY["ps" if stage.space == "ps" else self.path.kind]
            if self.objectives and stage.main:
                by = ("nsga2", "random") if "cma" in by else ("random",)
            if stage.algorithm not in by:
                kind = [] if stage.space == "ps" else [f"path.kind: {self.path.kind}"]
                what = " with ".join(
                    [stage.space, *kind, *(["objectives"] if self.objectives else [])]
                )
                raise ValueError(
                    f"optimize: by: {stage.algorithm} cannot search {what}; write {' or '.join(by)}"
                )
        return self

    @model_validator(mode="after")
    def _check_data(self) -> SearchConfig:
        for objective in only_tasks(self.objectives):
            data = objective.data
            if data and self.data and data.keys() != self.data.keys():
                raise ValueError(
                    f"objectives: {objective.name} has data for {', '.join(data)}, and the search "
                    f"for {', '.join(self.data)}"
                )
        for split, spec in self.data.items() if self.fitness.task == "lm_eval" else ():
            if spec.lm_eval is None:
                raise ValueError(
                    f"data.{split}: the documents of fitness.task lm_eval are its own; write "
                    "lm_eval: [a task, ...]"
                )
        check(self.objectives, self.space, self.fitness)
        return self

    @property
    def stages(self) -> list[Stage]:
        """The stages in the order they run: the search's own, and those that are run again to
        compare with."""
        names = self.source_names
        lone = self.searched_sources if "alone" in self.compare.baselines else []
        controls = [Control(f"alone-{number}", f"{names[number]} alone", number) for number in lone]
        if "noise" in self.compare.baselines:
            controls.append(Control("noise", "noise"))
        steps = {space: self.steps(space) for space in self.spaces}
        return make_stages(steps, controls)

    @property
    def searched_sources(self) -> list[int]:
        """The sources that are merged or, in a search for paths alone, followed, as indices."""
        if self.space == "dfs":
            return list(self.path.order or range(len(self.sources)))
        return self.merge_sources

    @property
    def spaces(self) -> tuple[SpaceName, ...]:
        """Spaces that are searched, one after the other."""
        return SPACES[self.space]

    def steps(self, space: SpaceName) -> list[Step]:
        """The steps of a space, in their order; the winner of the last may be the search's."""
        return [step for step in self.optimize if step.space in (None, space)]

    @property
    def merge_sources(self) -> list[int]:
        """The sources that a PS search merges, as indices."""
        return list(range(len(self.sources))) if self.merge.sources is None else self.merge.sources

    def recipe(self, merge: MergePart | None = None, flow: FlowPart | None = None) -> Recipe:
        """The recipe of a candidate: these parts, of the search's sources."""
        return Recipe(**self._recipe(merge, flow))

    def _recipe(self, merge: MergePart | None, flow: FlowPart | None) -> dict[str, Any]:
        own = {"sources": self.sources, "base": self.base, "seed": self.compute.seed}
        return {**own, **dict(self.output), "merge": merge, "flow": flow}

    def save(self, file: str | Path) -> None:
        """Write the search to a YAML file."""
        write_whole(file, dump_yaml(self))

    @classmethod
    def load(cls, file: str | Path) -> SearchConfig:
        """Read a search file; raises `SearchError` with the keys that are wrong.

        Folders and files that it names are looked for beside it, then in the current directory.
        """
        return load_yaml(cls, file, SearchError, named=True)
