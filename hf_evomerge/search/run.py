"""One call that does a whole search: check, evolve, name the winner, build it, draw it. Starts a study, or goes on with one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..building.build import build_model
from ..errors import SearchError
from ..fitness import Example, Task, check_disjoint
from ..recipes.recipe import RECIPE_FILE
from ..recipes.strict_yaml import validate
from .config import SearchConfig
from .evaluator import Evaluator
from .loop import Report, Search
from .results import Result
from .runner import LocalRunner, ProcessRunner, Runner
from .spaces import source_label
from .study import STUDY_FILE, Study

if TYPE_CHECKING:
    from ..checkpoints.source import Source
    from ..recipes.recipe import Recipe

SEARCH_FILE = "search.yaml"
RESULTS_FILE = "results.json"
MODEL_FOLDER = "model"
PLOTS_FOLDER = "plots"


@dataclass(frozen=True)
class Plan:
    """What a search would do; nothing has been evaluated but one parent.

    Attributes:
        dimensions: Numbers to evolve, per stage. That of a hybrid search's second stage counts the merged model's layers.
        evaluations: Trials, per stage.
        examples: Examples, per split.
        seconds_per_evaluation: Measured on the first source.
        notes: What the user should know of the spaces, one line each, such as numbers that are not evolved.
    """

    dimensions: dict[str, int]
    evaluations: dict[str, int]
    examples: dict[str, int]
    seconds_per_evaluation: float
    notes: tuple[str, ...] = ()

    @property
    def minutes(self) -> float:
        """Expected time of all trials with one worker."""
        return sum(self.evaluations.values()) * self.seconds_per_evaluation / 60


def run_search(
    config: SearchConfig,
    out: str | os.PathLike[str],
    *,
    workers: int = 1,
    report: Report | None = None,
    task_factory: Callable[[], Task] | None = None,
    examples: Mapping[str, Sequence[Example]] | None = None,
    build: bool = True,
) -> Result:
    """Run a search, or go on with the one in the folder, to its end.

    Leaves in the folder: ``search.yaml``, ``study.db`` (every trial), ``recipe.yaml`` (the winner), ``results.json`` (the
    comparison on the test split), ``model/`` (the winner, built) and ``plots/``.

    Args:
        config: What to search. Where the folder has a study, it must be the one that this study was begun with.
        out: The folder.
        workers: Processes that evaluate side by side; the trials are the same for any number.
        report: Called after every trial.
        task_factory: Makes the fitness task, in place of the search file's; must be importable where there is more than one
            worker.
        examples: Examples per split, in place of the search file's data.
        build: Whether to build the winner.

    Raises:
        EvoMergeError: The search cannot start (a source, the data or a setting is wrong), or no candidate could be evaluated.

    Example:
        >>> result = run_search(SearchConfig.load("search.yaml"), "my-search")
        >>> result.winner.save("winner.yaml")
    """
    arguments: dict[str, Any] = {"task_factory": task_factory, "examples": examples}
    evaluator = Evaluator(config, **arguments)
    _check(config, evaluator)
    study = _open_study(config, Path(out))
    _check_same_examples(study, evaluator)
    runner: Runner = LocalRunner(evaluator) if workers == 1 else ProcessRunner(config, workers, **arguments)
    try:
        search = Search(
            config,
            study,
            runner,
            layers=evaluator.layers,
            tensors=evaluator.tensors,
            unchanged=evaluator.unchanged if config.space != "dfs" else (),
            example_count=len(evaluator.examples("search")),
            splits=evaluator.splits,
            report=report,
        )
        result = search.run()
        _leave_results(config, study, result)
        if build:
            _leave_model(study.folder, result.winner)
        _leave_plots(config, study, result, evaluator.layers)
        return result
    finally:
        runner.close()
        study.close()


def resume_search(
    out: str | os.PathLike[str],
    *,
    workers: int = 1,
    report: Report | None = None,
    build: bool = True,
) -> Result:
    """Go on with the search of a folder, to the same trials as if it had never been stopped.

    Args:
        out: The folder of the search.
        workers, report, build: As for `run_search`.

    Raises:
        SearchError: There is no search in the folder, or it cannot go on.

    Example:
        >>> result = resume_search("my-search")
        >>> any(row.winner for row in result.rows)
        True
    """
    study = Study.open(out)
    try:
        config = settings_of(study)
    finally:
        study.close()
    return run_search(config, out, workers=workers, report=report, build=build)


def settings_of(study: Study) -> SearchConfig:
    """The search that a study was begun with."""
    return validate(SearchConfig, study.meta("settings"), SearchError)


def plan_search(config: SearchConfig) -> Plan:
    """Check everything that can be checked without searching, and time one evaluation.

    Args:
        config: The search.

    Raises:
        EvoMergeError: A source, the data or a setting is wrong.

    Example:
        >>> plan_search(SearchConfig.load("search.yaml")).evaluations
        {'ps': 8, 'dfs': 8}
    """
    evaluator = Evaluator(config)
    dimensions, notes = _check(config, evaluator)
    evaluator.evaluate(config.sources[0])  # loads the model
    scores = evaluator.evaluate(config.sources[0])
    if scores.error is not None:
        raise SearchError(f"{config.sources[0].model}: cannot be evaluated: {scores.error}")
    share = 1.0 if config.batch is None else min(1.0, config.batch / len(evaluator.examples("search")))
    budgets: dict[str, int] = {"ps": config.ps.optimizer.evaluations, "dfs": config.dfs.optimizer.evaluations}
    evaluations: dict[str, int] = {stage: budgets[stage] for stage in config.stages if stage != "random"}
    if config.random_baseline:
        evaluations["random"] = sum(evaluations.values())
    examples = {split: len(evaluator.examples(split)) for split in evaluator.splits}
    return Plan(dimensions, evaluations, examples, scores.seconds * share, tuple(notes))


def _check(config: SearchConfig, evaluator: Evaluator) -> tuple[dict[str, int], list[str]]:
    """Refuse a search that cannot work, before anything expensive; returns the number of coordinates per stage, and notes."""
    from ..checkpoints.compatibility import check_mergeable
    from ..checkpoints.source import Source
    from .spaces import FlowSpace, ParameterSpace

    _check_device(config)
    check_disjoint(**{split: evaluator.examples(split) for split in {"search", *evaluator.splits}})
    dimensions: dict[str, int] = {}
    notes: list[str] = []
    opened = [Source.open(ref) for ref in config.sources]
    if config.space in ("ps", "hybrid"):
        taking_part = [opened[i] for i in config.ps.sources or range(len(opened))]
        check_mergeable(taking_part, Source.open(config.base) if config.base is not None else None)
        parameters = ParameterSpace(config, taking_part[0].layer_count, evaluator.tensors, evaluator.unchanged)
        _check_method(parameters, taking_part[0].layer_count)
        dimensions["ps"] = len(parameters.coordinates)
        notes += parameters.notes()
    if config.space in ("dfs", "hybrid"):
        from ..recipes.recipe import MergePart

        layers, merge = evaluator.layers, None
        if config.space == "hybrid":
            layers, merge = [*layers, opened[(config.ps.sources or [0])[0]].layer_count], MergePart(method=config.ps.method)
        space = FlowSpace(config, layers, merge)
        _check_path(space.decode(space.start().mean), opened)
        dimensions["dfs"] = space.genome.dimension
    return dimensions, notes


def _check_method(space: Any, layer_count: int) -> None:
    """Refuse options and parameters that the method does not take, on the recipe that the search begins with."""
    from ..merging import check_part

    recipe: Recipe = space.decode(space.start().mean)
    assert recipe.merge is not None  # a parameter space makes recipes with a merge part
    check_part(recipe.merge, sources=space.source_count, has_base=recipe.base is not None, layer_count=layer_count)


def _check_path(recipe: Recipe, sources: Sequence[Source]) -> None:
    """Refuse sources whose layers cannot run in one model, on the path that the search begins with."""
    from ..routing.config import check_configs, path_config

    flow = recipe.flow
    assert flow is not None  # a data flow space makes recipes with a flow part
    along = [*sources, *([sources[recipe.merge_sources[0]]] if recipe.merge is not None else [])]
    configs = [source.config for source in along]
    check_configs(configs, flow.embedding_source, names=along, anywhere=True)
    path_config(configs, flow.to_path(), scale_target=flow.scale_target, embedding_source=flow.embedding_source, anywhere=True)


def _open_study(config: SearchConfig, out: Path) -> Study:
    """The folder's study, or a new one; raises `SearchError` where it is that of another search."""
    settings = config.model_dump(mode="json")
    if not (out / STUDY_FILE).exists():
        _check_unused(config, out)
        study = Study.create(out, settings)
        if not (out / SEARCH_FILE).exists():
            config.save(out / SEARCH_FILE)
        study.set_meta("versions", _versions())
        return study
    study = Study.open(out)
    if (before := study.meta("settings")) != settings:
        study.close()
        changed = ", ".join(_changes(before, settings))
        raise SearchError(f"{out}: holds the study of another search: {changed}; choose another folder")
    if not (out / SEARCH_FILE).exists():  # the process that began the study ended in between
        config.save(out / SEARCH_FILE)
    return study


