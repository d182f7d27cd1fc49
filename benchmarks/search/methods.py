"""The methods that are compared: this package's searches, other people's optimizers on the same
objective, and baselines.

Costs are in scores of all search examples, as the package counts them. A step of fine-tuning costs
what a gradient of merge weights does: three scores of its examples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lab import Lab

from hf_evomerge import MergePart, Recipe, SourceRef, Study, run_search
from hf_evomerge.fitness import make_task
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.phases.baselines.finetune import STEP_COST, Lora, fine_tune
from hf_evomerge.search.phases.baselines.merge_lora import Begin, learn_together
from hf_evomerge.search.spaces.space import make_space, uniform_average


@dataclass(frozen=True)
class Point:
    """A candidate that was scored on all search examples.

    Attributes:
        cost: What had been spent when its score was known.
        fitness: Its score.
        target: A recipe, a parent, or a live model.
    """

    cost: float
    fitness: float
    target: Any


Run = Callable[[Lab, int, int, Path], list[Point]]


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Attributes:
        label: What it is called there.
        budgets: One run each. Where what a method does early depends on its budget, a smaller one
            has a run of its own.
        stage: When it is run, of all methods: the most telling come first.
        run: Lab, budget, seed and a folder of its own to candidates in the order of their cost.
    """

    label: str
    budgets: tuple[int, ...]
    stage: int
    run: Run


def ours(
    space: str,
    by: str = "cma",
    *,
    first: str | None = None,
    batch: int | str | None = None,
    merge: dict[str, Any] | None = None,
    path: dict[str, Any] | None = None,
    **more: Any,
) -> Run:
    """One of the package's searches, whose stages share the budget evenly.

    Args:
        space: As in a search file.
        by: The algorithm of every space.
        first: The algorithm of a step before in every space, if there is one.
        batch: Examples of a generation.
        merge, path: More keys of these sections.
        **more: More keys at the top.
    """

    def run(lab: Lab, budget: int, seed: int, folder: Path) -> list[Point]:
        settings: dict[str, Any] = {"space": space, "compute": {"seed": seed}, **more}
        for key, section, other in (("merge", merge, "dfs"), ("path", path, "ps")):
            if space != other and (found := {**lab.sections.get(key, {}), **(section or {})}):
                settings[key] = found
        spaces = ["ps", "dfs"] if space == "hybrid" else [None]
        settings["optimize"] = []
        for number, stage in enumerate(spaces):
            share = (budget + number) // len(spaces)
            if first:
                settings["optimize"].append(
                    {"by": first, "space": stage, "evaluations": share // 2, "batch": batch}
                )
            evaluations = share - share // 2 if first else share
            settings["optimize"].append(
                {"by": by, "space": stage, "evaluations": evaluations, "batch": batch}
            )
        config = lab.config(**settings)
        run_search(config, folder, examples={"search": lab.examples["search"]}, build=False)
        return _points(folder, [stage.name for stage in config.stages], len(lab.examples["search"]))

    return run


def _points(folder: Path, stages: list[Any], examples: int) -> list[Point]:
    """The trials of a study that were scored on all examples."""
    study = Study.open(folder)
    points = list[Point]()
    cost = 0.0
    try:
        for trial in (trial for stage in stages for trial in study.trials(stage)):
            cost += trial.cost
            if (
                trial.fitness is not None
                and trial.recipe_key is not None
                and trial.scores.values.size == examples
            ):
                points.append(Point(cost, trial.fitness, study.recipe(trial.recipe_key)))
    finally:
        study.close()
    return points


class Objective:
    """The package's evaluator as a function to maximise, over the numbers of its parameter
    space."""

    def __init__(self, lab: Lab, budget: int) -> None:
        config = lab.config(space="ps", merge=lab.sections["merge"])
        self.lab = lab
        self.budget = budget
        self.points = list[Point]()
        self.space = make_space(config, config.stages[0], lab.evaluator.sources.summary)
        self.start = self.space.start()

    def __call__(self, numbers: Any) -> float:
        """The score of a point: costs 1."""
        recipe = self.space.decode(np.asarray(numbers, dtype=np.float64))
        fitness = float(self.lab.scores(recipe, "search").values.mean())
        self.points.append(Point(len(self.points) + 1.0, fitness, recipe))
        return fitness


def optuna(sampler: str) -> Run:
    """Optuna; the first point is the one that the package's searches start at."""

    def run(lab: Lab, budget: int, seed: int, folder: Path) -> list[Point]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        score = Objective(lab, budget)
        first = {f"x{i:03}": float(value) for i, value in enumerate(score.start.mean)}
        samplers: dict[str, Callable[[], Any]] = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True),
            "cma": lambda: optuna.samplers.CmaEsSampler(
                seed=seed, x0=first, sigma0=score.start.sigma
            ),
            "gp": lambda: optuna.samplers.GPSampler(seed=seed),
        }
        study = optuna.create_study(direction="maximize", sampler=samplers[sampler]())
        study.enqueue_trial(first)
        study.optimize(
            lambda trial: score([trial.suggest_float(name, 0.0, 1.0) for name in first]),
            n_trials=budget,
        )
        return score.points

    return run


