"""The hub on loopback as seen without the client: addresses, headers, ranges and uploads."""

import hashlib
import http.client
import json
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

Answer = tuple[int, dict[str, str], bytes]
Send = Callable[..., Answer]
WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def send(hub):
    """Sends a request as it is given, without following redirects; `token=None` for nobody's."""

    def go(method, target, body=None, *, token=hub.token, **headers):
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
def repo(api):
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


def _content(send):
    location = urlsplit(send("HEAD", "/acme/m/resolve/main/w.bin")[1]["location"])
    return location.path


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=10000-", 206, slice(10000, None)),
        ("bytes=0-", 200, slice(None)),
        ("bytes=1-2,4-5", 200, slice(None)),
        ("bytes=10240-", 416, None),
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


def _commit(send, *operations):
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
        ("deletedFile", {"path": "none.txt"}),
    ]:
        status, _, body = _commit(send, good, (key, value))
        assert status in (400, 404), body
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
    assert send("PUT", upload.path, b"right", token=None)[0] == 200
    assert "actions" not in json.loads(send("POST", batch, wanted)[2])["objects"][0]
    assert send("POST", batch, wanted, token=None)[0] == 401


@pytest.mark.parametrize("target", ["/api/models/acme/m/commit/main", "/api/repos/create"])
def test_who_may_not_write(send, repo, target):
    """What changes a repository needs the token: 401 without one and with a wrong one."""
    for token in (None, "hf_visitor"):
        assert send("POST", target, b"{}", token=token)[0] == 401
