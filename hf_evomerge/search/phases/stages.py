"""Phase that runs one stage of the search, and chooses the best of its finalists."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np

from ...building.noise import write_noise
from ...errors import EvoMergeError, RecipeError, SearchError, SourceError
from ...merging.registry import get_method
from ...recipes.recipe import Recipe, SourceRef
from ..evaluation.evaluator import Evaluator
from ..file.config import SearchConfig
from ..file.stages import Stage
from ..front.results import finalists
from ..optimizers.ask_tell import GROWTH, Start, Vector
from ..optimizers.descent import checks_of, cost_of_starts
from ..optimizers.sweep import sweep_cost
from ..results.table import Against, Row, RowStage
from ..runners.job import Job
from ..spaces.parameter import ParameterSpace
from ..spaces.space import Space, make_space, narrowed
from ..study.database import DamagedStudyError
from .phase import Findings, Phase, PhasePlan, Planner, SearchRun
from .stage_run import StageRun
from .winner import choose, most_finalists

logger = logging.getLogger(__name__)

_WINNER_NAMES: dict[str, str] = {
    "ps-first": "first PS",
    "ps": "evolved PS",
    "dfs-first": "first DFS",
    "dfs": "evolved DFS",
}


class StagePhase(Phase):
    """Search of one stage: generation after generation, until its budget is spent."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.name = stage.name
        self.title = stage.title

    @classmethod
    def wanted(cls, config: SearchConfig) -> list[Phase]:
        """Wanted once for each stage."""
        return [cls(stage) for stage in config.stages]

    def check(self, config: SearchConfig, evaluator: Evaluator, findings: Findings) -> None:
        """Refuse a space without a model that could be built, and gradients that are not to be
        had."""
        stage = self.stage
        if stage.control == "noise":  # as the stage that it repeats
            return
        if not stage.control:
            return self._check(config, evaluator, findings)
        try:
            self._check(config, evaluator, Findings())
        except EvoMergeError as error:
            findings.warnings.append(f"the results will have no search over {stage.title}: {error}")

    def _check(self, config: SearchConfig, evaluator: Evaluator, findings: Findings) -> None:
        stage = self.stage
        sources = evaluator.sources.summary
        merge = None
        if stage.builds_on is not None:
            own = config
            if stage.source is not None:
                own, _ = narrowed(config, stage.source, sources)
            merge = own.merge.part()
        space = make_space(config, stage, sources, merge)
        start = space.start()
        warnings = _check_recipe(space.decode(start.mean), evaluator)
        _check_sweep(stage, start, len(evaluator.tasks.examples("search")))
        findings.notes += _check_gradient(config, stage, evaluator, space)
        findings.notes += [note for note in space.notes() if note not in findings.notes]
        findings.warnings += [line for line in warnings if line not in findings.warnings]

    def plan(self, planner: Planner) -> PhasePlan:
        """Time candidates near the start on batches of each size; warn of a budget that hardly
        moves it."""
        config = planner.config
        stage = self.stage
        if stage.control:
            return self._plan_again(planner)
        space = make_space(config, stage, planner.evaluator.sources.summary, planner.merge)
        start = space.start()
        schedule = _Schedule.of(stage, space, start, planner.sizes["search"])
        first, second, seconds = _timed(space, start, schedule, planner)
        if stage.name == "ps" and config.space == "hybrid":
            planner.merge = first.merge
        planner.rows += 1
        if complaint := schedule.complaint:
            planner.warnings.append(complaint)
        path = config.path
        scales = (
            "gates (how much of each layer is kept)" if path.gated else f"path.kind: {path.kind}"
        )
        parts = [
            config.merge.method if stage.space == "ps" else scales,
            f"{start.mean.size} numbers to evolve",
            f"{schedule.budget} evaluations",
        ]
        if second.flow is not None:
            longest = space.decode(np.where(np.isfinite(start.upper), start.upper, 1.0)).flow
            most = 0 if longest is None else len(longest.to_path())
            parts.append(f"paths of {len(second.flow.to_path())} to {most} hops")
        parts.append(schedule.in_words(planner.sizes["search"]))
        return PhasePlan(self.name, ", ".join(parts), seconds, schedule.at_once)

    def _plan_again(self, planner: Planner) -> PhasePlan:
        """Price a stage that is run again to compare with, as the stage itself was measured."""
        stage = self.stage
        first = next(phase for phase in planner.phases if phase.name == stage.original)
        text = f"{stage.title}: {stage.original} again, {stage.evaluations} evaluations"
        return replace(first, name=self.name, text=text, like=first.name)

    def run(self, run: SearchRun) -> None:
        """Run all generations, choose the stage's winner, and give it a row.

        A stage to compare with has its row from a phase of its own; where it fails, that is a
        warning.
        """
        stage = self.stage
        if not stage.control:
            starts = self._run(run)
            run.rows.append(_row(run, stage, starts.get(run.winners[stage.name])))
            return
        needed = {stage.begins_at, stage.builds_on} - {None}
        if not needed <= run.winners.keys():  # of which was warned
            return
        try:
            self._run(run)
        except DamagedStudyError:
            raise
        except (RecipeError, SearchError, SourceError) as error:
            logger.warning(f"the results have no search over {stage.title}: {error}")

    def _run(self, run: SearchRun) -> dict[str | None, str]:
        """Run all generations, and note the winner; the names of the models that it began at."""
        stage = self.stage
        starts = StageRun(
            _with_noise(run) if stage.control == "noise" else run.config,
            run.study,
            run.sources,
            stage,
            merged=run.winners.get(stage.builds_on or ""),
            example_count=run.sizes["search"],
            callbacks=run.callbacks,
            report=partial(run.report, size=run.sizes["search"]),
        ).run(run.runner)
        keys = _finalists(run, stage)
        if not stage.main:  # what follows it is judged by the search's own fitness
            winner = keys[0]
        else:
            keys += [run.winners[stage.begins_at]] if stage.begins_at is not None else []
            winner = choose(run, list(dict.fromkeys(keys)))
        run.winners[stage.name] = winner
        return starts


