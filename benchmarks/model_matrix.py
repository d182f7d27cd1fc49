"""Checks every property of the merged model on every architecture, and writes the table of docs/model-tests.md.

The checks are those of the tests (``tests/modeling/properties.py``). About a minute on one core.

    python benchmarks/model_matrix.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "modeling"))

from fold_cases import VARIANTS, fold_error  # noqa: E402 (these are beside the tests)
from properties import PROPERTIES  # noqa: E402
from tiny_models import ARCHITECTURES  # noqa: E402

DOCUMENT = ROOT / "docs" / "model-tests.md"
BEGIN, END = "<!-- begin of the table that benchmarks/model_matrix.py writes -->\n", "<!-- end of the table -->\n"


def main() -> int:
    """Run the checks, write or print the table, and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ARCHITECTURES, nargs="*", help="print the rows of these architectures, write nothing")
    only = parser.parse_args().only
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    failures: list[str] = []
    rows = {architecture: row(architecture, failures) for architecture in only or ARCHITECTURES}
    text = table(rows) + ("" if only else variants(failures))
    if only:
        print(text)
    else:
        document = DOCUMENT.read_text(encoding="utf-8")
        before, _, rest = document.partition(BEGIN)
        _, _, after = rest.partition(END)
        DOCUMENT.write_text(f"{before}{BEGIN}{text}{END}{after}", encoding="utf-8")
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def row(architecture: str, failures: list[str]) -> dict[str, str]:
    """What each property gives for one architecture."""
    cells = {}
    for name, item in PROPERTIES.items():
        if architecture in item.not_applicable:
            cells[name] = "n/a"
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                cells[name] = item.check(architecture, Path(folder)) or "yes"
        except Exception as cause:
            cells[name] = "NO"
            failures.append(f"{architecture}, {name}: {type(cause).__name__} {cause}")
    print(architecture, *cells.values(), file=sys.stderr)
    return cells


def table(rows: dict[str, dict[str, str]]) -> str:
    """The versions, the properties, the table, and the reasons why a property does not apply, as Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))
    lines = [f"\nWith {versions}, on a CPU, in float32.\n", "| column | what is checked |", "| --- | --- |"]
    lines += [f"| {title(name)} | {' '.join((item.check.__doc__ or '').split())} |" for name, item in PROPERTIES.items()]
    lines += ["", f"| architecture | {' | '.join(map(title, PROPERTIES))} |", "| --- " * (len(PROPERTIES) + 1) + "|"]
    lines += [f"| {architecture} | {' | '.join(cells.values())} |" for architecture, cells in rows.items()]
    lines += ["", "Not applicable:", ""]
    for name, item in PROPERTIES.items():
        reasons: dict[str, list[str]] = {}
        for architecture, reason in item.not_applicable.items():
            reasons.setdefault(reason, []).append(architecture)
        lines += [f"- {title(name)}, {', '.join(where)}: {reason}." for reason, where in reasons.items()]
    return "\n".join([*lines, "", ""])


def variants(failures: list[str]) -> str:
    """By how much folded variants of the architectures differ from the merged models, as Markdown."""
    lines = ["Folding, of further architectures and of variants that are built differently:\n"]
    lines += ["| variant | fold stream | fold mlp delta |", "| --- | --- | --- |"]
    for name, (architecture, fields) in VARIANTS.items():
        cells = []
        for target in ("stream", "mlp_delta"):
            try:
                with tempfile.TemporaryDirectory() as folder:
                    cells.append(f"{fold_error(architecture, fields, target, Path(folder)):.0e}")
            except Exception as cause:
                cells.append("NO")
                failures.append(f"{name}, {target}: {type(cause).__name__} {cause}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", ""])


def title(name: str) -> str:
    """The head of a property's column."""
    return name.replace("_", " ")


if __name__ == "__main__":
    sys.exit(main())
