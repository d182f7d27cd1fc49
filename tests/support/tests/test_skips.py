"""Skips in continuous integration: the expected ones are skips, all others are failures."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
import pytest

def test_expected():
    pytest.importorskip("torchao", reason="could not import 'torchao'")

@pytest.mark.skipif(True, reason="looks for processes in /proc")
def test_marked():
    pass

def test_library():
    pytest.importorskip("a_library_that_nobody_installs")

@pytest.mark.skip(reason="not today")
def test_today():
    pass

@pytest.mark.xfail
def test_that_is_known_to_fail():
    raise AssertionError
"""
WRONG = [
    "ERROR test_file.py",
    "ERROR test_some.py::test_today",
    "FAILED test_some.py::test_library",
]


def test_a_skip_that_nobody_expects_fails_where_skips_are_listed(tmp_path):
    """A library that is missing fails its test, or its file; another system, and what is known to
    fail, do not."""
    (tmp_path / "conftest.py").write_text(
        "from skips import pytest_make_collect_report, pytest_runtest_makereport"
    )
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_file.py").write_text("import pytest\npytest.importorskip('another_library')")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "EVOMERGE_SKIPS": "listed",
    }
    options = ["-rfE", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    command = [sys.executable, "-m", "pytest", *options, str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    named = [
        line.partition(" - ")[0]
        for line in done.stdout.splitlines()
        if line.startswith(("ERROR ", "FAILED "))
    ]
    assert sorted(named) == WRONG, done.stdout + done.stderr
