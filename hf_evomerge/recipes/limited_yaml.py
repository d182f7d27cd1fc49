"""YAML that may be a stranger's: how long, how deep and how many-branched it is is limited while it is read; tags are refused.

This file travels to the Space, and imports nothing of the package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from pathlib import Path
from reprlib import repr as short
from typing import Any, NoReturn

import yaml

MAX_BYTES = 1 << 20  # of a file; a path of the most hops that there may be takes a sixth of it
MAX_NODES = 30_000  # keys, values and lists, what an alias stands for counted each time
MAX_DEPTH = 32
TOO_LONG = f"longer than {MAX_BYTES >> 20} MiB; nothing that is read here is"


class LimitedLoader(yaml.SafeLoader):
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
            self._refuse(event, f"the tag {short(event.tag)}; write the value alone")
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
        """A value; text is what every file and terminal takes."""
        value = super().construct_scalar(node)
        if isinstance(value, str) and not value.isascii() and re.search("[\ud800-\udfff]", value):
            what = "half of a surrogate pair, which no file or terminal takes"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping in which no key stands twice."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag != "tag:yaml.org,2002:merge":
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, Hashable):  # of others YAML itself complains
                    if key in seen:
                        what = f"the key {short(key)} is given twice"
                        raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
                    seen.add(key)
        return super().construct_mapping(node, deep)

    def _refuse(self, event: Any, why: str) -> NoReturn:
        raise yaml.composer.ComposerError(None, None, why, event.start_mark)


NUMBERS = {
    "tag:yaml.org,2002:int": (re.compile(r"^[-+]?(?:0|[1-9]\d*)$", re.ASCII), list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        re.compile(
            r"^(?:[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", re.ASCII
        ),
        list("-+0123456789."),
    ),
}
"""What is read as a number, and the characters that one begins with."""
LimitedLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_pattern, _firsts) in NUMBERS.items():
    LimitedLoader.add_implicit_resolver(_tag, _pattern, _firsts)


def load_limited(text: str) -> Any:
    """The plain data that a YAML text holds.

    Raises:
        ValueError: It is too long, or holds a date without such a day, a huge number.
        yaml.YAMLError: It is no YAML, or goes beyond the other limits.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(TOO_LONG)
    return yaml.load(text, Loader=LimitedLoader)


def read_limited(file: str | os.PathLike[str]) -> str:
    """The text of a file, and one character too many where it is longer than is read here; raises `OSError`, `ValueError`."""
    with Path(file).open(encoding="utf-8") as stream:
        return stream.read(MAX_BYTES + 1)
