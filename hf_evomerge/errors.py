"""The errors this package raises: one kind per thing that can be wrong, so that callers can tell
them apart."""

import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from reprlib import Repr
from typing import Any

# characters: what a stranger's file brings into a message must not fill a screen, or a log
MAX_MESSAGE = 1500
_HIDDEN = (
    (re.compile(r"(https?://)[^\s/@]+@"), r"\1"),  # a password
    (re.compile(r"\?[\w.%~-]+=[^\s'\")\]>]*"), ""),  # what signs an address
    (
        re.compile(r"\bhf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,}"),
        "hf_...",
    ),  # a token; not a name such as hf_evomerge
    (re.compile(r"(?i)\bbearer\s+\S+"), "Bearer ..."),
    (
        re.compile(r":? cannot be read: (?:\[Errno 2\] )?No such file or directory(?:: '[^']*')?"),
        ": no such file",
    ),
    (
        re.compile(r":? cannot be read: (?:\[Errno 21\] )?Is a directory(?:: '[^']*')?"),
        ": a folder, and no file; name a file in it",
    ),
    (re.compile(r' in "<unicode string>"'), ""),
    (re.compile(r"For more information check: \S+ ?"), ""),  # no secret, and no news
)
_MACHINE = {
    errno.EAGAIN,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
}
_MACHINE_WORDS = re.compile(
    r"can't start new thread|can(?:'t| ?not) allocate memory|\(os error (?:11|12|23|24|28)\)", re.I
)
_NUMBERS = re.compile(r"\[Errno -?\d+\] ")  # says nothing to people; the words after it do
_REPR = Repr()
_REPR.maxlevel = 2
_REPR.maxlist = 4
_REPR.maxdict = 4
_REPR.maxstring = _REPR.maxother = 80


def optional(package: str, extra: str, what: str, kind: type[Exception]) -> Any:
    """Import a package of an extra; raise an error of this kind, which says what needs it, where it
    is not installed."""
    try:
        return import_module(package)
    except ImportError as cause:
        raise kind(
            f"{what} needs {package.partition('.')[0]}: pip install 'hf-evomerge[{extra}]'"
        ) from cause


def without_secrets(text: str) -> str:
    """A text from outside without tokens, passwords and what signs an address."""
    for pattern, instead in _HIDDEN:
        text = pattern.sub(instead, text)
    return text


def one_line(text: object, limit: int = 300) -> str:
    """A text, or what an error says, on one line that every terminal and file takes, without
    secrets.

    Args:
        text: The text or the error. Of an error without words it is the name of its kind.
        limit: Characters. The middle of a longer text is left out: its beginning says what is
            wrong, its end what to do.
    """
    try:
        words = " ".join(str(text).split()) or type(text).__name__
    except Exception:  # somebody else's error that cannot even say what it is
        words = type(text).__name__
    words = words.encode(
        "utf-8", "backslashreplace"
    ).decode()  # half of a surrogate pair cannot be written
    words = _NUMBERS.sub("", words)
    words = without_secrets("".join(c if c.isprintable() else "?" for c in words)).strip()
    room = limit - 5
    return words if len(words) <= limit else f"{words[: room * 2 // 3]} ... {words[-(room // 3) :]}"


def nearest(word: object, known: Iterable[str]) -> str:
    """Suggest the known word that was probably meant, or list all that there are."""
    names = sorted(known)
    close = get_close_matches(str(word), names, 1)
    if close:
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(names)}" if names else "there are none"


def shown(value: object) -> str:
    """A value that was found, for a message: cut short, also where it is huge or contains
    itself."""
    try:
        return _REPR.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return f"a {type(value).__name__}"


class EvoMergeError(Exception):
    """Base of every error that a user can cause. The message says what, where, what was there and
    what to do.

    Whatever goes into a message, it is one line of at most `MAX_MESSAGE` characters.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message, MAX_MESSAGE) if message else "")


class MachineError(EvoMergeError):
    """The machine has no memory, threads, files or room left, which says nothing of the model that
    it was at."""


def is_of_machine(error: BaseException | None) -> bool:
    """Tell whether an error, or its cause, says that the machine (not its GPU) is out of memory,
    threads, files or room."""
    while error is not None:
        if isinstance(error, MemoryError | MachineError) or (
            isinstance(error, OSError) and error.errno in _MACHINE
        ):
            return True
        if not isinstance(error, EvoMergeError) and _MACHINE_WORDS.search(
            one_line(error)
        ):  # of torch, safetensors, threading
            return True
        error = error.__cause__
    return False


@contextmanager
def told(
    kind: type[Exception],
    of: type[Exception] | tuple[type[Exception], ...],
    before: str = "",
    after: str = "",
) -> Iterator[None]:
    """Turn errors of some classes into one of a kind: what they say in one line, between two
    texts.

    Args:
        kind: The class to raise.
        of: The classes to catch.
        before, after: What stands before and behind the words of the caught error.
    """
    try:
        yield
    except of as cause:
        said = str(cause) if isinstance(cause, EvoMergeError) else one_line(cause)
        raise kind(f"{before}{said}{after}") from cause


class PathError(EvoMergeError):
    """A layer path (or its text) cannot be read, or names a layer that does not exist."""


class RecipeError(EvoMergeError):
    """A recipe is incomplete, contradicts itself, or names an unknown method or parameter."""


class SourceError(EvoMergeError):
    """A checkpoint cannot be opened, or two checkpoints cannot be merged with each other."""


class FitnessError(EvoMergeError):
    """A fitness task is unknown or misconfigured, or its data cannot be read."""


class SearchError(EvoMergeError):
    """A search file or a study cannot be used as asked."""


class HubError(EvoMergeError):
    """A model cannot be published or fetched: the Hub, the licenses or the folder do not allow
    it."""
