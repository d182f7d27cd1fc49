"""The page of threats and promises: each names a test, and the tests exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_threat_has_its_test():
    """Each line of the table of threats names a test that exists."""
    section = (
        (ROOT / "SECURITY.md")
        .read_text(encoding="utf-8")
        .split("\n## Threats, and the test of each\n")[1]
    )
    lines = section.split("| --- | --- | --- |\n")[1].splitlines()
    assert len(lines) > 15
    for line in lines:
        assert re.fullmatch(r"\| .+ \| .+ \| `tests/[\w/]+\.py::test_\w+` \|", line), line


def test_every_promise_has_its_test():
    """Each promise names a test, and each test that the page names exists."""
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    promises = re.split(
        r"\n- |\n\n(?=A study)",
        page.partition("## What is promised")[2].partition("## What is not")[0],
    )[1:]
    assert len(promises) == 6
    for promise in promises:
        assert "::test_" in promise, promise
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
