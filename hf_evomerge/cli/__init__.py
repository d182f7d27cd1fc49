"""The command line: parse, call, print. Everything heavy is imported inside the command that needs it."""

from . import searching, building, publishing  # noqa: F401 # isort: skip - importing them adds their commands, in this order
from .common import app

__all__ = ["app"]
