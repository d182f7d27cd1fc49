"""The demo on families of specialists trained from other initial weights: the table of
pages/gallery.md.

    python benchmarks/demo_seeds.py --out demo-seeds --seeds 0 1 2 --workers 2
    # problems with pictures, the same families
    python benchmarks/demo_seeds.py --out demo-seeds --vlm

Trains whatever family is not there yet (about ten minutes each on one core), runs the demo's
searches on each (a few minutes on two cores), and prints accuracy on the same held-out problems as
a Markdown table: mean over families, and each family with its standard error. Finished searches are
kept and not run again.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import fmean

from specialists.family import train_family
from specialists.pictures import run_pictures

from hf_evomerge.demo.quickstart import run_demo
from hf_evomerge.fitness.scores import plus_minus
from hf_evomerge.search.results.table import Row


def main() -> None:
    """Train, search, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for families and searches")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one family each")
    parser.add_argument(
        "--workers", type=int, default=2, help="processes that evaluate side by side"
    )
    parser.add_argument("--vlm", action="store_true", help="problems whose numbers are pictures")
    parser.add_argument(
        "--evaluations", type=int, help="trials per search, in place of the demo's own"
    )
    arguments = parser.parse_args()
    results: dict[int, list[Row]] = {}
    for seed in arguments.seeds:
        folder = arguments.out / f"family-{seed}"
        train_family(folder, seed, sight=arguments.vlm)
        run, out = (run_pictures, f"vlm-{seed}") if arguments.vlm else (run_demo, f"demo-{seed}")
        how = {"family": folder, "workers": arguments.workers}
        if arguments.evaluations is not None:
            how["evaluations"] = arguments.evaluations
        results[seed] = run(arguments.out / out, **how)
    print("\n" + table(results))


def table(results: dict[int, list[Row]]) -> str:
    """Accuracy of every model of every family, as Markdown."""
    seeds = list(results)
    lines = ["| | evaluations | mean | " + " | ".join(f"family {seed}" for seed in seeds) + " |"]
    lines.append("| --- " * (len(seeds) + 3) + "|")
    for rows in zip(
        *(results[seed] for seed in seeds), strict=True
    ):  # every family has the same rows
        cells = [plus_minus(row.scores.accuracy, row.scores.accuracy_error) for row in rows]
        mean = fmean(
            math.nan if row.scores.accuracy is None else row.scores.accuracy for row in rows
        )
        name = "examples in the prompt" if rows[0].stage == "prompt" else rows[0].model
        lines.append(
            f"| {name} | {rows[0].evaluations or ''} | **{mean:.3f}** | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
