"""A disk that is full, a folder that may not be written, a worker that the kernel kills, a branch
on the Hub that moves."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from watch import descendants, killed

from .bench import Bench, Rows, command, ended, start

NOBODY = 65534
HUB = """
import sys, json
sys.path[:0] = json.loads(sys.argv[1])
from faults.surroundings import on_a_hub
on_a_hub(*sys.argv[2:])
"""


def run(scratch: Path, count: int, seed: int) -> tuple[Rows, list[str]]:
    """Run so many cases, a quarter of each kind; another user needs root and a checkout that others
    may read."""
    bench = Bench(scratch, 12)
    rng = random.Random(seed)
    for path in (scratch, *scratch.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    kinds: dict[str, Callable[[Bench, random.Random], str | None]] = {
        "the disk is full while a search or a build writes": _full,
        "the folder belongs to somebody else": _not_ours,
        "a worker is killed as the kernel does it": _killed_worker,
        "the branch of a source moves between a kill and going on": _moved,
    }
    rows: Rows = {}
    lost = []
    for name, kind in kinds.items():
        if kind is _not_ours and not _can_be_another():
            continue
        row = rows[name] = {"injected": 0, "survived": 0, "one line": 0, "lost": 0}
        for number in range(max(1, count // len(kinds))):
            complaint = kind(bench, rng)
            one_line = kind in (_full, _not_ours)
            row["injected"] += 1
            row["lost" if complaint else "one line" if one_line else "survived"] += 1
            lost += [f"{name} {number}: {complaint}"] if complaint else []
            print(f"{name}: {number + 1}", file=sys.stderr, flush=True)
    return rows, lost


def _can_be_another() -> bool:
    """Tell whether another user can be had, who may read this checkout."""
    return os.geteuid() == 0 and all(
        folder.stat().st_mode & 0o5 == 0o5 for folder in Path(__file__).resolve().parents
    )


def _full(bench: Bench, rng: random.Random) -> str | None:
    """A file cannot grow beyond a random size: one line, nothing half-made, and with room the same
    command ends well."""
    build = rng.random() < 0.5
    out = bench.fresh()
    log = bench.scratch / "full.log"
    log.unlink(missing_ok=True)
    call = _call(bench, out, build)
    sizes = (1000, 3_000_000) if build else (1000, 60_000)
    size = rng.randint(*sizes)
    status = ended(
        start(
            call,
            log,
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)),
        )
    )
    complaint = _one_line(status, log) or ("a model is there" if build and out.exists() else None)
    return (complaint and f"at {size} bytes: {complaint}") or _as_ever(bench, out, build, log)


def _not_ours(bench: Bench, rng: random.Random) -> str | None:
    """Another user runs the command, who may read everything and write nothing."""
    build = rng.random() < 0.5
    out = bench.fresh()
    log = bench.scratch / "other.log"
    log.unlink(missing_ok=True)
    log.touch()
    log.chmod(0o666)
    if rng.random() < 0.5:
        out.mkdir(mode=0o755)
    status = ended(start(_call(bench, out, build), log, lambda: os.setuid(NOBODY)))
    return _one_line(status, log) or _as_ever(bench, out, build, log)


def _killed_worker(bench: Bench, rng: random.Random) -> str | None:
    """A worker is killed once at a random moment; the search ends as if it had not been."""
    out = bench.fresh()
    log = bench.scratch / "worker.log"
    call = [
        "search",
        str(bench.scratch / "search.yaml"),
        "--out",
        str(out),
        "--workers",
        "1",
        "--no-model",
    ]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "hf_evomerge", *call], stdout=stream, stderr=stream
        )
    while process.poll() is None and not (workers := _children(process.pid)):
        time.sleep(0.05)
    while process.poll() is None and not (out / "study.db-wal").exists():
        time.sleep(0.05)
    time.sleep(4 + rng.uniform(0, 2.0))
    for worker in _children(process.pid) or workers:
        with suppress(OSError):
            os.kill(worker, signal.SIGKILL)
    status = process.wait()
    same = status == 0 and bench.of_search(out) == bench.searched
    return None if same else f"status {status}: {log.read_text()[-1000:]}"


def _moved(bench: Bench, rng: random.Random) -> str | None:
    """A search of repositories is killed, its branches get other weights, it goes on: the trials
    are those of the old ones."""
    folders = [str(bench.scratch / "tiny"), str(bench.fresh()), str(rng.randint(1, 10))]
    call = [sys.executable, "-c", HUB, json.dumps([*sys.path[:3]]), *folders]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"status {done.returncode}: {done.stderr[-1500:]}"


def on_a_hub(tiny: str, scratch: str, after: str) -> None:
    """What `_moved` does, in a process whose client has read the loopback hub's settings; raises
    where the trials differ."""
    from local_hub import LocalHub

    root = Path(scratch)
    with LocalHub(root / "hub") as hub:
        os.environ.update(hub.environment(home=root / "client"))
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        from huggingface_hub import HfApi
        from warm import read_environment

        from hf_evomerge.search.run import run_search

        from .bench import Bench, search_of

        read_environment()
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        for name in ("a", "b"):
            api.create_repo(f"local/{name}")
            api.upload_folder(repo_id=f"local/{name}", folder_path=Path(tiny) / name)
        settings: dict[str, Any] = search_of(Path(tiny), 12).model_dump(
            mode="json", exclude_none=True
        )
        settings |= {"sources": [{"model": "local/a"}, {"model": "local/b"}]}
        config = type(search_of(Path(tiny), 12)).model_validate(settings)
        killed(
            lambda seen: seen.phase == "ps" and seen.done >= int(after),
            run_search,
            config,
            root / "killed",
        )
        run_search(config, root / "whole", build=False)
        api.upload_file(
            path_or_fileobj=Path(tiny) / "b" / "model.safetensors",
            path_in_repo="model.safetensors",
            repo_id="local/a",
        )
        run_search(config, root / "killed", build=False)
        if Bench.of_search(root / "killed")[0] != Bench.of_search(root / "whole")[0]:
            raise AssertionError("the trials are other ones")


def _call(bench: Bench, out: Path, build: bool) -> Callable[[], None]:
    if build:
        return command(
            "merge", bench.scratch / "recipe.yaml", "--out", out, "--max-shard-size", "4MB"
        )
    return command(
        "search", bench.scratch / "search.yaml", "--out", out, "--workers", "0", "--no-model"
    )


def _one_line(status: int, log: Path) -> str | None:
    """What is wrong with how a command failed; None where it said one line and ended with status
    1."""
    text = log.read_text(errors="replace")
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    whole = status == 1 and len(errors) == 1 and "Traceback" not in text
    return None if whole else f"status {status}: {text[-1000:]}"


def _as_ever(bench: Bench, out: Path, build: bool, log: Path) -> str | None:
    """Run the same command again where nothing is wrong any more; what is wrong with what it
    gives."""
    status = ended(start(_call(bench, out, build), log))
    same = status == 0 and (
        bench.of_build(out) == bench.built if build else bench.of_search(out) == bench.searched
    )
    return (
        None if same else f"afterwards: status {status}: {log.read_text(errors='replace')[-1000:]}"
    )


def _children(pid: int) -> list[int]:
    """The worker processes of a search."""
    with suppress(OSError):
        return [
            one
            for one in descendants(pid)
            if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()
        ]
    return []
