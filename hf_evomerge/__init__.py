"""Evolve merges of existing language models: parameter space, data flow space, or both.

Public names are imported when they are first used, so that ``import hf_evomerge`` takes milliseconds. The model class is
registered with transformers' Auto classes as soon as transformers is there to register with.
"""

from __future__ import annotations
