"""Kills at random moments, up to four times each, what searches and builds; lets it end, and
compares every bit."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .bench import Bench, Rows, ended, start

CHAIN = 4  # kills before one is left in peace
WORKERS = 0.1  # of the plain searches, in two worker processes
IN_WORKERS = "a search in two workers"


def run(scratch: Path, count: int, seed: int) -> tuple[Rows, list[str]]:
    """So many kills: every kind of work in turn, and of the plain searches a tenth in worker
    processes."""
    bench = Bench(scratch)
    rng = random.Random(seed)
    lost = []
    works = {
        "a build": (bench.build, bench.of_build, bench.built),
        "a search": (bench.search, bench.of_search, bench.searched),
        **bench.more(),
    }
    rows: Rows = {name: {} for name in (*works, IN_WORKERS)}
    seconds = {name: _time(bench, work) for name, (work, _, _) in works.items()}
    works[IN_WORKERS] = works["a search"]
    while (injected := sum(row.get("injected", 0) for row in rows.values())) < count:
        name = rng.choice([each for each in works if each != IN_WORKERS])
        if name == "a search" and rng.random() < WORKERS:
            name = IN_WORKERS
        work, of, expected = works[name]
        out = bench.fresh()
        log = scratch / "log"
        hits = 0
        for _ in range(min(CHAIN, count - injected)):
            hits += _kill(
                bench, name, work, out, log, rng.uniform(0.02, 1.1) * seconds.get(name, 12.0)
            )
        begun = out.exists() and "search" not in name  # a folder under its name is whole
        status = 0 if begun else ended(start(lambda out=out, work=work: work(out), log))
        same = status == 0 and of(out) == expected
        row = rows[name]
        row["injected"] = row.get("injected", 0) + hits
        row["survived" if same else "lost"] = row.get("survived" if same else "lost", 0) + hits
        if not same and hits:
            lost.append(f"{name}, {out.name}: status {status}: {log.read_text()[-2000:]}")
        log.unlink(missing_ok=True)
        print(f"kills: {injected + hits}", file=sys.stderr, flush=True)
    return rows, lost


def _time(bench: Bench, work: Callable[[Path], None]) -> float:
    """How long a child takes."""
    begin = time.monotonic()
    out = bench.fresh()
    status = ended(start(lambda: work(out), bench.scratch / "log"))
    assert status == 0, (bench.scratch / "log").read_text()
    return time.monotonic() - begin


def _kill(
    bench: Bench, name: str, work: Callable[[Path], None], out: Path, log: Path, after: float
) -> bool:
    """Begin, or go on, and kill after some seconds; whether there was something to kill."""
    if name == IN_WORKERS:
        call = [
            "search",
            str(bench.scratch / "search.yaml"),
            "--out",
            str(out),
            "--workers",
            "2",
            "--no-model",
        ]
        with log.open("a") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "hf_evomerge", *call], stdout=stream, stderr=stream
            )
        with suppress(subprocess.TimeoutExpired):
            process.wait(after)
            return False
        process.kill()
        return process.wait() == -signal.SIGKILL
    if out.exists() and "search" not in name:
        return False
    pid = start(lambda: work(out), log)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    return ended(pid) == -signal.SIGKILL
