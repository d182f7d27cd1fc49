"""Small searches and what they leave, for the tests of whole searches."""

import sqlite3
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from hf_evomerge.search.file.config import SearchConfig

Settings = Callable[..., dict[str, Any]]
Config = Callable[..., SearchConfig]
GRADIENT = {"by": "gradient", "evaluations": 12}
WEIGHTS = {"starts": [], "parameters": {"weight": {"low": 0.0, "high": 1.0}}}  # few scores, so plainly
BY_GRADIENT: dict[str, dict[str, Any]] = {
    "ps": {"merge": {"method": "breadcrumbs", "groups": "tensor", **WEIGHTS}, "optimize": [{**GRADIENT, "batch": 2}]},
    "dfs": {"path": {"kind": "gates"}, "optimize": [{**GRADIENT, "evaluations": 30, "batch": 2}]},
    "hybrid": {
        "merge": {"groups": "block", **WEIGHTS},
        "path": {"kind": "gates", "repetitions": 1},
        "optimize": [{**GRADIENT, "space": "ps"}, {**GRADIENT, "evaluations": 40, "space": "dfs"}],
    },
    "terms": {
        "space": "dfs",
        "path": {"kind": "gates", "terms": "all"},
        "optimize": [{**GRADIENT, "evaluations": 30, "batch": 2}],
    },
}

FIRST = {"by": "gradient", "evaluations": 12, "fitness": {"task": "likelihood"}}
BY_BOTH: dict[str, dict[str, Any]] = {
    "ps": {"optimize": [FIRST, {"evaluations": 10, "population": 4}]},
    "dfs": {"path": {"kind": "gates"}, "optimize": [{**FIRST, "evaluations": 30}, {"evaluations": 10, "population": 4}]},
}


def facts(folder: Path) -> dict[str, list[Any]]:
    """Everything that a study holds of its trials but the seconds."""
    tables = {
        "trials": "stage, number, generation, state, genome, recipe, duplicate_of, fitness, scores, correct, error, cost, "
        "gradient",
        "recipes": "key, yaml",
        "evaluations": "label, split, fitness, scores, correct, error",
    }
    connection = sqlite3.connect(folder / "study.db")
    facts = {
        name: connection.execute(f"SELECT {columns} FROM {name} ORDER BY 1, 2").fetchall() for name, columns in tables.items()
    }
    connection.close()
    return facts


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file in a folder, by its name."""
    return {
        str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def count_trials(folder: Path) -> int:
    """How many trials a study holds; 0 where there is none yet."""
    if not (folder / "study.db").exists():
        return 0
    connection = sqlite3.connect(folder / "study.db")
    try:
        return int(connection.execute("SELECT count(*) FROM trials").fetchone()[0])
    finally:
        connection.close()
