"""Whole searches over a toy fitness, for tests of the loop: no model is loaded."""

import random

import numpy as np
import yaml
from searches import minimal

from hf_evomerge import Recipe, Scores
from hf_evomerge.search.evaluation.sources import SourceSummary
from hf_evomerge.search.phases.phase import SearchRun
from hf_evomerge.search.run import run_phases
from hf_evomerge.search.study.study import Study

LAYERS = [3, 3]
EXAMPLES = 12


class StoppedError(Exception):
    """The runner was stopped, as if the process had been killed."""


def hardness(split):
    """How much each example of a split is above or below the others."""
    return np.random.default_rng(sum(map(ord, split))).normal(0, 0.05, EXAMPLES)


def is_recipe(job):
    """Whether a job scores a candidate, and no parent."""
    return isinstance(job.target, Recipe)


def toy_scores(job):
    """Scores of the toy task: a weight of 0.7 for each source, and a path of five hops with scales
    near 1.1, are best."""
    target = job.target
    value = -2.0
    if is_recipe(job):
        value = 0.0
        if target.merge is not None:
            value -= sum((each["weight"] - 0.7) ** 2 for each in target.merge.parameters)
        if target.flow is not None:
            path = target.flow.to_path()
            value -= (len(path) - 5) ** 2 / 10
            value -= np.mean([(scale - 1.1) ** 2 for scale in path.scales])
    scores = value + hardness(job.split) + (10.0 if job.fitness is not None else 0.0)
    return scores if job.batch is None else scores[list(job.batch)]


class ToyRunner:
    """Evaluates toy scores; may fail, stop after some jobs, and finish jobs in a random order."""

    def __init__(self, *, stop_after=None, shuffle=None, fails=lambda _: False, scores=toy_scores):
        self.stop_after = stop_after
        self.fails = fails
        self.scores = scores
        self.rng = None if shuffle is None else random.Random(shuffle)
        self.jobs = []
        self.rounds = []

    def run(self, jobs):
        order = list(enumerate(jobs))
        if self.rng is not None:
            self.rng.shuffle(order)
        self.rounds.append(list(jobs))
        for index, job in order:
            if self.stop_after is not None and len(self.jobs) >= self.stop_after:
                raise StoppedError
            self.jobs.append(job)
            if self.fails(job):
                scores = Scores.failed("toy: this one fails", 0.5)
            else:
                scores = self.scores(job)
            if not isinstance(scores, Scores):
                scores = Scores(scores, correct=scores > 0, seconds=0.25)
            yield index, scores

    def close(self):
        """Nothing to free."""


TABLES = yaml.safe_load("""
optimizer: &cma {evaluations: 31, population: 7}
spaces:
  ps:
    merge: &linear {method: linear, groups: model}
    optimize: [*cma]
  dfs:
    space: dfs
    path: &paper {kind: paper, scales: slot}
    optimize: [*cma]
  none:
    space: dfs
    path: {kind: paper, scales: none, repetitions: 1}
    optimize: [*cma]
  terms:
    space: dfs
    path: {kind: gates, terms: all}
    optimize: [*cma]
  hybrid:
    space: hybrid
    merge: *linear
    path: *paper
    optimize: [{<<: *cma, space: ps}, {evaluations: 20, population: 6, space: dfs}]
    compare: {finalists: 8}
  first:
    space: hybrid
    merge: *linear
    optimize:
      - {by: cma, evaluations: 14, population: 7, fitness: {task: generation}, space: ps}
      - {<<: *cma, space: ps}
      - {<<: *cma, by: cma, evaluations: 12, space: dfs}
      - {<<: *cma, evaluations: 20, space: dfs}
  batches:
    merge: *linear
    optimize: [{<<: *cma, batch: 4}]
others:
  prune:
    space: dfs
    sources: [{model: a}]  # of six layers
    path: {kind: prune, layers: 2}
    optimize: [{by: sweep, evaluations: 31, batch: 3}]
  rows:
    base: {model: c}
    merge: {groups: model}
    optimize: [*cma]
    compare: {finalists: 3, baselines: [average, alone], contributions: true}
""")
OPTIMIZER = TABLES["optimizer"]
SPACES = TABLES["spaces"]
OTHERS = TABLES["others"]


def toy_config(kind, **more):
    """The settings of a kind of search; keywords replace whole sections."""
    return minimal(**{"compare": {"finalists": 3}, **{**SPACES, **OTHERS}[kind], **more})


def toy_search(
    folder, runner, kind="ps", splits=("search", "validation", "test"), callbacks=(), **more
):
    """Run a search in a folder, or go on with the one that is there."""
    study = Study.open(folder) if (folder / "study.db").exists() else Study.create(folder, {})
    config = toy_config(kind, **more)
    counts = dict.fromkeys(splits, EXAMPLES)
    sources = SourceSummary(LAYERS if len(config.sources) > 1 else [6])
    return study, run_phases(SearchRun(config, study, runner, sources, counts, callbacks=callbacks))


def table_rows(result):
    """What the table of a search says."""
    return [
        (row.stage, row.model, row.scores.mean, row.evaluations, row.winner) for row in result.rows
    ]
