"""First lines of docstrings begin with a verb or a noun, so that they are read once."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEITHER = (
    "what which whether those that of as where when how who why if with without for from by "
    "in on at to it they its their "
    "one others other some something somebody anything everything all each every so this "
    "these there is has not no"
)


def test_first_lines_begin_with_a_verb_or_a_noun():
    """No docstring of package and Space begins with a word that needs the rest of the sentence;
    published files stay."""
    found = []
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for folder in ("hf_evomerge", "space_app"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if file.name.endswith("_evo_merged.py"):
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                text = (isinstance(node, documented) and ast.get_docstring(node)) or "-"
                if text.split()[0].lower().strip(",.:;") in NEITHER.split():
                    found.append(f"{file.relative_to(ROOT)}: {text.splitlines()[0]}")
    assert found == []
