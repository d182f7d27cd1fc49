"""One way to call the Hub: patient for two minutes, as long as the Hub asks, and one line at the
end."""

import itertools
import socket
import time
from types import SimpleNamespace

import pytest
from faulty_hub import Fault
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, httpx
from refused import refused

from hf_evomerge.checkpoints.client import PATIENCE, ask, has_token
from hf_evomerge.errors import HubError


def _failing(error, times=1000):
    """A call that raises an error so many times, and then gives how often it was made."""
    calls = itertools.count(1)

    def call():
        if (number := next(calls)) <= times:
            raise error
        return number

    return call


def _answer(status, **headers):
    request = httpx.Request("GET", "http://127.0.0.1/api/x")
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return HfHubHTTPError(
        f"status {status}", response=httpx.Response(status, headers=fields, request=request)
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (_answer(503), [1, 2, 4]),
        (_answer(503, Retry_After="7"), [7, 7, 7]),
        (_answer(429, ratelimit='"api";r=0;t=5'), [5, 5, 5]),
        (_answer(503, Retry_After="Fri, 31 Dec 2027 23:59:59 GMT"), [1, 2, 4]),
        (httpx.ReadError("reset"), [1, 2, 4]),
        (httpx.DecodingError("bad gzip"), [1, 2, 4]),
        (ConnectionResetError("reset"), [1, 2, 4]),
    ],
)
def test_what_passes_is_waited_for(waits, capsys, error, expected):
    """The same waits every time, longer where the Hub asks for it, and a line for each."""
    assert ask("x: cannot be read", _failing(error, 3)) == 4
    assert waits == expected
    said = capsys.readouterr().err.splitlines()
    assert all(line.startswith("x: cannot be read: ") for line in said)
    assert [line.rpartition("; ")[2] for line in said] == [
        f"attempt {n} in {wait} s" for n, wait in enumerate(expected, 2)
    ]


def test_patience_ends(waits):
    """Two minutes of waiting are the most, and a Hub that asks for more is not waited for."""
    with refused(r"^x: status 503 \(11 attempts\)$", HubError):
        ask("x", _failing(_answer(503)))
    assert sum(waits) <= PATIENCE < sum(waits) + 16
    waits.clear()
    with refused(r"^x: status 429; the Hub asks to come back in 300 s$", HubError):
        ask("x", _failing(_answer(429, Retry_After="300")))
    assert waits == []


UNKNOWN = httpx.ConnectError("nobody")  # a slip in HF_ENDPOINT
UNKNOWN.__cause__ = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (_answer(401), "x: status 401; log in with `hf auth login`, or set HF_TOKEN"),
        (_answer(404), "x: status 404; check the name, or log in with `hf auth login`"),
        (OfflineModeIsEnabled("offline"), "x: offline"),
        (KeyError("name"), "x: its answer cannot be read (KeyError: 'name')"),
        (UNKNOWN, "x: nobody"),
    ],
)
def test_what_does_not_pass_fails_at_once(waits, error, line):
    """An error that stays is one line without any wait."""
    with pytest.raises(HubError) as caught:
        ask("x", _failing(error))
    assert str(caught.value) == line
    assert waits == []


def test_a_hub_that_says_nothing_is_not_waited_for_for_ever(hub, lfs_api, waits, monkeypatch):
    """A call without an answer is made again; the process's own calls keep their limits."""
    monkeypatch.setattr("hf_evomerge.checkpoints.client.ANSWER_SECONDS", 1.0)
    hub.faults.add(Fault("whoami", "delay", seconds=6))
    begun = time.monotonic()
    hooks = get_session().event_hooks
    assert ask("x", lfs_api.whoami)["name"] == "local"
    assert time.monotonic() - begun < 5
    assert waits == [1]
    assert get_session().event_hooks == hooks


@pytest.mark.parametrize("action", ["status", "hang_up"])
def test_one_loop_repeats_a_call(hub, lfs_api, waits, capsys, monkeypatch, action):
    """What the client repeats by itself waits within `ask` in the same loop, with a line for each
    attempt."""
    lfs_api.create_repo("local/x")
    fault = hub.faults.add(Fault("preupload", action, status=503, times=3))
    client_waits = []
    monkeypatch.setattr(
        "huggingface_hub.utils._http.time", SimpleNamespace(sleep=client_waits.append)
    )

    def upload():
        lfs_api.preupload_lfs_files("local/x", [CommitOperationAdd("a.bin", b"x")])

    ask("x", upload)
    assert (fault.hits, waits, client_waits) == (3, [1, 2, 4], [])
    assert len(capsys.readouterr().err.splitlines()) == 3
    fault = hub.faults.add(Fault("preupload", action, status=503, times=3))
    upload()  # outside the client does as it always has
    assert (fault.hits, client_waits) == (3, [1, 2, 4])


def test_a_signed_address_is_not_logged(hub, lfs_api, waits, caplog):
    """The client's own note on a failed download shows no signature."""
    hub.faults.add(Fault("GET /content", "status", status=503))
    lfs_api.create_repo("local/x")
    lfs_api.upload_file(repo_id="local/x", path_in_repo="a.bin", path_or_fileobj=b"\0" * 9)
    link = f"{hub.endpoint}/local/x/resolve/main/a.bin"
    from huggingface_hub.utils import http_backoff

    def fetch():
        address = get_session().head(link, follow_redirects=False).headers["Location"]
        return http_backoff("GET", f"{address}?signature=secret")

    ask("x", fetch)
    assert "503 thrown while requesting GET" in caplog.text
    assert "signature=" not in caplog.text


def test_who_has_a_token(monkeypatch):
    """A client's own token counts, then that of the environment; ``token=False`` is nobody."""
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert not has_token(HfApi())
    assert has_token(HfApi(token="hf_x"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_y")
    assert has_token(HfApi())
    assert not has_token(HfApi(token=False))
