"""Strict YAML: files whose every key is checked, and every complaint is one line that names the key.

The files may be a stranger's, and are read within the limits of ``limited_yaml.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import EvoMergeError, nearest, one_line, shown
from .limited_yaml import MAX_BYTES, NUMBERS, TOO_LONG, load_limited, read_limited


class StrictModel(BaseModel):
    """A part of a YAML file: unknown keys are errors, values are finite numbers, objects do not change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Part = TypeVar("Part", bound=StrictModel)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either YAML 1.1 or `LimitedLoader` would not read as text."""


for _tag, (_pattern, _firsts) in NUMBERS.items():
    _Dumper.add_implicit_resolver(_tag, _pattern, _firsts)


def parse_yaml(kind: type[Part], text: str, error: type[EvoMergeError]) -> Part:
    """Read one object from YAML text, turning every complaint into one line of the given error."""
    return validate(kind, read_yaml(text, error), error)


def read_yaml(text: str, error: type[EvoMergeError]) -> dict[str, Any]:
    """The mapping that a YAML text holds, turning every complaint into one line of the given error."""
    if len(text) > MAX_BYTES:
        raise error(TOO_LONG)
    try:
        data = load_limited(text)
    except (yaml.YAMLError, ValueError, OverflowError) as cause:  # a date without such a day, a huge number
        raise error(f"not valid YAML: {one_line(cause)}") from cause
    if not isinstance(data, dict):
        raise error(f"expected a mapping of keys to values, found {type(data).__name__}")
    return data


def dump_yaml(part: StrictModel) -> str:
    """An object as YAML, without what is None; equal objects give equal text."""
    data = part.model_dump(mode="json", exclude_none=True)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def load_yaml(kind: type[Part], file: str | os.PathLike[str], error: type[EvoMergeError]) -> Part:
    """Read one object from a YAML file; the file's name is in every complaint."""
    text = read_text(file, error)
    try:
        return parse_yaml(kind, text, error)
    except error as cause:
        raise error(f"{file}: {cause}") from cause


def read_text(file: str | os.PathLike[str], error: type[EvoMergeError]) -> str:
    """The text of a YAML file, and one character too many where it is longer than is read here."""
    try:
        return read_limited(file)
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{file}: cannot be read: {cause}") from cause


def validate(kind: type[Part], data: dict[str, Any], error: type[EvoMergeError]) -> Part:
    """Make one object from a mapping, turning pydantic's report into one line that names the keys."""
    try:
        return kind.model_validate(data)
    except ValidationError as cause:
        raise error("; ".join(dict.fromkeys(_complaint(item, kind) for item in cause.errors()))) from cause


def _complaint(item: Any, kind: type[BaseModel]) -> str:
    # pydantic names the kinds of a union as if they were keys: Range, float, dict[str,float], function-after[...]
    kinds = ("Range", "bool", "float", "str")
    where = ".".join(str(key) for key in item["loc"] if key not in kinds and "[" not in str(key))
    what = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        what = f"no such key; {nearest(item['loc'][-1], _keys(kind, item['loc'][:-1]))}"
    found = "" if item["type"] in ("missing", "value_error") else f" (found {shown(item['input'])})"
    return f"{where}: {what}{found}" if where else f"{what}{found}"


def _keys(kind: type[BaseModel], where: Sequence[int | str]) -> set[str]:
    """The keys of the parts that may stand at a place of a file."""
    parts = [kind]
    for key in where:
        inside = [part.model_fields[key].annotation for part in parts if key in part.model_fields]
        if inside:  # else it numbers the entries of a list, or is pydantic's name of a kind
            parts = [part for annotation in inside for part in _parts(annotation)]
    return {name for part in parts for name in part.model_fields}


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    """The kinds of parts that a field may hold, alone, in a list, in a mapping or as one of several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _parts(inner)
