"""Records, from wherever they are: JSON lines, whatever the datasets library reads, or a Python
function.

Says which records there are and what each is called; ``loading.py`` makes examples of them.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import FitnessError, one_line, optional
from ...recipes.names import is_folder, looked_in
from ..example import Record
from .spec import FORMATS, DataSpec

_LINES = (
    "write one JSON object per line; CSV, Parquet or a JSON array are read where a search file "
    "has `data_files:` for `jsonl:`"
)
SHUFFLED = 10_000  # records that a stream is shuffled within


def wanted_records(spec: DataSpec) -> list[tuple[str, Any]]:
    """The records that a specification asks for, in its order, each with what it is called in a
    complaint.

    Raises:
        FitnessError: They cannot be read, a field is missing that is filtered by, or there are too
            few.
    """
    if spec.streaming:
        with _readable(spec):
            found = list(islice(_stream(spec), spec.start, spec.start + (spec.count or 0)))
        if len(found) < (spec.count or 0):
            raise FitnessError(
                f"{spec.name}: count {spec.count} from start {spec.start} asked for, but "
                f"{len(found)} came"
            )
        return found
    records, where = _open(spec)
    order = [i for i in range(len(records)) if _is_kept(records[i], spec, where(i))]
    if spec.shuffle_seed is not None:
        random.Random(spec.shuffle_seed).shuffle(order)
    wanted = (
        order[spec.start :] if spec.count is None else order[spec.start : spec.start + spec.count]
    )
    if not order:
        raise FitnessError(
            f"{spec.name}: "
            + (f"'filter' keeps none of {len(records)} records" if records else "no records in it")
        )
    if not wanted or len(wanted) < (spec.count or 0):
        asked = (
            f"count {spec.count} from start {spec.start}" if spec.count else f"start {spec.start}"
        )
        raise FitnessError(
            f"{spec.name}: {asked} asked for, but there are only {len(order)} records; ask for "
            "fewer, or give more"
        )
    return [(where(i), records[i]) for i in wanted]


def _is_kept(record: Any, spec: DataSpec, where: str) -> bool:
    for field, wanted in (spec.filter or {}).items():
        if not isinstance(record, Mapping) or field not in record:
            raise FitnessError(f"{where}: no field {field!r}, which 'filter' names")
        if record[field] not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def _open(spec: DataSpec) -> tuple[Sequence[Any], Callable[[int], str]]:
    """Return all records, and what to call each of them in a complaint."""
    if spec.jsonl is not None:
        numbered = read_jsonl(spec.jsonl)
        return [record for _, record in numbered], lambda i: f"{spec.jsonl}:{numbered[i][0]}"
    if spec.function is not None:
        return list(spec.function()), lambda i: f"function[{i}]"
    return _load(spec), lambda i: f"{spec.name}[{i}]"


def _stream(spec: DataSpec) -> Iterator[tuple[str, Any]]:
    """The records of a stream that the filter keeps; shuffled within a window that moves along
    it."""
    data = _load(spec)
    if spec.shuffle_seed is not None:
        data = data.shuffle(seed=spec.shuffle_seed, buffer_size=SHUFFLED)
    for number, record in enumerate(data):
        if _is_kept(record, spec, f"{spec.name}[{number}]"):
            yield f"{spec.name}[{number}]", record


def read_jsonl(file: str) -> list[tuple[int, Record]]:
    """The records of a file with their line numbers; blank lines are skipped. Raises
    `FitnessError`."""
    records = []
    if os.path.exists(file) and not os.path.isfile(file) and not os.path.isdir(file):
        raise FitnessError(f"{file}: a pipe or a device, and no file; save the records in a file")
    try:
        with Path(file).open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    records.append((number, _read_line(line, f"{file}:{number}")))
    except (OSError, ValueError) as cause:  # a name with NUL, or text in another encoding
        hint = "; save it as UTF-8" if isinstance(cause, UnicodeDecodeError) else ""
        hint = looked_in(file) if isinstance(cause, FileNotFoundError) else hint
        raise FitnessError(
            f"{file}: cannot be read: {getattr(cause, 'strerror', None) or cause}{hint}"
        ) from cause
    return records


def _read_line(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as cause:
        raise FitnessError(
            f"{where}: not valid JSON: {getattr(cause, 'msg', cause)}; {_LINES}"
        ) from cause
    if not isinstance(record, dict):
        raise FitnessError(
            f"{where}: expected an object of fields, found {type(record).__name__}; {_LINES}"
        )
    return record


@contextmanager
def _readable(spec: DataSpec) -> Iterator[None]:
    """Name the data in whatever a reader of the datasets library raises."""
    try:
        yield
    except FitnessError:
        raise
    except Exception as cause:  # each format has errors of its own, such as tarfile's
        raise FitnessError(f"{spec.name}: cannot be loaded: {one_line(cause)}") from cause


def _load(spec: DataSpec) -> Any:
    """A data set or a stream of the datasets library, with the fields that are read."""
    name = spec.dataset
    if name and (is_folder(name) or os.path.isfile(name)) and not os.path.isdir(name):
        raise FitnessError(
            f"{name}: no folder; give a folder of data or a data set's id, or name files by "
            "`data_files:`"
        )
    datasets = optional("datasets", "eval", f"{spec.name}: reading it", FitnessError)
    kind, options = (spec.dataset, {}) if spec.dataset is not None else FORMATS[spec.suffix]
    if spec.columns is not None:
        options = {**options, "names": spec.columns, "header": None}
    with _readable(spec):
        data = datasets.load_dataset(
            str(kind),
            spec.config,
            data_files=spec.data_files,
            split=spec.split or "train",
            revision=spec.revision,
            streaming=spec.streaming,
            **options,
        )
    columns = data.column_names
    if columns is not None and (
        missing := [field for field in spec.fields if field not in columns]
    ):
        raise FitnessError(
            f"{spec.name}: no field {missing[0]!r}; its fields are {', '.join(columns)}"
        )
    if spec.image_field is not None and isinstance(
        (data.features or {}).get(spec.image_field), datasets.Image
    ):
        data = data.cast_column(
            spec.image_field, datasets.Image(decode=False)
        )  # decoded here, within limits
    return data.select_columns(spec.fields) if columns is not None else data
