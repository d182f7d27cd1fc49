"""The merge methods and their parameters as a Markdown table, made from the registry: for the
command line and the docs."""

from __future__ import annotations

from .checks import number_of_models
from .method import MergeMethod
from .parameters import Parameter
from .registry import all_methods


def methods_table() -> str:
    """Make a table of every method's parameters."""
    lines = [
        "| method | parameter | per | default | values | meaning |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method in all_methods().values():
        lines.append(f"| **{method.name}** | | | | {_needs(method)} | {method.help} |")
        lines += [_row(parameter) for parameter in method.parameters]
    return "\n".join(lines)


def _needs(method: MergeMethod) -> str:
    count = number_of_models(method)
    base = ""
    if method.needs_base:
        base = " and a base"
    elif method.base_optional:
        base = ", with or without a base"
    return f"{count} source{'' if count.endswith('1') else 's'}{base}"


def _row(parameter: Parameter) -> str:
    per = "source" if parameter.scope == "source" else "merge"
    if parameter.grouped:
        per += " and layer group"
    default = (
        str(parameter.default).lower()
        if isinstance(parameter.default, bool)
        else f"{parameter.default}"
    )
    values = parameter.values
    if parameter.search is not None:
        values += f"; searched {parameter.search[0]:g} to {parameter.search[1]:g}"
    return f"| | `{parameter.name}` | {per} | {default} | {values} | {parameter.help} |"
