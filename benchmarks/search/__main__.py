"""Held-out accuracy and log-likelihood against cost: this package's searches, other optimizers,
LoRA fine-tuning and averages.

    # the runs that are missing, and about how long they take
    python benchmarks/search run --dry-run
    python benchmarks/search run --families shipped families/family-1 --draws 1
    python benchmarks/search run --methods ps-gradient lora-parent-1-0 --examples 16 --costs 25 \\
        --draws 1 2 3
    python benchmarks/search table --into benchmarks/pages/search-benchmark.md
    python benchmarks/search plot --out benchmarks/pages/images/search-benchmark.png
    python benchmarks/search plot --sizes 25 --out search-sizes.png

Every run is one line of the results file; what is there is not run again, and a search that was
stopped goes on. Needs the extra `bench`. `python benchmarks/specialists
--seed 1 --out families/family-1` trains another family in ten minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from lab import COSTS, HELD_OUT, OWN, SEARCH, Lab, demo
from methods import METHODS, average
from records import append, examples, key, read, run

RESULTS = Path(__file__).parents[1] / "results" / "search" / "demo.jsonl"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--results", type=Path, default=RESULTS, help="file of results, one JSON line per run"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", parents=[common], help="run what is missing")
    running.add_argument(
        "--families", nargs="+", default=["shipped"], help="`shipped`, or folders of specialists"
    )
    running.add_argument(
        "--examples", type=int, default=SEARCH, help=f"search examples, {SEARCH} by default"
    )
    running.add_argument(
        "--costs",
        type=int,
        nargs="+",
        help="budgets in scores of 128 examples; all of the methods' own by default",
    )
    running.add_argument(
        "--draws", type=int, nargs="+", default=[1], help="draws of the search examples, seeds too"
    )
    running.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="NAME",
        help=", ".join(METHODS),
    )
    running.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "search-benchmark",
        help="for the studies",
    )
    running.add_argument(
        "--dry-run", action="store_true", help="print the runs and the expected time"
    )
    telling = commands.add_parser("table", parents=[common], help="print the results as Markdown")
    telling.add_argument(
        "--into",
        type=Path,
        help="a document to write them into, between its comments `demo: begin` and `end`",
    )
    plotting = commands.add_parser("plot", parents=[common], help="draw the results")
    plotting.add_argument("--out", type=Path, required=True, help="a .png or .svg file")
    plotting.add_argument(
        "--sizes",
        type=float,
        metavar="COST",
        help="over the number of search examples, at this cost",
    )
    arguments = parser.parse_args()
    if arguments.command == "run":
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        run_missing(arguments)
    elif arguments.command == "table":
        from report import table, write_into

        rows = read(arguments.results)
        counts = sorted({examples(row) for row in rows}, reverse=True)
        text = "\n\n".join(
            f"{n} search examples:\n\n{table([r for r in rows if examples(r) == n])}"
            for n in counts
        )
        print(text)
        if arguments.into:
            write_into(arguments.into, "demo", text)
    elif arguments.sizes:
        from report import plot_sizes

        plot_sizes(read(arguments.results), arguments.out, arguments.sizes)
    else:
        from report import plot

        plot([row for row in read(arguments.results) if examples(row) == SEARCH], arguments.out)


def run_missing(arguments: argparse.Namespace) -> None:
    """Run every method on every problem, the most telling first."""
    there = {key(record) for record in read(arguments.results)}
    labs = [
        demo(family, draw, arguments.examples)
        for draw in arguments.draws
        for family in arguments.families
    ]
    jobs = [
        (lab, name, scaled)
        for name in arguments.methods
        for budget in METHODS[name].budgets
        for lab in labs
        if (arguments.costs is None or budget in arguments.costs)
        and (lab.problem, lab.draw, name, scaled := budget * SEARCH // arguments.examples)
        not in there
    ]
    jobs.sort(key=lambda job: (job[0].draw, METHODS[job[1]].stage))
    seconds = expected([budget for *_, budget in jobs], labs[0]) if jobs else 0.0
    print(f"{len(jobs)} runs, about {seconds / 60:.0f} minutes", flush=True)
    for lab, name, budget in jobs:
        title = f"{lab.problem} draw {lab.draw}: {METHODS[name].label} ({name}), cost {budget}"
        if arguments.dry_run:
            print(title)
            continue
        record = run(lab, name, METHODS[name], budget, arguments.work)
        append(arguments.results, record)
        last = record["marks"][-1]["test"]
        print(
            f"{title}: {last['accuracy']:.3f} {last['loglik']:.3f}, {record['seconds']} s",
            flush=True,
        )


def expected(budgets: list[int], lab: Lab) -> float:
    """Seconds that runs take, from a score of one model."""
    lab.scores(average(lab), "search")
    begin = time.perf_counter()
    lab.scores(average(lab), "search")
    unit = time.perf_counter() - begin
    marks = sum(1 + sum(cost < budget for cost in COSTS) for budget in budgets)
    return unit * (sum(budgets) + (marks * (SEARCH + HELD_OUT) + len(budgets) * 2 * OWN) / SEARCH)


if __name__ == "__main__":
    main()
