"""One way to call the Hub, and one line where it fails."""

from json import JSONDecodeError

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx

from hf_evomerge.checkpoints.client import ask, has_token
from hf_evomerge.errors import HubError


def _answer(status):
    request = httpx.Request("GET", "http://127.0.0.1/api/x")
    return HfHubHTTPError(f"status {status}", response=httpx.Response(status, request=request))


def _wrapped(error):
    """The client's own error around one that says what is wrong."""
    wrapper = RuntimeError("Error while uploading")
    wrapper.__cause__ = error
    return wrapper


UNREADABLE = (
    "x: its answer cannot be read (JSONDecodeError: Expecting value: line 1 column 1 (char 0))"
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (_answer(401), "x: status 401; log in with `hf auth login`, or set HF_TOKEN"),
        (_answer(404), "x: status 404; check the name, or log in with `hf auth login`"),
        (_answer(429), "x: status 429; try again later"),
        (_wrapped(_answer(503)), "x: status 503; try again later"),
        (JSONDecodeError("Expecting value", "<html>", 0), UNREADABLE),
        (OfflineModeIsEnabled("offline"), "x: offline"),
        (KeyError("name"), "x: its answer cannot be read (KeyError: 'name')"),
        (httpx.ConnectError("nobody\nat /a?signature=abc"), "x: nobody at /a; try again later"),
    ],
)
def test_a_failure_is_one_line(error, line):
    """What is wrong and what to do, without secrets."""

    def call():
        raise error

    with pytest.raises(HubError) as caught:
        ask("x", call)
    assert str(caught.value) == line


def test_who_has_a_token(monkeypatch):
    """A client's own token counts, then that of the environment; ``token=False`` is nobody."""
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert not has_token(HfApi())
    assert has_token(HfApi(token="hf_x"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_y")
    assert has_token(HfApi())
    assert not has_token(HfApi(token=False))
