"""Lines of text for people: broken between words in a terminal, and above a table that is drawn
there live."""

import re
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

# control characters but tab and line feed, and marks that turn the direction of a line
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_COMMAND = re.compile(r"(?<![\w/'\"-])hf-evomerge(?= [a-z-])")
_PIP = re.compile(r"\bpip install(?= ['\"]hf-evomerge\[)")


def program() -> str:
    """Name that this program was called by: ``hf evomerge`` where it is an extension of ``hf``,
    which has an environment of its own; else ``hf-evomerge``."""
    place = Path(sys.prefix).parts
    return "hf evomerge" if place[-4:-1] == ("hf", "extensions", "hf-evomerge") else "hf-evomerge"


def is_agent() -> bool:
    """Tell whether a program of others reads what this one prints, as `huggingface_hub` tells."""
    from huggingface_hub import utils

    known = getattr(utils, "is_agent", None)  # of a version from 2 on
    return known is not None and bool(known())


def callable_here(text: str) -> str:
    """Replace the commands in a text by those that reach this environment."""
    if program() == "hf-evomerge":
        return text
    pip = f"{sys.executable} -m pip install"
    if find_spec("pip") is None:
        pip = f"uv pip install --python {sys.executable}"
    return _PIP.sub(pip, _COMMAND.sub(program(), text))


def visible(text: str) -> str:
    """Replace control characters of a text, with which names and data could command a terminal;
    commands in it are `callable_here`."""
    return _CONTROLS.sub("?", callable_here(text))


def echo(text: object) -> None:
    """Print a text as it is laid out, but for control characters."""
    typer.echo(visible(str(text)))


def say(text: str, *, err: bool = False, **style: Any) -> None:
    """Print a text; in a terminal, in a style of `typer.style`, and with long lines wrapped with a
    hanging indent."""
    text = visible(text)
    if (sys.stderr if err else sys.stdout).isatty():
        from rich.cells import cell_len
        from rich.console import Console

        width = min(100, Console(stderr=err).width)
        wrap = textwrap.TextWrapper(
            width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        lines = []
        for line in text.split("\n"):
            lines.append("".join(f"{each}\0" if cell_len(each) > 1 else each for each in line))
        text = "\n".join(line if len(line) <= width else wrap.fill(line) for line in lines).replace(
            "\0", ""
        )
        text = typer.style(text, **style) if style else text
    print(
        text, file=sys.stderr if err else sys.stdout
    )  # not `typer.echo`, which writes into a live table: it keeps streams
