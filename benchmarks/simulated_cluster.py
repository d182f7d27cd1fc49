"""Runs the scheduler of searches, `PoolRunner`, against a simulated cluster of 1,000 workers, with
a clock that does not wait.

Machines start slowly, some are slow for good, some go in the middle of a job and come back. It
prints how much of the machines' time was used, how far the whole is from the least that is
possible, and whether the study is that of one worker:

    python benchmarks/simulated_cluster.py --plot benchmarks/pages/images/cluster.png
"""

from __future__ import annotations

import argparse
import heapq
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from charts import DPI, GREY, MARKERS, PALETTE, project_style, save

from hf_evomerge.errors import SearchError
from hf_evomerge.fitness import Scores
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.evaluation.sources import SourceSummary
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.file.sections import LimitsConfig
from hf_evomerge.search.phases.stage_run import StageRun
from hf_evomerge.search.runners.job import Job
from hf_evomerge.search.runners.limits import Limit, Limits
from hf_evomerge.search.runners.runner import PoolRunner
from hf_evomerge.search.runners.workers import MachineLostError
from hf_evomerge.search.study.study import Study

SECONDS = 60.0  # what a candidate takes that runs through as many layers as a parent has
LAYERS = 24
GENERATIONS = 3
LIMITS = Limits(LimitsConfig(), examples={"search": 128}, layers=LAYERS, parents=lambda: [])


@dataclass(frozen=True)
class Machines:
    """What machines are like: seconds that they start, share of slow ones and how slow, losses in
    an hour of one, seconds until a lost one is back, and the spread of a job's time."""

    start: float = 0.0
    slow: float = 0.0
    slowness: float = 3.0
    losses: float = 0.0
    away: float = 300.0
    spread: float = 0.0


class SimulatedWorker:
    """A worker on a machine of its own."""

    def __init__(self, pool: SimulatedPool, rng: np.random.Generator) -> None:
        self.pool = pool
        self.rng = rng
        self.index = None
        self.factor = pool.kind.slowness if rng.random() < pool.kind.slow else 1.0
        self.job: Job | None = None
        self.at = 0.0
        self.lost = False
        self.ready = pool.starts(rng)

    def begin(self, index: int, job: Job, limit: Limit) -> None:
        """See `PoolWorker`."""
        kind = self.pool.kind
        now = self.pool.clock
        takes = (
            SECONDS
            * LIMITS.size(job)
            * self.factor
            * math.exp(kind.spread * self.rng.standard_normal())
        )
        until = self.rng.exponential(3600 / kind.losses) if kind.losses else math.inf
        self.index = index
        self.job = job
        self.lost = until < takes
        self.at = now + min(takes, until)
        self.pool.begun(self, min(takes, until))

    def look(self) -> Scores | None:
        """See `PoolWorker`."""
        if self.at > self.pool.clock:
            return None
        self.index = None
        if self.lost:
            self.ready = self.pool.starts(self.rng, self.pool.kind.away)
            raise MachineLostError
        assert self.job is not None  # it has had one
        self.pool.useful += SECONDS * LIMITS.size(self.job)
        return fitness(self.job)

    def end(self) -> None:
        """See `PoolWorker`."""
        self.index = None


class SimulatedPool(PoolRunner[SimulatedWorker]):
    """Such workers, and their clock.

    Args:
        count: How many.
        kind: What their machines are like.
        seed: Of everything that happens to them.
        largest_first: Whether the scheduler knows how large jobs are.
    """

    def __init__(
        self, count: int, kind: Machines, seed: int = 0, *, largest_first: bool = True
    ) -> None:
        super().__init__(LIMITS if largest_first else None)
        self.kind = kind
        self.clock = 0.0
        self.useful = 0.0
        self.events: list[float] = []
        self.workers = [
            SimulatedWorker(self, np.random.default_rng([seed, number])) for number in range(count)
        ]

    def starts(self, rng: np.random.Generator, away: float = 0.0) -> float:
        """When a machine has started that comes after some seconds, and an event for then."""
        seconds = away + self.kind.start * math.exp(0.5 * rng.standard_normal())
        heapq.heappush(self.events, self.clock + seconds)
        return self.clock + seconds

    def begun(self, worker: SimulatedWorker, seconds: float) -> None:
        """Note when a job ends."""
        heapq.heappush(self.events, self.clock + seconds)

    def free(self) -> Iterator[SimulatedWorker]:
        """See `PoolRunner`."""
        return (worker for worker in super().free() if worker.ready <= self.clock)

    def wait(self, busy: Sequence[SimulatedWorker]) -> Sequence[SimulatedWorker]:
        """Let the clock go on to the next event."""
        while self.events[0] <= self.clock:
            heapq.heappop(self.events)
        self.clock = self.events[0]
        return [worker for worker in busy if worker.at <= self.clock]


def fitness(job: Job) -> Scores:
    """The scores of a candidate: the same wherever and whenever."""
    assert isinstance(job.target, Recipe)
    merge = job.target.merge
    weights = [] if merge is None else [float(each["weight"]) for each in merge.parameters]  # type: ignore[arg-type]
    return Scores([-sum((weight - 0.3) ** 2 for weight in weights)])


def settings(evaluations: int, population: int) -> SearchConfig:
    """A search of two weights."""
    optimizer = {"evaluations": evaluations, "population": population}
    given = {
        "space": "ps",
        "sources": [{"model": "a"}, {"model": "b"}],
        "base": {"model": "base"},
        "merge": {"groups": "model"},
        "optimize": [{**optimizer, "batch": "all"}],
        "fitness": {"task": "likelihood"},
    }
    return validate(SearchConfig, given, SearchError)