def _finalists(run: SearchRun, stage: Stage) -> list[str]:
    """Keys of the best recipes of a stage; raises `SearchError` where every trial failed."""
    keys = finalists(run.config, run.study, [stage.name]) if stage.main else []
    if keys:
        return keys
    best = run.study.best(stage.name, most_finalists(run.config, stage, run.sizes["search"]))
    if not best:
        errors = [trial.scores.error for trial in run.study.trials(stage.name)]
        if not errors:
            raise SearchError(
                f"{stage}: ended before its first trial; give it more minutes, or more evaluations"
            )
        raise SearchError(f"{stage}: all {len(errors)} trials failed; the first said: {errors[0]}")
    # Of a sweep and of a gradient the others are on the way to these, and what they scored on a
    # batch is luck: on 200 new problems of the demo the validation split chose no better ones among
    # a gradient's points on batches (by .003 nats at most, in three draws).
    if stage.algorithm in ("sweep", "gradient"):
        best = [trial for trial in best if trial.scores.values.size == best[0].scores.values.size]
    return [trial.recipe_key for trial in best if trial.recipe_key is not None]


def _row(run: SearchRun, stage: Stage, start: str | None) -> Row:
    """Row of a stage of the search itself."""
    name = _WINNER_NAMES[stage.name]
    if stage.algorithm == "random":
        name = name.replace("evolved", "random")
    if run.config.space == "hybrid" and stage.space == "dfs":
        name = name.replace("DFS", "PS+DFS")
    if start is not None:
        name = f"start of {name.removeprefix('evolved ')}: {start}"
    against = Against(name, "the validation split chose the other one")
    return winner_row(run, stage, cast(RowStage, stage.name), name, against)


