"""Fails a test whose skip nobody expects, where EVOMERGE_SKIPS=listed: what every run skips is
never tested.

`.ci/run` sets the variable. The hooks are those of pytest; a conftest imports them.
"""

import os
import re

import pytest

EXPECTED = (
    "/proc",  # another operating system
    "no chromium",  # `.ci/run` installs it where it can
    "import 'torchao'",  # has a step of its own in `.ci/run`
    "import 'lunr'|the site is not built",  # `make docs` builds it, and runs these tests
    "another version of transformers|this transformers",  # the newest is tried every week
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Judge the skip of a test."""
    report = yield
    _judge(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    """Judge the skip of a whole file."""
    report = yield
    _judge(report)
    return report


def _judge(report):
    if (
        os.environ.get("EVOMERGE_SKIPS") != "listed"
        or not report.skipped
        or hasattr(report, "wasxfail")
    ):
        return
    reason = report.longrepr[2]
    if not re.search("|".join(EXPECTED), reason):
        report.outcome = "failed"
        report.longrepr = f"{reason}. This skip is not among those of tests/support/skips.py"
