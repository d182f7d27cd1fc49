"""The pages of what was let go wrong and of threats: tables that add up, a part that writes only
its own, tests that exist."""

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "benchmarks" / "pages" / "reliability.md").read_text(encoding="utf-8")


@pytest.fixture
def reliability() -> ModuleType:
    """The program that writes the page."""
    spec = importlib.util.spec_from_file_location(
        "reliability", ROOT / "tests" / "slow" / "reliability.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_part_has_its_place(reliability):
    """The page has one place for each part, and each part is a module."""
    assert re.findall(r"<!-- (\w+): begin -->", PAGE) == re.findall(r"<!-- (\w+): end -->", PAGE)
    assert set(re.findall(r"<!-- (\w+): begin -->", PAGE)) == set(reliability.PARTS)
    for module, _, _ in reliability.PARTS.values():
        assert (ROOT / "tests" / "slow" / "faults" / f"{module}.py").is_file()


def test_what_the_page_says_adds_up():
    """In every row what was injected was survived, ended in one line, or was lost; nothing was
    lost."""
    rows = re.findall(r"^\| [^|]+ \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert all(int(injected) == sum(map(int, ends)) for injected, *ends in rows)
    assert all(lost == "0" for *_, lost in rows)


def test_a_part_writes_its_own_table(reliability, tmp_path, monkeypatch):
    """A table goes between its part's marks, in the place of the one before, and the rest of the
    page stays."""
    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- kills: begin -->\nold\n<!-- kills: end -->\nb\n<!-- push: begin "
        "-->\nkept\n<!-- push: end -->\n"
    )
    monkeypatch.setattr(reliability, "PAGE", page)
    rows = {"x": {"injected": 3, "survived": 2, "lost": 1}, "y": {"injected": 2, "one line": 2}}
    reliability.write("kills", reliability.table(rows))
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("a\n<!-- kills: begin -->\n| what")
    assert text.endswith("<!-- kills: end -->\nb\n<!-- push: begin -->\nkept\n<!-- push: end -->\n")
    assert "| y | 2 | 0 | 2 | 0 |\n| all | 5 | 2 | 2 | 1 |\n" in text


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
