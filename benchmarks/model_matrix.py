"""Check the merged model on every type of causal language model; write
benchmarks/pages/model-tests.md.

Every property on some thirty architectures, by the checks of the tests
(``tests/modeling/properties.py``): a few minutes on one core. And, on every type that the installed
transformers knows, whether the model works, or why not: about ten minutes.

    python benchmarks/model_matrix.py
    # write nothing
    python benchmarks/model_matrix.py --print
    python benchmarks/model_matrix.py --types falcon_h1 deepseek_v3
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "modeling"), str(ROOT / "tests" / "support")]

from every_type import TYPES  # noqa: E402
from fold_cases import VARIANTS, fold_error  # noqa: E402 (these are beside the tests)
from properties import PROPERTIES  # noqa: E402
from tiny_models import ARCHITECTURES  # noqa: E402
from type_verdicts import FAILS, verdict  # noqa: E402

DOCUMENT = ROOT / "benchmarks" / "pages" / "model-tests.md"
BEGIN = "<!-- begin of the table that benchmarks/model_matrix.py writes -->\n"
END = "<!-- end of the table -->\n"


def main() -> int:
    """Run the checks, write or print the table, and say what failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        choices=ARCHITECTURES,
        nargs="*",
        help="print the rows of these architectures, write nothing",
    )
    parser.add_argument(
        "--types", choices=TYPES, nargs="*", help="print the verdicts on these types, write nothing"
    )
    parser.add_argument(
        "--print", action="store_true", help="print the tables of everything, write nothing"
    )
    arguments = parser.parse_args()
    only = arguments.only
    kinds = arguments.types
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    failures: list[str] = []
    if only or kinds:
        print(
            table({name: row(name, failures) for name in only}) if only else "",
            types(kinds, failures) if kinds else "",
        )
    else:
        text = (
            table({name: row(name, failures) for name in ARCHITECTURES})
            + variants(failures)
            + types(TYPES, failures)
        )
        if arguments.print:
            print(text)
        else:
            before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
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
    """The versions, the properties, the table, and the reasons why a property does not apply, as
    Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))
    lines = [
        f"\nWith {versions}, on a CPU, in float32.\n",
        "| column | what is checked |",
        "| --- | --- |",
    ]
    lines += [
        f"| {title(name)} | {' '.join((item.check.__doc__ or '').split())} |"
        for name, item in PROPERTIES.items()
    ]
    lines += [
        "",
        f"| architecture | {' | '.join(map(title, PROPERTIES))} |",
        "| --- " * (len(PROPERTIES) + 1) + "|",
    ]
    lines += [
        f"| {architecture} | {' | '.join(cells.values())} |" for architecture, cells in rows.items()
    ]
    lines += ["", "Not applicable:", ""]
    for name, item in PROPERTIES.items():
        reasons: dict[str, list[str]] = {}
        for architecture, reason in item.not_applicable.items():
            reasons.setdefault(reason, []).append(architecture)
        lines += [
            f"- {title(name)}, {', '.join(where)}: {reason}." for reason, where in reasons.items()
        ]
    return "\n".join([*lines, "", ""])


def variants(failures: list[str]) -> str:
    """By how much folded variants of the architectures differ from the merged models, as
    Markdown."""
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


def types(names: Sequence[str], failures: list[str]) -> str:
    """What becomes of each type of causal language model, as Markdown."""
    lines = [f"Every type of causal language model in transformers {version('transformers')}:\n"]
    lines += ["| type | outcome | why, or a remark |", "| --- | --- | --- |"]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            outcome, why = verdict(name, Path(folder))
        lines.append(f"| {name} | {outcome} | {why} |")
        print(lines[-1], file=sys.stderr)
        if outcome == FAILS:
            failures.append(f"{name}: {why}")
    return "\n".join([*lines, "", ""])


def title(name: str) -> str:
    """The head of a property's column."""
    return name.replace("_", " ")


if __name__ == "__main__":
    sys.exit(main())
