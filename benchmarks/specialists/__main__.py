"""Trains the models that the demo merges, as they were trained: a base, its two specialists, and
one that sees.

    # about ten minutes on one core
    python benchmarks/specialists --out families/family-1 --seed 1
    python benchmarks/specialists --out families/family-1 --seed 1 --sight

Seed 0 is the family in `hf_evomerge/demo/specialists` and `benchmarks/specialists/models`.
The same seed gives the same weights on the same machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from specialists.family import train_family


def main() -> None:
    """Train what is not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for base/, maths/ and japanese/"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="decides the initial weights, the texts and the pictures",
    )
    parser.add_argument(
        "--sight", action="store_true", help="add sight/, the maths specialist with eyes"
    )
    arguments = parser.parse_args()
    train_family(arguments.out, arguments.seed, sight=arguments.sight)


if __name__ == "__main__":
    main()
