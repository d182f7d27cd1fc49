"""Where a task's examples come from: JSON lines, a data set of the Hub, or a Python function.

Knows how a record becomes a prompt and an answer. Knows nothing of tokens: those are in ``encoding.py``.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field, field_validator, model_validator

from ..errors import FitnessError
from ..recipes.strict_yaml import StrictModel

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One problem.

    Attributes:
        prompt: The text that the model is given, with the data's template filled in.
        answer: The text that counts as right.
        id: Where it came from; named in every complaint about it.
        chat: Whether the prompt is one message of a user, to be wrapped in the tokenizer's chat template.
        system: The system message of such a chat.
    """

    prompt: str
    answer: str
    id: str = ""
    chat: bool = False
    system: str | None = None


class DataSpec(StrictModel):
    """Which records to read and how to make examples of them.

    Attributes:
        jsonl: A file with one JSON object per line. A relative name starts at the current directory.
        dataset: A data set's repository id on the Hub, or a folder with JSON, CSV or Parquet files.
        config: The data set's configuration, where it has several.
        split: The data set's split; ``train`` where absent.
        revision: The data set's branch, tag or commit; a commit pins the data.
        function: A Python function that returns records. Python only: a YAML file cannot name code.
        prompt_field: The field that holds the prompt; not read where there is a template.
        answer_field: The field that holds the answer.
        id_field: The field that names the example; its place in the data where absent.
        template: The prompt's text with ``{field}`` wherever a field of the record goes, ``{{`` and ``}}`` for braces.
        chat: Wrap the prompt in the tokenizer's chat template, as one message of a user.
        system: The system message of the chat.
        start: How many records to skip, after shuffling.
        count: How many records to take; all that are left where absent.
        shuffle_seed: Shuffle all records with this seed before ``start`` and ``count`` apply: slices of one seed are disjoint.
    """

    jsonl: str | None = None
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    function: Callable[[], Iterable[Record]] | None = Field(default=None, exclude=True, repr=False)
    prompt_field: str = "prompt"
    answer_field: str = "answer"
    id_field: str | None = None
    template: str | None = None
    chat: bool = False
    system: str | None = None
    start: int = Field(default=0, ge=0)
    count: int | None = Field(default=None, ge=1)
    shuffle_seed: int | None = None

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: str | None) -> str | None:
        if template is not None and not any(field for _, field in parse_template(template)):
            raise ValueError("no {field} in it, so every prompt would be the same")
        return template

    @model_validator(mode="after")
    def _check_source(self) -> DataSpec:
        given = [name for name in ("jsonl", "dataset", "function") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of 'jsonl' and 'dataset', found {' and '.join(given) or 'neither'}")
        if self.dataset is None and (self.config or self.revision or self.split):
            raise ValueError(f"'config', 'split' and 'revision' belong to 'dataset'; the data comes from {given[0]!r}")
        if self.system is not None and not self.chat:
            raise ValueError("'system' needs 'chat: true'")
        return self

    @property
    def fields(self) -> list[str]:
        """The fields that are read from every record."""
        prompt = (
            [self.prompt_field] if self.template is None else [field for _, field in parse_template(self.template) if field]
        )
        return list(dict.fromkeys([*prompt, self.answer_field, *([self.id_field] if self.id_field else [])]))


def parse_template(template: str) -> list[tuple[str, str | None]]:
    """Split a template into pairs of (literal text, field or None).

    Only plain ``{field}`` is a template: attributes, indices, conversions and format specifications would let a data file's
    author reach into Python objects, so they raise ValueError.
    """
    parts: list[tuple[str, str | None]] = []
    for literal, field, spec, conversion in string.Formatter().parse(template):
        if field is not None and (not field.strip() or set(field) & set(".[]{}()") or spec or conversion):
            shown = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise ValueError(f"only plain {{field}} can be replaced, found {{{shown}}}; write {{{{ and }}}} for braces")
        parts.append((literal, field))
    return parts


def load_examples(spec: DataSpec) -> list[Example]:
    """Read the examples that a specification asks for, always in the same order.

    Args:
        spec: Where the records are, which of them to take, and what makes the prompt and the answer.

    Raises:
        FitnessError: The data cannot be read, a record lacks a field or is no record, or there are too few records.

    Example:
        >>> len(load_examples(DataSpec(jsonl="problems.jsonl", count=3)))
        3
    """
    records, where = _open(spec)
    order = list(range(len(records)))
    if spec.shuffle_seed is not None:
        random.Random(spec.shuffle_seed).shuffle(order)
    wanted = order[spec.start :] if spec.count is None else order[spec.start : spec.start + spec.count]
    name = spec.jsonl or spec.dataset or "function"
    if not order:
        raise FitnessError(f"{name}: no records in it")
    if not wanted or len(wanted) < (spec.count or 0):
        asked = f"count {spec.count} from start {spec.start}" if spec.count else f"start {spec.start}"
        raise FitnessError(f"{name}: {asked} asked for, but there are only {len(order)} records")
    return [_example(records[i], spec, where(i)) for i in wanted]


def check_disjoint(
    search: Sequence[Example],
    validation: Sequence[Example] = (),
    test: Sequence[Example] = (),
    retained: Mapping[str, Sequence[Example]] = MappingProxyType({}),
) -> None:
    """Refuse splits that share a prompt: a score on problems that the search has seen says nothing.

    Retained data, by name, may overlap with the test split and with each other, but not with what the search looks at.

    Raises:
        FitnessError: Two splits share a prompt; the message names the first and says how many there are.
    """
    splits = {"search": search, "validation": validation, "test": test}
    seen: dict[str, tuple[str, str]] = {}
    shared = []
    for split, examples in splits.items():
        for example in examples:
            first_split, first_id = seen.setdefault(" ".join(example.prompt.split()), (split, example.id))
            if first_split != split:
                shared.append(f"{first_id} ({first_split}) and {example.id} ({split})")
    if shared:
        more = f", and {len(shared) - 1} more" if len(shared) > 1 else ""
        raise FitnessError(f"the splits overlap: {shared[0]} have the same prompt{more}; choose disjoint 'start' and 'count'")
    looked_at = {prompt: where for prompt, where in seen.items() if where[0] != "test"}
    for name, examples in retained.items():
        for example in examples:
            if (found := looked_at.get(" ".join(example.prompt.split()))) is not None:
                raise FitnessError(
                    f"retain.{name}: {example.id} is {found[1]} of the {found[0]} split, which the search looks at; what is "
                    "retained must be other examples"
                )


def _open(spec: DataSpec) -> tuple[Sequence[Any], Callable[[int], str]]:
    """All records, and what to call each of them in a complaint."""
    if spec.jsonl is not None:
        numbered = _read_jsonl(spec.jsonl)
        return [record for _, record in numbered], lambda i: f"{spec.jsonl}:{numbered[i][0]}"
    if spec.dataset is not None:
        return _read_dataset(spec), lambda i: f"{spec.dataset}[{i}]"
    assert spec.function is not None  # the specification has exactly one source
    return list(spec.function()), lambda i: f"function[{i}]"


def _read_jsonl(file: str) -> list[tuple[int, Record]]:
    """The records with their line numbers; blank lines are skipped."""
    records = []
    try:
        with Path(file).open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    records.append((number, _read_line(line, f"{file}:{number}")))
    except (OSError, UnicodeDecodeError) as cause:
        raise FitnessError(f"{file}: cannot be read: {cause}") from cause
    return records


def _read_line(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as cause:
        raise FitnessError(f"{where}: not valid JSON: {cause}") from cause
    if not isinstance(record, dict):
        raise FitnessError(f"{where}: expected an object of fields, found {type(record).__name__}")
    return record


def _read_dataset(spec: DataSpec) -> Sequence[Any]:
    try:
        import datasets
    except ImportError as cause:
        raise FitnessError(
            f"dataset {spec.dataset}: reading it needs the datasets library: pip install 'hf-evomerge[eval]'"
        ) from cause
    try:
        data = datasets.load_dataset(str(spec.dataset), spec.config, split=spec.split or "train", revision=spec.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as cause:
        raise FitnessError(f"dataset {spec.dataset}: cannot be loaded: {cause}") from cause
    if missing := [field for field in spec.fields if field not in data.column_names]:
        raise FitnessError(f"dataset {spec.dataset}: no field {missing[0]!r}; its fields are {', '.join(data.column_names)}")
    return data.select_columns(spec.fields)


def _example(record: Any, spec: DataSpec, where: str) -> Example:
    if not isinstance(record, Mapping):
        raise FitnessError(f"{where}: expected a mapping of fields, found {type(record).__name__}")
    if spec.template is None:
        prompt = _text(record, spec.prompt_field, where)
    else:
        parts = parse_template(spec.template)
        prompt = "".join(literal + (_text(record, field, where) if field else "") for literal, field in parts)
    answer = _text(record, spec.answer_field, where)
    if not answer.strip():
        raise FitnessError(f"{where}: the answer (field {spec.answer_field!r}) is empty")
    name = _text(record, spec.id_field, where) if spec.id_field else where
    return Example(prompt, answer, name, spec.chat, spec.system)


def _text(record: Record, field: str, where: str) -> str:
    """A field as text. Whole numbers that the file holds as floats are written without ``.0``."""
    if field not in record:
        raise FitnessError(f"{where}: no field {field!r}; its fields are {', '.join(map(str, record)) or 'none'}")
    value = record[field]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise FitnessError(f"{where}: field {field!r} is neither text nor a number (found {value!r:.80})")
    return str(value)
