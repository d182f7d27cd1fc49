"""The page of errors quotes what the program says today."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def _texts(node):
    """Every text in a program, with … for what is put in."""
    for child in ast.walk(node):
        if isinstance(child, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "…" for part in child.values
            )
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value


def test_every_quoted_message_is_in_the_code():
    """Each message in the first column of a table stands in the package, with … where something is
    put in."""
    quoted = re.findall(r"^\| `([^|`]*)` \|", PAGE, re.MULTILINE)
    assert len(quoted) == len(re.findall(r"^\| (?!message|---)", PAGE, re.MULTILINE)) > 60
    files = [file for file in (ROOT / "hf_evomerge").rglob("*.py") if "_bundled" not in file.parts]
    code = "\n".join(
        text for file in files for text in _texts(ast.parse(file.read_text(encoding="utf-8")))
    )
    assert [message for message in quoted if message.rstrip("…") not in code] == []
