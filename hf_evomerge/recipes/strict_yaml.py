"""Strict YAML: files whose every key is checked, and every complaint is one line that names the
key.

The files may be a stranger's, and are read within the limits of ``limited_yaml.py``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import EvoMergeError, nearest, one_line, shown, told
from .limited_yaml import MAX_BYTES, NUMBERS, TOO_LONG, load_limited, read_limited
from .names import beside


class StrictModel(BaseModel):
    """A part of a YAML file: unknown keys are errors, values are finite numbers, objects do not
    change once made.

    The docstring under a field is what schema, editors and reference say of the key.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Part = TypeVar("Part", bound=StrictModel)

Count = Annotated[int, Field(strict=True, ge=1, le=1 << 20)]
"""How many: work or memory may grow with it."""
Whole = Annotated[int, Field(strict=True, ge=-(1 << 63), lt=1 << 63)]
"""A value that is only compared or handed on."""
Index = Annotated[Whole, Field(ge=0)]
"""The number of a source or a record, or a seed: nothing grows with it."""
Number = Annotated[float, Field(strict=True, ge=-1e6, le=1e6)]
"""A number that is calculated with, such as a weight."""
Positive = Annotated[float, Field(strict=True, gt=0, le=1e6)]
"""A temperature, a step, a time."""
_ONE_LINE = (1 << 31) - 1  # columns: the most that libyaml takes


