"""The hub on loopback as seen without the client: addresses, headers, ranges and uploads."""

import hashlib
import json
from urllib.parse import urlsplit

import pytest
from huggingface_hub.utils import httpx

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def send(hub):
    """Sends a request as it is given, without following redirects; `token=None` for nobody's."""

    def go(method, target, *, token=hub.token, headers=(), **more):
        headers = dict(headers) | ({"Authorization": f"Bearer {token}"} if token else {})
        return httpx.request(method, hub.endpoint + target, headers=headers, **more)

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
    text = send("GET", "/acme/m/resolve/main/a.txt")
    assert (text.status_code, text.content, text.headers["x-repo-commit"]) == (200, b"hello", sha)
    of_git = '"b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"'  # git hash-object of "hello"
    assert text.headers["etag"] == of_git
    moved = send("HEAD", "/acme/m/resolve/main/w.bin")
    assert (moved.status_code, moved.content) == (302, b"")
    assert moved.headers["location"].startswith("http://localhost:")
    expected = {
        "x-linked-size": "10240",
        "x-linked-etag": f'"{hashlib.sha256(WEIGHTS).hexdigest()}"',
        "x-repo-commit": sha,
        "accept-ranges": "bytes",
    }
    assert expected.items() <= dict(moved.headers).items()


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=10000-", 206, slice(10000, 10240)),
        ("bytes=1-2,4-5", 200, slice(0, 10240)),
        ("bytes=10240-", 416, None),
    ],
)
@pytest.mark.usefixtures("repo")
def test_ranges(send, asked, status, expected):
    """A range gives those bytes; what is no single range gives all; what is beyond the end is
    refused."""
    place = send("HEAD", "/acme/m/resolve/main/w.bin").headers["location"]
    got = send("GET", urlsplit(place).path, token=None, headers={"Range": asked})
    assert got.status_code == status
    if expected is None:
        assert got.headers["content-range"] == "bytes */10240"
    else:
        assert got.content == WEIGHTS[expected]
    if status == 206:
        shown = f"bytes {expected.start}-{expected.stop - 1}/10240"
        assert got.headers["content-range"] == shown


@pytest.mark.parametrize(
    ("key", "value"),
    [("lfsFile", {"path": "w.bin", "oid": "0" * 64}), ("deletedFile", {"path": "none.txt"})],
)
def test_commits_that_cannot_be(send, repo, api, key, value):
    """A commit with one impossible operation changes nothing at all."""
    before = api.repo_info(repo).sha
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": "x", "content": "eA==", "encoding": "base64"}},
        {"key": key, "value": value},
    ]
    body = "\n".join(map(json.dumps, lines))
    assert send("POST", "/api/models/acme/m/commit/main", content=body).status_code in (400, 404)
    assert api.repo_info(repo).sha == before


@pytest.mark.usefixtures("repo")
def test_an_upload_is_what_was_announced(send):
    """A content with another SHA-256 than its address is refused, and can be uploaded rightly
    afterwards."""
    digest = hashlib.sha256(b"right").hexdigest()
    wanted = {"operation": "upload", "objects": [{"oid": digest, "size": 5}]}
    batch = {"method": "POST", "target": "/acme/m.git/info/lfs/objects/batch", "json": wanted}
    place = send(**batch).json()["objects"][0]["actions"]["upload"]["href"]
    for content, status in ((b"wrong", 400), (b"right", 200)):
        assert "actions" in send(**batch).json()["objects"][0]
        upload = send("PUT", urlsplit(place).path, content=content, token=None)
        assert upload.status_code == status
    assert "actions" not in send(**batch).json()["objects"][0]
    assert send(**batch, token=None).status_code == 401


@pytest.mark.usefixtures("repo")
@pytest.mark.parametrize("token", [None, "hf_visitor"])
@pytest.mark.parametrize("target", ["/api/models/acme/m/commit/main", "/api/repos/create"])
def test_who_may_not_write(send, target, token):
    """What changes a repository needs the token: 401 without one and with a wrong one."""
    assert send("POST", target, content="{}", token=token).status_code == 401