def _check_same_examples(study: Study, evaluator: Evaluator) -> None:
    """Refuse to go on with a study on other examples than it was begun with; the scores would not be comparable."""
    digests = {}
    for split in evaluator.splits:
        texts = [[example.prompt, example.answer] for example in evaluator.examples(split)]
        digests[split] = sha256(json.dumps(texts).encode()).hexdigest()
    before = study.meta("examples") or digests
    if changed := [split for split in digests if before.get(split) != digests[split]]:
        folder = study.folder
        study.close()
        raise SearchError(
            f"{folder}: the {changed[0]} examples have changed since this study began; restore them, or choose another folder"
        )
    study.set_meta("examples", digests)


def _check_unused(config: SearchConfig, out: Path) -> None:
    """Refuse a folder that holds what a search would overwrite; this search's own file may lie there already."""
    for name in (RECIPE_FILE, RESULTS_FILE, MODEL_FOLDER, PLOTS_FOLDER):
        if (out / name).exists():
            raise SearchError(f"{out}: holds a {name} but no study, and the search would overwrite it; choose another folder")
    if (out / SEARCH_FILE).exists() and SearchConfig.load(out / SEARCH_FILE) != config:
        raise SearchError(f"{out}: holds the {SEARCH_FILE} of another search; choose another folder")


