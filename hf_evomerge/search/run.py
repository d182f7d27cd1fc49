"""Search in one call: check, evolve, choose the winner, build it, draw it. Starts a study, or
resumes one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from ..checkpoints.model_folder import check_place
from ..fitness import Example, Task
from .callbacks import SearchCallback
from .checks import check_search, doubts_of_prompts
from .evaluation.devices import device_kind, devices_of, note_kind
from .evaluation.evaluator import Evaluator
from .evaluation.memory import default_workers, worker_memory
from .evaluation.provenance import check_same_grounds, files
from .file.config import SearchConfig
from .file.sections import LimitsConfig
from .folder import build_winner, is_begun, pinned, resumed, save_results
from .phases import phases_of
from .phases.forecast import Forecast
from .phases.phase import Planner, SearchRun
from .reports.trackers import Tracker
from .results.plots import draw_pictures
from .results.result import Result
from .runners.batch_size import FittedRunner, largest_batch
from .runners.cluster import RayRunner
from .runners.limits import Limits
from .runners.runner import LocalRunner, ProcessRunner, Runner, refuse_in_worker
from .study.files import PLOTS_FOLDER
from .study.study import Study

logger = logging.getLogger(__name__)


def run_search(
    config: SearchConfig,
    out: str | Path,
    *,
    workers: int | None = 0,
    ray: bool = False,
    task_factory: Callable[[], Task] | None = None,
    examples: Mapping[str, Sequence[Example]] | None = None,
    build: bool = True,
    trust_remote_code: bool = False,
    callbacks: Sequence[SearchCallback] = (),
) -> Result:
    """Run a search to its end, or resume the one in the folder.

    Writes to the folder: ``search.yaml``, ``study.db`` (every trial), ``recipe.yaml`` (the winner),
    ``results.json`` (the comparison on the test split), ``model/`` (the winner, built) and
    ``plots/``.

    Args:
        config: What to search. Where the folder has a study, it must be the one that this study was
            begun with, on the same examples, sources and task; the last stage may have more
            evaluations, and the table other baselines and contributions. Branches on the Hub are
            pinned to commits.
        out: The folder.
        workers: Processes that evaluate side by side; the trials are the same for any number. With
            0 this process evaluates, without limits; where the search file sets some, or has
            devices for several workers, each gets one. None: as many as cores and memory take, each
            started with its first job; one beside each GPU.
        ray: Whether an actor of a Ray cluster evaluates on each device (extra ``scale``): of the
            one that ``RAY_ADDRESS`` names, that runs here, or is started here. `workers` is then
            how many at most, and 0 as None.
        task_factory: Makes the fitness task, in place of the search file's; importable where there
            is more than one worker.
        examples: Examples per split, in place of the search file's data.
        build: Whether to build the winner.
        trust_remote_code: Whether Python files that come with the sources may be run; the study
            does not remember it.
        callbacks: What else happens after trials, generations and stages, and whether a stage ends
            early.

    Raises:
        EvoMergeError: The search cannot start (a source, the data or a setting is wrong), or no
            candidate could be evaluated.

    Example:
        >>> run_search(SearchConfig.load("search.yaml"), "my-search").winner.save("winner.yaml")
    """
    refuse_in_worker()
    check_place(Path(out))
    callbacks = (*map(Tracker, config.report_to), *callbacks)
    make = partial(
        Evaluator, task_factory=task_factory, examples=examples, trust_remote_code=trust_remote_code
    )
    # Before anything is read. A study keeps its pins, so a search that goes on next week reads the
    # weights that it began with.
    config, open_study = pinned(config, Path(out))
    evaluator = make(config)
    warnings = check_search(config, evaluator, here=not ray).warnings
    begins = not is_begun(Path(out))
    if begins and not ray:
        warnings += doubts_of_prompts(evaluator)
    with open_study() as study:
        check_same_grounds(study, evaluator, task_factory)
        study.set_meta("unmerged", evaluator.sources.runs_unmerged(config.merge.part()))
        if begins:
            study.set_meta("warnings", warnings)
            for line in warnings:
                logger.warning(line)
        with closing(_runner(config, evaluator, study, workers, make, ray=ray)) as runner:
            sources = evaluator.sources.summary
            run = SearchRun(
                config, study, runner, sources, evaluator.tasks.sizes, evaluator, callbacks
            )
            result = run_phases(run)
        save_results(config, study, result)
        if build:
            build_winner(study.folder, result.winner, trust_remote_code=trust_remote_code)
        plots = study.folder / PLOTS_FOLDER
        draw_pictures(config, study, result.winner, evaluator.sources.layers, plots)
        for callback in callbacks:
            callback.on_end(study, result)
        return result


def run_phases(run: SearchRun) -> Result:
    """Run or resume all phases of a search; raises `SearchError` where one cannot go on."""
    with run.study.exclusive():
        for callback in run.callbacks:
            callback.on_begin(run.study, run.config)
        phases = phases_of(run.config)
        if run.evaluator is not None:
            planner = Planner(run.config, run.evaluator, timed=False)
            titles = {phase.name: phase.title for phase in phases}
            run.forecast = Forecast(titles, planner.plan(phases))
        for phase in phases:
            if run.forecast is not None:
                run.forecast.enter(phase.name)
            phase.run(run)
    assert run.result is not None  # the last phase makes it
    return run.result


def _runner(
    config: SearchConfig,
    evaluator: Evaluator,
    study: Study,
    workers: int | None,
    make: partial[Evaluator],
    *,
    ray: bool,
) -> Runner:
    """Make what evaluates: a cluster, worker processes, or this one where there are to be none and
    no limits are set."""
    limits = Limits(
        config.compute.limits,
        examples=evaluator.tasks.sizes,
        layers=min(evaluator.sources.layers),
        parents=lambda: [study.evaluation(label, "search") for label in config.parents],
    )
    runner: Runner
    if ray:
        runner = RayRunner(
            config,
            workers or None,
            memory=worker_memory(config, evaluator),
            files=files(study, evaluator),
            admit=partial(note_kind, study),
            limits=limits,
            make=partial(make, examples=evaluator.tasks.of_splits),
        )
    else:
        devices = devices_of(config)
        for device in devices:
            note_kind(study, device_kind(device))
        if workers == 0 and len(devices) == 1 and config.compute.limits == LimitsConfig():
            runner = LocalRunner(evaluator)
        else:
            count = workers or len(devices)
            if workers is None:
                count = default_workers(config, worker_memory(config, evaluator))
            runner = ProcessRunner(config, count, limits=limits, make=make)
    rows = largest_batch(config)
    return runner if rows is None else FittedRunner(runner, study, rows)


def resume_search(
    out: str | Path,
    *,
    workers: int | None = 0,
    ray: bool = False,
    build: bool = True,
    trust_remote_code: bool = False,
    callbacks: Sequence[SearchCallback] = (),
) -> Result:
    """Resume the search of a folder, with the same trials as if it had never been stopped.

    Args:
        out: The study's folder.
        workers, ray, build, trust_remote_code, callbacks: As for `run_search`.

    Raises:
        SearchError: There is no search in the folder, or it cannot go on.

    Example:
        >>> result = resume_search("my-search")
        >>> any(row.winner for row in result.rows)
        True
    """
    return run_search(
        resumed(out),
        out,
        workers=workers,
        ray=ray,
        build=build,
        trust_remote_code=trust_remote_code,
        callbacks=callbacks,
    )
