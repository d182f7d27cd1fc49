"""Phase of a search: the interface that the dry run, the search, the live table and the results
share."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from ...errors import SearchError
from ...fitness.scores import Scores
from ...recipes.recipe import MergePart, Recipe
from ...record import Contribution
from ..callbacks import Progress, SearchCallback
from ..evaluation.evaluator import Evaluator
from ..evaluation.sources import SourceSummary, Target
from ..file.config import SearchConfig
from ..file.splits import Sizes
from ..file.stages import Stage
from ..results.result import Result
from ..results.table import Row
from ..runners.job import Job
from ..runners.runner import Runner
from ..spaces.space import task_vector_sum, uniform_average
from ..study.study import Study
from .forecast import Forecast
from .forecast import PhasePlan as PhasePlan


@dataclass
class Findings:
    """Findings of the checks of a search.

    Attributes:
        notes: What the user should know of the search, one line each.
        warnings: What is doubtful about it, one line each.
    """

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Planner:
    """State that the plans of one search's phases share.

    Args:
        config: The search.
        evaluator: Its evaluator.
        timed: Whether to evaluate models and to time that. Otherwise plans have work in place of
            seconds: scores of an example.

    Attributes:
        sizes: Number of examples per split.
        second: Seconds that one model takes for one example; not a number where no weights are
            read, and 1 without a clock.
        phases: The plans so far.
        warnings: What will probably disappoint, one line each.
        merge: The merge that a later stage of a hybrid search builds on.
        rows: Number of models so far that will be in the table of results.
        beyond: Seconds that they take for one example beside what `second` says of each.
    """

    def __init__(self, config: SearchConfig, evaluator: Evaluator, *, timed: bool = True) -> None:
        self.config = config
        self.evaluator = evaluator
        self.timed = timed
        self.sizes = evaluator.tasks.sizes
        self.phases: list[PhasePlan] = []
        self.warnings: list[str] = []
        self.merge: MergePart | None = None
        self.rows = 0
        self.beyond = 0.0
        source = config.sources[0]
        self.second = self.seconds(Job(source), Job(source)) / self.sizes["search"]

    def plan(self, phases: Sequence[Phase]) -> list[PhasePlan]:
        """Plan phases in their order; raises `SearchError` where a model cannot be evaluated."""
        for phase in phases:
            if (planned := phase.plan(self)) is not None:
                self.phases.append(planned)
        return self.phases

    def seconds(self, first: Job, then: Job) -> float:
        """Time one evaluation, once the first has loaded what it needs.

        Args:
            first: Job that is evaluated before the clock begins.
            then: Job that is timed.

        Returns:
            Seconds; not a number where no weights are read. Without a clock the work.

        Raises:
            SearchError: A model cannot be evaluated.
        """
        if not self.timed:
            count = self.sizes[then.split] if then.batch is None else len(then.batch)
            return float(count * (1 + then.shots))
        if not self.evaluator.sources.weights:
            return math.nan
        # Time is measured and not modelled. The first evaluation loads models and prepares the
        # task, which every later one is spared; only the second is timed. For a merge two recipes
        # are given, so that the second has its weights written, as every candidate has.
        for job in (first, then):
            scores = self.evaluator.evaluate(**vars(job))
            if scores.error is not None:
                name = getattr(job.target, "model", "the start of the search")
                raise SearchError(f"{name}: cannot be evaluated: {scores.error}")
        return scores.seconds


class SearchRun:
    """State that the phases of one search share while they run.

    Args:
        config: The search.
        study: Where scores are kept; may hold some already.
        runner: What evaluates.
        sources: What the spaces must know of the sources.
        sizes: Number of examples of each split that there is.
        evaluator: Evaluator of this process, for phases that train; None where there are none.
        callbacks: What else is told, and may end a stage.

    Attributes:
        winners: Recipe key of the winner of each stage.
        winner: Recipe key of the winner of the search.
        rows: Models of the table of results, scored on the test split by the last phase.
        contributions: What each source gives the winner, where that was asked for.
        notes: Sentences for the verdict.
        result: The result, after the last phase.
        forecast: Forecast of the time that is left; None where nothing is known of it.
    """

    def __init__(
        self,
        config: SearchConfig,
        study: Study,
        runner: Runner,
        sources: SourceSummary,
        sizes: Mapping[str, int] = MappingProxyType({"search": 0}),
        evaluator: Evaluator | None = None,
        callbacks: Sequence[SearchCallback] = (),
    ) -> None:
        self.config = config
        self.study = study
        self.runner = runner
        self.sources = sources
        self.sizes = Sizes(sizes)
        self.evaluator = evaluator
        self.callbacks = callbacks
        self.winners: dict[str, str] = {}
        self.winner = ""
        self.rows: list[Row] = []
        self.contributions: list[Contribution] = []
        self.notes: list[str] = []
        self.result: Result | None = None
        self.forecast: Forecast | None = None

    @property
    def searched(self) -> float:
        """Cost of the search, without that of searches to compare with."""
        stages = [stage.name for stage in self.config.stages if not stage.control]
        costs = (trial.cost for stage in stages for trial in self.study.trials(stage))
        return round(math.fsum(costs), 2)

    @property
    def main_stages(self) -> list[Stage]:
        """Stages so far whose winners may be a search's: this one's, or one's to compare with."""
        ended = (stage for stage in self.config.stages if stage.name in self.winners)
        return [stage for stage in ended if stage.main]

    def recipes(self, keys: Sequence[str]) -> dict[str, Target]:
        """Recipes of the study, by their keys."""
        return {key: self.study.recipe(key) for key in keys}

    def evaluate(
        self,
        targets: Mapping[str, Target],
        split: str,
        phase: str,
        *,
        shots: Mapping[str, int] = MappingProxyType({}),
        required: bool = False,
        more: float = 0.0,
    ) -> dict[str, Scores]:
        """Score labelled models on a split: stored scores are read, others evaluated and stored.

        Args:
            targets: The models, by the labels of their scores.
            split: The split.
            phase: Name that the progress is reported under.
            shots: Number of search examples in the prompt, by label; none where absent.
            required: Whether a model that cannot be scored ends the search. Its error is not
                stored, so a search that goes on tries again.
            more: Work of the phase that follows, in scores of an example.

        Raises:
            SearchError: A required model cannot be scored.
        """
        # Scores are stored one by one as they come, so a killed phase goes on where it was. Only
        # the jobs that are missing are handed out; results are put back under the label by their
        # index.
        stored = {label: self.study.evaluation(label, split) for label in targets}
        missing = [label for label, scores in stored.items() if scores is None]
        # k shots make a prompt about 1 + k times as long
        longer = sum(shots.get(label, 0) for label in missing) / max(1, len(missing))
        size = self.sizes[split] * (1 + longer)
        begin = time.perf_counter()
        jobs = [Job(targets[label], split, shots=shots.get(label, 0)) for label in missing]
        if missing:
            self.report(Progress(phase, 0, len(missing)), size=size, more=more)
        for done, (index, scores) in enumerate(self.runner.run(jobs), 1):
            label = missing[index]
            if required and scores.error is not None:
                name = getattr(targets[label], "model", label)
                raise SearchError(f"{name}: cannot be evaluated: {scores.error}")
            self.study.add_evaluation(label, split, scores)
            stored[label] = scores
            seconds = time.perf_counter() - begin
            progress = Progress(phase, done, len(missing), seconds=seconds, fresh=done)
            self.report(progress, size=size, more=more)
        return {label: scores for label, scores in stored.items() if scores is not None}

    def report(self, progress: Progress, *, size: float, more: float = 0.0) -> None:
        """Tell all callbacks where the search stands, and what time is left.

        Args:
            progress: State of the current phase.
            size: Work of one of its evaluations, in scores of an example.
            more: What follows them in the phase, in scores of an example.
        """
        if self.forecast is not None:
            left = self.forecast.left(
                progress.phase,
                progress.fresh * size,
                progress.seconds,
                rest=(progress.total - progress.done) * size,
                more=more,
            )
            progress = replace(progress, left=left, to_come=self.forecast.to_come)
        for callback in self.callbacks:
            callback.on_progress(self.study, progress)


