"""Renders templates and runs patterns of strangers in a process of its own, which ends if one takes too much time or memory.

A chat template is a program that came with somebody else's tokenizer, or with a task of lm_eval. jinja keeps it from files and
objects, but not from looping, or from doubling a text forty times. The process runs this file, which imports nothing of the
package.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

CPU_SECONDS = 5  # of one text; templates in use take milliseconds
WALL_SECONDS = 300.0  # of one text, start of the process included: for systems that cannot limit a processor's time
MEMORY = 2 << 30  # bytes
MAX_TEMPLATE = 1 << 18  # characters; the longest in use have a tenth
MAX_TEXT = 1 << 22
_LOCK = threading.Lock()


class ChatError(Exception):
    """A template cannot be rendered, or a pattern be run; the message is one line."""


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, answer: bool = True) -> str:
    """Render messages as ``tokenizer.apply_chat_template`` does, as text, within limits.

    Args:
        tokenizer: Tokenizer with a chat template.
        messages: Each with ``role`` and ``content``.
        answer: Whether the text ends where an answer begins; otherwise the last message is to be continued.

    Raises:
        ChatError: The template refuses the messages, is broken or too long, or takes too much time, memory or text.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as cause:  # several templates, and none that is the default
        raise ChatError(" ".join(str(cause).split())) from cause
    if len(template) > MAX_TEMPLATE:
        raise ChatError(f"has {len(template)} characters; at most {MAX_TEMPLATE} are read")
    how = {"add_generation_prompt": answer, "continue_final_message": not answer, **tokenizer.special_tokens_map}
    return str(limited("chat", template=template, messages=list(messages), how=how))


def limited(call: str, **arguments: Any) -> Any:
    """Render a template, or run a pattern, within limits.

    Args:
        call: ``chat``; ``template``, one of lm_eval's; ``findall`` or ``sub``, as in `re`.
        **arguments: What it takes, as JSON; everything else becomes text.

    Raises:
        ChatError: It is broken, or takes too much time, memory or text.
    """
    request = {"call": call, "arguments": arguments, "seconds": CPU_SECONDS}
    with _LOCK:
        line = _ask(_process(os.getpid()), json.dumps(request, default=str))
        if not line.endswith("\n"):
            _process.cache_clear()
            raise ChatError(f"takes more than {CPU_SECONDS} s or {MEMORY >> 30} GiB")
    result = json.loads(line)
    if "error" in result:
        raise ChatError(result["error"])
    return result["value"]


@lru_cache(maxsize=1)
def _process(owner: int) -> subprocess.Popen[str]:
    """The process that works for the one of this id; it ends when its input does. A fork gets one of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", __file__],  # -P: the neighbours of this file are no modules there
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="ascii",
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is for the one that waits
    )


def _ask(process: subprocess.Popen[str], line: str) -> str:
    """The answer to a line; without its end if the process ends, or is ended, before it answers."""
    assert process.stdin is not None  # both are pipes
    assert process.stdout is not None
    timer = threading.Timer(WALL_SECONDS, process.kill)
    timer.start()
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    finally:
        timer.cancel()
    if not answer.endswith("\n"):
        process.kill()
        process.communicate()
    return answer


def _serve() -> None:
    """Serve requests: a line with a request comes in, a line with a text or an error goes out."""
    import re
    from functools import cache

    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from transformers.utils.chat_template_utils import render_jinja_template

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = lambda text, pattern, by, count=0: re.sub(pattern, by, text, count=count)
    compiled = cache(environment.from_string)
    calls: dict[str, Callable[..., Any]] = {
        "chat": lambda template, messages, how: render_jinja_template([messages], chat_template=template, **how)[0][0],
        "template": lambda template, variables: compiled(template).render(**variables),
        "findall": re.findall,
        "sub": re.sub,
    }
    _limit("RLIMIT_AS", MEMORY)
    _limit("RLIMIT_CORE", 0)
    for line in sys.stdin:
        request = json.loads(line)
        _limit("RLIMIT_CPU", int(sum(os.times()[:2])) + request["seconds"])
        try:
            value = calls[request["call"]](**request["arguments"])
            result = {"value": value} if len(value) <= MAX_TEXT else {"error": f"writes more than {MAX_TEXT} characters"}
        except MemoryError:
            result = {"error": f"takes more than {MEMORY >> 30} GiB"}
        except Exception as error:  # anything: it is somebody else's program that runs
            result = {"error": " ".join(f"{type(error).__name__}: {error}"[:1000].split())}
        print(json.dumps(result), flush=True)


def _limit(name: str, value: int) -> None:
    """Set a limit of the operating system, if it has any; the soft one, so that it can be set again."""
    try:
        import resource
    except ImportError:  # not on Windows; there the time alone is limited
        return
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    _serve()
