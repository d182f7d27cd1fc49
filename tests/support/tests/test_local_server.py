"""The hub on loopback as seen without the client: addresses, headers, ranges, and everything that
somebody hostile may send."""

import hashlib
import http.client
import json
import socket
from collections.abc import Callable
from itertools import product
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from faulty_hub import FaultyHub
from huggingface_hub import HfApi

Answer = tuple[int, dict[str, str], bytes]
Send = Callable[..., Answer]
WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def send(hub: FaultyHub) -> Send:
    """Sends a request as it is given, without following redirects; `token=None` for nobody's."""

    def go(
        method: str, target: str, body: Any = None, *, token: str | None = hub.token, **headers: str
    ) -> Answer:
        connection = http.client.HTTPConnection(
            "127.0.0.1", int(urlsplit(hub.endpoint).port or 0), timeout=10
        )
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            names.setdefault("Authorization", f"Bearer {token}")
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, target, data, names)
        answer = connection.getresponse()
        result = (
            answer.status,
            {name.lower(): value for name, value in answer.getheaders()},
            answer.read(),
        )
        connection.close()
        return result

    return go


@pytest.fixture
def repo(api: HfApi) -> str:
    """A repository with a text and weights, which are `WEIGHTS`."""
    api.create_repo("acme/m")
    api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.bin", repo_id="acme/m")
    api.upload_file(path_or_fileobj=b"hello", path_in_repo="a.txt", repo_id="acme/m")
    return "acme/m"


def test_redirects(send, repo, api):
    """A text is there itself, and a large file at another origin, with what the client needs to
    know beforehand."""
    sha = api.repo_info(repo).sha
    assert send("HEAD", "/acme/m/resolve/main/a.txt")[::2] == (200, b"")
    status, headers, body = send("GET", "/acme/m/resolve/main/a.txt")
    assert (status, body, headers["content-length"], headers["x-repo-commit"]) == (
        200,
        b"hello",
        "5",
        sha,
    )
    assert (headers["content-type"], headers["x-content-type-options"]) == (
        "text/plain; charset=utf-8",
        "nosniff",
    )
    assert (
        headers["etag"] == '"b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"'
    )  # git hash-object of "hello"
    status, headers, _ = send("HEAD", "/acme/m/resolve/main/w.bin")
    assert status == 302
    assert headers["location"].startswith("http://localhost:")
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    expected = {
        "x-linked-size": "10240",
        "x-linked-etag": f'"{digest}"',
        "x-repo-commit": sha,
        "accept-ranges": "bytes",
    }
    assert {name: headers[name] for name in expected} == expected


def _content(send: Send) -> str:
    location = urlsplit(send("HEAD", "/acme/m/resolve/main/w.bin")[1]["location"])
    return location.path


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=10000-", 206, slice(10000, None)),
        ("bytes=10000-99999", 206, slice(10000, None)),
        ("bytes=-40", 206, slice(-40, None)),
        ("bytes=0-", 200, slice(None)),
        ("bytes=1-2,4-5", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
        ("bytes=10240-", 416, None),
        ("bytes=9-5", 416, None),
        ("bytes=-0", 416, None),
    ],
)
def test_ranges(send, repo, asked, status, expected):
    """A range gives those bytes; what is no single range gives all; what is beyond the end is
    refused."""
    got, headers, body = send("GET", _content(send), token=None, Range=asked)
    assert got == status
    if expected is None:
        assert headers["content-range"] == "bytes */10240"
    else:
        assert body == WEIGHTS[expected]
        assert headers["content-length"] == str(len(body))
    if status == 206 and expected is not None:
        start, stop, _ = expected.indices(len(WEIGHTS))
        assert headers["content-range"] == f"bytes {start}-{stop - 1}/10240"


HOSTILE = [
    "../x",
    "a/../../x",
    "/etc/passwd",
    "a//b",
    "./a",
    "..",
    ".git/config",
    "a/.GIT/x",
    "a\\..\\b",
    "C:/x",
    "a\0b",
    "",
]
ELSEWHERE = [
    "../../../etc/passwd",
    "..%2f..%2fx",
    "%2e%2e/%2e%2e/repository.json",
    "%2Fetc%2Fpasswd",
    "a%00",
]
ADDRESSES = ["/acme/m/resolve/main/", "/api/models/acme/m/tree/main/"]
NO_NAMES = ["..", "../x", ".hidden", "a/b", "x" * 97, "a--b", "a..b", "a b", "a.git", "é", "<b>"]


