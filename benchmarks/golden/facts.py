"""What golden hashes are of: tensors, model folders, studies and searches, as bytes without places
and times."""

from __future__ import annotations

import json
import sqlite3
import struct
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

Facts = dict[str, bytes | str]
# trials, stage by stage
BEGUN = "(SELECT min(rowid) FROM trials each WHERE each.stage = trials.stage), number"


class Golden:
    """Collects hashes; what names a place of this machine is hashed without it."""

    def __init__(
        self, work: Path, inputs: Path, *, keep: Path | None = None, thorough: bool = False
    ) -> None:
        self.work = work
        self.inputs = inputs
        self.keep = keep
        self.thorough = thorough
        self.words = {
            str(inputs): "INPUTS",
            str(work): "WORK",
        }  # what stands for names that differ from run to run
        self.hashes: dict[str, str] = {}
        self.steps: dict[str, int] = {}  # of each search that ran to its end
        self.complaints: list[str] = []

    def complain(self, line: str) -> None:
        """Note what is wrong whatever it is compared with."""
        self.complaints.append(line)
        print(f"golden: {line}", file=sys.stderr)

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Go on after an error: what could not be hashed is missing, and the rest can still be
        compared."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.complain(f"{what}: {error!r}")

    def put(self, name: str, value: bytes | str) -> None:
        """Hash a thing under its name."""
        data = self.plain(value).encode() if isinstance(value, str) else value
        self.hashes[name] = sha256(data).hexdigest()
        if self.keep is not None:
            place = self.keep / name.replace(" ", "-")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)

    def put_all(self, name: str, facts: Facts) -> None:
        """Hash several things under a common name."""
        for part, value in facts.items():
            self.put(f"{name}/{part}", value)

    def plain(self, text: str) -> str:
        """A text without the names that differ from run to run: places, commits."""
        for name, word in self.words.items():
            text = text.replace(name, word)
        return text


def tensor_bytes(tensors: Mapping[str, Any]) -> bytes:
    """Names, dtypes, shapes and bits of tensors."""
    import torch

    parts = []
    for name, tensor in sorted(tensors.items()):
        parts.append(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        parts.append(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return b"".join(parts)


def column_bytes(values: Sequence[Any]) -> bytes:
    """The values of a column, to the last bit."""
    parts = []
    for value in values:
        data = (
            value
            if isinstance(value, bytes)
            else struct.pack("<d", value)
            if isinstance(value, float)
            else str(value).encode()
        )
        parts.append(f"{type(value).__name__} {len(data)} ".encode() + data)
    return b"\n".join(parts)


def without(value: Any, *keys: str) -> Any:
    """Parsed JSON without some keys, wherever they are."""
    if isinstance(value, dict):
        return {name: without(each, *keys) for name, each in value.items() if name not in keys}
    return [without(each, *keys) for each in value] if isinstance(value, list) else value


def model_facts(folder: Path) -> Facts:
    """Weights and texts of a model's folder; code is no result, and of the build's record the
    ledger alone is one."""
    from safetensors.torch import load_file

    facts: Facts = {}
    for file in sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix != ".py"
    ):
        name = file.relative_to(folder).as_posix()
        if file.suffix == ".safetensors":
            facts[f"{name} tensors"] = tensor_bytes(load_file(file))
            facts[name] = file.read_bytes()
        elif name == "build.json":
            facts[name] = str(json.loads(file.read_text(encoding="utf-8")).get("tensors"))
        else:
            facts[name] = file.read_text(encoding="utf-8")
    return facts


def search_facts(folder: Path, plain: Callable[[str], str]) -> Facts:
    """All that a search leaves, but pictures and times."""
    with closing(sqlite3.connect(folder / "study.db")) as study:
        texts = {
            key: plain(text)
            for key, text in study.execute("SELECT key, yaml FROM recipes ORDER BY rowid")
        }
        used = [
            key
            for (key,) in study.execute(f"SELECT recipe FROM trials ORDER BY {BEGUN}")
            if key in texts
        ]
        names = {
            key: f"recipe {number}" for number, key in enumerate(dict.fromkeys([*used, *texts]))
        }  # keys hash places, too
        facts: Facts = {
            "recipes": "\n".join(f"# {name}\n{texts[key]}" for key, name in names.items())
        }
        for table in ("trials", "evaluations", "objectives", "answers"):
            facts |= table_facts(study, table, names)
    results = (folder / "results.json").read_text(encoding="utf-8")
    for key, name in names.items():
        results = results.replace(key, name)
    for key, value in without(json.loads(results), "seconds").items():
        facts[f"results.{key}"] = json.dumps(value, indent=1, sort_keys=True)
    for file in ("recipe.yaml", "search.yaml"):
        facts[file] = (folder / file).read_text(encoding="utf-8")
    return facts | {f"model/{name}": value for name, value in model_facts(folder / "model").items()}


def table_facts(study: sqlite3.Connection, table: str, names: Mapping[str, str]) -> Facts:
    """Every column of a table but times and checksums; trials stage by stage, other rows by their
    names."""
    cursor = study.execute(f"SELECT * FROM {table} ORDER BY {BEGUN if table == 'trials' else 1}")
    rows = [
        [names.get(value, value) if isinstance(value, str) else value for value in row]
        for row in cursor
    ]
    if table != "trials":
        rows.sort(key=lambda row: row[:3] if table == "objectives" else row[:2])
    columns = {
        column: [row[index] for row in rows]
        for index, (column, *_) in enumerate(cursor.description)
    }
    return {
        f"{table}.{column}": column_bytes(columns[column])
        for column in columns
        if column not in ("seconds", "checksum")
    }
