"""Runs one stage of a search, generation by generation: what the study holds is replayed, the rest is evaluated and stored.

Replaying is asking the optimizer again from the start and telling it what the study holds. So nothing but the study is kept,
and a search that was killed ends with the same trials as one that was not.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import EvoMergeError, SearchError
from ..fitness.scores import Scores
from ..recipes.recipe import Recipe
from .callbacks import Generation, Progress, SearchCallback
from .evaluation.evaluator import Batch
from .evaluation.gradients import Slopes
from .file.config import SearchConfig
from .file.objectives import vector
from .file.stages import Stage
from .optimizers.ask_tell import Asked, Optimizer, Start, Vector
from .optimizers.descent import GradientOptimizer
from .optimizers.nsga import ParetoOptimizer
from .optimizers.sweep import sweep_over
from .runners.job import Job
from .runners.runner import Runner
from .spaces.space import Space
from .study.study import Study, Trial

logger = logging.getLogger(__name__)

_NEAR = 0.04  # the first step size where a stage begins at the winner of another


class StageRun:
    """Run of one stage.

    Args:
        config: The search.
        study: Where trials are kept; may hold some of this stage already.
        runner: What evaluates.
        stage: Which of the search's stages.
        space: What it searches.
        example_count: Number of search examples; needed where the search draws batches.
        begin_at: The genome to begin at, in place of the space's own start.
        callbacks: What else is told, and may end the stage.
    """

    def __init__(
        self,
        config: SearchConfig,
        study: Study,
        runner: Runner,
        *,
        stage: Stage,
        space: Space,
        example_count: int,
        begin_at: Vector | None = None,
        callbacks: Sequence[SearchCallback] = (),
    ) -> None:
        self.callbacks = callbacks
        self.config, self.study, self.runner = config, study, runner
        self.begin_at = begin_at
        self.stage, self.space, self.example_count = stage, space, example_count
        self.start = self._start()
        self.stages = [*(replace(stage, evaluations=spent) for spent in study.meta("budgets", stage.name) or []), stage]
        """The stage as it was before it was given more evaluations, each time, and as it is."""
        self.optimizer = self._optimizer()
        self.spent, self.generation = 0.0, 0
        self.trials: list[Trial] = []
        self.stored = {trial.number: trial for trial in self.study.trials(stage.name)}
        self.first_of_recipe: dict[tuple[str, Batch | None], Trial] = {}
        self.counts: Counter[str] = Counter()
        self.fresh = 0.0
        self.later = float(sum(each.evaluations for each in config.stages[stage.number + 1 :]))
        self.best: float | None = None
        self.mean: float | None = None
        self.accuracy: float | None = None
        self.begin = time.perf_counter()
        self.seconds_before = self.study.meta("seconds", stage.name) or 0.0

    def run(self) -> dict[str | None, str]:
        """Generation after generation, until the budget is spent, the optimizer has converged, or a callback ends it.

        Returns:
            The names of the models that the stage began at, by the keys of their recipes.

        Raises:
            SearchError: No candidate of the first generation could be evaluated, or the study does not fit the search.
        """
        self._spend()
        for callback in self.callbacks:
            callback.on_stage(self.study, self.stage.name, self.trials)
        if extra := set(self.stored) - {trial.number for trial in self.trials}:
            raise SearchError(f"{self.stage}: the study holds trial {min(extra)}, which this search never asked for")
        points = zip(self.start.candidates or (self.start.mean,), self.start.names, strict=False)
        names = {point.tobytes(): name for point, name in points}
        return {trial.recipe_key: names[key] for trial in self.trials if (key := trial.genome.tobytes()) in names}

    def _spend(self) -> None:
        """Run generations until the budget is spent, the optimizer has converged, or a callback ends the stage."""
        budget = self.stage.evaluations
        while self.spent < budget and (len(self.trials) in self.stored or self._seconds() < self.stage.minutes * 60):
            genomes = self.optimizer.ask()
            if genomes is None:
                break
            affordable = int((budget - self.spent) / self.optimizer.cost + 1e-6)
            if affordable == 0:
                break
            trials = self._generation(self.generation, genomes[:affordable])
            self.trials += trials
            self.spent = math.fsum(trial.cost for trial in self.trials)
            values = np.array([np.nan if trial.fitness is None else trial.fitness for trial in trials])
            alive = values[~np.isnan(values)]
            if self.generation == 0 and not alive.size:
                raise SearchError(f"{self.stage}: every candidate of the first generation failed: {trials[0].scores.error}")
            self.mean = float(alive.mean()) if alive.size else None
            if len(trials) == len(genomes):
                empty = np.zeros(0)
                slopes = [empty if trial.scores.gradient is None else trial.scores.gradient for trial in trials]
                objectives = [vector(trial.scores, self.config.objective_names) for trial in trials]
                self.optimizer.tell(values.tolist(), slopes, objectives)
            if self.fresh:
                self.study.set_meta("seconds", self._seconds(), self.stage.name)
            if self._tell(self.generation, trials):
                break
            self.generation += 1

    def _tell(self, generation: int, trials: list[Trial]) -> bool:
        """Tell the callbacks of a generation; whether one ends the stage, or had ended it here before.

        They are asked after the last generation that is stored, and the study keeps the answer: so one that looks at a clock
        does not give a study other trials when it is resumed.
        """
        replayed = all(trial.number in self.stored for trial in trials)
        evaluations = round(self.spent, 3)
        sigma = self.optimizer.sigma
        told = Generation(self.stage.name, generation, trials, self.best, self.mean, sigma, evaluations, replayed)
        for callback in self.callbacks:
            callback.on_generation(self.study, told)
        if (stopped := self.study.meta("stopped", self.stage.name)) is not None:
            return bool(generation >= stopped)
        asked = (each.should_stop(self.study, told) for each in self.callbacks)
        if len(self.trials) in self.stored or not any(asked):
            return False
        self.study.set_meta("stopped", generation, self.stage.name)
        logger.info("%s: ended early, after generation %d", self.stage, generation)
        return True

    def _optimizer(self) -> Asked:
        """Make the optimizer of the stage, as it was before it was given more evaluations."""
        stage, start, count = self.stages[0], self.start, max(self.example_count, 1)
        settings, budget = stage.step, stage.evaluations
        sizes = stage.batch_sizes(count)
        shares = [size / count for size in sizes]
        algorithm, seed = self.stage.algorithm, self.config.compute.seed + self.stage.number
        if algorithm == "gradient":
            price = self.space.price
            return GradientOptimizer(start, price=price, budget=budget, share=shares[0], examples=count)
        if algorithm == "sweep":
            return sweep_over(start, size=sizes[0], examples=count, budget=budget)
        if algorithm == "nsga2":
            count = len(self.config.objective_names)
            return ParetoOptimizer(start, objectives=count, population=settings.population, seed=seed)
        return Optimizer(
            start,
            algorithm=algorithm,
            population=settings.population,
            seed=seed,
            budgets=[each.evaluations for each in self.stages],
            shares=shares,
        )

    def _start(self) -> Start:
        """Return where the stage begins. A genome to begin at is scored first, so that it competes for the result."""
        settings, start = self.stage.step, self.space.start()
        if self.begin_at is None:
            return start
        near = _NEAR if settings.sigma is None and settings.by != "gradient" else start.sigma
        mean = np.clip(self.begin_at, start.lower, start.upper)
        return replace(start, mean=mean, sigma=near, candidates=(mean,), names=(f"winner of {self.stage.begins_at}",))

    def _seconds(self) -> float:
        """Wall time of the stage so far, in this process and those before it."""
        return self.seconds_before + time.perf_counter() - self.begin

    def _generation(self, generation: int, genomes: list[Vector]) -> list[Trial]:
        """The trials of one generation, in order: stored, evaluated, or sharing the scores of an earlier one."""
        trials: dict[int, Trial] = {}
        batch, request = self._batch(generation), self.optimizer.request
        candidates = [
            _Candidate(number, genome, *self._decode(genome), self.optimizer.cost)
            for number, genome in enumerate(genomes, len(self.trials))
        ]
        pending: dict[str, _Candidate] = {}
        for candidate in candidates:
            stored = self.stored.get(candidate.number)
            if stored is not None:
                self._check_same(stored, candidate.genome)
                self._keep(trials, stored, batch)
            elif candidate.recipe is None:
                self._add(trials, candidate.trial(self.stage, generation, Scores.failed(candidate.error or "")), batch)
            elif request.active is not None or (candidate.key, batch) not in self.first_of_recipe:
                pending.setdefault(candidate.key, candidate)
        waiting = list(pending.values())
        jobs = [
            Job(c.recipe, "search", batch, self._slopes(c.genome), self.stage.fitness) for c in waiting if c.recipe is not None
        ]
        for index, scores in self.runner.run(jobs):
            self._add(trials, waiting[index].trial(self.stage, generation, scores), batch)
        for candidate in candidates:
            if candidate.number not in trials:  # its recipe has been evaluated as an earlier trial
                original = self.first_of_recipe[candidate.key, batch]
                trial = candidate.trial(self.stage, generation, original.scores.replace(seconds=0.0))
                self._add(trials, replace(trial, duplicate_of=original.number), batch)
        return [trials[candidate.number] for candidate in candidates]

    def _slopes(self, genome: Vector) -> Slopes | None:
        active = self.optimizer.request.active
        return None if active is None else self.space.slopes(genome, active)

    def _check_same(self, stored: Trial, genome: Vector) -> None:
        """Refuse to go on with a study that another program began: the trials would be of two searches."""
        if not np.array_equal(stored.genome, genome):
            raise SearchError(
                f"{self.stage} trial {stored.number}: the stored genome is not the one that this search asks for; resume with "
                f"the library versions and the kind of machine that it was begun with ({self.study.meta('versions')})"
            )

    def _decode(self, genome: Vector) -> tuple[str, Recipe | None, str | None]:
        try:
            recipe = self.space.decode(genome)
        except EvoMergeError as error:
            return "", None, str(error)
        return self.study.add_recipe(recipe), recipe, None

    def _batch(self, generation: int) -> Batch | None:
        """The examples that a generation is scored on; the same for all its candidates."""
        count = self.example_count
        size = round(self.optimizer.share * count)
        if size >= count or self.optimizer.request.full:
            return None
        rng = np.random.default_rng([self.config.compute.seed, self.stage.number, generation - self.optimizer.request.repeats])
        return tuple(int(i) for i in np.sort(rng.choice(count, size, replace=False)))

    def _add(self, trials: dict[int, Trial], trial: Trial, batch: Batch | None) -> None:
        self.study.add_trial(trial)
        for callback in self.callbacks:
            callback.on_trial(self.study, trial)
        self.fresh += trial.cost
        self._keep(trials, trial, batch)

    def _keep(self, trials: dict[int, Trial], trial: Trial, batch: Batch | None) -> None:
        """Take a trial into the generation and say where the stage stands."""
        trials[trial.number] = trial
        if trial.recipe_key is not None and trial.duplicate_of is None:
            self.first_of_recipe[trial.recipe_key, batch] = trial
        if trial.fitness is not None and batch is None and (self.best is None or trial.fitness > self.best):
            self.best, self.accuracy = trial.fitness, trial.scores.accuracy
        self.counts["failed"] += trial.state == "FAILED"
        self.counts["duplicates"] += trial.duplicate_of is not None
        progress = Progress(
            phase=self.stage.name,
            done=round(self.spent + math.fsum(each.cost for each in trials.values()), 3),
            total=self.stage.evaluations,
            generation=trial.generation,
            best=self.best,
            mean=self.mean,
            accuracy=self.accuracy,
            sigma=self.optimizer.sigma,
            failed=self.counts["failed"],
            duplicates=self.counts["duplicates"],
            seconds=time.perf_counter() - self.begin,
            fresh=self.fresh,
            later=self.later,
        )
        for callback in self.callbacks:
            callback.on_progress(self.study, progress)


@dataclass(frozen=True)
class _Candidate:
    """A genome that was asked for, and its recipe or the reason why it has none."""

    number: int
    genome: Vector
    key: str
    recipe: Recipe | None
    error: str | None
    cost: float

    def trial(self, stage: Stage, generation: int, scores: Scores) -> Trial:
        """The finished trial."""
        return Trial(stage.name, self.number, generation, self.genome, self.key or None, scores, cost=self.cost)
