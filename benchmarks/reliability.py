"""Inject faults with fixed seeds, count how they ended, write benchmarks/pages/reliability.md:
`make faults`.

Each part runs in a process of its own. Something is survived where the result is, to the last bit,
that of a run in which nothing went wrong; it is one line where the program says in one line what is
wrong; it is lost else.

    python benchmarks/reliability.py                           # all of it, hours
    python benchmarks/reliability.py kills soak --kills 20     # two parts, one of them shortened
"""

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "benchmarks" / "pages" / "reliability.md"
COLUMNS = ("injected", "survived", "one line", "lost")
PARTS = {  # the module, what says how long it is, its default, its unit
    "kills": ("kills", 200, "kills"),
    "soak": ("soak", 2000, "trials"),
    "space": ("visitors", 15, "minutes"),
}


def main() -> int:
    """Run parts, print their tables and put them into the page; status 1 where something was
    lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    for name, (_, default, unit) in PARTS.items():
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{unit}, {default} by default"
        )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--write", action="store_true", help="put the tables into benchmarks/pages/reliability.md"
    )
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        return run_part(given.run, vars(given)[given.run], given.seed)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}")
    lost = False
    for name in given.parts or PARTS:
        length = vars(given)[name]
        command = [
            sys.executable,
            __file__,
            "--run",
            name,
            f"--{name}",
            str(length),
            "--seed",
            str(given.seed),
        ]
        begin = time.monotonic()
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if not ended.stdout.strip():
            print(
                f"{name}: ended with status {ended.returncode}, and says nothing", file=sys.stderr
            )
            return 2
        rows = json.loads(ended.stdout.splitlines()[-1])
        lost |= any(row.get("lost") for row in rows.values())
        minutes = (time.monotonic() - begin) / 60
        text = (
            f"{time.strftime('%Y-%m-%d', time.gmtime())}, {length} {PARTS[name][2]} asked for, "
            f"seed {given.seed}, "
        )
        text += f"{minutes:.0f} minutes.\n\n{table(rows)}"
        print(f"{name}: {text}\n", flush=True)
        if given.write:
            write(name, text)
    return int(lost)


def run_part(name: str, length: int, seed: int) -> int:
    """Run one part here; its rows are the last line on standard output, what was lost goes to
    standard error."""
    sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests")]
    part = importlib.import_module(f"faults.{PARTS[name][0]}")
    with tempfile.TemporaryDirectory(prefix="evomerge-faults-") as scratch:
        rows, lost = part.run(Path(scratch), length, seed)
    print("\n".join(lost), file=sys.stderr)
    print("\n" + json.dumps(rows))
    return 0


def table(rows: dict[str, dict[str, int]]) -> str:
    """Rows as Markdown, with their sum; columns beside the four are notes."""
    lines = [f"| what goes wrong | {' | '.join(COLUMNS)} |", f"| --- |{' ---: |' * len(COLUMNS)}"]
    if len(rows) > 1:
        rows = {
            **rows,
            "all": dict(
                sum(
                    (Counter({c: row.get(c, 0) for c in COLUMNS}) for row in rows.values()),
                    Counter(),
                )
            ),
        }
    lines += [
        f"| {name} | {' | '.join(str(row.get(column, 0)) for column in COLUMNS)} |"
        for name, row in rows.items()
    ]
    return "\n".join(lines)


def write(name: str, text: str) -> None:
    """Put a part's table into the page, between its marks."""
    page = PAGE.read_text(encoding="utf-8")
    pattern = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
    PAGE.write_text(
        re.sub(pattern, lambda match: f"{match[1]}{text}\n{match[2]}", page, flags=re.DOTALL),
        encoding="utf-8",
    )


if __name__ == "__main__":
    sys.exit(main())
