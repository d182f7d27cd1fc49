"""Asks for the candidates of one stage and is told their scores, generation by generation.

What the study holds is replayed: the optimizer is asked again from the start and told what is
stored. So nothing but the study is kept, and a search that was killed ends with the same trials as
one that was not. Who evaluates is the caller's affair: the search's runner, a person, or the user's
own code.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...errors import EvoMergeError, SearchError
from ...fitness import TaskSpec
from ...fitness.scores import Scores
from ...recipes.recipe import Recipe
from ..callbacks import Generation, Progress, SearchCallback
from ..evaluation.evaluator import Batch
from ..evaluation.gradients import Slopes
from ..evaluation.sources import SourceSummary
from ..file.config import SearchConfig
from ..file.stages import Stage
from ..front.optimizers import FrontOptimizer
from ..optimizers.ask_tell import AskTell, Optimizer, Start, Vector
from ..optimizers.descent import GradientOptimizer
from ..optimizers.sweep import sweep_over
from ..runners.job import Job
from ..runners.runner import Runner
from ..spaces.space import make_space
from ..study.study import Study, Trial

logger = logging.getLogger(__name__)

_NEAR = 0.04  # the first step size where a stage begins at the winner of another


# Replay. The study holds trials (genome, scores), never the state of an optimizer. To go on, the
# optimizer is made anew from the seed and asked again; each genome must equal the stored one
# (`_check_same`), and it is told the stored scores. What is kept invariant: the k-th call of ask
# and tell gets the same numbers, whether a trial is stored or new. Everything that decides about
# trials must therefore depend on the seed and on stored values only. Two things of the outside are
# stored when they decide: that a callback ended the stage ("stopped"), and the wall time so far
# ("seconds").
#
# Numbers of trials run through a stage without gaps. Which examples a generation is scored on is a
# function of (seed, stage, generation), so it is not stored either.
class StageRun:
    """Run of one stage.

    Args:
        config: The search.
        study: Where trials are kept; may hold some of this stage already.
        sources: What the space must know of the sources.
        stage: Which of the search's stages; it begins at what earlier ones have found.
        merged: Key of the recipe whose merge a search for paths builds on.
        example_count: Number of search examples; needed where the search draws batches.
        callbacks: What else is told, and may end the stage.
        report: Is told where the stage stands, after each trial.
    """

    def __init__(
        self,
        config: SearchConfig,
        study: Study,
        sources: SourceSummary,
        stage: Stage,
        *,
        merged: str | None = None,
        example_count: int = 1,
        callbacks: Sequence[SearchCallback] = (),
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self.config = config
        self.study = study
        self.stage = stage
        merge = study.recipe(merged).merge if merged and stage.builds_on else None
        self.space = make_space(config, stage, sources, merge)
        self.example_count = example_count
        self.callbacks = callbacks
        self.report = report
        self.start = self._start()
        earlier = study.meta("budgets", stage.name) or []
        self.stages = [*(replace(stage, evaluations=spent) for spent in earlier), stage]
        """The stage as it was before it was given more evaluations, each time, and as it is."""
        self.optimizer = self._optimizer()
        self.trials: list[Trial] = []
        self.stored = {trial.number: trial for trial in study.trials(stage.name)}
        self.first_of_recipe: dict[tuple[str, Batch | None], Trial] = {}
        self.spent = 0.0
        self.generation = 0
        self._open: _Generation | None = None
        self._ended = False
        self._seconds_before: float = study.meta("seconds", stage.name) or 0.0
        self._begin = time.perf_counter()
        self._progress = Progress(stage.name, 0, stage.evaluations)

    def run(self, runner: Runner) -> dict[str | None, str]:
        """Evaluate generation after generation.

        Args:
            runner: What evaluates.

        Returns:
            The names of the models that the stage began at, by the keys of their recipes.

        Raises:
            SearchError: No candidate of the first generation could be evaluated, or the study does
                not fit the search.
        """
        while candidates := self.ask():
            for index, scores in runner.run([each.job for each in candidates]):
                self.tell(candidates[index], scores)
        points = zip(self.start.candidates or (self.start.mean,), self.start.names, strict=False)
        names = {point.tobytes(): name for point, name in points}
        begun = {}
        for trial in self.trials:
            key = trial.genome.tobytes()
            if key in names:
                begun[trial.recipe_key] = names[key]
        return begun

    def ask(self) -> list[Candidate]:
        """Candidates of the current generation that have no scores yet.

        Whatever is stored is replayed first. The list is empty when the budget is spent, the
        optimizer has converged, or a callback has ended the stage.

        Raises:
            SearchError: Every candidate of the first generation failed, or the study does not fit
                the search.
        """
        while not self._ended:
            if self._open is None:
                self._begin_generation()
            elif self._open.waiting:
                return list(self._open.waiting.values())
            else:
                self._end_generation(self._open)
        return []

    def tell(self, candidate: Candidate, scores: Scores) -> Trial:
        """Store what a candidate scored; raises `SearchError` where it was not asked for."""
        generation = self._open
        if generation is None or generation.waiting.get(candidate.key) is not candidate:
            raise SearchError(
                f"{self.stage} candidate {candidate.number}: was not asked for, or has been told"
            )
        trial = candidate.trial(self.stage, self.generation, scores)
        self._add(generation, trial)
        del generation.waiting[candidate.key]
        return trial

    def _begin_generation(self) -> None:
        """Ask the optimizer, and sort out what is stored, cannot be decoded, or was evaluated
        before."""
        budget = self.stage.evaluations
        # A limit of minutes does not count for generations that are stored: a slower machine that
        # resumes the study must not end it earlier.
        in_time = len(self.trials) in self.stored or self._seconds() < self.stage.minutes * 60
        genomes = self.optimizer.ask() if self.spent < budget and in_time else None
        affordable = int((budget - self.spent) / self.optimizer.cost + 1e-6)
        if genomes is None or affordable == 0:
            self._end_stage()
            return
        request = self.optimizer.request
        generation = _Generation(self._batch(), whole=affordable >= len(genomes))
        self._open = generation
        for number, genome in enumerate(genomes[:affordable], len(self.trials)):
            candidate = self._candidate(number, genome, generation.batch)
            generation.candidates.append(candidate)
            stored = self.stored.get(number)
            is_new = (candidate.key, generation.batch) not in self.first_of_recipe
            if stored is not None:
                self._check_same(stored, genome)
                self._keep(generation, stored)
            elif candidate.recipe is None:
                failed = Scores.failed(candidate.error or "")
                self._add(generation, candidate.trial(self.stage, self.generation, failed))
            # Equal recipes on equal batches have equal scores: one is evaluated, the others copy it
            # when the generation ends. Gradients are per genome and are not shared across
            # generations.
            elif request.active is not None or is_new:
                generation.waiting.setdefault(candidate.key, candidate)

    def _end_generation(self, generation: _Generation) -> None:
        """Share scores between equal recipes, tell the optimizer and the callbacks, and go on."""
        for candidate in generation.candidates:
            if candidate.number not in generation.trials:  # its recipe has been evaluated before
                original = self.first_of_recipe[candidate.key, generation.batch]
                scores = original.scores.replace(seconds=0.0)
                trial = candidate.trial(self.stage, self.generation, scores)
                self._add(generation, replace(trial, duplicate_of=original.number))
        trials = [generation.trials[candidate.number] for candidate in generation.candidates]
        self._open = None
        self.trials += trials
        self.spent = math.fsum(trial.cost for trial in self.trials)
        alive = [trial.fitness for trial in trials if trial.fitness is not None]
        if self.generation == 0 and not alive:
            error = trials[0].scores.error
            raise SearchError(
                f"{self.stage}: every candidate of the first generation failed: {error}"
            )
        mean = float(np.mean(alive)) if alive else None
        self._progress = replace(self._progress, mean=mean)
        # The last generation may be cut by the budget. The optimizer is not told of a part of it:
        # it would need scores for every genome that it proposed.
        if generation.whole:
            empty = np.zeros(0)
            slopes = [
                empty if trial.scores.gradient is None else trial.scores.gradient
                for trial in trials
            ]
            vectors = [self.config.vector(trial.scores) for trial in trials]
            self.optimizer.tell(vectors, slopes)
        if self._progress.fresh:
            self.study.set_meta("seconds", self._seconds(), self.stage.name)
        if self._tell(self.generation, trials):
            self._end_stage()
        else:
            self.generation += 1

    def _end_stage(self) -> None:
        self._ended = True
        for callback in self.callbacks:
            callback.on_stage(self.study, self.stage.name, self.trials)
        if extra := set(self.stored) - {trial.number for trial in self.trials}:
            raise SearchError(
                f"{self.stage}: the study holds trial {min(extra)}, which this search never "
                "asked for"
            )

    def _tell(self, generation: int, trials: list[Trial]) -> bool:
        """Tell the callbacks of a generation; whether one ends the stage, or had ended it here
        before.

        They are asked after the last generation that is stored, and the study keeps the answer: so
        one that looks at a clock does not give a study other trials when it is resumed.
        """
        ended = Generation(
            self.stage.name,
            generation,
            trials,
            self._progress.best,
            self._progress.mean,
            self.optimizer.sigma,
            round(self.spent, 3),
            all(trial.number in self.stored for trial in trials),
        )
        for callback in self.callbacks:
            callback.on_generation(self.study, ended)
        if (stopped := self.study.meta("stopped", self.stage.name)) is not None:
            return bool(generation >= stopped)
        asked = (each.should_stop(self.study, ended) for each in self.callbacks)
        if len(self.trials) in self.stored or not any(asked):
            return False
        self.study.set_meta("stopped", generation, self.stage.name)
        logger.info("%s: ended early, after generation %d", self.stage, generation)
        return True

    def _optimizer(self) -> AskTell:
        """Make the optimizer of the stage, as it was before it was given more evaluations."""
        stage = self.stages[0]
        start = self.start
        count = max(self.example_count, 1)
        population = stage.population(start.mean.size)
        budget = stage.evaluations
        sizes = stage.batch_sizes(count)
        shares = [size / count for size in sizes]
        algorithm = self.stage.algorithm
        if algorithm == "cma" and self.stage.control and start.mean.size < 2:
            algorithm = "random"  # of one number, which CMA-ES cannot search
        seed = self.config.compute.seed + self.stage.number
        if algorithm == "gradient":
            return GradientOptimizer(
                start, price=self.space.price, budget=budget, share=shares[0], examples=count
            )
        if algorithm == "sweep":
            return sweep_over(start, size=sizes[0], examples=count, budget=budget)
        if algorithm == "cma" or algorithm == "random":
            return Optimizer(
                start,
                algorithm=algorithm,
                population=population,
                seed=seed,
                budgets=[each.evaluations for each in self.stages],
                shares=shares,
            )
        return FrontOptimizer(
            start, metrics=len(self.config.metrics), population=population, seed=seed
        )

    def _start(self) -> Start:
        """Return where the stage begins. A genome to begin at is scored first, so that it competes
        for the result."""
        settings = self.stage.step
        start = self.space.start()
        if self.stage.begins_at is None:
            return start
        begin_at = self.study.best(self.stage.begins_at)[0].genome
        near = _NEAR if settings.sigma is None and settings.by != "gradient" else start.sigma
        mean = np.clip(begin_at, start.lower, start.upper)
        return replace(
            start,
            mean=mean,
            sigma=near,
            candidates=(mean,),
            names=(f"winner of {self.stage.begins_at}",),
        )

    def _seconds(self) -> float:
        """Wall time of the stage so far, in this process and those before it."""
        return self._seconds_before + time.perf_counter() - self._begin

    def _candidate(self, number: int, genome: Vector, batch: Batch | None) -> Candidate:
        """Decode a genome; a candidate without a recipe has the error."""
        cost = self.optimizer.cost
        try:
            recipe = self.space.decode(genome)
        except EvoMergeError as error:
            return Candidate(number, genome, cost=cost, error=str(error))
        active = self.optimizer.request.active
        slopes = None if active is None else self.space.slopes(genome, active)
        key = self.study.add_recipe(recipe)
        return Candidate(number, genome, key, recipe, batch, slopes, self.stage.fitness, cost)

    def _check_same(self, stored: Trial, genome: Vector) -> None:
        """Refuse to go on with a study that another program began: the trials would be of two
        searches."""
        if not np.array_equal(stored.genome, genome):
            raise SearchError(
                f"{self.stage} trial {stored.number}: the stored genome is not the one that "
                "this search asks for; resume with "
                "the library versions and the kind of machine that it was begun with "
                f"({self.study.meta('versions')})"
            )

    def _batch(self) -> Batch | None:
        """The examples that a generation is scored on; the same for all its candidates."""
        count = self.example_count
        size = round(self.optimizer.share * count)
        if size >= count or self.optimizer.request.full:
            return None
        # A retry along a step (`repeats`) gets the batch of the generation whose gradient it is on.
        # The generator is seeded by a list, which numpy hashes: neighbouring generations are
        # independent.
        drawn_for = self.generation - self.optimizer.request.repeats
        rng = np.random.default_rng([self.config.compute.seed, self.stage.number, drawn_for])
        return tuple(int(i) for i in np.sort(rng.choice(count, size, replace=False)))

    def _add(self, generation: _Generation, trial: Trial) -> None:
        """Store a new trial, and take it into the generation."""
        self.study.add_trial(trial)
        for callback in self.callbacks:
            callback.on_trial(self.study, trial)
        self._progress = replace(self._progress, fresh=self._progress.fresh + trial.cost)
        self._keep(generation, trial)

    def _keep(self, generation: _Generation, trial: Trial) -> None:
        """Take a trial into the generation, and say where the stage stands."""
        generation.trials[trial.number] = trial
        if trial.recipe_key is not None and trial.duplicate_of is None:
            self.first_of_recipe[trial.recipe_key, generation.batch] = trial
        state = self._progress
        is_better = state.best is None or (trial.fitness or 0.0) > state.best
        # only scores of all examples can be the best
        if generation.batch is None and trial.fitness is not None and is_better:
            state = replace(state, best=trial.fitness, accuracy=trial.scores.accuracy)
        self._progress = replace(
            state,
            done=round(self.spent + math.fsum(each.cost for each in generation.trials.values()), 3),
            generation=trial.generation,
            sigma=self.optimizer.sigma,
            failed=state.failed + (trial.state == "FAILED"),
            duplicates=state.duplicates + (trial.duplicate_of is not None),
            seconds=time.perf_counter() - self._begin,
        )
        self.report(self._progress)


@dataclass(frozen=True, eq=False)
class Candidate:
    """Candidate of a stage that waits for its scores.

    Attributes:
        number: Number of its trial.
        genome: What the optimizer proposed.
        key: Key of its recipe in the study; empty where the genome has none.
        recipe: The model to evaluate.
        batch: Numbers of the search examples to score; all where None.
        slopes: Gradient request, where the optimizer follows a gradient.
        fitness: Task to score with; the search's own where None.
        cost: What it counts of the budget.
        error: Why the genome has no recipe.
    """

    number: int
    genome: Vector
    key: str = ""
    recipe: Recipe | None = None
    batch: Batch | None = None
    slopes: Slopes | None = None
    fitness: TaskSpec | None = None
    cost: float = 1.0
    error: str | None = None

    @property
    def job(self) -> Job:
        """The evaluation that a runner takes."""
        assert self.recipe is not None  # those that wait have one
        return Job(self.recipe, "search", self.batch, self.slopes, self.fitness)

    def trial(self, stage: Stage, generation: int, scores: Scores) -> Trial:
        """The finished trial."""
        return Trial(
            stage.name,
            self.number,
            generation,
            self.genome,
            self.key or None,
            scores,
            cost=self.cost,
        )


@dataclass
class _Generation:
    """Generation that is under way.

    Attributes:
        batch: Numbers of the examples that all its candidates are scored on.
        whole: Whether the budget does for all candidates that the optimizer proposed.
        candidates: All of them, in order.
        waiting: Candidates without scores, by recipe.
        trials: Finished trials, by number.
    """

    batch: Batch | None
    whole: bool
    candidates: list[Candidate] = field(default_factory=list)
    waiting: dict[str, Candidate] = field(default_factory=dict)
    trials: dict[int, Trial] = field(default_factory=dict)