@pytest.mark.parametrize("path", HOSTILE)
@pytest.mark.parametrize("key", ["file", "lfsFile", "deletedFile", "deletedFolder"])
def test_paths_that_lead_out_are_refused(send, repo, key, path):
    """A commit cannot name a path that would leave the repository where a client writes it."""
    status, _, body = _commit(
        send, (key, {"path": path, "content": "eA==", "encoding": "base64", "oid": "0" * 64})
    )
    assert status == 400
    assert "Invalid path" in json.loads(body)["error"]


@pytest.mark.parametrize("path", ELSEWHERE)
@pytest.mark.parametrize("before", ADDRESSES)
def test_addresses_do_not_reach_the_disk(send, repo, before, path):
    """An address names entries of a commit, so no way of writing it leads to another file."""
    status, _, body = send("GET", before + path)
    assert status == 404
    assert b"root:" not in body


@pytest.mark.parametrize(
    ("key", "name"), [*product(("name", "organization"), NO_NAMES), ("name", "")]
)
def test_names_that_are_none_are_refused(send, hub, name, key):
    """A repository and an owner have names that are safe as folders; nothing else is created."""
    wanted = {"name": "m", "organization": "acme", key: name}
    status, _, _ = send("POST", "/api/repos/create", wanted)
    assert status == 400
    assert list(hub.root.glob("repositories/*/*/*")) == []


@pytest.mark.parametrize(
    "name",
    ["a..b", "-x", "a b", "x.lock", "refs/pr/1", "f" * 40, "a//b", "x/", "a~1", "a:b", "é\n"],
)
def test_refs_that_git_would_refuse(send, repo, name):
    """A branch or tag has a name that git would take and that no other revision can have."""
    assert send("POST", f"/api/models/acme/m/branch/{quote(name, safe='')}", {})[0] in (400, 409)
    assert send("POST", "/api/models/acme/m/tag/main", {"tag": name})[0] == 400


def test_nonsense_is_refused(send, repo):
    """A body that is not what the endpoint takes is answered with an error, and the hub goes on."""
    for method, target, body in [
        ("POST", "/api/repos/create", b"not json"),
        ("POST", "/api/repos/create", [1]),
        ("POST", "/api/models/acme/m/commit/main", b""),
        ("POST", "/api/models/acme/m/tag/main", b"[" * 100_000),
        ("POST", "/acme/m.git/info/lfs/objects/batch", {"objects": [7]}),
    ]:
        status, _, answer = send(method, target, body)
        assert status == 500
        assert "error" in json.loads(answer)
    assert (
        send("POST", "/api/validate-yaml", {"content": "---\na: " + "[" * 1_500 + "\n---\n"})[0]
        == 400
    )
    assert send("POST", "/api/repos/create", {"name": "k", "type": "kernel"})[0] == 400
    assert send("POST", "/api/repos/create", {"name": "s", "type": "space"})[0] == 400
    assert send("GET", "/api/spaces/local/s")[0] == 404


def _commit(send: Send, *operations: tuple[str, dict[str, Any]]) -> Answer:
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        *({"key": key, "value": value} for key, value in operations),
    ]
    return send(
        "POST", "/api/models/acme/m/commit/main", "\n".join(map(json.dumps, lines)).encode()
    )


def test_commits_that_cannot_be(send, repo, api):
    """A commit with one impossible operation changes nothing at all."""
    before = api.repo_info(repo).sha
    good = ("file", {"path": "good.txt", "content": "eA==", "encoding": "base64"})
    for key, value in [
        ("lfsFile", {"path": "w.bin", "oid": "0" * 64}),
        ("lfsFile", {"path": "w.bin", "oid": "../../etc/passwd"}),
        ("file", {"path": "a.txt/b", "content": "eA==", "encoding": "base64"}),
        ("rename", {"path": "a.txt"}),
    ]:
        status, _, body = _commit(send, good, (key, value))
        assert status == 400, body
    assert (
        _commit(send, good, ("file", {"path": "x", "content": "***", "encoding": "base64"}))[0]
        == 500
    )
    assert api.repo_info(repo).sha == before


def test_an_upload_is_what_was_announced(send, hub, repo):
    """A content with another SHA-256 than its address is refused, and can be uploaded rightly
    afterwards."""
    digest = hashlib.sha256(b"right").hexdigest()
    wanted = {
        "operation": "upload",
        "transfers": ["basic"],
        "objects": [{"oid": digest, "size": 5}],
    }
    batch = "/acme/m.git/info/lfs/objects/batch"
    upload = urlsplit(
        json.loads(send("POST", batch, wanted)[2])["objects"][0]["actions"]["upload"]["href"]
    )
    assert send("PUT", upload.path, b"wrong", token=None)[0] == 400
    assert "actions" in json.loads(send("POST", batch, wanted)[2])["objects"][0]
    assert list((hub.root / "tmp").iterdir()) == []
    assert send("PUT", upload.path, b"right", token=None)[0] == 200
    assert "actions" not in json.loads(send("POST", batch, wanted)[2])["objects"][0]
    assert send("POST", batch, wanted, token=None)[0] == 401


