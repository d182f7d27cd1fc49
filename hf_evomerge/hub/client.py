"""Every call to the Hub: sent again while it may still work, and ended by one line that says what did not work and why.

`huggingface_hub` sends only some of its calls again (`http_backoff`: uploads and downloads), and waits for ever for an answer.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from ..errors import HubError, one_line, without_secrets

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PATIENCE = 120.0  # seconds from the first failure of a call to the last attempt
ANSWER_SECONDS = 60.0  # after which a call without an answer has failed
_LONGEST_WAIT = 16.0  # seconds between two attempts, unless the Hub asks for more
_ADVICE = {
    401: "; log in with `hf auth login`, or set HF_TOKEN",
    403: "; the token may not do this: it needs write access",
    409: "; there is something under this name already",
}
T = TypeVar("T")


def default_api(token: str | bool | None = None) -> HfApi:
    """The client of ``HF_ENDPOINT`` and of a token; by default the one that ``hf auth login`` has left."""
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="hf-evomerge", library_version=version("hf-evomerge"))


def has_token(api: HfApi) -> bool:
    """Whether the client says who it is."""
    from huggingface_hub import get_token

    return api.token is not False and bool(api.token if isinstance(api.token, str) else get_token())


def ask(what: str, call: Callable[[], T]) -> T:
    """Call the Hub, again and again for up to `PATIENCE` seconds where that may help.

    Args:
        what: What has not worked where the call fails: the beginning of the error.
        call: Nothing but calls of the client, which may be made twice.

    Raises:
        HubError: It did not work. Its cause is the client's error.
    """
    patience = Patience(what)
    while True:
        try:
            with bounded():
                return call()
        except HubError:
            raise
        except Exception as error:  # the client has no common class of errors, and trips over answers of another form
            if not patience.wait(error):
                raise patience.error(error) from root_of(error)


class Patience:
    """How long one call is sent again: after 1, 2, 4, 8, 16, 16, ... seconds, or later where the Hub asks for it.

    Args:
        what: What does not work, for the line that says so once.
    """

    def __init__(self, what: str) -> None:
        self._what, self._wait = what, 1.0
        self._waited, self._begun, self.attempts = 0.0, 0.0, 0

    def wait(self, error: BaseException) -> bool:
        """Wait until the next attempt; False at once where none may help, or there is no time left."""
        self.attempts += 1
        if not is_passing(error):
            return False
        if self.attempts == 1:
            self._begun = time.monotonic()
        seconds = max(self._wait, _asked_wait(error))
        if max(self._waited, time.monotonic() - self._begun) + seconds > PATIENCE:
            return False
        if self.attempts == 1:
            again = f"trying again in {seconds:.0f} s, and for up to {PATIENCE / 60:g} minutes"
            status = status_of(root_of(error))
            why = one_line(root_of(error), 120) if status is None else f"the Hub answers {status}"
            tqdm.write(f"{self._what}: {why}; {again}", file=sys.stderr)
        time.sleep(seconds)
        self._waited += seconds
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
        return True

    def error(self, error: BaseException) -> HubError:
        """The line for an error after which there is no other attempt."""
        from huggingface_hub.utils import httpx

        cause = root_of(error)
        known = isinstance(cause, (OSError, ValueError, RuntimeError, httpx.HTTPError))
        text = one_line(cause) if known else f"its answer cannot be read ({type(cause).__name__}: {one_line(cause, 120)})"
        tries = f" ({self.attempts} attempts)" if self.attempts > 1 else ""
        asked = _asked_wait(error)
        later = f"; the Hub asks to come back in {asked:.0f} s" if asked > PATIENCE else ""
        return HubError(f"{self._what}: {text}{tries}{later}{_ADVICE.get(status_of(cause) or 0, '')}")


def root_of(error: BaseException) -> BaseException:
    """The error that the client has wrapped into one of its own."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    wraps = isinstance(error, LocalEntryNotFoundError) or type(error) is RuntimeError
    return root_of(error.__cause__) if wraps and error.__cause__ is not None else error


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error tells of."""
    return getattr(getattr(error, "response", None), "status_code", None)


def is_passing(error: BaseException) -> bool:
    """Whether the same request may work a little later: no answer, one that was cut off or garbled, or a Hub in trouble."""
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
    """Whether there is no host of this name: a slip of the pen rather than trouble."""
    while error is not None:
        if isinstance(error, socket.gaierror):
            return error.errno == socket.EAI_NONAME
        error = error.__cause__ or error.__context__
    return False


def _asked_wait(error: BaseException) -> float:
    """How many seconds the Hub asks to wait; 0 where it does not."""
    from huggingface_hub.utils import parse_ratelimit_headers

    headers = getattr(getattr(root_of(error), "response", None), "headers", None) or {}
    limit = parse_ratelimit_headers(headers)
    asked = float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else 0.0
    text = str(headers.get("Retry-After", "")).strip()
    if text.isdecimal():
        return max(asked, float(text[:9]))
    try:
        return max(asked, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return asked


@contextmanager
def bounded() -> Iterator[None]:
    """Within it the client waits for answers no longer than `ANSWER_SECONDS`, and logs no signed address."""
    from huggingface_hub.utils import get_session

    session, log = get_session(), logging.getLogger("huggingface_hub.utils._http")
    hooks = session.event_hooks
    session.event_hooks = {**hooks, "request": [*hooks.get("request", []), _limit]}
    log.addFilter(_redact)
    try:
        yield
    finally:
        session.event_hooks = hooks
        log.removeFilter(_redact)


def _limit(request: Any) -> None:
    limits = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {kind: ANSWER_SECONDS if limit is None else limit for kind, limit in limits.items()}


def _redact(record: logging.LogRecord) -> bool:
    record.msg, record.args = without_secrets(record.getMessage()), ()
    return True
