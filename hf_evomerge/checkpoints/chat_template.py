"""Chat templates: a warning where one cannot be read, before a model that cannot chat is built."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..errors import SourceError, one_line
from .headers import read_mapping

_LONGEST = 1 << 20  # characters; a longer text is no template
_MARKS = re.compile(
    r"\{%-?\s*(?:end)?generation\s*-?%\}"
)  # transformers' own tag, which jinja does not know


def template_warnings(folder: Path, template: str | None = None) -> list[str]:
    """Return a warning if the chat template of a model cannot be read: at most one line.

    Args:
        folder: Folder of the template, where no other is given.
        template: The template that takes its place.
    """
    from jinja2 import Environment, TemplateError

    where, text = ("chat_template", template) if template is not None else _template_of(folder)
    try:
        if text is not None and len(text) <= _LONGEST:
            Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
                _MARKS.sub("", text)
            )  # nothing is rendered
    except (TemplateError, RecursionError) as cause:
        return [
            (
                f"{where}: is no Jinja template, so the model cannot be asked in a chat: "
                f"{one_line(cause)}"
            )
        ]
    return []


def most_common_template(folders: Iterable[Path]) -> str | None:
    """The chat template that most models have, the first of them where several are as common; None
    where none has one."""
    found = Counter(text for _, text in map(_template_of, folders) if text)
    return max(found, key=found.__getitem__, default=None)


def _template_of(folder: Path) -> tuple[str, str | None]:
    """Find a model's chat template: where it is, and its text; None where it has none, or
    several."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return str(file), file.read_text(encoding="utf-8", errors="replace")
    settings = folder / "tokenizer_config.json"
    try:
        text = read_mapping(settings, str(settings)).get("chat_template")
    except SourceError:  # there is none, or whoever loads the tokenizer is told
        text = None
    return f"{settings}: chat_template", text if isinstance(text, str) else None
