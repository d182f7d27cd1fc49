"""Lets the calls of many pushes to a Hub on loopback go wrong, and prints how the pushes ended.

Which call, which fault and how often it comes is drawn from the seed. What waits between attempts does not wait here. A push
is lost where it ends with a traceback, with more than one line, or with a line that is not true.

    python benchmarks/reliability.py push --count 200
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
TIMES = (1, 1, 1, 2, 4, None)  # how many calls in a row go wrong; None for all
COLUMNS = ("injected", "survived", "one line", "lost")


def main() -> int:
    """Push, and print the table; status 1 where a push was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["push"])
    parser.add_argument("--count", type=int, default=200, help="how many pushes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--xet", action="store_true", help="send large files by Xet; by LFS otherwise")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    from hf_evomerge.local_hub import LocalHub

    with tempfile.TemporaryDirectory() as scratch, LocalHub(Path(scratch) / "hub") as hub:
        os.environ.update(hub.environment(xet=arguments.xet, home=Path(scratch) / "client"))
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # all of this before the client is imported
        table, lost = pushes(hub, Path(scratch), arguments.count, arguments.seed)
    print(f"| fault | {' | '.join(COLUMNS)} |\n| --- |{' --- |' * len(COLUMNS)}")
    for name, row in [*table.items(), ("all", sum(table.values(), Counter()))]:
        print(f"| {name} | {' | '.join(str(row[column]) for column in COLUMNS)} |")
    print("\n".join(lost), file=sys.stderr)
    return 1 if lost else 0


def pushes(hub, scratch: Path, count: int, seed: int) -> tuple[dict[str, Counter], list[str]]:
    """How the pushes ended, by fault, and what was lost."""
    import pytest
    import torch
    from families import save_family, tiny_config
    from hub_fixtures import no_waiting
    from huggingface_hub import HfApi
    from push_faults import FAULTS, WAYS, Bench

    from hf_evomerge.local_hub import Fault

    family = save_family(scratch / "family", tiny_config(), torch.float32, count=2)
    bench = Bench(hub, HfApi(endpoint=hub.endpoint, token=hub.token), family, scratch, parents=("source0", "source1"))
    rng, lost = random.Random(seed), []
    table = {name: Counter() for name in FAULTS}
    with pytest.MonkeyPatch.context() as patch, mock.patch("hf_evomerge.hub.client.tqdm.write"):
        no_waiting(patch)
        while sum(row["injected"] for row in table.values()) < count:
            way, name, times = rng.choice(list(WAYS)), rng.choice(list(FAULTS)), rng.choice(TIMES)
            calls = bench.calls(way)
            place = rng.randrange(len(calls))
            fault = Fault(calls[place], **FAULTS[name], times=times, skip=calls[:place].count(calls[place]))
            case = f"{way}, {name} x {times or 'all'} at call {place}, {fault.match}"
            try:
                outcome = bench.push(way, [fault])
                how = "lost" if outcome.complaint else "one line" if outcome.error else "survived"
                lost += [f"{case}: {outcome.complaint}"] if outcome.complaint else []
            except Exception:
                how = "lost"
                lost.append(f"{case}: {traceback.format_exc()}")
            if fault.hits:  # an upload is not made again where the Hub has the file
                table[name] += Counter({"injected": 1, how: 1})
    return table, lost


if __name__ == "__main__":
    sys.exit(main())
