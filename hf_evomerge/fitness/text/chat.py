"""Renders chats by transformers' sandboxed templates; each template is first tried in a process of
its own.

A chat template is a program that came with somebody else's tokenizer. jinja keeps it from files and
objects, but not from looping, or from doubling a text forty times. The trial finds out, with a
limit on time and memory, before a model is used. The process runs this file, which imports nothing
of the package.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

CPU_SECONDS = 5  # of a trial; templates in use take milliseconds
WALL_SECONDS = 300.0  # of a trial, its process's start included, where processor time has no limit
MEMORY = 2 << 30  # bytes
MAX_TEMPLATE = 1 << 18  # characters; the longest in use have a tenth
MAX_TEXT = 1 << 22


class ChatError(Exception):
    """A template cannot be rendered; the message is one line."""


def render_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, open_ended: bool = True
) -> str:
    """Render messages as ``tokenizer.apply_chat_template`` does, as text that ends where an answer
    begins.

    Args:
        tokenizer: Tokenizer with a chat template.
        messages: Each with ``role`` and ``content``.
        open_ended: Whether an answer follows; otherwise the last message is one.

    Raises:
        ChatError: The template refuses the messages, is broken or too long, or takes too much time,
            memory or text.
    """
    try:
        template = tokenizer.get_chat_template()
        if len(template) > MAX_TEMPLATE:
            raise ChatError(f"has {len(template)} characters; at most {MAX_TEMPLATE} are read")
        arguments: dict[str, Any] = {
            "template": template,
            "messages": list(map(dict, messages)),
            "special": tokenizer.special_tokens_map,
            "open_ended": open_ended,
        }
        _try(template, json.dumps({**arguments, "seconds": CPU_SECONDS}, default=str))
        text = _render(**arguments)
    except ChatError:
        raise
    except Exception as cause:  # anything: it is somebody else's program that runs
        raise ChatError(_line(cause)) from cause
    if len(text) > MAX_TEXT:
        raise ChatError(f"writes more than {MAX_TEXT} characters")
    return text


def _render(
    template: str, messages: list[dict[str, Any]], special: Mapping[str, Any], open_ended: bool
) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts = render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=open_ended, **special
    )
    return str(texts[0][0])


_tried: set[str] = set()


# Two programs: the trial in a child process under limits of the operating system, then the
# rendering in this process, which is fast. A template that was tried once is taken to behave alike
# for other messages of the search. The limit on processor time begins after the imports, which take
# longer than a template may; the limit on wall time is a net for systems without the other.
def _try(template: str, request: str) -> None:
    """Render a template for the first time, in a process that is ended if it takes too much."""
    if template in _tried:
        return
    try:
        run = subprocess.run(
            [
                sys.executable,
                "-P",
                __file__,
            ],  # -P: the neighbours of this file are no modules there
            input=request,
            capture_output=True,
            encoding="utf-8",
            timeout=WALL_SECONDS,
            check=True,
        )
    except subprocess.SubprocessError:
        raise ChatError(f"takes more than {CPU_SECONDS} s or {MEMORY >> 30} GiB") from None
    if complaint := json.loads(run.stdout):
        raise ChatError(complaint)
    _tried.add(template)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}"[:1000].split())


def _limit(name: str, value: int) -> None:
    """Set a limit of the operating system, where it has any."""
    try:
        import resource
    except ImportError:  # not on Windows; there the time alone is limited
        return
    kind = getattr(resource, name)
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _render_request() -> None:
    """Render the request on standard input, and print what went wrong, as JSON."""
    import transformers.utils.chat_template_utils  # noqa: F401 - takes more time than a template may

    request = json.load(sys.stdin)
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_AS", MEMORY)
    _limit("RLIMIT_CPU", int(time.process_time()) + request.pop("seconds"))
    complaint = ""
    try:
        _render(**request)
    except MemoryError:
        complaint = f"takes more than {MEMORY >> 30} GiB"
    except Exception as error:  # anything: it is somebody else's program that runs
        complaint = _line(error)
    print(json.dumps(complaint))


if __name__ == "__main__":
    _render_request()