# A search writes a recipe of some thousand numbers at every step; libyaml takes a third of the time
# of the same dumper in Python, and writes the same text but for emoji.
class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes whatever either YAML 1.1 or `LimitedLoader` would not read as text; writes lists of
    numbers in one line."""


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    in_line = bool(data) and all(isinstance(item, (int, float)) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=in_line)


_Dumper.add_representer(list, _represent_list)
for _tag, (_pattern, _firsts) in NUMBERS.items():
    _Dumper.add_implicit_resolver(_tag, _pattern, _firsts)


def parse_yaml(kind: type[Part], text: str, error: type[EvoMergeError]) -> Part:
    """Read one object from YAML text, turning every complaint into one line of the given error."""
    return validate(kind, read_yaml(text, error), error)


def read_yaml(text: str, error: type[EvoMergeError]) -> dict[str, Any]:
    """The mapping that a YAML text holds, turning every complaint into one line of the given
    error."""
    if len(text) > MAX_BYTES:
        raise error(TOO_LONG)
    try:
        data = load_limited(text)
    except (yaml.YAMLError, ValueError) as cause:  # a number of too many digits
        many = "several documents in one file; split it at its '---'"
        colon = (
            "; put a text with a colon in it in quotes"
            if "mapping values are not allowed" in str(cause)
            else ""
        )
        mark, context, problem = (
            getattr(cause, name, None) for name in ("problem_mark", "context", "problem")
        )
        said: object = cause
        if mark is not None:
            context = f"{context}: " if context else ""
            said = f"line {mark.line + 1}: {context}{problem}"
        wrong = f"not valid YAML: {one_line(said)}{colon}"
        if text.lstrip().startswith("{"):
            wrong += "; JSON lines hold data, which a search file names"
        raise error(many if "single document" in str(cause) else wrong) from cause
    if data is None:
        raise error("the file is empty")
    if not isinstance(data, dict):
        raise error(f"expected a mapping of keys to values, found {type(data).__name__}")
    return data


def dump_yaml(part: StrictModel) -> str:
    """An object as YAML, without what is None; equal objects give equal text."""
    return to_yaml(part.model_dump(mode="json", exclude_none=True))


def to_yaml(data: Mapping[str, Any], width: int = 120, **style: Any) -> str:
    """Plain data as YAML, in its order."""
    return yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width, **style
    )


def in_line(data: StrictModel | Mapping[str, Any]) -> str:
    """An object, or plain data, as YAML in braces on one line."""
    plain = (
        data.model_dump(mode="json", exclude_none=True) if isinstance(data, StrictModel) else data
    )
    return to_yaml(plain, width=_ONE_LINE, default_flow_style=True).strip()


def load_yaml(
    kind: type[Part], file: str | Path, error: type[EvoMergeError], *, named: bool = False
) -> Part:
    """Read one object from a YAML file; the file's name is in every complaint.

    With `named`, the names of folders and files in it are looked for `beside` it.
    """
    text = read_text(file, error)
    with told(error, error, f"{file}: "):
        data = read_yaml(text, error)
        return validate(kind, beside(data, os.path.dirname(file)) if named else data, error)


def read_text(file: str | Path, error: type[EvoMergeError]) -> str:
    """The text of a YAML file, and one character too many where it is longer than is read here."""
    with told(error, (OSError, UnicodeDecodeError), f"{file}: cannot be read: "):
        return read_limited(file)


def validate(kind: type[Part], data: dict[str, Any], error: type[EvoMergeError]) -> Part:
    """Make one object from a mapping, turning pydantic's report into one line that names the
    keys."""
    try:
        return kind.model_validate(data)
    except ValidationError as cause:
        raise error("; ".join(_complaints(cause.errors(), kind))) from cause


def _complaints(items: Sequence[Any], kind: type[BaseModel]) -> list[str]:
    """Say what is wrong with each key, one text each; where a value may be of several kinds, for
    the kind that it is of."""
    found: dict[str, list[Any]] = {}
    for item in items:
        found.setdefault(_where(item["loc"]), []).append(item)
    lines = []
    for where, here in found.items():
        here = [
            item for item in here if item["loc"][-1:] == ("[key]",)
        ] or here  # of an unknown key its value says nothing
        inside = any(place.startswith(f"{where}.") for place in found)
        exact = [item for item in here if not _of_another_kind(item)]
        if inside and all(
            item["type"] == "too_short" for item in exact
        ):  # what is wrong in it does not count
            continue  # it is a mapping or a list, as it may be, and something is wrong in it
        words = _either(list(dict.fromkeys(_words(item, kind) for item in exact or here)))
        silent = any(
            item["type"] in ("missing", "value_error", "extra_forbidden") for item in exact
        )
        text = words if silent else f"{words} (found {shown(here[0]['input'])}){_meant(here)}"
        lines.append(f"{where}: {text}" if where else text)
    return lines


def _meant(items: Sequence[Any]) -> str:
    """The value that was probably meant, where a few texts are allowed and the given one is
    close."""
    choices = [item for item in items if item["type"] == "literal_error"]
    known = [name for item in choices for name in re.findall("'(.*?)'", item["ctx"]["expected"])]
    given = items[0]["input"]
    hint = nearest(given, known) if isinstance(given, str) and len(given) < 100 else ""
    return f"; {hint}" if hint.startswith("did you mean") else ""


def _where(place: Sequence[int | str]) -> str:
    """The key of a complaint. pydantic names the kinds of a union as if they were keys: Range,
    float, function-after[...]."""
    kinds = {
        "bool",
        "float",
        "str",
        "int",
        "constrained-int",
        "constrained-float",
        *_class_names(StrictModel),
    }
    return ".".join(
        str(key) for key in place if key not in kinds and not re.search(r"[\[{]", str(key))
    )


def _class_names(kind: type[BaseModel]) -> Iterator[str]:
    for each in kind.__subclasses__():
        yield each.__name__
        yield from _class_names(each)


def _of_another_kind(item: Any) -> bool:
    """Tell whether a complaint only says that the value is not of a kind that it may be of."""
    return item["type"].endswith(("_type", "_parsing")) or item["type"] in (
        "literal_error",
        "int_from_float",
    )


def _either(words: list[str]) -> str:
    """Several complaints as one: must be this, that or the other."""
    begin = "must be " if all(each.startswith("must be ") for each in words) else ""
    *others, last = [each.removeprefix(begin) for each in words]
    return f"{begin}{', '.join(others)} or {last}" if others else f"{begin}{last}"


def _words(item: Any, kind: type[BaseModel]) -> str:
    """Say what is wrong, in words that begin after the key."""
    context = item.get("ctx") or {}
    type_ = item["type"]
    if type_ == "extra_forbidden":
        return f"no such key; {nearest(item['loc'][-1], _keys(kind, item['loc'][:-1]))}"
    if type_ in _WORDS:
        return _WORDS[type_].format(
            **{
                key: f"{bound:g}" if isinstance(bound, float) else bound
                for key, bound in context.items()
            }
        )
    return str(item["msg"].removeprefix("Value error, "))


_WORDS = {
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have {max_length} or fewer entries",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "string_type": "must be a text",
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(
        ("dict_type", "model_type", "model_attributes_type"), "must be a mapping of keys to values"
    ),
}
"""pydantic's kinds of complaints, in words that a user of a file knows."""


def _keys(kind: type[BaseModel], where: Sequence[int | str]) -> set[str]:
    """The keys of the parts that may stand at a place of a file."""
    parts = [kind]
    for key in where:
        inside = [part.model_fields[key].annotation for part in parts if key in part.model_fields]
        if inside:  # else it numbers the entries of a list, or is pydantic's name of a kind
            parts = [part for annotation in inside for part in _parts(annotation)]
        else:
            parts = [part for part in parts if part.__name__ == key] or parts
    return {name for part in parts for name in part.model_fields}


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    """The kinds of parts that a field may hold, alone, in a list, in a mapping or as one of
    several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _parts(inner)
