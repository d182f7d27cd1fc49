"""Parts that the commands share: the program, its options, one-line errors."""

from __future__ import annotations

import errno
import json
import logging
import os
import sqlite3
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from ..errors import MAX_MESSAGE, EvoMergeError, MachineError, is_of_machine, one_line
from ..lines import callable_here, say
from .stopping import Stopped, same_command, stoppable


class _Plain:
    """Help that shows no type for a switch, and commands as they are called here."""

    help: str | None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.help = callable_here(self.help or "")
        super().format_help(ctx, formatter)  # type: ignore[misc]

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class Command(_Plain, TyperCommand):
    """A command of the program."""


class Program(_Plain, TyperGroup):
    """The program."""


app = typer.Typer(
    name="hf-evomerge",
    cls=Program,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
_panels: list[dict[str, Any]] = [
    {"cls": Command, "rich_help_panel": name} for name in ("Start", "Search", "Models", "Share")
]
START, SEARCH, MODELS, SHARE = _panels

_IN_THE_WAY = (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LOGGER = logging.getLogger("hf_evomerge")
ends_with_command = (
    False  # whether this process is the program, and not another that calls one of its commands
)
Model = Annotated[
    str,
    typer.Argument(
        help="A model's folder, a study, or a repository on the Hub.", show_default=False
    ),
]
Study = Annotated[Path, typer.Argument(help="The study: a search's folder.", show_default=False)]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=1024,
        help="Processes that evaluate at the same time; any number gives the same trials. By "
        "default as many as cores and "
        "memory take, one beside a GPU. 0: evaluate in this process, without limits.",
        show_default=False,
    ),
]
Ray = Annotated[
    bool,
    typer.Option(
        "--ray",
        help="Evaluate on every device of a Ray cluster: the one that RAY_ADDRESS names, or that "
        "runs here, or a new one. The trials are the same.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Out = Annotated[Path, typer.Option("--out", "-o", file_okay=False, help="The folder to write.")]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]
Split = Annotated[
    str | None,
    typer.Option(
        help="The split of its data: search, validation or test. Default: the last that there is.",
        show_default=False,
    ),
]
RepoId = Annotated[
    str, typer.Argument(help="The repository on the Hub, user/name.", show_default=False)
]
Private = Annotated[bool, typer.Option("--private", help="Make a new repository private.")]
WithSpace = Annotated[
    bool,
    typer.Option("--space", help="Also make a Gradio Space of the same name that shows the model."),
]
License = Annotated[
    str | None,
    typer.Option(
        "--license",
        help="A license identifier of the Hub, in place of the one that follows from the parents.",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the models (cannot be set in a file).",
    ),
]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hf-evomerge {__version__}")
        raise typer.Exit


class _Lines(logging.Handler):
    """Prints what the package logs as lines on standard error: ``note: ...`` and ``warning:
    ...``."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = "note" if record.levelno < logging.WARNING else "warning"
        say(f"{kind}: {record.getMessage()}", err=True)


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and stop.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Evolve a merge of existing language models, and load the result with from_pretrained.

    **Examples**

    - `hf-evomerge demo`

    - `hf-evomerge search search.yaml --out my-search`
    """
    if not any(isinstance(handler, _Lines) for handler in LOGGER.handlers):
        LOGGER.addHandler(_Lines())
        LOGGER.setLevel(logging.INFO)


@contextmanager
def one_line_errors(*, again: bool = False) -> Iterator[None]:
    """A user's error, or a signal, ends the program with one line and its status.

    Args:
        again: Whether the same command goes on where it was stopped; the line then says so.
    """
    line = f"interrupted; go on with `{same_command()}`" if again else "interrupted"
    try:
        with stoppable(line):
            yield
            sys.stdout.flush()
    except BrokenPipeError:
        raise  # typer ends quietly: who reads, such as `head`, has read enough
    except Exception as error:  # not only ours: a folder that cannot be written, a full disk
        if not isinstance(error, EvoMergeError | OSError | sqlite3.Error) and not is_of_machine(
            error
        ):
            raise
        hint = ""
        if isinstance(error, _IN_THE_WAY):
            hint = "; choose another place, or see who may write there"
        elif isinstance(error, MachineError):
            hint = (
                "; free memory, threads or room, or use fewer workers, and run the same command "
                "again"
            )
        elif isinstance(error, OSError) and error.errno in _NO_ROOM:
            hint = (
                "; make room on the disk (or raise the limit on the size of files), and run the "
                "same command again"
            )
        say(f"error: {one_line(error, MAX_MESSAGE)}{hint}", err=True, fg="red")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as interrupt:
        say(line, err=True)
        raise typer.Exit(interrupt.status if isinstance(interrupt, Stopped) else 130) from interrupt


def as_object(data: Mapping[str, Any]) -> str:
    """Write what a command has done as the object of ``--json``."""
    return json.dumps(data, indent=2, ensure_ascii=False)


def reading(what: str | Path) -> None:
    """Say at once, to whoever waits at a terminal, what a command reads that may take minutes."""
    if sys.stderr.isatty():
        say(f"reading {what} ...", err=True, dim=True)


def quiet(*, bars: bool = False) -> None:
    """Keep the libraries' own notes off the terminal, and their bars out of the live table."""
    if not bars:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # an attempt that is made again is no news
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it looks for kernels on its own
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def without_torch() -> None:
    """Hide torch from transformers, which then starts in a third of the time, for a command that
    needs configs alone.

    Nothing in this process can import torch afterwards, so that it is done only where the process
    ends with the command.
    """
    if ends_with_command and not {"torch", "transformers"} & set(sys.modules):
        sys.modules["torch"] = None  # type: ignore[assignment]  # how the import system is told that there is no such module
