"""Reads what the files of a package import."""

import ast
from functools import cache


@cache
def imports(file, root, *, at_once=False):
    """Every module that a file below a folder imports, as a full dotted name, with its line.

    With `at_once` only what is imported with the file: not in functions, nor for type checkers.
    """
    found = []
    parts = [root.name, *file.relative_to(root).with_suffix("").parts]
    nodes = [ast.parse(file.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found += ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parts[: -node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [
                (module, node.lineno),
                *((f"{module}.{alias.name}", node.lineno) for alias in node.names),
            ]
        elif at_once and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        elif not (at_once and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            nodes += ast.iter_child_nodes(node)
    return found
