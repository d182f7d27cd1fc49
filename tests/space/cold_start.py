"""Starts the Space from its files alone, in a fresh environment with only its requirements:
`python cold_start.py MODEL`.

Prints one line of JSON: seconds to install, to the first page, to the first answer, and the answer.
Downloads what requirements.txt names, torch included; not part of the tests.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from gradio_client import Client

from hf_evomerge.hub.space import space_files

SPACE = Path(__file__).parents[2] / "space_app"
LIMIT = 300.0


def main() -> None:
    """Install, start, ask, stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a published model: a folder, or a repository")
    parser.add_argument(
        "--environment", help="an environment to use again, or to make; a temporary one by default"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(given.environment or Path(folder) / "environment")
        installed = install(environment)
        model = str(Path(given.model).resolve()) if Path(given.model).is_dir() else given.model
        for name, content in space_files(model).items():
            (file := Path(folder) / "app" / name).parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())
        print(
            json.dumps(
                {"install": installed, **start(environment, Path(folder) / "app")},
                ensure_ascii=False,
            )
        )


def install(environment: Path) -> float:
    """Make the environment, unless it is there; returns the seconds that took."""
    begin = time.monotonic()
    if not environment.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [environment / "bin" / "pip", "install", "--quiet", "-r", SPACE / "requirements.txt"]
        subprocess.run(pip, check=True)
    return round(time.monotonic() - begin, 1)


def start(environment: Path, app: Path) -> dict[str, Any]:
    """Start the app as a Space does, ask it for one answer through its API, and stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EVOMERGE", "PYTHON", "VIRTUAL_ENV"))
    }
    variables |= {
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    begin = time.monotonic()
    process = subprocess.Popen([environment / "bin" / "python", "app.py"], cwd=app, env=variables)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, process)
        page = round(time.monotonic() - begin, 1)
        client = Client(url, verbose=False)
        prompt = (client.predict(api_name="/about")["examples"] or [{"prompt": "1"}])[0]["prompt"]
        answer = client.predict(prompt, "evolved", 32, None, api_name="/answer")
        said = {"prompt": prompt, "text": answer["text"], "right": answer["right"]}
        return {"page": page, "answer": round(time.monotonic() - begin, 1), **said}
    finally:
        process.terminate()
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait for the first page."""
    begin = time.monotonic()
    while time.monotonic() - begin < LIMIT:
        if process.poll() is not None:
            raise SystemExit(f"app.py ended with {process.returncode}")
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise SystemExit(f"no page within {LIMIT:.0f} s")


if __name__ == "__main__":
    main()
