"""Chat templates, rendered in a process of their own that is ended where one takes too long or too much memory.

A chat template is a program that came with somebody else's tokenizer. transformers keeps it from reaching files or objects, but
not from looping, or from doubling a text forty times. This file travels to the Space, and imports nothing of the package.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

CPU_SECONDS = 5  # of one chat; templates in use take milliseconds
WALL_SECONDS = 60.0  # of one chat, where a processor's time cannot be limited, or is not to be had
START_SECONDS = 300.0
MEMORY = 2 << 30  # bytes
MAX_TEMPLATE = 1 << 18  # characters; the longest in use have a tenth
MAX_TEXT = 1 << 22


class ChatError(Exception):
    """A chat template cannot be rendered; the message is one line."""


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """What ``tokenizer.apply_chat_template`` gives for these messages and the begin of the answer, as text, within limits.

    Args:
        tokenizer: One that has a chat template.
        messages: Each with ``role`` and ``content``.

    Raises:
        ChatError: The template refuses the messages, is broken or too long, or takes too much time, memory or text.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as cause:  # several templates, and none that is the default
        raise ChatError(" ".join(str(cause).split())) from cause
    if len(template) > MAX_TEMPLATE:
        raise ChatError(f"has {len(template)} characters; at most {MAX_TEMPLATE} are read")
    return _PROCESS.render(
        {
            "template": template,
            "messages": list(messages),
            "variables": dict(tokenizer.special_tokens_map),
            "seconds": CPU_SECONDS,
        }
    )


class _Process:
    """The process, from the first chat to the end of this one; ended and started anew where a chat goes beyond the limits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def render(self, request: dict[str, Any]) -> str:
        """Have one chat rendered."""
        with self._lock:
            if self._process is None or self._owner != os.getpid():  # a fork must not talk to its parent's process
                self._process, self._owner = self._start(), os.getpid()
            answer = self._ask(self._process, json.dumps(request, default=str), WALL_SECONDS)
            if answer is None:
                self.close()
                raise ChatError(f"takes more than {CPU_SECONDS} s or {MEMORY >> 30} GiB")
        if "text" not in answer:
            raise ChatError(str(answer.get("error")))
        return str(answer["text"])

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                with suppress(OSError):  # what was not written yet cannot be any more
                    stream.close()  # type: ignore[union-attr]
        self._process = None

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        if self._ask(process, "", START_SECONDS) is None:
            raise ChatError("cannot be rendered: the process for it does not start")
        return process

    @staticmethod
    def _ask(process: subprocess.Popen[str], line: str, seconds: float) -> dict[str, Any] | None:
        """The answer to a line; None where the process ends, or is ended, before it answers."""
        assert process.stdin is not None  # both are pipes
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            return None
        finally:
            timer.cancel()
        return json.loads(answer) if answer.endswith("\n") else None


def _serve() -> None:
    """What the process does: a line with a request comes in, a line with a text or an error goes out."""
    sys.path[:] = sys.path[1:]  # the folder of this file, whose neighbours are no modules here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for those that wait; without them the input ends
    from transformers.utils.chat_template_utils import render_jinja_template

    _limit("RLIMIT_AS", MEMORY)
    _limit("RLIMIT_CORE", 0)
    for line in sys.stdin:
        print(json.dumps(_answer(line, render_jinja_template)), flush=True)


def _answer(line: str, render: Any) -> dict[str, str]:
    from jinja2 import TemplateError

    if not line.strip():  # asks whether the process is there
        return {}
    request = json.loads(line)
    _limit("RLIMIT_CPU", int(sum(os.times()[:2])) + request["seconds"])
    try:
        texts, _ = render(
            conversations=[request["messages"]],
            chat_template=request["template"],
            add_generation_prompt=True,
            **request["variables"],
        )
        return {"text": texts[0]} if len(texts[0]) <= MAX_TEXT else {"error": f"writes more than {MAX_TEXT} characters"}
    except TemplateError as error:
        return {"error": str(error)[:1000]}
    except MemoryError:
        return {"error": f"takes more than {MEMORY >> 30} GiB"}
    except Exception as error:  # anything: it is somebody else's program that runs
        return {"error": f"{type(error).__name__}: {error}"[:1000]}


def _limit(name: str, value: int) -> None:
    """Set a limit of the operating system, where it has any; the soft one, so that it can be set again."""
    try:
        import resource
    except ImportError:  # not on Windows; there the time alone is limited
        return
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


_PROCESS = _Process()
if __name__ == "__main__":
    _serve()
else:
    atexit.register(_PROCESS.close)
