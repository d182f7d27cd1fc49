"""One statement says one thing, in package and Space."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def findings(tree):
    """Statements that say too much: what they are, and in which line."""
    for node in ast.walk(tree):
        inside = [each for each in ast.walk(node) if each is not node]
        if isinstance(node, COMPREHENSIONS):
            if any(isinstance(each, COMPREHENSIONS) for each in inside):
                yield "a comprehension inside a comprehension", node.lineno
            if any(isinstance(each, ast.NamedExpr) for each in inside):
                yield "a walrus inside a comprehension", node.lineno
        if isinstance(node, ast.IfExp) and any(isinstance(each, ast.IfExp) for each in inside):
            yield "a conditional expression inside another", node.lineno
        if isinstance(node, ast.Assign) and _assigns_several(node):
            yield "several assignments in one", node.lineno


def _assigns_several(node):
    """Tell whether values are assigned side by side that single statements could assign."""
    if not isinstance(node.value, ast.Tuple) or not isinstance(node.targets[0], ast.Tuple):
        return False
    targets = {ast.unparse(each) for each in node.targets[0].elts}
    names = {ast.unparse(each) for value in node.value.elts for each in ast.walk(value)}
    return not targets & names


@pytest.mark.parametrize("folder", ["hf_evomerge", "space_app"])
def test_one_statement_says_one_thing(folder):
    """No nested comprehensions, no nested conditions, no names within, no unrelated assignments."""
    lines = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        lines += [f"{file.relative_to(ROOT)}:{line} {what}" for what, line in findings(tree)]
    assert lines == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[[x for x in y] for y in z]", "a comprehension inside a comprehension"),
        ("[y for x in z if (y := x)]", "a walrus inside a comprehension"),
        ("a if b else c if d else e", "a conditional expression inside another"),
        ("a, b = 1, 2", "several assignments in one"),
    ],
)
def test_each_is_found(text, what):
    """The rules see what they are for; a swap is one statement."""
    assert [found for found, _ in findings(ast.parse(text))] == [what]
    assert list(findings(ast.parse("a, b = b, a"))) == []
