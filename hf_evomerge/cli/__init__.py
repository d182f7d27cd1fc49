"""The command line: parse, call, print. Everything heavy is imported inside the command that needs
it."""

import os

# Read when torch is loaded. Threads that wait for each other otherwise turn in circles: beside
# another busy process an
# evaluation with two threads then takes 20 to 60 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from . import common, searching, building, publishing  # noqa: F401 # isort: skip - importing them adds their commands, in this order
from ..lines import program
from .common import app

__all__ = ["app", "run"]


def run() -> None:
    """The program ``hf-evomerge``: a process of its own, which ends with its command."""
    common.ends_with_command = True
    app(prog_name=program())