WRITES = [
    ("POST", "/api/models/acme/m/commit/main"),
    ("POST", "/api/models/acme/m/preupload/main"),
    ("POST", "/api/models/acme/m/branch/x"),
    ("POST", "/api/models/acme/m/tag/main"),
    ("POST", "/api/repos/create"),
    ("DELETE", "/api/repos/delete"),
]


@pytest.mark.parametrize(("method", "target"), WRITES)
def test_who_may_not_write(send, repo, method, target):
    """What changes a repository needs the token: 401 without one and with a wrong one."""
    body = (
        b'{"name": "m", "organization": "acme", "private": true, "tag": "t", "title": "t", '
        b'"pullRequest": true}'
    )
    assert send(method, target, body, token=None)[0] == 401
    assert send(method, target, body, token="hf_visitor")[0] == 401


def test_other_names_for_this_machine(send, hub):
    """A page in a browser cannot reach the hub under a name of its own."""
    assert send("GET", "/api/whoami-v2", Host="localhost:1")[0] == 200
    for name in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        assert send("GET", "/api/whoami-v2", Host=name)[0] == 421


def test_methods_and_addresses_that_are_not_there(send, repo):
    """An unknown page is 404, an unknown address below /api 501, and another method of a known one
    405 with those it takes."""
    assert send("GET", "/nothing/here/at/all")[0] == 404
    assert send("GET", "/api/nothing/here/at/all")[0] == 501
    status, headers, _ = send("PUT", "/api/models/acme/m/refs")
    assert (status, headers["allow"]) == (405, "GET")


def _raw(hub: FaultyHub, data: bytes) -> bytes:
    with socket.create_connection(
        ("127.0.0.1", int(urlsplit(hub.endpoint).port or 0)), timeout=5
    ) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


def test_broken_bodies(hub):
    """A body that ends too early has no answer; one in chunks, whose length is not known, is
    refused."""
    start = b"POST /api/validate-yaml HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    assert _raw(hub, start + b"Content-Length: 50\r\n\r\n{}") == b""
    answer = _raw(hub, start + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    assert (answer.startswith(b"HTTP/1.1 411 "), answer.count(b"HTTP/1.1 ")) == (True, 1)


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: " + b"9" * 5000,
        b"GET / HTTP/1.1\r\nHost: [::1",
        b"GET http://[x/ HTTP/1.1\r\nHost: 127.0.0.1",
    ],
)
def test_heads_that_cannot_be_read(hub, head):
    """A length of thousands of digits, and addresses with half a bracket, have an answer that says
    no."""
    assert _raw(hub, head + b"\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_refused_body_does_not_become_the_next_request(hub):
    """A body that nobody read is not taken for a request on the same connection."""
    inner = b"DELETE /api/repos/delete HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    host = b"Host: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(inner)
    answers = _raw(hub, b"POST /api/models/acme/m/tag/v1 HTTP/1.1\r\n" + host + inner)
    assert answers.count(b"HTTP/1.1 ") == 1
    assert [seen.method for seen in hub.requests] == ["POST"]


def test_a_failure_of_the_hub_itself(send, repo, hub, caplog):
    """A fault of the hub is answered with 500 and logged with its cause, and other requests go
    on."""
    state = next(hub.root.glob("repositories/models/acme/m"))
    for commit in (state / "commits").iterdir():
        commit.write_bytes(b"broken")
    hub.stop()
    hub.start()
    status, _, body = send("GET", "/api/models/acme/m")
    assert (status, json.loads(body)["error"]) == (
        500,
        "the hub failed on this request; see its log",
    )
    assert "JSONDecodeError" in caplog.text
    assert send("GET", "/api/whoami-v2")[0] == 200


def test_headers_stay_headers(send, repo):
    """What a caller sends cannot break out of a header of the answer."""
    status, headers, _ = send("GET", "/api/models/acme/m/tree/main%0d%0aX-Evil:%201%E2%82%AC")
    assert (status, headers["x-error-code"]) == (404, "RevisionNotFound")
    assert "x-evil" not in headers
    assert headers["x-error-message"] == "Invalid rev id: main  X-Evil: 1?"
