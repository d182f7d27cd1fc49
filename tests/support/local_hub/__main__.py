"""Run a Hub on this machine: `PYTHONPATH=tests/support python -m local_hub`.

With it push, download and Spaces are tried without an account.
Prints the variables that point `huggingface_hub`, `transformers` and `hf_evomerge` at it; or runs
one command with them: `python -m local_hub --user me -- hf-evomerge push my-search me/my-merge`.
"""

import argparse
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from .hub import LocalHub


def main():
    """Serve until Ctrl-C, or until the command ends."""
    parser = argparse.ArgumentParser(prog="python -m local_hub", description=__doc__)
    parser.add_argument(
        "--root", type=Path, default=Path("evomerge-hub"), help="the folder to keep repositories in"
    )
    parser.add_argument("--port", type=int, default=8765, help="0 for any that is free")
    parser.add_argument(
        "--user", default="local", help="your name there, and the namespace of your repositories"
    )
    parser.add_argument("command", nargs="*", help="run this in place of serving until Ctrl-C")
    given = parser.parse_args()
    try:
        with LocalHub(given.root, given.port, user=given.user) as hub:
            if given.command:
                environment = {**os.environ, **hub.environment()}
                sys.exit(subprocess.run(given.command, env=environment, check=False).returncode)
            print(hub.describe(), flush=True)
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
    except OSError as error:
        sys.exit(f"error: {error}")
    print(f"stopped; the repositories are kept in {given.root}")


if __name__ == "__main__":
    main()
