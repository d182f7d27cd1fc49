"""Searches for several objectives: beside pymoo's own driver on ZDT1, and on the demo's specialists
beside a second search, by: random.

    pip install "hf-evomerge[objectives]"
    # 20 seconds
    python benchmarks/objectives.py zdt1
    # some minutes on one core
    python benchmarks/objectives.py demo --out front --into benchmarks/pages/objectives.md

The demo's searches are for accuracy in Japanese against accuracy in English, in parameter space,
and for accuracy against hops, in data flow space. Both begin at the optimum of the likelihood by
gradient.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "search"))

import numpy as np
from numpy.typing import NDArray
from report import write_into
from specialists.language import problems

from hf_evomerge.demo.quickstart import SPECIALISTS
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.front.optimizers import FrontOptimizer
from hf_evomerge.search.optimizers.ask_tell import Start
from hf_evomerge.search.run import run_search
from hf_evomerge.search.study.study import Study

NUMBERS = 30
POPULATION = 100
GENERATIONS = 200
SEEDS = (1, 2, 3)
SIZES = {"search": 48, "validation": 64, "test": 200}
WRITES = {
    "task": "generation",
    "extract": "all",
    "compare": "text",
    "max_new_tokens": 5,
    "batch_size": 64,
}
FIRST = {"by": "gradient", "evaluations": 30, "fitness": {"task": "likelihood", "separator": " "}}
NSGA = {"by": "nsga2", "evaluations": 96, "population": 16}


def zdt1(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Zitzler, Deb and Thiele's first problem, to be minimised; its front is f2 = 1 - sqrt(f1)."""
    rest = 1 + 9 * points[:, 1:].mean(1)
    return np.column_stack([points[:, 0], rest * (1 - np.sqrt(points[:, 0] / rest))])


def hypervolume(
    vectors: Sequence[NDArray[np.float64]], low: NDArray[np.float64], high: NDArray[np.float64]
) -> float:
    """The share of the box from `low` to `high`, the worst and the best values, in which some point
    is at least as good."""
    from pymoo.indicators.hv import HV

    points = np.clip((np.array(vectors) - low) / (high - low), 0.0, 1.0)
    return float(HV(ref_point=np.zeros(points.shape[1])).do(-points))


def volumes(
    config: SearchConfig, studies: Mapping[str, Study]
) -> dict[str, list[tuple[float, float]]]:
    """Per study: evaluations spent, and the hypervolume of what was found until then, trial by
    trial, without what ran first.

    The box lies between the worst and the best value of each objective, in the trials of all
    studies together.
    """
    (space,) = config.spaces
    scored = {
        name: [trial for trial in study.trials(space) if trial.fitness is not None]
        for name, study in studies.items()
    }
    vectors = {
        name: [config.vector(trial.scores) for trial in found] for name, found in scored.items()
    }
    every = [each for found in vectors.values() for each in found]
    low = np.min(every, axis=0)
    high = np.max(every, axis=0)
    curves = {}
    for name, found in scored.items():
        spent = np.cumsum([trial.cost for trial in found])
        grown = (hypervolume(vectors[name][: count + 1], low, high) for count in range(len(found)))
        curves[name] = list(zip(spent.tolist(), grown, strict=True))
    return curves


