"""The command line, in this process."""

from typer.testing import CliRunner

from hf_evomerge.cli import app


def invoke(*words):
    """Run `hf-evomerge`; returns its exit code and what it wrote."""
    return CliRunner().invoke(app, [*map(str, words)])