def pymoo_ga(lab: Lab, budget: int, seed: int, folder: Path) -> list[Point]:
    """pymoo's genetic algorithm (SBX, polynomial mutation, a population of 20) from the same first
    point and random others."""
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.optimize import minimize

    score = Objective(lab, budget)
    size = score.start.mean.size

    class Weights(ElementwiseProblem):
        def __init__(self) -> None:
            super().__init__(n_var=size, n_obj=1, xl=0.0, xu=1.0)

        def _evaluate(self, x: Any, out: Any, *args: Any, **kwargs: Any) -> None:
            out["F"] = -score(x)

    first = np.random.default_rng(seed).random((20, size))
    first[0] = score.start.mean
    minimize(Weights(), GA(pop_size=20, sampling=first), ("n_eval", budget), seed=seed)
    return score.points


def known(*targets: Callable[[Lab], Recipe | SourceRef]) -> Run:
    """The best of some models that need no search."""

    def run(lab: Lab, budget: int, seed: int, folder: Path) -> list[Point]:
        made = [target(lab) for target in targets]
        return [
            Point(i, float(lab.scores(each, "search").values.mean()), each)
            for i, each in enumerate(made, 1)
        ]

    return run


def base(lab: Lab) -> SourceRef:
    """The common ancestor."""
    assert lab.evaluator.config.base is not None
    return lab.evaluator.config.base


def parent(number: int) -> Callable[[Lab], SourceRef]:
    """One of the sources."""
    return lambda lab: lab.evaluator.config.sources[number]


def average(lab: Lab) -> Recipe:
    """The plain average of the sources."""
    return uniform_average(lab.evaluator.config)


def uniform(
    scale: float, method: str = "task_arithmetic", **options: Any
) -> Callable[[Lab], Recipe]:
    """The sum of the task vectors, all times the same number; or another method at one weight."""

    def make(lab: Lab) -> Recipe:
        config = lab.evaluator.config
        part = MergePart(
            method=method, parameters=[{"weight": scale, **options}] * len(config.sources)
        )
        return Recipe(
            sources=config.sources, base=config.base, merge=part, dtype=config.output.dtype
        )

    return make


def lora(start: Callable[[Lab], Recipe | SourceRef], number: int) -> Run:
    """Fine-tuning with LoRA from a model, with one of the lab's learning rates, for as many steps
    as the budget pays."""

    def run(lab: Lab, budget: int, seed: int, folder: Path) -> list[Point]:
        examples = lab.examples["search"]
        rate = lab.rates[number]
        batch = lab.batch
        settings = Lora.for_cost(budget, len(examples), rate=rate, batch=batch, seed=seed)
        evaluator = lab.evaluator
        tokenizer = evaluator.sources[0].tokenizer()
        model = fine_tune(
            lab.copy_of(start(lab)).requires_grad_(False),
            lambda: make_task(evaluator.config.fitness),  # type: ignore[arg-type, return-value]
            examples,
            tokenizer,
            settings,
        )
        cost = STEP_COST * settings.steps * settings.batch / len(examples)
        return [Point(cost, float(lab.scores(model, "search").values.mean()), model)]

    return run


