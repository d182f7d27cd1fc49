"""Ten visitors of a Space at once, for minutes: some leave before they are answered, and its memory
stays what it was.

The Space is a process of its own, and so is what makes its model: the visitors here are threads
without either's libraries.
"""

import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

VISITORS = 10
PAUSE = 1.0  # seconds between two calls of a visitor, on average
WARM = 0.5  # of the time, after which memory is measured first; it is level after a quarter hour
ALLOWED = 0.1  # of what was measured first
VISIT = 5  # calls of one visit, the first of which asks what the model is
LEFT = 0.25  # of the calls, whose visitor does not wait for the answer
SPACE = Path(__file__).resolve().parents[2] / "space_app"


def run(scratch: Path, count: int, seed: int) -> tuple[dict[str, dict[str, int]], list[str]]:
    """So many minutes; a call is lost where it ends in anything but an answer or one line.

    The memory of the Space's process is said once a minute on standard error.
    """
    maker = multiprocessing.get_context("fork").Process(target=_make_model, args=(scratch,))
    maker.start()
    maker.join()
    settings = {
        "EVOMERGE_MODEL": str(scratch / "model"),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "PYTHONUNBUFFERED": "1",
    }
    settings |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=SPACE,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        text=True,
    )
    url = next(
        found[0] for line in process.stdout if (found := re.search(r"http://[\d.]+:\d+", line))
    )
    ends: Counter[str] = Counter()
    lost: list[str] = []
    until = time.monotonic() + 60 * count
    threads = [
        threading.Thread(target=_come, args=(url, until, seed + at, ends, lost))
        for at in range(VISITORS)
    ]
    for thread in threads:
        thread.start()
    memory = []
    while time.monotonic() < until:
        time.sleep(60)
        memory.append(_memory(process.pid))
        calls = sum(ends.values())
        own = _memory(os.getpid())
        print(
            f"minute {len(memory)}: {memory[-1]} MiB, {calls} calls; visitors {own} MiB",
            file=sys.stderr,
            flush=True,
        )
    for thread in threads:
        thread.join()
    process.terminate()
    process.wait()
    first = memory[int(WARM * len(memory))]
    last = memory[-1]
    if last > first * (1 + ALLOWED):
        lost.append(f"memory grew: MiB of each minute {memory}")
        ends["lost"] += 1
    name = (
        f"calls of {VISITORS} visitors; memory {first} MiB after half of the time, {last} MiB "
        "at the end"
    )
    return {name: {"injected": sum(ends.values()), **ends}}, lost


def _make_model(scratch: Path) -> None:
    """Make a tiny model with a path, as it is published."""
    from hf_evomerge.hub.record import write_record
    from hf_evomerge.search.run import run_search

    from .bench import Bench, search_of

    Bench(scratch, 6)
    settings = search_of(scratch / "tiny", 12).model_dump(mode="json", exclude_none=True)
    config = type(search_of(scratch / "tiny", 12)).model_validate({**settings, "space": "dfs"})
    run_search(config, scratch / "search")
    shutil.copytree(scratch / "search" / "model", scratch / "model")
    write_record(scratch / "search", scratch / "model", examples=3)


def _memory(process: int) -> int:
    """MiB that a process holds, files that it maps left out."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    return int(re.search(r"RssAnon:\s*(\d+)", status)[1]) >> 10


def _come(url: str, until: float, seed: int, ends: Counter[str], lost: list[str]) -> None:
    """Ask and ask, as one visitor after the other."""
    rng = random.Random(seed)
    with urllib.request.urlopen(f"{url}/config", timeout=60) as answer:
        functions = {each["api_name"]: each["id"] for each in json.load(answer)["dependencies"]}
    path = _call(url, functions["about"], [], f"first-{seed}")["data"][0]["path"]
    calls = 0
    while time.monotonic() < until:
        time.sleep(2 * PAUSE * rng.random())
        name, data, session, lines = _next(rng, path, calls, f"visit-{seed}-{calls // VISIT}")
        calls += 1
        try:
            error = _call(url, functions[name], data, session, lines).get("error") or ""
            if "\n" in error.strip() or len(error) > 2000:
                raise ValueError(error)
            ends["one line" if error else "survived"] += 1
        except urllib.error.HTTPError as refused:
            ends["one line" if refused.code == 503 else "lost"] += 1  # 503: the queue is full
            refused.close()
        except Exception as error:
            ends["lost"] += 1
            lost.append(f"{name} {data}: {type(error).__name__}: {error}")


def _next(
    rng: random.Random, path: list[str], calls: int, session: str
) -> tuple[str, list[Any], str, int | None]:
    """The next call: function, values, session, and how many lines of the answer are read."""
    if calls % VISIT == 0:
        return "about", [], session, None
    prompt = " ".join(rng.choices(["w1", "w2", "w3", "4", "5"], k=rng.randint(1, 8)))
    hops = rng.sample(path, k=max(1, len(path) - 1))
    model, way = rng.choice(
        [("evolved", None), (rng.choice(["a", "b", "nobody"]), None), ("evolved", hops)]
    )
    data = [prompt, model, 16, None, way, None]
    if rng.random() > LEFT:
        return "answer", data, session, None
    name, data = rng.choice(
        [("answer", data), ("answer_1", [prompt, None, [], 16])]
    )  # of the API, and of the page
    return name, data, f"left-{session}-{calls}", rng.randint(0, 1)


def _call(
    url: str, number: int, data: list[Any], session: str, lines: int | None = None
) -> dict[str, Any]:
    """Call a function as a page does, and read so many lines, or to the end, which is returned."""
    body = json.dumps({"fn_index": number, "data": data, "session_hash": session}).encode()
    call = urllib.request.Request(
        f"{url}/gradio_api/queue/join", body, {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(call, timeout=60).close()
    if lines == 0:
        return {}
    with urllib.request.urlopen(
        f"{url}/gradio_api/queue/data?session_hash={session}", timeout=120
    ) as news:
        for line in islice(news, lines):
            if b'"process_completed"' in line:
                output: dict[str, Any] = json.loads(line.removeprefix(b"data:"))["output"]
                return output
    return {}
