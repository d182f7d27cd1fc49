"""`python -m hf_evomerge` is `hf-evomerge`."""

from .cli import run

run()