def _check_device(config: SearchConfig) -> None:
    """Refuse a device that is not there."""
    import torch

    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as cause:
        raise SearchError(f"device: {config.device!r} cannot be used here: {' '.join(str(cause).split())}") from cause


def _changes(before: Any, now: Any, where: str = "") -> list[str]:
    """What differs between two settings: the keys, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        inside = [_changes(before.get(key), now.get(key), f"{where}.{key}" if where else str(key)) for key in keys]
        return [change for changes in inside for change in changes]
    return [] if before == now else [f"{where} was {_short(before)} and is {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("hf-evomerge", "cma", "numpy", "torch", "transformers")}


def _leave_results(config: SearchConfig, study: Study, result: Result) -> None:
    """Write the winner's recipe and the comparison."""
    result.winner.save(study.folder / RECIPE_FILE)
    report = {"space": config.space, "seed": config.seed, **result.to_json()}
    (study.folder / RESULTS_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _leave_model(folder: Path, winner: Recipe) -> None:
    """Build the winner, unless it is there already; only what a search has built is replaced."""
    built = folder / MODEL_FOLDER / RECIPE_FILE
    if built.parent.exists() and not built.exists():
        raise SearchError(f"{built.parent}: was not made by this search; move it away and resume")
    if not built.exists() or built.read_text(encoding="utf-8") != winner.to_yaml():
        build_model(winner, folder / MODEL_FOLDER, progress=False, overwrite=True)


def _leave_plots(config: SearchConfig, study: Study, result: Result, layers: Sequence[int]) -> None:
    """Draw fitness over evaluations, the weights per layer group and the path, as far as the winner has them."""
    from .. import plots

    folder = study.folder / PLOTS_FOLDER
    folder.mkdir(exist_ok=True)
    labels = [source_label(ref) for ref in config.sources]
    levels = {
        name: scores.mean
        for name, label in [("base", "base"), *((label, f"source:{i}") for i, label in enumerate(labels))]
        if (scores := study.evaluation(label, "search")) is not None and scores.mean is not None
    }
    plots.plot_fitness(plots.stage_curves(study.trials()), levels, folder / "fitness.png")
    if result.winner.merge is not None:
        taking_part = [labels[i] for i in result.winner.merge_sources]
        plots.plot_weights(result.winner.merge, taking_part, folder / "weights.png")
    if result.winner.flow is not None:
        merged = [layers[result.winner.merge_sources[0]]] if result.winner.merge is not None else []
        path = result.winner.flow.to_path()
        plots.plot_path(path, [*layers, *merged], [*labels, *(["merged"] if merged else [])], folder / "path.png")
