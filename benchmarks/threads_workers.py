"""Measures seconds per trial for pairs of threads and workers, on the demo's problem; and bfloat16
beside float32 on the CPU.

Each pair is a search of the demo's family in a folder of its own, with a budget so small that the
mean of the first generations is all that it does; starting workers and loading models are left out.
Run it on a machine that does nothing else:

    python benchmarks/threads_workers.py --work /tmp/threads --pairs 1x1 1x2 2x1
    python benchmarks/threads_workers.py --work /tmp/threads --dtypes
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does it

from hf_evomerge.demo.quickstart import SIZES, SPECIALISTS, demo_config, write_problems
from hf_evomerge.search.callbacks import Progress, SearchCallback
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.file.sections import CompareConfig, ComputeConfig
from hf_evomerge.search.run import run_search
from hf_evomerge.search.study.study import Study

ROUNDS = 3


def searched(work: Path, space: str) -> SearchConfig:
    """A search of the demo's family on all of its search problems."""
    config = demo_config(space, write_problems(work / "data", SIZES), 40, 0, SPECIALISTS)
    steps = tuple(step.model_copy(update={"batch": "all"}) for step in config.optimize)
    return config.model_copy(update={"optimize": steps, "compare": CompareConfig(baselines=())})


def seconds_per_trial(config: SearchConfig, out: Path, workers: int) -> float:
    """Wall time of a trial, from the first one of the search that is finished to the last."""
    seen: list[tuple[float, float]] = []

    class Clock(SearchCallback):
        """Notes when every trial was finished."""

        def on_progress(self, study: Study, progress: Progress) -> None:
            if progress.phase == config.stages[0].name:
                seen.append((time.perf_counter(), progress.done))

    if not out.exists():
        run_search(config, out, workers=workers, callbacks=[Clock()], build=False)
    (first, before), (last, after) = (
        seen[workers],
        seen[-1],
    )  # by then every worker has loaded its models
    return (last - first) / (after - before)


def compare_pairs(work: Path, pairs: list[str]) -> None:
    """Print a table of the pairs, best of several rounds."""
    print(
        f"{os.cpu_count()} cores\n\n| space | threads | workers | seconds per trial | same trials |"
    )
    print("| --- | --- | --- | --- | --- |")
    for space in ("ps", "dfs"):
        facts: dict[int, list[float]] = {}
        for pair in pairs:
            threads, workers = map(int, pair.split("x"))
            config = searched(work, space).model_copy(
                update={"compute": ComputeConfig(threads=threads)}
            )
            rounds = []
            for number in range(ROUNDS):
                out = work / f"{space}-{pair}-{number}-{int(time.time())}"
                rounds.append(seconds_per_trial(config, out, workers))
            found = [
                trial.fitness or 0.0 for trial in Study.open(out).trials(config.stages[0].name)
            ]
            same = found == facts.setdefault(threads, found)
            print(
                (
                    f"| {space} | {threads} | {workers} | {min(rounds):.3f} | "
                    f"{'yes' if same else 'no'} |"
                ),
                flush=True,
            )


def compare_dtypes(work: Path) -> None:
    """Print what bfloat16 does to the scores of each specialist, and to the time, beside
    float32."""
    print(
        (
            "| model | fitness float32 | fitness bfloat16 | per example | seconds float32 | "
            "seconds bfloat16 |\n"
        )
        + "| --- " * 6
        + "|"
    )
    config = searched(work, "ps")
    evaluators = {
        name: Evaluator(config.model_copy(update={"dtype": name}))
        for name in ("float32", "bfloat16")
    }
    for ref in config.sources:
        scores = {}
        for name, evaluator in evaluators.items():
            evaluator.evaluate(ref)
            scores[name] = min(
                (evaluator.evaluate(ref) for _ in range(ROUNDS)), key=lambda each: each.seconds
            )
        one = scores["float32"]
        other = scores["bfloat16"]
        apart = statistics.mean(abs(one.values - other.values).tolist())
        figures = (
            f"{one.mean:.3f} | {other.mean:.3f} | {apart:.3f} | {one.seconds:.2f} | "
            f"{other.seconds:.2f}"
        )
        print(f"| {ref.label} | {figures} |", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for problems and studies")
    parser.add_argument("--pairs", nargs="+", default=["1x1", "1x2", "2x1"], help="THREADSxWORKERS")
    parser.add_argument("--dtypes", action="store_true", help="compare dtypes in place of pairs")
    options = parser.parse_args()
    if options.dtypes:
        compare_dtypes(options.work)
    else:
        compare_pairs(options.work, options.pairs)


if __name__ == "__main__":
    main()