class Phase(ABC):
    """Phase of a search.

    Attributes:
        name: Name in the study, in progress reports and in the dry run.
        title: Name in the live table.
        baseline: Name in ``compare.baselines`` of a search that has the phase; empty where every
            search has it.
    """

    name: str
    title: str
    baseline = ""

    @classmethod
    def wanted(cls, config: SearchConfig) -> list[Phase]:
        """The phases of this kind that a search has; none where it wants none."""
        return [cls()] if cls.baseline in ("", *config.compare.baselines) else []

    def check(self, config: SearchConfig, evaluator: Evaluator, findings: Findings) -> None:  # noqa: B027
        """Add notes and warnings; raises `EvoMergeError` where the phase could not run."""

    @abstractmethod
    def plan(self, planner: Planner) -> PhasePlan | None:
        """Measure what the phase will cost; None where it costs nothing of its own."""

    @abstractmethod
    def run(self, run: SearchRun) -> None:
        """Run or resume the phase: scores that the study holds are not taken again."""


def parents_once(config: SearchConfig) -> dict[str, Target]:
    """Base and sources by label; a base that is also a source is scored once."""
    parents = config.parents.items()
    return {label: ref for label, ref in parents if label == "base" or ref != config.base}


def plain_models(config: SearchConfig, layers: Sequence[int]) -> dict[str, tuple[str, Target]]:
    """Name and model of base, sources and, where it is a model, their average, by label."""
    names = config.parent_names
    models: dict[str, tuple[str, Target]] = {
        label: (names[label], ref) for label, ref in parents_once(config).items()
    }
    if average := plain_merges(config, layers).get("average"):
        models["average"] = average
    return models


def plain_merges(config: SearchConfig, layers: Sequence[int]) -> dict[str, tuple[str, Recipe]]:
    """Name and recipe of merges that need no search, by label: the average of the sources and,
    where they have a base, the sum of their task vectors; none of sources of several depths."""
    if len(config.sources) < 2 or len(set(layers)) > 1:
        return {}
    merges = {"average": ("the average", uniform_average(config))}
    if config.base is not None:
        merges["sum"] = ("the sum", task_vector_sum(config))
    return merges
