"""Strict YAML: files whose every key is checked, and every complaint is one line that names the key.

The files may be a stranger's: how long, how deep and how many-branched they are is limited while they are read, and tags, which
could ask for objects of any kind, are refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import EvoMergeError, one_line, shown

MAX_BYTES = 1 << 20  # of a file; a path of the most hops that there may be takes a sixth of it
MAX_NODES = 30_000  # keys, values and lists, what an alias stands for counted each time
MAX_DEPTH = 32


class StrictModel(BaseModel):
    """A part of a YAML file: unknown keys are errors, values are finite numbers, objects do not change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Part = TypeVar("Part", bound=StrictModel)


class _Loader(yaml.SafeLoader):
    """YAML without base-60 integers, so that the hop ``1:3`` needs no quotes; without tags, and within the limits above.

    A key that is given twice is an error.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._count = self._depth = 0
        self._sizes: dict[str, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node, counted before anything is made of it."""
        event: Any = self.peek_event()
        is_alias = isinstance(event, yaml.AliasEvent)
        if not is_alias and event.tag not in (None, "!"):
            self._refuse(event, f"the tag {one_line(event.tag)!r}; write the value alone")
        if is_alias and event.anchor in self.anchors and event.anchor not in self._sizes:
            self._refuse(event, "an alias stands for what it is a part of")
        before = self._count
        self._depth += 1
        self._count += 1 + (self._sizes.get(event.anchor, 0) if is_alias else 0)
        if self._count > MAX_NODES or self._depth > MAX_DEPTH:
            self._refuse(event, f"more than {MAX_DEPTH} levels, or {MAX_NODES} values, what aliases stand for included")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not is_alias and event.anchor is not None:
            self._sizes[event.anchor] = self._count - before
        return node

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and not value.isascii() and re.search("[\ud800-\udfff]", value):
            what = "half of a surrogate pair, which no file or terminal takes"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return value

    def _refuse(self, event: Any, why: str) -> NoReturn:
        raise yaml.composer.ComposerError(None, None, why, event.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag != "tag:yaml.org,2002:merge":
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, Hashable):  # of others YAML itself complains
                    if key in seen:
                        what = f"the key {shown(key)} is given twice"
                        raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
                    seen.add(key)
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
    if len(text) > MAX_BYTES:
        raise error(f"longer than {MAX_BYTES >> 20} MiB; nothing that is read here is")
    try:
        data = yaml.load(text, Loader=_Loader)
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
        with Path(file).open(encoding="utf-8") as stream:
            return stream.read(MAX_BYTES + 1)
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{file}: cannot be read: {cause}") from cause


def validate(kind: type[Part], data: dict[str, Any], error: type[EvoMergeError]) -> Part:
    """Make one object from a mapping, turning pydantic's report into one line that names the keys."""
    try:
        return kind.model_validate(data)
    except ValidationError as cause:
        raise error("; ".join(dict.fromkeys(_complaint(item) for item in cause.errors()))) from cause


def _complaint(item: Any) -> str:
    # pydantic names the kinds of a union as if they were keys: Range, float, dict[str,float], function-after[...]
    kinds = ("Range", "bool", "float", "str")
    where = ".".join(str(key) for key in item["loc"] if key not in kinds and "[" not in str(key))
    what = item["msg"].removeprefix("Value error, ")
    found = "" if item["type"] in ("missing", "value_error") else f" (found {shown(item['input'])})"
    return f"{where}: {what}{found}" if where else f"{what}{found}"
