"""Runs a search: the parents, stage by stage, the finalists of each; then the winner and the table of results."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from ..errors import SearchError
from ..fitness import TaskSpec
from ..fitness.scores import Scores
from ..merging.registry import get_method
from ..recipes.recipe import Recipe, SourceRef
from ..record import Contribution, Figures
from .baselines import Tuned, Tuner, best_temperature
from .callbacks import Progress, SearchCallback
from .evaluation.low_rank import KEPT, kept_text
from .evaluation.sources import SourceSummary
from .file.config import SearchConfig
from .file.objectives import FITNESS, vector
from .file.splits import RETAINED
from .file.stages import Stage, StageName
from .optimizers.ask_tell import Vector
from .optimizers.nsga import knee, non_dominated
from .results.contributions import Subset, contributions, kept_sources, sentence, shapley_values, subset_of
from .results.front import finalists, front, judged
from .results.result import Result
from .results.table import Row, RowStage, base_name
from .results.verdict import about_parents
from .runners.job import Job
from .runners.runner import Runner
from .spaces.space import make_space, uniform_average
from .stage import StageRun
from .study.study import Study
from .together import together_stage

logger = logging.getLogger(__name__)

_WINNER_NAMES: dict[StageName, str] = {
    "ps-first": "first PS",
    "ps": "evolved PS",
    "dfs-first": "first DFS",
    "dfs": "evolved DFS",
    "random": "random search",
}


class Search:
    """A search over one study.

    Args:
        config: The search.
        study: Where trials are kept; may hold some already.
        runner: What evaluates.
        sources: What the spaces must know of the sources.
        splits: The splits that there are examples for, and how many. The number of search examples is needed where the search
            draws batches.
        tuner: Tunes models that the result is compared with.
        callbacks: What else is told, and may end a stage.
    """

    def __init__(
        self,
        config: SearchConfig,
        study: Study,
        runner: Runner,
        sources: SourceSummary,
        splits: Mapping[str, int] = MappingProxyType({"search": 0}),
        tuner: Tuner | None = None,
        callbacks: Sequence[SearchCallback] = (),
    ) -> None:
        self.callbacks = callbacks
        self.config, self.study, self.runner = config, study, runner
        self.sources, self.splits = sources, dict(splits)
        self.tuner = tuner
        self.starts: dict[StageName, dict[str | None, str]] = {}

    def run(self) -> Result:
        """Run or resume until every budget is spent.

        Raises:
            SearchError: No candidate of a stage could be evaluated, or the study does not fit the search.
        """
        with self.study.exclusive():
            for callback in self.callbacks:
                callback.on_begin(self.study, self.config)
            self._tell_of_parents(self._evaluate_labels(self._parents(), "search", "parents"))
            winners: dict[StageName, str] = {}
            for stage in self.config.stages:
                self._run_stage(stage, winners.get("ps"))
                keys = self._finalists(stage)
                if stage.role == "first":  # what follows it is judged by the search's own fitness
                    winners[stage.name] = keys[0]
                else:
                    keys += [winners[stage.begins_at]] if stage.begins_at is not None else []
                    winners[stage.name] = self._choose(list(dict.fromkeys(keys)))
            contenders = [stage.name for stage in self.config.stages if stage.role == "main"]
            if self.config.objectives:
                return self._result(self._choose(finalists(self.config, self.study)), winners)
            if "validation" not in self.splits:
                contenders.sort(key=lambda stage: -(self.study.best(stage)[0].fitness or 0.0))  # of equals the earlier stage
            return self._result(self._choose([winners[stage] for stage in contenders]), winners)

    @property
    def judged_on(self) -> str:
        """The split that the table of results is measured on."""
        return next((split for split in ("test", "validation") if split in self.splits), "search")

    def _parents(self) -> dict[str, SourceRef]:
        """Base and sources by label; a base that is also a source is evaluated once."""
        return {label: ref for label, ref in self.config.parents.items() if label == "base" or ref != self.config.base}

    def _tell_of_parents(self, scores: Mapping[str, Scores]) -> None:
        """Say whether the sources have anything to give each other, unless the search is under way already."""
        if any(self.study.trials(stage.name) for stage in self.config.stages):
            return
        names = self.config.parent_names
        sources = {names[label]: scores[label] for label, ref in self._parents().items() if ref != self.config.base}
        notes, warning = about_parents(sources, self.splits[self.judged_on])
        for note in notes:
            logger.info(note)
        if warning is not None:
            logger.warning(warning)
        for name in self.config.objective_names[1:]:
            found = {label: scores_of.others[name].mean for label, scores_of in sources.items() if name in scores_of.others}
            if len(found) > 1 and len(set(found.values())) == 1 and name not in ("hops", "parameters"):
                logger.warning(f"objectives: {name} is {next(iter(found.values())):.4g} for every source; it may see nothing")

    def _run_stage(self, stage: Stage, merged: str | None) -> None:
        """Run all generations of a stage.

        Args:
            stage: Stage to run.
            merged: Key of the recipe whose merge a search for paths builds on.
        """
        merge = self.study.recipe(merged).merge if merged is not None and stage.role != "random" else None
        self.starts[stage.name] = StageRun(
            self.config,
            self.study,
            self.runner,
            stage=stage,
            space=make_space(self.config, stage, self.sources, merge),
            example_count=self.splits["search"],
            begin_at=self.study.best(stage.begins_at)[0].genome if stage.begins_at is not None else None,
            callbacks=self.callbacks,
        ).run()
        self.study.backup()

    def _finalists(self, stage: Stage) -> list[str]:
        """Keys of the best recipes of a stage; raises `SearchError` where every trial failed."""
        if self.config.objectives and stage.role != "first" and (keys := finalists(self.config, self.study, [stage.name])):
            return keys
        best = self.study.best(stage.name, self.config.compare.finalists)
        if not best:
            errors = [trial.scores.error for trial in self.study.trials(stage.name)]
            if not errors:
                raise SearchError(f"{stage}: ended before its first trial; give it more minutes, or more evaluations")
            raise SearchError(f"{stage}: all {len(errors)} trials failed; the first said: {errors[0]}")
        if stage.algorithm == "sweep":  # the others are on the way to these
            best = [trial for trial in best if trial.scores.values.size == best[0].scores.values.size]
        return [trial.recipe_key for trial in best if trial.recipe_key is not None]

    def _choose(self, keys: Sequence[str]) -> str:
        """The best of some recipes on the validation split; of equals, and where there is no such split, the first.

        Where there are several objectives it is the knee of the front of these recipes, on the search split where there is no
        other.
        """
        if self.config.objectives and len(keys) > 1:
            scores = self._scores_of(keys, self._chosen_on)
            alive = [key for key in keys if scores[key].error is None] or list(keys[:1])
            vectors = [vector(scores[key], self.config.objective_names) for key in alive]
            best = non_dominated(vectors)
            return alive[best[knee([vectors[i] for i in best])]]
        if "validation" not in self.splits or len(keys) == 1:
            return keys[0]
        return self._best({key: self.study.recipe(key) for key in keys}, "validation")

    def _scores_of(self, keys: Sequence[str], split: str) -> dict[str, Scores]:
        """Scores of recipes on a split; those on the search split are their trials'."""
        if split != "search":
            return self._evaluate_labels({key: self.study.recipe(key) for key in keys}, split, "finalists")
        trials = [trial for stage in self.config.stages for trial in self.study.trials(stage.name) if trial.fitness is not None]
        found = {trial.recipe_key: trial.scores for trial in reversed(trials)}
        return {key: found[key] for key in keys}

    def _best(self, targets: Mapping[str, Recipe | SourceRef], split: str) -> str:
        """The label of the best of some targets on a split; of equals the first."""
        scores, labels = self._evaluate_labels(targets, split, "finalists"), list(targets)
        fitness = [scores[label].mean for label in labels]
        return labels[int(np.argmax([-np.inf if value is None else value for value in fitness]))]

    def _result(self, winner: str, winners: dict[StageName, str]) -> Result:
        """Measure everything worth comparing on the test split, once."""
        split = self.judged_on
        can_average = len(self.config.sources) > 1 and len(set(self.sources.layers)) == 1
        average = uniform_average(self.config) if can_average else None
        targets: dict[str, Recipe | SourceRef] = dict(self._parents())
        tuned = {**self._calibrated(), **self._lora(average), **self._together()}
        average = average if "average" in self.config.compare.baselines else None
        if average is not None:
            targets[self.study.add_recipe(average)] = average
        targets.update({label: each.model for label, each in tuned.items()})
        fitness = {label: each.fitness for label, each in tuned.items()}
        shares, notes, pruned = self._contributions(winner)
        points = front(self.config, self.study) if self.config.objectives else []
        shown = [*finalists(self.config, self.study), winner] if points else []
        targets.update({key: self.study.recipe(key) for key in [*winners.values(), *shown, *pruned]})
        scores = self._evaluate_labels(targets, split, "test", fitness)
        retained = self._retained(targets, fitness)

        def row(stage: RowStage, name: str, label: str, **more: Any) -> Row:
            return Row(stage, name, scores[label], retained=retained[label], label=label, **more)

        names = self.config.parent_names
        rows = [
            row("base", base_name(names[label]), label) if label == "base" else row("source", names[label], label)
            for label in self._parents()
        ]
        if average is not None and scores[average.key].error is None:
            rows.append(row("average", "uniform average", average.key))
        elif average is not None:
            logger.warning(f"the results have no uniform average: {scores[average.key].error}")
        rows += [row(each.stage, each.name, label, evaluations=each.cost) for label, each in tuned.items()]
        for stage in self.config.stages:
            key = winners[stage.name]
            behind = [stage] if stage.role == "random" else self.config.stages[: stage.number + 1]  # what it builds on
            trials = [trial for before in behind for trial in self.study.trials(before.name)]
            name = _WINNER_NAMES[stage.name]
            if self.config.space == "hybrid" and stage.space == "dfs":
                name = name.replace("DFS", "PS+DFS")
            if (start := self.starts[stage.name].get(key)) is not None:
                name = f"start of {name.removeprefix('evolved ')}: {start}"
            seconds = math.fsum(trial.scores.seconds for trial in trials)
            cost = round(math.fsum(trial.cost for trial in trials), 2)
            ended_with = key == winner and stage.role == "main" and not any(row.winner for row in rows)
            rows.append(row(stage.name, name, key, evaluations=cost, seconds=seconds, winner=ended_with))
        if points and not any(row.winner for row in rows):  # it is on the front of all stages, and of none the knee
            rows.append(row(self.config.spaces[-1], "knee of the whole front", winner, winner=True))
        rows += [row("pruned", name, key, evaluations=self._searched) for key, name in pruned.items()]
        return Result(
            self.study.recipe(winner),
            split,
            rows,
            objectives=self.config.objective_names if points else [],
            front=judged(points, scores, winner),
            unit=self.config.units[FITNESS],
            looks=self.study.meta("looks") or 1,
            notes=[*self._in_low_rank(winner, scores[winner], split), *notes],
            contributions=shares,
        )

    def _in_low_rank(self, winner: str, whole: Scores, split: str) -> list[str]:
        """A sentence on what the rank of the search keeps, and what the winner scores in it and whole."""
        if (rank := self.config.compute.search_rank) is None:
            return []
        recipe, label = self.study.recipe(winner), f"{winner} in rank {rank}"
        low = self._evaluate_labels({label: recipe}, split, "test", low_rank=True)[label]
        values = [Figures.of(each).fitness_text if each.error is None else each.error for each in (low, whole)]
        return [f"{kept_text(self.config, self.study.meta(KEPT))}; the winner has {values[0]} in it, and {values[1]} whole"]

    def _contributions(self, winner: str) -> tuple[list[Contribution], list[str], dict[str, str]]:
        """Contributions of the sources, a sentence on them, and key and name of the winner without those that give nothing."""
        compare, recipe, split = self.config.compare, self.study.recipe(winner), self._chosen_on
        if not compare.contributions:
            return [], [], {}
        names = [self.config.source_names[number] for number in recipe.merge_sources]
        base = self.config.base if get_method(self.config.merge.method).task_vectors else None

        def values_of(targets: Mapping[str, Recipe | SourceRef]) -> list[Vector]:
            scores = self._evaluate_labels(targets, split, "contributions")
            if error := next((each.error for each in scores.values() if each.error is not None), None):
                raise SearchError(error)
            return [scores[label].values for label in targets]

        def score(subsets: Sequence[Subset]) -> dict[Subset, Vector]:
            recipes = [subset_of(recipe, subset) for subset in subsets]
            return dict(zip(subsets, values_of({self.study.add_recipe(each): each for each in recipes}), strict=True))

        try:
            empty = None if base is None else values_of({"base": base})[0]
            seed = self.config.compute.seed
            shares, values = shapley_values(len(names), compare.contributions, score, empty=empty, seed=seed)
        except SearchError as error:
            logger.warning(f"the results have no contributions: {error}")
            return [], [], {}
        if not (found := contributions(names, shares, values)):
            return [], [], {}
        kept = kept_sources(found)
        idle = [name for at, name in enumerate(names) if at not in kept]
        note = sentence(found, f"{shares.shape[1]} {split}")
        without = subset_of(recipe, kept)
        return found, [note], {self.study.add_recipe(without): f"without {', '.join(idle)}"} if idle else {}

    @property
    def _searched(self) -> float:
        stages = [stage for stage in self.config.stages if stage.role != "random"]
        return round(math.fsum(trial.cost for stage in stages for trial in self.study.trials(stage.name)), 2)

    def _lora(self, average: Recipe | None) -> dict[str, Tuned]:
        """The best LoRA of all starts and rates, by its label, where one is wanted; the average is a start too."""
        if "lora" not in self.config.compare.baselines or self.tuner is None:
            return {}
        starts: dict[str, tuple[str, Recipe | SourceRef]] = {
            label: (self.config.parent_names[label], ref) for label, ref in self._parents().items()
        }
        if average is not None:
            starts["average"] = ("the average", average)
        tuned, split = self.tuner.fine_tunes(starts, self._searched, self._tell_of_progress), self._chosen_on
        scores = self._evaluate_labels({label: each.model for label, each in tuned.items()}, split, "finalists")
        fitness = {label: each.mean for label, each in scores.items() if each.mean is not None}
        if not fitness:
            logger.warning(f"the results have no LoRA: {next((each.error for each in scores.values()), 'none was trained')}")
            return {}
        best = max(fitness, key=fitness.__getitem__)
        name = f"{tuned[best].name} (best of {len(fitness)} on {split} examples, {self._searched:g} evaluations each)"
        return {best: replace(tuned[best], name=name, cost=len(tuned) * self._searched)}

    def _together(self) -> dict[str, Tuned]:
        """The merge with LoRA beside it, by its label, where it is wanted."""
        if "merge+lora" not in self.config.compare.baselines or self.tuner is None:
            return {}
        return self.tuner.together(together_stage(self.config), self._tell_of_progress)

    def _calibrated(self) -> dict[str, Tuned]:
        """The best parent at the temperature that the search examples like best, by its label, where scores are likelihoods."""
        fitness = self.tuner.fitness if self.tuner is not None else None
        if fitness is None or self.config.objectives or fitness.at_temperature(1.0) is None:
            return {}
        label = self._best(dict(self._parents()), self._chosen_on)
        parent, tried = self._parents()[label], {label}

        def label_at(temperature: float) -> str:
            return label if temperature == 1 else f"{label}:temperature:{temperature:g}"

        def score(temperatures: Sequence[float]) -> list[float]:
            tasks = {label_at(each): fitness.at_temperature(each) for each in temperatures}
            tried.update(tasks)
            scores = self._evaluate_labels(dict.fromkeys(tasks, parent), "search", "temperature", tasks)
            return [-np.inf if each.mean is None else each.mean for each in scores.values()]

        best = best_temperature(score)
        name = f"{self.config.parent_names[label]} at temperature {best:g} ({len(tried) - 1} scores)"
        return {label_at(best): Tuned("temperature", name, parent, len(tried) - 1, fitness.at_temperature(best))}

    @property
    def _chosen_on(self) -> str:
        return "validation" if "validation" in self.splits else "search"

    def _retained(
        self, targets: Mapping[str, Recipe | SourceRef], fitness: Mapping[str, TaskSpec | None]
    ) -> dict[str, dict[str, Scores]]:
        """Scores of labelled targets on the examples that the search did not look at, by name."""
        retained: dict[str, dict[str, Scores]] = {label: {} for label in targets}
        for name in self.config.compare.retain:
            split = f"{RETAINED}{name}"
            for label, scores in self._evaluate_labels(targets, split, split, fitness).items():
                retained[label][name] = scores
        return retained

    def _evaluate_labels(
        self,
        targets: Mapping[str, Recipe | SourceRef],
        split: str,
        phase: str,
        fitness: Mapping[str, TaskSpec | None] = MappingProxyType({}),
        low_rank: bool = False,
    ) -> dict[str, Scores]:
        """Scores of labelled targets on a split, by a label's own fitness: the stored ones, the others evaluated and stored."""
        found = {label: self.study.evaluation(label, split) for label in targets}
        missing = [label for label, scores in found.items() if scores is None]
        begin = time.perf_counter()
        jobs = [Job(targets[label], split, fitness=fitness.get(label), low_rank=low_rank) for label in missing]
        for done, (index, scores) in enumerate(self.runner.run(jobs), 1):
            if phase == "parents" and scores.error is not None:  # not stored: a search that goes on tries again
                raise SearchError(f"{self._parents()[missing[index]].model}: cannot be evaluated: {scores.error}")
            self.study.add_evaluation(missing[index], split, scores)
            found[missing[index]] = scores
            self._tell_of_progress(Progress(phase, done, len(missing), seconds=time.perf_counter() - begin, fresh=done))
        return {label: scores for label, scores in found.items() if scores is not None}

    def _tell_of_progress(self, progress: Progress) -> None:
        for callback in self.callbacks:
            callback.on_progress(self.study, progress)