def winner_row(
    run: SearchRun,
    stage: Stage,
    kind: RowStage,
    name: str,
    against: Against | None,
    *,
    optional: bool = False,
) -> Row:
    """Row of a stage's winner, with the cost of all that it builds on."""
    winner = run.winners[stage.name]
    evaluations, seconds = _spent(run, stage)
    return Row(
        kind,
        name,
        evaluations=evaluations,
        seconds=seconds,
        label=winner,
        against=against,
        target=run.study.recipe(winner),
        optional=optional,
    )


def _spent(run: SearchRun, stage: Stage) -> tuple[float, float]:
    """Evaluations and seconds of a stage and of all that it builds on."""
    before = run.config.stages[: run.config.stages.index(stage) + 1]
    stages = [each for each in before if each.control == stage.control]
    trials = [trial for each in stages for trial in run.study.trials(each.name)]
    return (
        round(math.fsum(trial.cost for trial in trials), 2),
        math.fsum(trial.scores.seconds for trial in trials),
    )


@dataclass(frozen=True)
class _Schedule:
    """Generations, or gradient steps, that a budget buys.

    Attributes:
        stage: The stage that spends it.
        budget: Evaluations that it will spend.
        population: Candidates of a generation.
        rounds: Generations, or gradient steps, on batches of each size.
        at_once: How many workers it has work for.
    """

    stage: Stage
    budget: int
    population: int
    rounds: dict[int, float]
    at_once: float

    @classmethod
    def of(cls, stage: Stage, space: Space, start: Start, count: int) -> _Schedule:
        """Share a budget out over the batch sizes of a stage.

        A gradient's starts are scored before its first step, and the average of its points now and
        then; a batch doubles after `GROWTH` generations.
        """
        gradient = stage.algorithm == "gradient"
        sweep = stage.algorithm == "sweep"
        sizes = stage.batch_sizes(count)
        population = 1 if gradient or sweep else stage.population(start.mean.size)
        everything = np.ones(start.mean.size, dtype=np.bool_)
        price = space.price(everything) + start.prunable if gradient else 1.0  # a step is tried
        budget = stage.evaluations
        if sweep:
            budget = math.ceil(sweep_cost(start, size=sizes[0], examples=count))
        left = float(budget)
        if gradient:
            starts = cost_of_starts(start, left, sizes[0] / count, count)
            left = max(0.0, left - starts - len(checks_of(left)) - 1)
        rounds = {}
        for size in sizes:
            # A round on `size` of `count` examples costs price * population * size / count. Every
            # size gets `GROWTH` rounds, as in the optimizer, until the budget ends; the last gets
            # all that is left.
            cost = price * population * size / count
            rounds[size] = left / cost if size == sizes[-1] else min(GROWTH, left / cost)
            left -= rounds[size] * cost
        some = {size: number for size, number in rounds.items() if number > 0}
        return cls(stage, budget, population, some, math.inf if sweep else population)

    @property
    def kind(self) -> str:
        """Name of a round."""
        is_gradient = self.stage.algorithm == "gradient"
        return "gradient steps" if is_gradient else f"generations of {self.population}"

    def in_words(self, count: int) -> str:
        """Rounds and sizes of batches, for people."""
        sizes = self.rounds
        span = f"{min(sizes)} to {max(sizes)}" if len(sizes) > 1 else f"{min(sizes)}"
        if self.stage.algorithm == "sweep":
            return f"every candidate on {span} of {count} examples at first"
        return f"{sum(sizes.values()):.0f} {self.kind} on {span} of {count} examples"

    @property
    def complaint(self) -> str | None:
        """A warning where the budget does for too few rounds."""
        stage = self.stage
        total = sum(self.rounds.values())
        least, what = (20, "batch") if stage.algorithm == "gradient" else (2, "population")
        if stage.algorithm in ("random", "sweep") or total >= least:
            return None
        return (
            f"{stage}: evaluations: {self.budget} do for {total:.1f} {self.kind}, and fewer than "
            f"{least} hardly move; give more, or a smaller {what}"
        )


