"""Strict YAML: files whose every key is checked, and every complaint is one line that names the key."""

from __future__ import annotations

import os
import re
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import EvoMergeError

_FOUND = Repr()
_FOUND.maxlevel, _FOUND.maxlist, _FOUND.maxdict = 2, 4, 4
_FOUND.maxstring = _FOUND.maxother = 80


class StrictModel(BaseModel):
    """A part of a YAML file: unknown keys are errors, values are finite numbers, objects do not change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Part = TypeVar("Part", bound=StrictModel)


class _Loader(yaml.SafeLoader):
    """YAML without base-60 integers, so that the hop ``1:3`` needs no quotes; a key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either YAML 1.1 or `_Loader` would not read as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_INTEGER = re.compile(r"^[-+]?(?:0|[1-9]\d*)$", re.ASCII)
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", re.ASCII
)
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def parse_yaml(kind: type[Part], text: str, error: type[EvoMergeError]) -> Part:
    """Read one object from YAML text, turning every complaint into one line of the given error."""
    return validate(kind, read_yaml(text, error), error)


def read_yaml(text: str, error: type[EvoMergeError]) -> dict[str, Any]:
    """The mapping that a YAML text holds, turning every complaint into one line of the given error."""
    try:
        data = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as cause:  # ValueError: a date without such a day, a huge number
        raise error(f"not valid YAML: {' '.join(str(cause).split())}") from cause
    if not isinstance(data, dict):
        raise error(f"expected a mapping of keys to values, found {type(data).__name__}")
    return data


def dump_yaml(part: StrictModel) -> str:
    """An object as YAML, without what is None; equal objects give equal text."""
    data = part.model_dump(mode="json", exclude_none=True)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def load_yaml(kind: type[Part], file: str | os.PathLike[str], error: type[EvoMergeError]) -> Part:
    """Read one object from a YAML file; the file's name is in every complaint."""
    try:
        return parse_yaml(kind, Path(file).read_text(encoding="utf-8"), error)
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{file}: cannot be read: {cause}") from cause
    except error as cause:
        raise error(f"{file}: {cause}") from cause


def validate(kind: type[Part], data: dict[str, Any], error: type[EvoMergeError]) -> Part:
    """Make one object from a mapping, turning pydantic's report into one line that names the keys."""
    try:
        return kind.model_validate(data)
    except ValidationError as cause:
        raise error("; ".join(dict.fromkeys(_complaint(item) for item in cause.errors()))) from cause


def shown(value: Any) -> str:
    """A value of a file for a message: cut short, also where aliases make it huge or endless."""
    return _FOUND.repr(value)


def _complaint(item: Any) -> str:
    # pydantic names the kinds of a union as if they were keys: Range, float, dict[str,float], function-after[...]
    kinds = ("Range", "bool", "float", "str")
    where = ".".join(str(key) for key in item["loc"] if key not in kinds and "[" not in str(key))
    what = item["msg"].removeprefix("Value error, ")
    found = "" if item["type"] in ("missing", "value_error") else f" (found {shown(item['input'])})"
    return f"{where}: {what}{found}" if where else f"{what}{found}"
