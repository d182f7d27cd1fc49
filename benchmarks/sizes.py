"""Measure the size of the code and of its texts, so that growth is seen.

    python benchmarks/sizes.py                  # this tree
    python benchmarks/sizes.py TREE [TREE ...]  # several trees, one below the other

A code token is a name, an operator or a literal; docstrings, comments and white space have none. So
the figure does not change with the length of lines, as a count of lines does.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = {"package and Space": ("hf_evomerge", "space_app"), "tests": ("tests",)}
CODE = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)
TEXTS = ("docs/**/*.md", "README.md", "CHANGELOG.md")
FEATURES = {  # files that speak of a feature, by a pattern that ignores case
    "objectives": "objective|nsga|pareto",
    "diffusion": "diffus|pipeline",
    "sentence-transformers": "sentence.?transformer|sentence_",
    "routers": "router",
}


@dataclass
class Size:
    """Size of some files.

    Attributes:
        tokens: Code tokens.
        lines: Lines that are not blank.
        comments: Lines with a comment, alone or behind code.
        longest: Lines beyond 100 columns.
    """

    tokens: int = 0
    lines: int = 0
    comments: int = 0
    longest: int = 0

    def add(self, text: str) -> None:
        """Count one file."""
        docstrings = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                docstrings.add((node.lineno, node.col_offset))
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            self.tokens += token.type in CODE and token.start not in docstrings
            self.comments += token.type == tokenize.COMMENT
        lines = text.splitlines()
        self.lines += sum(bool(line.strip()) for line in lines)
        self.longest += sum(len(line) > 100 for line in lines)

    def __str__(self) -> str:
        share = self.comments / max(self.lines, 1)
        density = self.tokens / max(self.lines, 1)
        return (
            f"{self.tokens:,} code tokens, {self.lines:,} lines that are not blank, "
            f"{density:.2f} tokens a line, comments on {share:.1%} of lines, "
            f"{self.longest} lines beyond 100 columns"
        )


def report(tree: Path) -> list[str]:
    """Describe the sizes of a tree, one line for each figure."""
    lines = []
    sources: dict[Path, str] = {}
    for part, folders in PARTS.items():
        size = Size()
        for folder in folders:
            for file in sorted((tree / folder).rglob("*.py")):
                sources[file] = file.read_text(encoding="utf-8")
                size.add(sources[file])
        lines.append(f"{part}: {size}")
    texts = sorted({file for pattern in TEXTS for file in tree.glob(pattern)})
    words = {file: len(file.read_text(encoding="utf-8").split()) for file in texts}
    lines.append(f"docs, README, CHANGELOG: {sum(words.values()):,} words in {len(words)} files")
    for feature, pattern in FEATURES.items():
        speaks = re.compile(pattern, re.IGNORECASE)
        package = (file for file in sources if not file.is_relative_to(tree / "tests"))
        count = sum(bool(speaks.search(sources[file])) for file in package)
        lines.append(f"{feature}: {count} files of package and Space")
    return lines


if __name__ == "__main__":
    for each in map(Path, sys.argv[1:] or [ROOT]):
        print(f"{each}:", *report(each), sep="\n  ")
