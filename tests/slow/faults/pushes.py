"""Pushes to a Hub on loopback whose calls go wrong. Which call, which fault and how often it comes
is drawn from the seed.

What waits between attempts does not wait here. A push is lost where it ends with a traceback, with
more than one line, or with a line that is not true.
"""

import json
import logging
import os
import random
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path
from unittest import mock

TIMES = (1, 1, 1, 2, 4, None)  # how many calls in a row go wrong; None for all


def run(scratch: Path, count: int, seed: int) -> tuple[dict[str, dict[str, int]], list[str]]:
    """So many pushes, in a process of their own: the client reads its settings once."""
    command = [sys.executable, "-m", "faults.pushes", str(scratch), str(count), str(seed)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    rows, lost = json.loads(ended.stdout.splitlines()[-1])
    return rows, lost


def main(scratch: Path, count: int, seed: int) -> None:
    """Push, and print how it ended as JSON."""
    logging.disable(logging.WARNING)
    from faulty_hub import FaultyHub

    with FaultyHub(scratch / "hub") as hub:
        os.environ.update(hub.environment(home=scratch / "client"))
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = (
            "1"  # all of this before the client is imported
        )
        print("\n" + json.dumps(pushes(hub, scratch, count, seed)))


def pushes(hub, scratch: Path, count: int, seed: int) -> tuple[dict[str, Counter], list[str]]:
    """How the pushes ended, by fault, and what was lost."""
    import pytest
    import torch
    from families import save_family, tiny_config
    from faulty_hub import Fault
    from hub_fixtures import no_waiting
    from huggingface_hub import HfApi
    from push_faults import FAULTS, Bench

    family = save_family(scratch / "family", tiny_config(), torch.float32, count=2)
    bench = Bench(
        hub,
        HfApi(endpoint=hub.endpoint, token=hub.token),
        family,
        scratch,
        parents=("source0", "source1"),
    )
    rng = random.Random(seed)
    lost = []
    table = {name: Counter() for name in FAULTS}
    with (
        pytest.MonkeyPatch.context() as patch,
        mock.patch("hf_evomerge.checkpoints.client.tqdm.write"),
    ):
        no_waiting(patch)
        while sum(row["injected"] for row in table.values()) < count:
            name = rng.choice(list(FAULTS))
            times = rng.choice(TIMES)
            calls = bench.calls()
            place = rng.randrange(len(calls))
            fault = Fault(
                calls[place], **FAULTS[name], times=times, skip=calls[:place].count(calls[place])
            )
            case = f"{name} x {times or 'all'} at call {place}, {fault.match}"
            try:
                outcome = bench.push([fault])
                how = "lost" if outcome.complaint else "one line" if outcome.error else "survived"
                lost += [f"{case}: {outcome.complaint}"] if outcome.complaint else []
            except Exception:
                how = "lost"
                lost.append(f"{case}: {traceback.format_exc()}")
            if fault.hits:  # an upload is not made again where the Hub has the file
                table[name] += Counter({"injected": 1, how: 1})
    return table, lost


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
