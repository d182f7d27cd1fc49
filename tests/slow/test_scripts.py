"""Scripts of `benchmarks/` that check: each ends with status 0, which is what it says where nothing
was found wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

# a Space is still warming up after a minute or two, and its memory grows
LENGTHS = {"kills": 20, "soak": 500, "space": 15}
SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def _run(script, *arguments):
    """Run a script to its end."""
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def test_every_property_holds_on_every_type_of_model():
    """Merged models of every architecture have every property, and every type works or is refused
    for a reason."""
    _run("model_matrix.py", "--print")


def test_transformers_own_tests_pass():
    """The model class passes the suite that transformers has for each of its classes."""
    pytest.importorskip(
        "parameterized", reason="transformers' tests need it: pip install parameterized"
    )
    _run("transformers_tests.py")


@pytest.mark.parametrize("part", LENGTHS)
def test_nothing_is_lost(part):
    """Whatever is let go wrong, at random, is survived to the last bit or ends in one line that is
    true."""
    _run("reliability.py", part, f"--{part}", str(LENGTHS[part]))
