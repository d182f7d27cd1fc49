"""Reads YAML that may be a stranger's: plain data of limited length, depth and size."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from pathlib import Path
from reprlib import repr as short
from typing import Any

import yaml

MAX_BYTES = 1 << 20  # of a file; a path of the most hops that there may be takes a sixth of it
MAX_NODES = 30_000  # keys, values and lists
MAX_DEPTH = 32
_SURROGATE = re.compile("[\ud800-\udfff]")  # in no file of UTF-8
TOO_LONG = f"longer than {MAX_BYTES >> 20} MiB; nothing that is read here is"


class LimitedLoader(yaml.SafeLoader):
    """YAML with 1.2's numbers, so that the hop ``1:3`` needs no quotes; no dates, and no key twice.

    An alias counts as all that it stands for: nine lines of aliases can hold a thousand million
    values (the "billion laughs").
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._count = 0
        self._depth = 0
        self._sizes: dict[yaml.Node | None, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node, counted before anything is made of it."""
        event: Any = self.peek_event()
        before = self._count
        self._count += 1
        self._depth += 1
        self._check(event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            self._count += self._sizes.get(node, MAX_NODES)  # none where it is inside of itself
            self._check(event)
        self._sizes[node] = self._count - before
        return node

    def _check(self, event: Any) -> None:
        why = ""
        if getattr(event, "tag", None) not in (None, "!"):
            why = f"the tag {short(event.tag)}, which is not read here; write the value alone"
        elif self._count > MAX_NODES or self._depth > MAX_DEPTH:
            why = f"more than {MAX_DEPTH} levels, or {MAX_NODES} values"
        elif _SURROGATE.search(getattr(event, "value", "")):
            why = "half a character, an escape from \\uD800 to \\uDFFF; write the whole one"
        if why:
            raise yaml.composer.ComposerError(None, None, why, event.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping in which no key stands twice."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):  # YAML itself refuses a list or a mapping as a key
                if key in seen:
                    what = f"the key {short(key)} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


NUMBERS = {
    "tag:yaml.org,2002:int": (re.compile(r"^[-+]?(?:0|[1-9]\d*)$", re.ASCII), list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        re.compile(
            r"^(?:[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
            re.ASCII,
        ),
        list("-+0123456789."),
    ),
}
"""What is read as a number, and the characters that one begins with."""
LimitedLoader.yaml_implicit_resolvers = {}  # of its own: the loaders share what they inherit
for _first, _resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items():
    LimitedLoader.yaml_implicit_resolvers[_first] = [
        (tag, pattern) for tag, pattern in _resolvers if tag.endswith((":bool", ":null"))
    ]
for _tag, (_pattern, _firsts) in NUMBERS.items():
    LimitedLoader.add_implicit_resolver(_tag, _pattern, _firsts)


def load_limited(text: str) -> Any:
    """The plain data that a YAML text holds.

    Raises:
        ValueError: It is too long, or has a number of too many digits.
        yaml.YAMLError: It is no YAML, or goes beyond the other limits.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(TOO_LONG)
    return yaml.load(text, Loader=LimitedLoader)


def read_limited(file: str | Path) -> str:
    """The text of a file, and one character too many if it is longer than is read here; raises
    `OSError`, `ValueError`."""
    if Path(file).is_fifo() and not os.fspath(file).startswith(
        "/dev/"
    ):  # what a shell makes of <(...)
        raise OSError("a pipe, and no file; reading it could wait for ever")
    with Path(file).open(encoding="utf-8") as stream:
        return stream.read(MAX_BYTES + 1)
