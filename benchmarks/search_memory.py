"""Measures the memory that searches take in each stage, beside what the dry run predicts of their
workers from headers.

Makes the family of `gradient_memory.py` in bfloat16 (SmolLM2-135M's shape, random weights, a base
and two fine-tunes) and runs searches with the smallest budgets, each in a process of its own that
evaluates by itself. Predicted is the most of the whole search. Measured is the most of the stage:
what is private, and all that is resident, mapped files included, which the system takes back when
others want the space.

    python benchmarks/search_memory.py --work /tmp/search-memory
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from gradient_memory import WORDS, make_family, resident

GRADIENT = {"by": "gradient", "evaluations": 7, "batch": "all"}
CMA = {"evaluations": 2, "population": 2, "batch": "all"}
SEARCHES: dict[str, dict[str, Any]] = {
    "PS": {"space": "ps", "merge": {"groups": 1}, "optimize": [CMA]},
    "PS, gradient": {"space": "ps", "merge": {"groups": "tensor"}, "optimize": [GRADIENT]},
    "DFS": {
        "space": "dfs",
        "path": {"kind": "paper", "scales": "slot", "repetitions": 1},
        "optimize": [CMA],
    },
    "DFS, gradient": {
        "space": "dfs",
        "path": {"kind": "gates", "repetitions": 1},
        "optimize": [GRADIENT],
    },
    "hybrid": {
        "space": "hybrid",
        "merge": {"groups": 1},
        "path": {"kind": "paper", "scales": "slot", "repetitions": 1},
        "optimize": [{**CMA, "space": "ps"}, {**CMA, "space": "dfs"}],
    },
}


def own_memory() -> int:
    """Bytes of memory of this process, files that it maps left out."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    return sum(int(sizes[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))


def child(models: Path, name: str) -> dict[str, Any]:
    """Run one search, and give the bytes of each stage: predicted, private and resident."""
    from hf_evomerge import SearchCallback, SearchConfig, run_search
    from hf_evomerge.fitness import Example
    from hf_evomerge.search.evaluation.evaluator import Evaluator
    from hf_evomerge.search.evaluation.memory import worker_memory

    sources = {
        "sources": [{"model": str(models / each)} for each in "ab"],
        "base": {"model": str(models / "base")},
    }
    task = {
        "fitness": {"task": "likelihood", "separator": " "},
        "compare": {"baselines": [], "finalists": 1},
    }
    config = SearchConfig.model_validate({**sources, **task, **SEARCHES[name]})
    examples = {
        "search": [
            Example(" ".join(WORDS[n : n + 16]), " ".join(WORDS[n : n + 4]), id=str(n))
            for n in (1, 20)
        ]
    }
    predicted = worker_memory(config, Evaluator(config, examples=examples))
    most = [0, 0]
    peaks = dict[str, list[int]]()
    stop = threading.Event()

    def look() -> None:
        now = (own_memory(), int(1e6 * resident()))
        most[:] = map(max, most, now)

    class Watch(SearchCallback):
        """Gives the most since the last report to the phase that reports."""

        def on_progress(self, study: object, progress: Any) -> None:
            look()
            peaks[progress.phase] = list(map(max, most, peaks.get(progress.phase, most)))
            most[:] = 0, 0

    def watch() -> None:
        while not stop.wait(0.005):
            look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryDirectory() as out:
        run_search(config, out, examples=examples, build=False, callbacks=[Watch()])
    stop.set()
    watcher.join()
    return {phase: (predicted, *peak) for phase, peak in peaks.items() if phase in config.spaces}


def main() -> None:
    """Run every search, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the models (0.8 GB)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.work, arguments.child)))
        return
    make_family(arguments.work, "bfloat16")
    print("| search | stage | predicted | private | resident |\n" + "| --- " * 5 + "|")
    for name in SEARCHES:
        command = [sys.executable, *sys.argv, "--child", name]
        found = json.loads(
            subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True
            ).stdout.splitlines()[-1]
        )
        for phase, sizes in found.items():
            print(
                f"| {name} | {phase} | {' | '.join(f'{size / 1e9:.2f} GB' for size in sizes)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
