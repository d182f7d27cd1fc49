"""Cells of a benchmark: a pair of models, a number of examples, and a draw of them. Each is run
once; its results are a JSON line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import write_into

from hf_evomerge import Example

Line = dict[str, Any]
VALIDATION = 32
TEST = 200


@dataclass(frozen=True)
class Problem:
    """Task of a pair.

    Attributes:
        settings: Sources, base, dtype and fitness, as in a search file.
        examples: Examples by split; further names are the parents' own skills.
        without: Baselines that make no sense for it, or cost too much.
    """

    settings: dict[str, Any]
    examples: dict[str, Sequence[Example]]
    without: tuple[str, ...] = ()


def split(drawn: Sequence[Example], count: int) -> dict[str, Sequence[Example]]:
    """Name the first examples of a draw: so many to search with, the next to validate."""
    return {"search": drawn[:count], "validation": drawn[count : count + VALIDATION]}


def read(file: Path) -> list[Line]:
    """Read the lines of the results; none where there is no file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def run_missing(arguments: argparse.Namespace, run_cell: Callable[..., Line]) -> Iterable[Line]:
    """Run the cells that the results lack, one draw of everything after the other; yields each."""
    there = {(line["pair"], line["examples"], line["draw"]) for line in read(arguments.results)}
    for draw in arguments.draws:
        for count in arguments.examples:
            for name in arguments.pairs:
                if (name, count, draw) in there:
                    continue
                line = run_cell(name, count, draw, arguments.work)
                arguments.results.parent.mkdir(parents=True, exist_ok=True)
                with arguments.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{name}, {count} examples, draw {draw}: {line['cpu']} s", flush=True)
                yield line


def command_line(
    description: str | None,
    *,
    results: Path,
    pairs: Sequence[str],
    counts: Sequence[int],
    run_cell: Callable[..., Line],
    told: Callable[[Line], str],
    table: Callable[[Sequence[Line]], str],
) -> None:
    """Run what is missing, or print the table.

    Args:
        description: Text of `--help`.
        results: File of the results; its name is the block of a document that the table goes into.
        pairs: Names of all pairs.
        counts: Numbers of examples that are run by default.
        run_cell: Runs one cell, given pair, count, draw and the folder to work in.
        told: Text that is printed after a cell.
        table: Text of all results.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=results, help="file of results, one JSON line a cell"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run what is missing")
    running.add_argument("--work", type=Path, default=Path("/tmp"), help="for models and studies")
    running.add_argument("--pairs", nargs="+", choices=pairs, default=list(pairs))
    running.add_argument("--examples", nargs="+", type=int, default=list(counts))
    running.add_argument("--draws", nargs="+", type=int, default=[1, 2, 3])
    telling = commands.add_parser("table", help="print the results as Markdown")
    block = results.stem
    telling.add_argument(
        "--into", type=Path, help=f"a document to write them into, between the comments `{block}`"
    )
    arguments = parser.parse_args()
    if arguments.command == "run":
        for line in run_missing(arguments, run_cell):
            print(told(line), flush=True)
        return
    text = table(read(arguments.results))
    print(text)
    if arguments.into:
        write_into(arguments.into, block, text)