def compare_drivers() -> str:
    """Hypervolume of ours, of pymoo's `minimize` and of random points, after the same evaluations,
    as Markdown."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.optimize import minimize

    theirs: list[NDArray[np.float64]] = []

    class Theirs(Problem):  # type: ignore[misc]
        def _evaluate(
            self, x: NDArray[np.float64], out: dict[str, Any], *_: Any, **__: Any
        ) -> None:
            out["F"] = zdt1(x)
            theirs.extend(-out["F"])

    low = np.array([-1.0, -1.0])
    high = np.zeros(2)
    rows = ["| seed | ours | pymoo | random |", "| --- | --- | --- | --- |"]
    for seed in SEEDS:
        start = Start(np.full(NUMBERS, 0.5), 0.25, np.zeros(NUMBERS), np.ones(NUMBERS))
        optimizer = FrontOptimizer(start, metrics=2, population=POPULATION, seed=seed)
        every: list[NDArray[np.float64]] = []
        for _ in range(GENERATIONS):
            values = -zdt1(np.array(optimizer.ask()))
            optimizer.tell(list(values))
            every += list(values)
        theirs.clear()
        problem = Theirs(n_var=NUMBERS, n_obj=2, xl=0.0, xu=1.0)
        minimize(problem, NSGA2(pop_size=POPULATION), ("n_gen", GENERATIONS), seed=seed)
        random = -zdt1(np.random.default_rng(seed).random((POPULATION * GENERATIONS, NUMBERS)))
        found = [hypervolume(list(each), low, high) for each in (every, theirs, random)]
        rows.append(f"| {seed} | " + " | ".join(f"{value:.4f}" for value in found) + " |")
    return "\n".join(rows)


def demo_settings(out: Path) -> dict[str, dict[str, Any]]:
    """The two searches, their problems written to files."""
    data: dict[str, dict[str, Any]] = {"ja": {}, "en": {}}
    out.mkdir(parents=True, exist_ok=True)
    for language, splits in data.items():
        for split, count in SIZES.items():
            file = out / f"{split}-{language}.jsonl"
            found = problems(split, count, text=language, answer=language)  # type: ignore[arg-type]
            file.write_text(
                "".join(json.dumps(problem, ensure_ascii=False) + "\n" for problem in found),
                encoding="utf-8",
            )
            splits[split] = {"jsonl": str(file)}
    common: dict[str, Any] = {
        "sources": [{"model": str(SPECIALISTS / name)} for name in ("japanese", "maths")],
        "base": {"model": str(SPECIALISTS / "base")},
        "fitness": WRITES,
        "data": data["ja"],
        "compare": {"baselines": [], "finalists": 12},
        "output": {"dtype": "float32"},
    }
    weights = {"weight": {"low": -0.5, "high": 2.0, "start": 0.5}}
    return {
        "languages": {
            **common,
            "space": "ps",
            "objectives": [{"name": "English", "data": data["en"]}],
            "merge": {"parameters": weights},
            "optimize": [FIRST, NSGA],
        },
        "hops": {
            **common,
            "space": "dfs",
            "objectives": ["hops"],
            "path": {"kind": "gates", "order": [1, 0], "max_hops": 24},
            "optimize": [{**FIRST, "evaluations": 60}, NSGA],
        },
    }


def at_random(settings: dict[str, Any]) -> dict[str, Any]:
    """The same search by chance, with as many evaluations as its steps have together."""
    evaluations = sum(step["evaluations"] for step in settings["optimize"])
    step = {"by": "random", "evaluations": evaluations, "population": NSGA["population"]}
    return {**settings, "optimize": [step]}


def run(name: str, settings: dict[str, Any], out: Path) -> dict[str, list[tuple[float, float]]]:
    """Search twice, and return the curves of `volumes`."""
    given = {"searched": settings, "random": at_random(settings)}
    configs = {how: SearchConfig.model_validate(each) for how, each in given.items()}
    with ExitStack() as opened:
        studies = {}
        for how, config in configs.items():
            folder = out / name / how
            print(f"{name}, {how}\n{run_search(config, folder, build=False)}\n", flush=True)
            studies[how] = opened.enter_context(Study.open(folder))
        return volumes(configs["searched"], studies)


def volumes_table(results: dict[str, dict[str, list[tuple[float, float]]]]) -> str:
    """Hypervolume of each search and of its random one, after so many evaluations, as Markdown."""
    rows = [
        "| | evaluations | hypervolume | random search | at as many |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, curves in results.items():
        random = curves["random"]
        spent, volume = curves["searched"][-1]
        at = [value for cost, value in random if cost <= spent][-1]
        rows.append(
            f"| {name} | {spent:g} | {volume:.3f} | {random[-1][1]:.3f} with "
            f"{random[-1][0]:g} | {at:.3f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("zdt1", help="compare with pymoo's own driver")
    running = commands.add_parser("demo", help="search among merges of the demo's specialists")
    running.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for problems and searches; finished ones are kept",
    )
    running.add_argument("--only", nargs="+", default=["languages", "hops"], help="which searches")
    running.add_argument(
        "--into",
        type=Path,
        help="a document to write into, between its comments `front: begin` and `end`",
    )
    arguments = parser.parse_args()
    if arguments.command == "zdt1":
        print(compare_drivers())
        return
    results = {}
    for name, settings in demo_settings(arguments.out).items():
        if name in arguments.only:
            results[name] = run(name, settings, arguments.out)
    text = volumes_table(results)
    print(text)
    if arguments.into:
        write_into(arguments.into, "front", text)


if __name__ == "__main__":
    main()
