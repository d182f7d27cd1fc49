"""Run a Hub on this machine, to try push, download and Spaces without an account: `python -m hf_evomerge.local_hub`.

Prints the variables that point `huggingface_hub`, `transformers` and this package at it.
"""

import argparse
import sys
from contextlib import suppress
from pathlib import Path

from ..errors import EvoMergeError
from .hub import LocalHub


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m hf_evomerge.local_hub", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("evomerge-hub"), help="the folder to keep repositories in")
    parser.add_argument("--port", type=int, default=8765, help="0 for any that is free")
    parser.add_argument("--user", default="local", help="your name there, and the namespace of your repositories")
    parser.add_argument("--org", action="append", default=[], help="another namespace to write in; can be repeated")
    given = parser.parse_args()
    try:
        with LocalHub(given.root, given.port, user=given.user, orgs=given.org) as hub:
            print(hub.describe(), flush=True)
            with suppress(KeyboardInterrupt):
                hub.wait()
    except (EvoMergeError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"stopped; the repositories are kept in {given.root}")


if __name__ == "__main__":
    main()
