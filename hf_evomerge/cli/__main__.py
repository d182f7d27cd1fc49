"""`python -m hf_evomerge.cli` is `hf-evomerge`."""

from . import app

app()
