"""Golden hashes: one sha256 for everything that the package computes, so that a refactoring can
prove that it changed no bit.

    python benchmarks/golden run --tree TREE --out before.json  # hashes of a work tree's package
    python benchmarks/golden compare before.json after.json     # names every difference
    python benchmarks/golden compare OLD_TREE NEW_TREE          # the same, of two work trees

`compare` exits with 1 where something differs.

Four sections, `--only` chooses: `merge` (every method as a function, in memory and on disk; paths,
slices, vocabularies), `search` (every kind of search, column by column of its study), `resume` (the
same searches stopped and resumed) and `text` (what the commands print, a published model's card and
record, the Space's pictures). `--thorough` stops every search at every step. `--keep FOLDER` writes
what was hashed, so that `diff -r` shows a difference.

Everything goes through the public names of the package, its command line, files and SQLite;
`MOVABLE` in sections.py lists the exceptions.
Hashes depend on the machine and on the libraries' versions, so they are compared and never
committed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SECTIONS = ("merge", "search", "resume", "text")
LIBRARIES = ("torch", "transformers", "numpy", "safetensors", "cma", "peft", "typer", "rich")


def cases(arguments: argparse.Namespace) -> int:
    """Hash the package that this process imports, and write it; started by `run`."""
    import torch
    from facts import Golden
    from inputs import make_inputs
    from sections import merge_section, resume_section, search_section
    from wording import text_section

    import hf_evomerge

    torch.set_num_threads(1)
    if not Path(hf_evomerge.__file__).is_relative_to(arguments.tree):
        raise SystemExit(
            f"golden: hf_evomerge is that of {hf_evomerge.__file__}, and not of {arguments.tree}"
        )
    golden = Golden(
        arguments.work, arguments.inputs, keep=arguments.keep, thorough=arguments.thorough
    )
    if not arguments.inputs.exists():
        make_inputs(arguments.inputs)
    for file in sorted(
        path for path in arguments.inputs.rglob("*") if path.is_file() and path.suffix != ".md"
    ):
        golden.put(f"inputs/{file.relative_to(arguments.inputs)}", file.read_bytes())
    sections = {
        "merge": merge_section,
        "search": search_section,
        "resume": resume_section,
        "text": text_section,
    }
    for section in arguments.only:
        begun = time.monotonic()
        with golden.trying(section):
            sections[section](golden)
        print(f"{section}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    made_with = {
        "python": sys.version.split()[0],
        "machine": platform.processor() or platform.machine(),
    }
    made_with |= {name: version(name) for name in LIBRARIES}
    text = json.dumps({"made_with": made_with, "hashes": golden.hashes}, indent=1)
    arguments.out.write_text(text + "\n", encoding="utf-8")
    return 1 if golden.complaints else 0


def run(tree: Path, out: Path, inputs: Path, options: Sequence[str]) -> int:
    """Hash the package in a work tree, in a process of its own with one thread; gives its exit
    status."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(tree), str(tree / "tests" / "support")]
    )  # local_hub is in either
    environment |= dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
    )
    environment |= {
        "TOKENIZERS_PARALLELISM": "false",
        "COLUMNS": "120",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "TZ": "UTC",
    }
    environment.setdefault("PYTHONHASHSEED", "0")
    with TemporaryDirectory(prefix="golden-") as scratch:
        work = Path(scratch).resolve()
        places = [
            "--tree",
            str(tree),
            "--work",
            str(work),
            "--inputs",
            str(inputs),
            "--out",
            str(out.resolve()),
        ]
        command = [
            sys.executable,
            "-P",
            str(Path(__file__).resolve().parent),
            "cases",
            *places,
            *options,
        ]  # -P: not the folder of benchmarks
        environment["HF_HOME"] = str(work / "home")
        return subprocess.run(command, env=environment, cwd=work, check=False).returncode


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """A line for everything that differs between two files of hashes, in the sections that both
    have."""
    for name, value in before["made_with"].items():
        if after["made_with"].get(name) != value:
            yield f"made with another {name}: {value}, {after['made_with'].get(name)}"
    old = before["hashes"]
    new = after["hashes"]
    sections = {name.partition("/")[0] for name in old} & {name.partition("/")[0] for name in new}
    for name in sorted(old.keys() | new.keys()):
        if name.partition("/")[0] in sections and old.get(name) != new.get(name):
            yield (
                f"{'only after' if name not in old else 'only before' if name not in new else 'differs'}: "  # noqa: E501
                f"{name}"
            )


def compare(before: Path, after: Path, options: Sequence[str]) -> int:
    """Print every difference between two files of hashes, or between two work trees on the same
    inputs."""
    with TemporaryDirectory(prefix="golden-") as scratch:
        found = []
        for number, place in enumerate((before, after)):
            file = place
            if place.is_dir():
                file = Path(scratch).resolve() / f"{number}.json"
                run(place.resolve(), file, Path(scratch).resolve() / "inputs", options)
            found.append(json.loads(file.read_text(encoding="utf-8")))
    lines = list(differences(*found))
    common = found[0]["hashes"].keys() & found[1]["hashes"].keys()
    print(
        "\n".join(
            [
                *lines,
                f"{len(lines)} differences" if lines else f"all {len(common)} hashes are equal",
            ]
        )
    )
    return 1 if lines else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    both.add_argument(
        "--thorough", action="store_true", help="stop and resume every search at every step"
    )
    single = argparse.ArgumentParser(add_help=False)
    single.add_argument(
        "--tree",
        type=Path,
        default=Path(__file__).parents[2],
        help="the work tree; that of this file by default",
    )
    single.add_argument("--out", type=Path, required=True, help="the file of hashes to write")
    single.add_argument("--keep", type=Path, help="a folder to write what was hashed to")
    single.add_argument(
        "--inputs", type=Path, help="a folder with inputs; made where it is not there"
    )
    commands.add_parser("run", parents=[both, single], help="hash the package in a work tree")
    commands.add_parser("cases", parents=[both, single]).add_argument(
        "--work", type=Path, required=True
    )
    comparing = commands.add_parser(
        "compare", parents=[both], help="name every difference of two files, or of two work trees"
    )
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.only.split(",")) - set(SECTIONS):
        parser.error(f"--only: {', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    if arguments.command == "cases":
        arguments.only = arguments.only.split(",")
        return cases(arguments)
    options = ["--only", arguments.only, *(["--thorough"] if arguments.thorough else [])]
    if arguments.command == "compare":
        return compare(arguments.before, arguments.after, options)
    if arguments.keep is not None:
        options += ["--keep", str(arguments.keep.resolve())]
    with TemporaryDirectory(prefix="golden-inputs-") as scratch:
        inputs = arguments.inputs or Path(scratch) / "inputs"
        return run(arguments.tree.resolve(), arguments.out, inputs.resolve(), options)


if __name__ == "__main__":
    sys.exit(main())