def then_lora(search: Run, number: int) -> Run:
    """A search for half of the budget, and LoRA from its winner for the rest."""

    def run(lab: Lab, budget: int, seed: int, folder: Path) -> list[Point]:
        points = search(lab, budget - budget // 2, seed, folder)
        winner = max(points, key=lambda point: point.fitness)
        tuned = lora(lambda _: winner.target, number)(lab, budget // 2, seed, folder)
        return [Point(points[-1].cost + point.cost, point.fitness, point.target) for point in tuned]

    return run


def with_lora(lab: Lab, budget: int, seed: int, folder: Path) -> list[Point]:
    """The default search by gradient, and a LoRA that learns beside it, by the same steps."""
    step = {"by": "gradient", "evaluations": budget}
    config = lab.config(
        space="ps", optimize=[step], merge=lab.sections["merge"], compute={"seed": seed}
    )
    spent = list[float]()
    evaluator = Evaluator(config, examples=lab.examples)
    _, model = learn_together(evaluator, config.stages[0], 3e-4, Begin(), after_step=spent.append)
    return [Point(spent[-1], float(lab.scores(model, "search").values.mean()), model)]


TENSOR = {"groups": "tensor", "starts": []}
GATE = {"kind": "gates", "order": [1, 0]}  # A is the second parent
SLOT, MATRIX = (
    {"kind": "paper", "order": [1, 0], "scales": scales} for scales in ("slot", "matrix")
)
HYBRID_GATE = {"kind": "gates", "order": [2, 1, 0]}  # A is the merged model
SCALES = [uniform(scale) for scale in (0.3, 0.5, 0.7, 1.0)]
STARTS: dict[str, tuple[str, Callable[[Lab], Recipe | SourceRef]]] = {
    "base": ("the base", base),
    "parent-0": ("the first parent", parent(0)),
    "parent-1": ("the second parent", parent(1)),
    "average": ("the average", average),
}

METHODS: dict[str, Method] = {
    "base": Method("base", (1,), 1, known(base)),
    "parent-0": Method("first parent", (1,), 1, known(parent(0))),
    "parent-1": Method("second parent", (1,), 1, known(parent(1))),
    "average": Method("uniform average", (1,), 1, known(average)),
    "averages": Method("best of 4 uniform sums", (4,), 1, known(*SCALES)),
    "default": Method(
        "PS, gradient, as a search does it by default", (25, 75, 150), 1, ours("ps", "gradient")
    ),
    "ps-gradient": Method(
        "PS, gradient, per tensor", (25, 75, 150), 1, ours("ps", "gradient", merge=TENSOR)
    ),
    "ps-cma": Method("PS, CMA-ES, all examples", (600,), 1, ours("ps", batch="all")),
    "ps-cma-batch": Method("PS, CMA-ES, batches of 16", (200,), 1, ours("ps", batch=16)),
    "dfs-gradient": Method(
        "DFS, gates, gradient", (75, 150), 2, ours("dfs", "gradient", path=GATE)
    ),
    "dfs-slot": Method(
        "DFS, indicators and scales, CMA-ES", (600,), 2, ours("dfs", path=SLOT, batch="all")
    ),
    **{
        f"lora-{name}-{number}": Method(
            f"LoRA from {where}", (25, 75), 2 if number < 2 else 3, lora(start, number)
        )
        for number in range(3)
        for name, (where, start) in STARTS.items()
    },
    "together": Method("LoRA beside the default", (25, 75), 2, with_lora),
    **{
        f"default-lora-{number}": Method(
            "the default for half the cost, then LoRA from its merge",
            (25, 75),
            2,
            then_lora(ours("ps", "gradient"), number),
        )
        for number in range(3)
    },
    "ps-cma-grow": Method("PS, CMA-ES, growing batches", (200,), 2, ours("ps")),
    "dfs-cma-grow": Method(
        "DFS, gates, CMA-ES, growing batches", (200,), 2, ours("dfs", path=GATE)
    ),
    "hybrid": Method(
        "PS+DFS, gradient", (150,), 2, ours("hybrid", "gradient", merge=TENSOR, path=HYBRID_GATE)
    ),
    "random": Method("random search", (600,), 3, ours("ps", "random")),
    "ps-gradient-block": Method(
        "PS, gradient, per block",
        (25, 75),
        3,
        ours("ps", "gradient", merge={"groups": "block", "starts": []}),
    ),
    "dfs-cma-batch": Method(
        "DFS, gates, CMA-ES, batches of 16", (200,), 3, ours("dfs", path=GATE, batch=16)
    ),
    "tpe": Method("Optuna TPE", (200,), 4, optuna("tpe")),
    "optuna-cma": Method("Optuna CMA-ES", (200,), 4, optuna("cma")),
    "ga": Method("pymoo GA", (200,), 4, pymoo_ga),
    "gp": Method("Optuna GP", (100,), 4, optuna("gp")),
    "ps-first": Method(
        "PS, gradient, then CMA-ES, per tensor",
        (150,),
        5,
        ours("ps", first="gradient", merge=TENSOR),
    ),
    "dfs-cma": Method(
        "DFS, gates, CMA-ES, all examples", (600,), 5, ours("dfs", path=GATE, batch="all")
    ),
    "ps-cma-tensor": Method(
        "PS, CMA-ES, all examples, per tensor", (600,), 5, ours("ps", merge=TENSOR, batch="all")
    ),
    "dfs-matrix": Method(
        "DFS, the paper's matrix of scales, CMA-ES",
        (600,),
        5,
        ours("dfs", path=MATRIX, batch="all"),
    ),
}
"""A new method is one line here. PS is per block and parent where it does not say per tensor."""