def _timed(
    space: Space, start: Start, schedule: _Schedule, planner: Planner
) -> tuple[Recipe, Recipe, float]:
    """The recipe of the start, another as good, and the seconds that all rounds of it would
    take."""
    stage = schedule.stage
    # The second recipe is a hundredth of a step away, up and down in turn: another recipe, so
    # nothing is answered from a cache, and as expensive as the first.
    step = np.where(np.arange(start.mean.size) % 2, 0.01, -0.01) * start.sigma
    near: Vector = np.clip(start.mean + step, start.lower, start.upper)
    first = space.decode(start.mean)
    second = space.decode(near)
    if not planner.timed:
        return first, second, float(schedule.budget * planner.sizes["search"])
    slopes = None
    if stage.algorithm == "gradient":
        slopes = space.slopes(near, np.ones(start.mean.size, dtype=np.bool_))
    seconds = 0.0
    for size, number in schedule.rounds.items():
        batch = None if size == planner.sizes["search"] else tuple(range(size))
        job = Job(first, batch=batch, slopes=slopes, fitness=stage.fitness)
        one = planner.seconds(job, replace(job, target=second))
        seconds += number * schedule.population * one
    return first, second, seconds


def _check_sweep(stage: Stage, start: Start, examples: int) -> None:
    if stage.algorithm != "sweep":
        return
    (size,) = stage.batch_sizes(examples)
    budget = stage.evaluations
    needed = math.ceil(sweep_cost(start, size=size, examples=examples))
    if needed > budget:
        raise SearchError(
            f"optimize: by: sweep: all candidates, {size} of {examples} examples at first, "
            f"take {needed} evaluations (found "
            f"{budget}); give as many, or a smaller batch"
        )


def _check_recipe(recipe: Recipe, evaluator: Evaluator) -> list[str]:
    """Refuse what could not be built, on a stage's first recipe, and layers that cannot run
    anywhere; what is doubtful."""
    from ...building.routed import Routed
    from ...routing.config import check_configs

    checkpoint = evaluator.sources.checkpoint(recipe)
    if isinstance(checkpoint, Routed) and recipe.flow is not None:
        configs = [each.config for each in checkpoint.checkpoints]
        check_configs(
            configs, recipe.flow.embedding_source, names=checkpoint.checkpoints, anywhere=True
        )
    return checkpoint.warnings


def _check_gradient(
    config: SearchConfig, stage: Stage, evaluator: Evaluator, space: Space
) -> list[str]:
    """Refuse gates for blocks that see the scale of their input, and gradients that are not to be
    had; says what one leaves."""
    from ...merging.gradient import check_differentiable
    from ...routing.gates import check_gates

    if stage.space == "dfs" and config.path.gated:
        check_gates(evaluator.sources[0].config.get_text_config())
    if stage.algorithm == "gradient":
        evaluator.tasks.check_gradient(stage.fitness)
        if isinstance(space, ParameterSpace):
            check_differentiable(get_method(config.merge.method))
            if still := space.unmoved:
                names = ", ".join(still)
                if len(still) == len({each.parameter for each in space.coordinates}):
                    raise SearchError(
                        f"optimize: by: gradient moves no {names}; give weight a range, or "
                        "write cma"
                    )
                return [f"ps: a gradient moves no {names}: those numbers stay at their start"]
    return []


def _with_noise(run: SearchRun) -> SearchConfig:
    """The search with noise for its sources.

    Its seed is another one too, for a recipe's key does not say what its sources are: the same
    numbers of noise and of the sources are two recipes.

    Raises:
        SourceError: A source cannot be read.
    """
    config = run.config
    assert run.evaluator is not None  # the search has been checked
    base = run.evaluator.sources.base
    assert base is not None  # as well
    seed = config.compute.seed + 1
    sources = list[SourceRef]()
    for number, source in enumerate(run.evaluator.sources):
        folder = run.study.noise_folder(number)
        folder.parent.mkdir(exist_ok=True)
        sources.append(write_noise(source, base, folder, seed=seed, number=number))
    compute = config.compute.model_copy(update={"seed": seed})
    return config.model_copy(update={"sources": sources, "compute": compute})
