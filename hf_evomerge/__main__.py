"""`python -m hf_evomerge` is `hf-evomerge`."""

from .cli import app

app(prog_name="hf-evomerge")
