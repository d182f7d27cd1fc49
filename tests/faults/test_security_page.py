"""SECURITY.md promises nothing without a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_threat_has_its_test() -> None:
    """Each line of the table of threats names a test that exists."""
    lines = (ROOT / "SECURITY.md").read_text(encoding="utf-8").split("| --- | --- | --- |\n")[1].splitlines()
    assert len(lines) > 15
    for line in lines:
        found = re.fullmatch(r"\| .+ \| .+ \| `(tests/[\w/]+\.py)::(test_\w+)` \|", line)
        assert found, line
        tree = ast.parse((ROOT / found[1]).read_text(encoding="utf-8"))
        assert found[2] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, line