def jobs(count: int, space: str, rng: np.random.Generator) -> list[Job]:
    """A generation of candidates; paths have one to three times a parent's layers."""
    config = settings(2, 2)
    fields: dict[str, Any] = {"sources": config.sources, "base": config.base}
    if space == "ps":
        one = {"method": "task_arithmetic", "parameters": [{"weight": 0.5}, {"weight": 0.5}]}
        return [Job(Recipe.model_validate({**fields, "merge": one}))] * count
    paths = [
        Job(
            Recipe.model_validate(
                {**fields, "flow": {"path": [f"{n % 2}:{n % LAYERS}" for n in range(length)]}}
            )
        )
        for length in range(LAYERS, 3 * LAYERS + 1, 4)
    ]
    return [paths[i] for i in rng.integers(len(paths), size=count)]


def used(
    workers: int, per_worker: float, space: str, kind: Machines, *, largest_first: bool = True
) -> tuple[float, float]:
    """The share of the machines' time that was used in some generations, and the makespan over the
    least that is possible."""
    rng = np.random.default_rng(0)
    pool = SimulatedPool(workers, kind, largest_first=largest_first)
    least = 0.0
    for _ in range(GENERATIONS):
        generation = jobs(round(workers * per_worker), space, rng)
        work = [SECONDS * LIMITS.size(job) for job in generation]
        least += max(sum(work) / workers, *work)
        assert len(list(pool.run(generation))) == len(generation)
    return pool.useful / (workers * pool.clock), pool.clock / least


def trials(workers: int, kind: Machines, evaluations: int, population: int) -> list[Any]:
    """The trials of a real stage, with a real study, on simulated machines."""
    config = settings(evaluations, population)
    with tempfile.TemporaryDirectory() as folder:
        study = Study.create(Path(folder) / "study", config.model_dump(mode="json"))
        summary = SourceSummary([LAYERS, LAYERS], ["model.embed_tokens.weight"], [], [])
        StageRun(config, study, summary, config.stages[0], example_count=128).run(
            SimulatedPool(workers, kind)
        )
        found = [
            (trial.number, trial.generation, trial.genome.tobytes(), trial.scores._bits())
            for trial in study.trials("ps")
        ]
        study.close()
    return found


KINDS = {
    "equal machines": Machines(),
    "starts of a minute": Machines(start=60, spread=0.1),
    "and 2 % three times slower": Machines(start=60, spread=0.1, slow=0.02),
    "and each lost every 10 hours": Machines(start=60, spread=0.1, slow=0.02, losses=0.1),
}


def main() -> None:
    """Print the tables; draw the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    widths = (0.5, 1, 2, 4)
    found: dict[str, list[float]] = {}
    print(
        f"{given.workers} workers, {GENERATIONS} generations; share of the time used "
        "(makespan over the least possible)\n"
    )
    print(
        f"| machines | {' | '.join(f'{width:g} a worker' for width in widths)} |\n| --- "
        f"|{' ---: |' * len(widths)}"
    )
    rows: list[tuple[str, str, Machines, bool]] = [
        (f"PS, {name}", "ps", kind, True) for name, kind in KINDS.items()
    ]
    rows += [
        ("DFS, all of that", "dfs", KINDS["and each lost every 10 hours"], True),
        (
            "DFS, all of that, in the order of genomes",
            "dfs",
            KINDS["and each lost every 10 hours"],
            False,
        ),
    ]
    for name, space, kind, largest_first in rows:
        facts = [
            used(given.workers, width, space, kind, largest_first=largest_first) for width in widths
        ]
        found[name] = [share for share, _ in facts]
        print(
            f"| {name} | {' | '.join(f'{share:.2f} ({ratio:.2f})' for share, ratio in facts)} |",
            flush=True,
        )
    hard = Machines(start=60, spread=0.3, slow=0.05, losses=2.0)
    one = trials(1, Machines(), 240, 60)
    for workers in (7, 100, given.workers):
        same = trials(workers, hard, 240, 60) == one
        print(
            f"\na study of {len(one)} trials on {workers} such machines: "
            f"{'the same bits' if same else 'DIFFERENT'}"
        )
    if given.plot:
        draw(found, widths, given.workers, given.plot)


def draw(found: dict[str, list[float]], widths: Sequence[float], workers: int, file: Path) -> None:
    """Draw the shares."""
    from matplotlib.figure import Figure

    with project_style():
        figure = Figure(figsize=(7, 4.4), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        for (name, shares), colour, marker in zip(found.items(), cycle(PALETTE), cycle(MARKERS)):
            line = "--" if name.endswith("genomes") else "-"
            axes.plot(
                widths,
                shares,
                color=colour,
                marker=marker,
                label=name,
                linestyle=line,
                clip_on=False,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(widths, [f"{width:g}" for width in widths])
        axes.set(
            xlabel="candidates of a generation per worker",
            ylabel="share of the machines' time",
            ylim=(0, 1),
        )
        axes.set_title(
            f"{workers:,} simulated workers, {GENERATIONS} generations", loc="left", pad=12
        )
        axes.grid(axis="y", color=GREY, alpha=0.2, linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=2)
    save(figure, file)


if __name__ == "__main__":
    main()
