"""The examples in docstrings are run, as `python -m doctest` would."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_evomerge"
ROOMS = ("fitness", "search")
FILES = sorted(file.relative_to(PACKAGE.parent) for room in ROOMS for file in (PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_examples_in_docstrings(file: Path) -> None:
    """What an example in a docstring prints is what it says."""
    module = import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
    assert doctest.testmod(module).failed == 0
