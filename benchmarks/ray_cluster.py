"""Compares searches on Ray clusters with those of one process, lets machines and heads die, and
measures a trial's overhead.

Everything runs on this machine: `make cluster`, or some of the parts:

    python benchmarks/ray_cluster.py --work /tmp/cluster equality node addresses head overhead
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

for name, value in {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}.items():
    os.environ.setdefault(name, value)

import ray
from ray.cluster_utils import Cluster

from hf_evomerge.demo.quickstart import SPECIALISTS, demo_config, write_problems
from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.callbacks import SearchCallback
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.run import run_search
from hf_evomerge.search.runners.job import Job
from hf_evomerge.search.runners.runner import LocalRunner, ProcessRunner, Runner
from hf_evomerge.search.study.study import Study, Trial

CHOSEN = os.environ.get("SEARCHES", "*")  # which of them are compared, such as *gradient
BIN = Path(sys.executable).parent
QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}


def searches(work: Path) -> dict[str, SearchConfig]:
    """Small searches of the demo's family: by evolution and by gradient, of weights and of
    paths."""
    data = write_problems(work / "data", {"search": 96, "validation": 24, "test": 24})
    found = {}
    for space in ("ps", "dfs"):
        config = demo_config(space, data, 24, 0, SPECIALISTS)
        plain = config.model_dump(mode="json", exclude_unset=True) | {
            "compare": {"finalists": 2, "baselines": ["average"]}
        }
        for name, step in (
            ("evolution", {"evaluations": 4}),
            ("gradient", {"by": "gradient", "evaluations": 8}),
        ):
            settings = {**plain, "optimize": [{**step, "batch": 16}]}
            found[f"{space}, {name}"] = validate(SearchConfig, settings, SearchError)
    return found


def bits(folder: Path) -> list[Any]:
    """What must be the same: genomes, scores, gradients and errors of all trials, in their
    order."""
    with Study.open(folder) as study:
        return [
            (t.stage, t.number, t.genome.tobytes(), t.recipe_key, t.scores._bits(), t.cost)
            for t in study.trials()
        ]


def run(config: SearchConfig, out: Path, **how: Any) -> list[Any]:
    """The trials of a search."""
    shutil.rmtree(out, ignore_errors=True)
    run_search(config, out, build=False, **how)
    return bits(out)


def equality(work: Path) -> None:
    """The same searches in this process, in two worker processes, and with 1, 2 and 4 actors."""
    print(
        "| search | trials | 2 workers | 1 actor | 2 actors | 4 actors |\n| --- | ---: | --- "
        "| --- | --- | --- |"
    )
    for name, config in searches(work).items():
        if not fnmatch(name, CHOSEN):
            continue
        whole = run(config, work / "here")
        same = [run(config, work / "workers", workers=2) == whole]
        for actors in (1, 2, 4):
            ray.init("local", num_cpus=actors, **QUIET)
            same.append(run(config, work / "ray", ray=True) == whole)
            ray.shutdown()
        print(f"| {name} | {len(whole)} | {' | '.join(map(verdict, same))} |", flush=True)


class After(SearchCallback):
    """Does something once, after so many trials."""

    def __init__(self, trials: int, then: Callable[[], object]) -> None:
        self.trials = trials
        self.then = then

    def on_trial(self, study: Study, trial: Trial) -> None:
        """Count."""
        self.trials -= 1
        if self.trials == 0:
            self.then()


def node(work: Path) -> None:
    """A machine of a cluster is removed in the middle of a search, and another one comes."""
    config = searches(work)["ps, evolution"]
    whole = run(config, work / "here")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=2)
    ray.init(cluster.address, **QUIET)

    def change() -> None:
        cluster.remove_node(second, allow_graceful=False)
        cluster.add_node(num_cpus=1)

    same = run(config, work / "node", ray=True, callbacks=[After(5, change)]) == whole
    print(
        f"a machine with two of three actors removed, and one added, after 5 of {len(whole)} "
        f"trials: {verdict(same)}"
    )
    ray.shutdown()
    cluster.shutdown()


def addresses(work: Path) -> None:
    """Two raylets on two loopback addresses, which the command joins."""
    config = searches(work)["ps, evolution"]
    whole = run(config, work / "here")
    config.save(work / "search.yaml")
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:6399", "RAY_AUTH_MODE": "disabled"}
    start = [BIN / "ray", "start", "--block", "--disable-usage-stats", "--num-cpus=1"]
    first = [
        *start,
        "--head",
        "--node-ip-address=127.0.0.1",
        "--port=6399",
        "--include-dashboard=false",
    ]
    second = [*start, "--address=127.0.0.1:6399", "--node-ip-address=127.0.0.2"]
    raylets: list[subprocess.Popen[bytes]] = []
    log = (work / "raylets.log").open("wb")
    try:
        for command in (first, second):
            raylets.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(30)
        shutil.rmtree(work / "two", ignore_errors=True)
        command = [
            BIN / "hf-evomerge",
            "search",
            work / "search.yaml",
            "--out",
            work / "two",
            "--no-model",
            "--ray",
        ]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        print(
            f"two raylets, on 127.0.0.1 and 127.0.0.2, {len(whole)} trials: "
            f"{verdict(bits(work / 'two') == whole)}"
        )
    finally:
        for raylet in raylets[::-1]:
            raylet.terminate()
            raylet.wait()


def head(work: Path) -> None:
    """The process that runs the search is killed with `kill -9` again and again, and resumed."""
    config = searches(work)["dfs, evolution"]
    whole = run(config, work / "here")
    config.save(work / "search.yaml")
    shutil.rmtree(work / "head", ignore_errors=True)
    command = [
        BIN / "hf-evomerge",
        "search",
        work / "search.yaml",
        "--out",
        work / "head",
        "--no-model",
        "--ray",
    ]
    killed = 0
    target = 4
    while True:
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)
        while process.poll() is None:
            time.sleep(0.2)
            if (
                killed < 3
                and (work / "head" / "study.db").exists()
                and len(bits(work / "head")) >= target
            ):
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed = killed + 1
                target = target + 2
        if process.returncode != -signal.SIGKILL:
            break
    time.sleep(5)
    left = subprocess.run(
        ["pgrep", "-fc", "ray::ClusterEvaluator"], capture_output=True, text=True, check=False
    ).stdout.strip()
    same = verdict(process.returncode == 0 and bits(work / "head") == whole)
    print(
        f"the head killed {killed} times (kill -9) and resumed, {len(whole)} trials: {same}; "
        f"{left} actors left over"
    )


class Nothing:
    """A task that takes no time."""

    def prepare(self, examples: Any, tokenizer: Any) -> None:
        """Count."""
        self.count = len(examples)

    def evaluate(self, model: Any) -> Any:
        """Score everything 1."""
        from hf_evomerge.fitness import Scores

        return Scores([1.0] * self.count)


def overhead(work: Path) -> None:
    """Milliseconds of a trial that only writes its merge into the demo's model and scores
    nothing."""
    from hf_evomerge.checkpoints.digests import digest_source
    from hf_evomerge.search.runners.cluster import RayRunner

    config = searches(work)["ps, evolution"]
    examples = {"search": Evaluator(config).tasks.examples("search")}
    fields = {"sources": config.sources, "base": config.base}
    weights = [
        {"method": "task_arithmetic", "parameters": [{"weight": i / 200}, {"weight": 0.5}]}
        for i in range(200)
    ]
    jobs = [Job(Recipe.model_validate({**fields, "merge": merge})) for merge in weights]
    ray.init("local", num_cpus=1, **QUIET)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    make = partial(Evaluator, task_factory=Nothing, examples=examples)
    evaluator = make(config)
    opened = {
        "base": evaluator.sources.base,
        **{f"source:{i}": source for i, source in enumerate(evaluator.sources)},
    }
    files = {
        label: digest_source(source, {}) for label, source in opened.items() if source is not None
    }
    runners: dict[str, Runner] = {
        "in-process": LocalRunner(evaluator),
        "one worker": ProcessRunner(config, 1, make=make),
        "one actor": RayRunner(
            config, 1, memory=0, files=files, admit=lambda kind, where: None, make=make
        ),
    }
    best = dict.fromkeys(runners, float("inf"))
    for runner in runners.values():
        list(runner.run(jobs[:5]))  # which starts it, and loads models
    for _ in range(5):
        for name, runner in runners.items():
            begin = time.perf_counter()
            list(runner.run(jobs))
            best[name] = min(best[name], (time.perf_counter() - begin) / len(jobs) * 1000)
    print("| runner | ms per trial | more than in-process |\n| --- | ---: | ---: |")
    for name, each in best.items():
        print(f"| {name} | {each:.2f} | {each - best['in-process']:.2f} |")
    for runner in runners.values():
        runner.close()
    ray.shutdown()


def verdict(same: bool) -> str:
    """In words."""
    return "the same bits" if same else "DIFFERENT"


def main() -> None:
    """Run parts."""
    parts = {part.__name__: part for part in (equality, node, addresses, head, overhead)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--work", type=Path, help="a folder; a temporary one by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for name in given.parts or parts:
            print(f"\n{name}: {parts[name].__doc__}\n", flush=True)
            parts[name](work)


if __name__ == "__main__":
    main()
