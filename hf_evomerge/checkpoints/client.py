"""Calls the Hub: tries again while that may help, and ends in one line that says what did not work
and why.

`huggingface_hub` repeats uploads, downloads and listings in silence (`http_backoff`), but no other
call, and waits for ever for an answer. Within `ask` it repeats nothing, so that one loop has the
deadline of every call and says what it waits for.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import version
from inspect import unwrap
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from ..errors import HubError, one_line, without_secrets

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PATIENCE = 120.0  # seconds from the first failure of a call to the last attempt
ANSWER_SECONDS = 60.0  # after which a call without an answer has failed
_CONNECT_SECONDS = 15.0  # after which one without a connection has
_LONGEST_WAIT = 16.0  # seconds between two attempts, unless the Hub asks for more
_ADVICE = {
    401: "; log in with `hf auth login`, or set HF_TOKEN",
    403: "; log in as somebody who may, with a token that has write access",
    404: "; check the name, or log in with `hf auth login`",
    409: "; there is something under this name already",
}
T = TypeVar("T")


def default_api() -> HfApi:
    """The client of ``HF_ENDPOINT`` and of the token that ``hf auth login`` has left."""
    from huggingface_hub import HfApi

    return HfApi(library_name="hf-evomerge", library_version=version("hf-evomerge"))


def has_token(api: HfApi) -> bool:
    """Tell whether the client has a token."""
    from huggingface_hub import get_token

    return api.token is not False and bool(api.token if isinstance(api.token, str) else get_token())


def ask(
    what: str, call: Callable[[], T], *, may_pass: Callable[[BaseException], bool] | None = None
) -> T:
    """Call the Hub; a failure that may pass is tried again after 1, 2, 4, 8, 16, 16, ... seconds,
    or when the Hub says.

    Each wait is a line on stderr. The last one ends at most `PATIENCE` seconds after the first
    failure.

    Args:
        what: Start of the error line: what has not worked if the call fails.
        call: Calls of the client only, which may be made twice.
        may_pass: Tells of an error's root whether to call again; `is_passing` by default.

    Raises:
        HubError: The call failed for good. Its cause is the root of the client's error, which is
            its context.
    """
    attempt = 0
    begun = 0.0
    while True:
        attempt += 1
        try:
            with bounded():
                return call()
        except HubError:
            raise
        except Exception as error:
            # the client's errors have no common class, and an answer of another form trips it
            cause = root_of(error)
            now = time.monotonic()
            begun = begun if attempt > 1 else now
            # Attempt n waits 2^(n-1) seconds, 16 at most, and no less than the Hub asks for. Time
            # is counted from the first failure: a call that works slowly is not given up, and one
            # that fails at once does not use up its attempts.
            asked = _asked_wait(cause)
            seconds = max(min(2.0 ** (attempt - 1), _LONGEST_WAIT), asked)
            if not (may_pass or is_passing)(cause) or now - begun + seconds > PATIENCE:
                raise _final(what, cause, attempt, asked) from cause
            status = status_of(cause)
            why = one_line(cause, 120) if status is None else f"the Hub answers {status}"
            tqdm.write(f"{what}: {why}; attempt {attempt + 1} in {seconds:.0f} s", file=sys.stderr)
            time.sleep(seconds)


def unreachable(api: HfApi, repo_id: str) -> str | None:
    """Say why no connection to the Hub can be made, after one attempt; None where there is one."""
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    try:
        with bounded():
            api.model_info(repo_id)
    except Exception as error:  # whatever else is wrong, something answered
        cause = root_of(error)
        if isinstance(cause, (OfflineModeIsEnabled, httpx.ConnectError, httpx.ConnectTimeout)):
            return one_line(cause, 120)
    return None


def repo_info(
    api: HfApi,
    repo_id: str,
    revision: str | None = None,
    *,
    repo_type: str = "model",
    complaint: str = "cannot be read",
) -> Any:
    """Describe a repository at a revision, with the sizes and hashes of its files; raises
    `HubError`."""
    call = partial(
        api.repo_info, repo_id, revision=revision, repo_type=repo_type, files_metadata=True
    )
    return ask(f"{repo_id}: {complaint}", call)


def large_files(info: Any) -> dict[str, str]:
    """Map the large files of a described repository to their sha256."""
    return {file.rfilename: file.lfs.sha256 for file in info.siblings or [] if file.lfs is not None}


def _final(what: str, cause: BaseException, attempts: int, asked: float) -> HubError:
    """The line for a failure after which there is no other attempt."""
    from huggingface_hub.utils import httpx

    known = isinstance(cause, (OSError, ValueError, RuntimeError, httpx.HTTPError))
    # the Hub's own words, without the client's
    said = getattr(cause, "server_message", None) or cause
    text = (
        one_line(said)
        if known
        else f"its answer cannot be read ({type(cause).__name__}: {one_line(cause, 120)})"
    )
    tries = f" ({attempts} attempts)" if attempts > 1 else ""
    later = f"; the Hub asks to come back in {asked:.0f} s" if asked > PATIENCE else ""
    return HubError(f"{what}: {text}{tries}{later}{_ADVICE.get(status_of(cause) or 0, '')}")


def root_of(error: BaseException) -> BaseException:
    """The error that the client has wrapped into one of its own."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    wraps = isinstance(error, LocalEntryNotFoundError) or type(error) is RuntimeError
    return root_of(error.__cause__) if wraps and error.__cause__ is not None else error


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error tells of."""
    return getattr(getattr(error, "response", None), "status_code", None)


def is_passing(error: BaseException) -> bool:
    """Tell if the same request may work a little later: no answer, one that was cut off or garbled,
    or a Hub in trouble."""
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    error = root_of(error)
    status = status_of(error)
    if status is not None:
        return (status >= 500 and status != 501) or status in (408, 429)
    if isinstance(error, OfflineModeIsEnabled) or _is_unknown_host(error):
        return False
    garbled = (httpx.DecodingError, json.JSONDecodeError, UnicodeDecodeError)
    return isinstance(error, (httpx.TransportError, *garbled, ConnectionError, TimeoutError))


def _is_unknown_host(error: BaseException | None) -> bool:
    """Tell whether there is no host of this name: a slip of the pen rather than trouble."""
    while error is not None:
        if isinstance(error, socket.gaierror):
            return error.errno == socket.EAI_NONAME
        error = error.__cause__ or error.__context__
    return False


def _asked_wait(error: BaseException) -> float:
    """Return the seconds for which the Hub asks to wait; 0 if it does not."""
    from huggingface_hub.utils import parse_ratelimit_headers

    headers = getattr(getattr(error, "response", None), "headers", {})
    limit = parse_ratelimit_headers(headers)
    after = headers.get("Retry-After", "").strip()
    reset = limit.reset_in_seconds if limit is not None and limit.remaining == 0 else 0
    return float(max(reset, int(after[:9]) if after.isdecimal() else 0))


@contextmanager
def bounded() -> Iterator[None]:
    """Let the client wait no longer than `ANSWER_SECONDS`, repeat no request, and log no signed
    address."""
    from huggingface_hub.utils import get_session

    session = get_session()
    log = logging.getLogger("huggingface_hub.utils._http")
    hooks = session.event_hooks
    session.event_hooks = {**hooks, "request": [*hooks.get("request", []), _limit]}
    log.addFilter(_redact)
    # The client repeats some requests itself. Two loops, one in the other, would multiply the
    # attempts and hide them, so its own is set to none for as long as this one runs.
    for defaults, _ in _client_loops():
        defaults["max_retries"] = 0
    try:
        yield
    finally:
        session.event_hooks = hooks
        log.removeFilter(_redact)
        for defaults, retries in _client_loops():
            defaults["max_retries"] = retries


@cache
def _client_loops() -> list[tuple[dict[str, Any], int]]:
    """Default arguments of the client's own loops, and how often each repeats a request by them."""
    from huggingface_hub.utils import http_backoff, http_stream_backoff

    loops = [unwrap(function).__kwdefaults__ for function in (http_backoff, http_stream_backoff)]
    return [(defaults, defaults["max_retries"]) for defaults in loops]


def _limit(request: Any) -> None:
    limits = request.extensions.get("timeout", {})
    longest = dict.fromkeys(limits, ANSWER_SECONDS) | {"connect": _CONNECT_SECONDS}
    given = {kind: limit for kind, limit in limits.items() if limit is not None}
    request.extensions["timeout"] = longest | given


def _redact(record: logging.LogRecord) -> bool:
    record.msg = without_secrets(record.getMessage())
    record.args = ()
    return True
