"""Calls the Hub, and ends in one line that says what did not work and why.

`huggingface_hub` itself repeats downloads, uploads and listings where that may help.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import HubError, one_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_ADVICE = {
    401: "; log in with `hf auth login`, or set HF_TOKEN",
    403: "; log in as somebody who may, with a token that has write access",
    404: "; check the name, or log in with `hf auth login`",
    409: "; there is something under this name already",
    429: "; try again later",
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


def ask(what: str, call: Callable[[], T]) -> T:
    """Call the Hub.

    Args:
        what: Start of the error line: what has not worked if the call fails.
        call: Calls of the client.

    Raises:
        HubError: The call failed. Its cause is the root of the client's error, which is its
            context.
    """
    try:
        return call()
    except HubError:
        raise
    except Exception as error:
        # the client's errors have no common class, and an answer of another form trips it
        cause = root_of(error)
        raise HubError(f"{what}: {_reason(cause)}") from cause


def unreachable(api: HfApi, repo_id: str) -> str | None:
    """Say why no connection to the Hub can be made; None where there is one."""
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    try:
        api.model_info(repo_id)
    except Exception as error:  # whatever else is wrong, something answered
        cause = root_of(error)
        if isinstance(cause, (OfflineModeIsEnabled, httpx.ConnectError, httpx.ConnectTimeout)):
            return one_line(cause, 120)
    return None


def repo_info(
    api: HfApi, repo_id: str, revision: str | None = None, *, repo_type: str = "model"
) -> Any:
    """Describe a repository at a revision, with the sizes and hashes of its files; raises
    `HubError`."""
    call = partial(
        api.repo_info, repo_id, revision=revision, repo_type=repo_type, files_metadata=True
    )
    return ask(f"{repo_id}: cannot be read", call)


def large_files(info: Any) -> dict[str, str]:
    """Map the large files of a described repository to their sha256."""
    return {file.rfilename: file.lfs.sha256 for file in info.siblings or [] if file.lfs is not None}


def root_of(error: BaseException) -> BaseException:
    """The error that the client has wrapped into one of its own."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    wraps = isinstance(error, LocalEntryNotFoundError) or type(error) is RuntimeError
    return root_of(error.__cause__) if wraps and error.__cause__ is not None else error


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error tells of."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(cause: BaseException) -> str:
    """Say why a call failed, and what to do."""
    from huggingface_hub.utils import httpx

    known = isinstance(cause, (OSError, ValueError, RuntimeError, httpx.HTTPError))
    if not known or isinstance(cause, (JSONDecodeError, httpx.DecodingError)):
        return f"its answer cannot be read ({type(cause).__name__}: {one_line(cause, 120)})"
    # the Hub's own words, without the client's
    said = getattr(cause, "server_message", None) or cause
    status = status_of(cause) or 0
    later = status >= 500 or isinstance(cause, httpx.TransportError)
    return f"{one_line(said)}{_ADVICE.get(status, '; try again later' if later else '')}"
