"""Damaged recipes, search files, configs, headers and the like, for minutes:
tests/faults/test_files.py, at new cases."""

import os
import re
import subprocess
import sys
from pathlib import Path

from .bench import Rows

FILES = Path(__file__).resolve().parents[2] / "faults"
NAMES = (
    "damaged recipes, search files, studies' settings, mergekit files, configs, headers, "
    "indexes, adapters"
)


def run(scratch: Path, count: int, seed: int) -> tuple[Rows, list[str]]:
    """So many minutes of new cases, shared by the readers; one is lost where a reader's test fails,
    which ends that reader."""
    environment = {
        **os.environ,
        "EVOMERGE_FUZZ_SECONDS": str(60 * count),
        "EVOMERGE_FUZZ_SEED": str(seed),
    }
    tests = [
        str(FILES / "test_files.py"),
        str(FILES / "test_studies.py::test_settings_of_strangers"),
    ]
    call = [
        sys.executable,
        "-m",
        "pytest",
        "-s",
        "-p",
        "no:cacheprovider",
        "--basetemp",
        str(scratch / "pytest"),
        *tests,
    ]
    ended = subprocess.run(
        call, cwd=FILES.parents[1], env=environment, capture_output=True, text=True, check=False
    )
    cases = sum(int(found) for found in re.findall(r"looked at (\d+) cases", ended.stdout))
    lost = re.findall(r"^FAILED .*", ended.stdout, re.MULTILINE)
    row = {"injected": cases, "survived": cases - len(lost), "lost": len(lost)}
    return {NAMES: row}, [*lost, ended.stdout[-5000:]] if lost else []
