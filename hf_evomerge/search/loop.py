"""Runs a search: stage by stage, generation by generation; then the finalists, the winner and the table of results.

Resuming is replaying (the optimizer is asked again from the start and told what the study holds), so nothing but the study is
kept, and a search that was killed ends with the same trials as one that was not.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import EvoMergeError, SearchError
from ..fitness.scores import Scores
from ..recipes.recipe import Recipe, SourceRef
from .config import OptimizerConfig, SearchConfig, Stage
from .evaluator import Batch
from .optimizer import Optimizer, Vector
from .results import Result, Row
from .runner import Job, Runner
from .spaces import FlowSpace, ParameterSpace, Space, source_label, uniform_average
from .study import Study, Trial

_WINNER_NAMES: dict[Stage, str] = {"ps": "evolved PS", "dfs": "evolved DFS", "random": "random search"}


@dataclass(frozen=True)
class Progress:
    """Where a search stands; one is reported after every trial.

    Attributes:
        phase: The stage, or ``parents``, ``finalists`` or ``test``.
        done, total: Trials (or evaluations) done in this phase, and its budget.
        generation: From 0.
        best, mean: Best fitness of the stage so far; mean of the last whole generation.
        sigma: The optimizer's step size.
        failed, duplicates: Trials that failed, and that shared another's scores.
        seconds: Wall time of this phase in this process.
        fresh: Trials evaluated in this process; the others were replayed.
    """

    phase: str
    done: int
    total: int
    generation: int = 0
    best: float | None = None
    mean: float | None = None
    sigma: float | None = None
    failed: int = 0
    duplicates: int = 0
    seconds: float = 0.0
    fresh: int = 0


Report = Callable[[Progress], None]


class Search:
    """A search over one study.

    Args:
        config: The search.
        study: Where trials are kept; may hold some already.
        runner: What evaluates.
        layers: Number of layers of each source.
        tensors, unchanged: Of the merged sources, as `ParameterSpace` takes them.
        example_count: Number of search examples; needed where the search draws batches.
        splits: The splits that there are examples for.
        report: Called after every trial.
    """

    def __init__(
        self,
        config: SearchConfig,
        study: Study,
        runner: Runner,
        *,
        layers: Sequence[int],
        tensors: Sequence[str] = (),
        unchanged: Sequence[Container[str]] = (),
        example_count: int = 0,
        splits: Sequence[str] = ("search",),
        report: Report | None = None,
    ) -> None:
        self.config, self.study, self.runner = config, study, runner
        self.layers, self.example_count, self.splits = list(layers), example_count, list(splits)
        self.tensors, self.unchanged = tensors, unchanged
        self.report = report or (lambda _: None)

    def run(self) -> Result:
        """Run, or go on, until every budget is spent.

        Raises:
            SearchError: No candidate of a stage could be evaluated, or the study does not fit the search.
        """
        with self.study.exclusive():
            self._evaluate_labels(self._parents(), "search", "parents")
            winners: dict[Stage, str] = {}
            for stage in self.config.stages:
                self._run_stage(stage, self._space(stage, winners.get("ps")))
                winners[stage] = self._choose(self._finalists(stage))
            contenders = [stage for stage in self.config.stages if stage != "random"]
            if "validation" not in self.splits:
                contenders.sort(key=lambda stage: -(self.study.best(stage)[0].fitness or 0.0))  # of equals the earlier stage
            winner = self._choose([winners[stage] for stage in contenders])
            return self._result(winner, winners)

    def _parents(self) -> dict[str, SourceRef]:
        """Base and sources by label; a base that is also a source is evaluated once."""
        parents = {} if self.config.base is None else {"base": self.config.base}
        parents.update({f"source:{i}": ref for i, ref in enumerate(self.config.sources) if ref != self.config.base})
        return parents

    def _space(self, stage: Stage, merged: str | None) -> Space:
        """The space that a stage searches. Random search has that of the first stage."""
        kind = self.config.stages[0] if stage == "random" else stage
        if kind == "ps":
            taking_part = self.config.ps.sources or range(len(self.layers))
            return ParameterSpace(self.config, self.layers[next(iter(taking_part))], self.tensors, self.unchanged)
        if stage == "random" or merged is None:
            return FlowSpace(self.config, self.layers)
        merge = self.study.recipe(merged).merge
        taking_part = self.config.ps.sources or range(len(self.layers))
        return FlowSpace(self.config, [*self.layers, self.layers[next(iter(taking_part))]], merge)

    def _budget(self, stage: Stage) -> tuple[int, float]:
        """Trials and minutes of a stage; random search gets as many as all other stages together."""
        counted = [s for s in self.config.stages if s != "random"] if stage == "random" else [stage]
        budgets = [self._optimizer_config(s) for s in counted]
        minutes = [budget.minutes for budget in budgets]
        return sum(budget.evaluations for budget in budgets), sum(m if m is not None else np.inf for m in minutes)

    def _optimizer_config(self, stage: Stage) -> OptimizerConfig:
        return self.config.dfs.optimizer if stage == "dfs" else self.config.ps.optimizer

    def _run_stage(self, stage: Stage, space: Space) -> None:
        """All generations of a stage: those that the study holds are replayed, the others evaluated."""
        _StageRun(self, stage, space).run()

    def _finalists(self, stage: Stage) -> list[str]:
        """Keys of the best recipes of a stage; raises `SearchError` where every trial failed."""
        best = self.study.best(stage, self.config.finalists)
        if not best:
            errors = [trial.scores.error for trial in self.study.trials(stage)]
            raise SearchError(f"{stage}: all {len(errors)} trials failed; the first said: {errors[0] if errors else '-'}")
        return [trial.recipe_key for trial in best if trial.recipe_key is not None]

    def _choose(self, keys: Sequence[str]) -> str:
        """The best of some recipes on the validation split; of equals, and where there is no such split, the first."""
        if "validation" not in self.splits or len(keys) == 1:
            return keys[0]
        scores = self._evaluate_labels({key: self.study.recipe(key) for key in keys}, "validation", "finalists")
        fitness = [scores[key].mean for key in keys]
        return keys[int(np.argmax([-np.inf if value is None else value for value in fitness]))]  # the first of equals

    def _result(self, winner: str, winners: dict[Stage, str]) -> Result:
        """Measure everything worth comparing on the test split, once."""
        split = next((s for s in ("test", "validation") if s in self.splits), "search")
        average = uniform_average(self.config) if len(set(self.layers)) == 1 else None
        targets: dict[str, Recipe | SourceRef] = dict(self._parents())
        if average is not None:
            targets[self.study.add_recipe(average)] = average
        targets.update({key: self.study.recipe(key) for key in winners.values()})
        scores = self._evaluate_labels(targets, split, "test")
        rows = [self._parent_row(label, ref, scores[label]) for label, ref in self._parents().items()]
        if average is not None:
            rows.append(Row("average", "uniform average", scores[average.key]))
        for stage, key in winners.items():
            after_ps = stage == "dfs" and "ps" in winners  # the second stage of a hybrid search builds on the first
            trials = [trial for s in (["ps", "dfs"] if after_ps else [stage]) for trial in self.study.trials(s)]
            name = "evolved PS+DFS" if after_ps else _WINNER_NAMES[stage]
            seconds = math.fsum(trial.scores.seconds for trial in trials)
            rows.append(Row(stage, name, scores[key], len(trials), seconds, winner=key == winner and stage != "random"))
        return Result(self.study.recipe(winner), split, rows)

    def _parent_row(self, label: str, ref: SourceRef, scores: Scores) -> Row:
        name = source_label(ref)
        return Row("base", f"base: {name}", scores) if label == "base" else Row("source", name, scores)

    def _evaluate_labels(self, targets: Mapping[str, Recipe | SourceRef], split: str, phase: str) -> dict[str, Scores]:
        """Scores of labelled targets on a split: the stored ones, and the others evaluated and stored."""
        found = {label: self.study.evaluation(label, split) for label in targets}
        missing = [label for label, scores in found.items() if scores is None]
        begin = time.perf_counter()
        jobs = [Job(targets[label], split) for label in missing]
        for done, (index, scores) in enumerate(self.runner.run(jobs), 1):
            if phase == "parents" and scores.error is not None:  # not stored: a search that goes on tries again
                raise SearchError(f"{self._parents()[missing[index]].model}: cannot be evaluated: {scores.error}")
            self.study.add_evaluation(missing[index], split, scores)
            found[missing[index]] = scores
            self.report(Progress(phase, done, len(missing), seconds=time.perf_counter() - begin, fresh=done))
        return {label: scores for label, scores in found.items() if scores is not None}


class _StageRun:
    """One stage while it runs."""

    def __init__(self, search: Search, stage: Stage, space: Space) -> None:
        self.search, self.stage, self.space = search, stage, space
        self.study = search.study
        self.budget, self.minutes = search._budget(stage)
        settings = search._optimizer_config(search.config.stages[0] if stage == "random" else stage)
        self.optimizer = Optimizer(
            space.start(),
            algorithm="random" if stage == "random" else settings.algorithm,
            population=settings.population,
            restarts=settings.restarts,
            seed=search.config.seed + search.config.stages.index(stage),
        )
        self.trials: list[Trial] = []
        self.stored = {trial.number: trial for trial in self.study.trials(stage)}
        self.first_of_recipe: dict[tuple[str, Batch | None], Trial] = {}
        self.counts: Counter[str] = Counter()
        self.best: float | None = None
        self.mean: float | None = None
        self.begin = time.perf_counter()
        self.seconds_before = self.study.meta(f"seconds:{stage}") or 0.0

    def run(self) -> None:
        """Generation after generation, until the budget is spent or the optimizer has converged."""
        generation = 0
        while len(self.trials) < self.budget and (len(self.trials) in self.stored or self._seconds() < self.minutes * 60):
            genomes = self.optimizer.ask()
            if genomes is None:
                break
            trials = self._generation(generation, genomes[: self.budget - len(self.trials)])
            self.trials += trials
            values = np.array([np.nan if trial.fitness is None else trial.fitness for trial in trials])
            alive = values[~np.isnan(values)]
            if generation == 0 and not alive.size:
                raise SearchError(f"{self.stage}: every candidate of the first generation failed: {trials[0].scores.error}")
            self.mean = float(alive.mean()) if alive.size else None
            if len(trials) == len(genomes):
                self.optimizer.tell(values.tolist())
            if self.counts["fresh"]:
                self.study.set_meta(f"seconds:{self.stage}", self._seconds())
            generation += 1
        if extra := set(self.stored) - {trial.number for trial in self.trials}:
            raise SearchError(f"{self.stage}: the study holds trial {min(extra)}, which this search never asked for")

    def _seconds(self) -> float:
        """Wall time of the stage so far, in this process and those before it."""
        return self.seconds_before + time.perf_counter() - self.begin

    def _generation(self, generation: int, genomes: list[Vector]) -> list[Trial]:
        """The trials of one generation, in order: stored, evaluated, or sharing the scores of an earlier one."""
        trials: dict[int, Trial] = {}
        batch = self._batch(generation)
        candidates = [
            _Candidate(number, genome, *self._decode(genome)) for number, genome in enumerate(genomes, len(self.trials))
        ]
        pending: dict[str, _Candidate] = {}
        for candidate in candidates:
            stored = self.stored.get(candidate.number)
            if stored is not None:
                self._check_same(stored, candidate.genome)
                self._keep(trials, stored, batch)
            elif candidate.recipe is None:
                self._add(trials, candidate.trial(self.stage, generation, Scores.failed(candidate.error or "")), batch)
            elif (candidate.key, batch) not in self.first_of_recipe:
                pending.setdefault(candidate.key, candidate)
        waiting = list(pending.values())
        for index, scores in self.search.runner.run([Job(c.recipe, "search", batch) for c in waiting if c.recipe is not None]):
            self._add(trials, waiting[index].trial(self.stage, generation, scores), batch)
        for candidate in candidates:
            if candidate.number not in trials:  # its recipe has been evaluated as an earlier trial
                original = self.first_of_recipe[candidate.key, batch]
                trial = candidate.trial(self.stage, generation, original.scores.timed(0.0))
                self._add(trials, replace(trial, duplicate_of=original.number), batch)
        return [trials[candidate.number] for candidate in candidates]

    def _check_same(self, stored: Trial, genome: Vector) -> None:
        """Refuse to go on with a study that another program began: the trials would be of two searches."""
        if not np.array_equal(stored.genome, genome):
            raise SearchError(
                f"{self.stage} trial {stored.number}: the stored genome is not the one that this search asks for; resume with "
                f"the library versions and the kind of machine that it was begun with ({self.study.meta('versions')})"
            )

    def _decode(self, genome: Vector) -> tuple[str, Recipe | None, str | None]:
        """Key and recipe of a genome, or why it has none."""
        try:
            recipe = self.space.decode(genome)
        except EvoMergeError as error:
            return "", None, str(error)
        return self.study.add_recipe(recipe), recipe, None

    def _batch(self, generation: int) -> Batch | None:
        """The examples that a generation is scored on; the same for all its candidates."""
        size, count = self.search.config.batch, self.search.example_count
        if size is None or size >= count:
            return None
        rng = np.random.default_rng([self.search.config.seed, self.search.config.stages.index(self.stage), generation])
        return tuple(int(i) for i in np.sort(rng.choice(count, size, replace=False)))

    def _add(self, trials: dict[int, Trial], trial: Trial, batch: Batch | None) -> None:
        """Store a new trial and take it into the generation."""
        self.study.add_trial(trial)
        self.counts["fresh"] += 1
        self._keep(trials, trial, batch)

    def _keep(self, trials: dict[int, Trial], trial: Trial, batch: Batch | None) -> None:
        """Take a trial into the generation and report it."""
        trials[trial.number] = trial
        if trial.recipe_key is not None and trial.duplicate_of is None:
            self.first_of_recipe[trial.recipe_key, batch] = trial
        if trial.fitness is not None:
            self.best = trial.fitness if self.best is None else max(self.best, trial.fitness)
        self.counts["failed"] += trial.state == "FAILED"
        self.counts["duplicates"] += trial.duplicate_of is not None
        self.search.report(
            Progress(
                phase=self.stage,
                done=len(self.trials) + len(trials),
                total=self.budget,
                generation=trial.generation,
                best=self.best,
                mean=self.mean,
                sigma=self.optimizer.sigma,
                failed=self.counts["failed"],
                duplicates=self.counts["duplicates"],
                seconds=time.perf_counter() - self.begin,
                fresh=self.counts["fresh"],
            )
        )


@dataclass(frozen=True)
class _Candidate:
    """A genome that was asked for, and its recipe or the reason why it has none."""

    number: int
    genome: Vector
    key: str
    recipe: Recipe | None
    error: str | None

    def trial(self, stage: Stage, generation: int, scores: Scores) -> Trial:
        """The finished trial."""
        return Trial(stage, self.number, generation, self.genome, self.key or None, scores)
