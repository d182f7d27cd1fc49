"""Twenty visitors of a Space at once, for minutes: each asks, is answered or told to wait, and the memory stays what it was."""

import os
import random
import shutil
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hf_evomerge.hub.record import write_record
from hf_evomerge.search.run import run_search

from .bench import Bench, Rows, own_memory, search_of

VISITORS = 20
WARM = 0.3  # of the time, after which memory is measured first
ALLOWED = 0.1  # of what was measured first


def run(scratch: Path, count: int, seed: int) -> tuple[Rows, list[str]]:
    """So many minutes; a call is lost where it ends in anything but an answer or one line."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "space_app"))
    Bench(scratch, 6)
    settings = search_of(scratch / "tiny", 12).model_dump(mode="json", exclude_none=True)
    config = type(search_of(scratch / "tiny", 12)).model_validate({**settings, "space": "dfs"})
    run_search(config, scratch / "search")
    shutil.copytree(scratch / "search" / "model", scratch / "model")
    write_record(scratch / "search", scratch / "model", examples=3)
    import app

    blocks, _ = app.serve(str(scratch / "model"), server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    ends, lost = Counter(), []
    until = time.monotonic() + 60 * count
    threads = [
        threading.Thread(target=_visit, args=(blocks.local_url, until, seed + number, ends, lost)) for number in range(VISITORS)
    ]
    for thread in threads:
        thread.start()
    time.sleep(60 * count * WARM)
    first = own_memory()
    for thread in threads:
        thread.join()
    last = own_memory()
    blocks.close(verbose=False)
    name = f"calls of {VISITORS} visitors; memory {first >> 20} MiB after a third of the time, {last >> 20} MiB at the end"
    if last > first * (1 + ALLOWED):
        lost.append(f"memory grew from {first} to {last}")
        ends["lost"] += 1
    return {name: {"injected": sum(ends.values()), **ends}}, lost


def _visit(url: str, until: float, seed: int, ends: Counter, lost: list[str]) -> None:
    """Ask and ask, as one visitor."""
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    rng, client = random.Random(seed), Client(url, verbose=False)
    about: dict[str, Any] = client.predict(api_name="/about")
    while time.monotonic() < until:
        prompt = " ".join(rng.choices(["w1", "w2", "w3", "4", "5"], k=rng.randint(1, 8)))
        path = rng.sample(about["path"], k=max(1, len(about["path"]) - 1))
        calls = [
            ((prompt, "evolved", 16), "/answer"),
            ((prompt, rng.choice(["a", "b", "nobody"]), 16), "/answer"),
            ((prompt, "evolved", 16, None, path), "/answer"),
        ]
        values, name = rng.choice(calls)
        try:
            client.predict(*values, api_name=name)
            ends["survived"] += 1
        except AppError as error:
            how = "one line" if "\n" not in str(error).strip() and len(str(error)) < 2000 else "lost"
            ends[how] += 1
            lost += [f"{name}: {error}"] if how == "lost" else []
        except Exception as error:
            ends["lost"] += 1
            lost.append(f"{name}: {type(error).__name__}: {error}")
