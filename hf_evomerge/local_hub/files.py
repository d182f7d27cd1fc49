"""The endpoints that list and download files: tree, facts about paths, resolve with its redirects, contents."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from .access import check_gate
from .call import Call
from .repository import Commit, Entry, Repository
from .wire import Refusal, Response, Slice

PAGE, EXPANDED_PAGE = 1000, 50  # entries of a tree that one answer holds
OPEN_FILES = ("README.md", ".gitattributes")  # that a gated repository shows to everybody
IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}


def tree(call: Call, kind: str, repo_id: str, revision: str, path: str = "") -> Response:
    """The entries of a folder, or of everything below it, a page at a time."""
    found, request = call.repository(kind, repo_id), call.request
    commit, path = found.at(revision), path.strip("/")
    entries = _entries(commit, path, deep=request.flag("recursive"))
    if path and not entries:
        message = f'{path} does not exist on "{revision}"'
        raise Refusal(404, message, code="EntryNotFound", headers={"X-Repo-Commit": commit.id})
    page = EXPANDED_PAGE if request.flag("expand") else PAGE
    start, size = request.count("cursor", 0, high=10**9), request.count("limit", page, low=1, high=PAGE)
    shown, headers = entries[start : start + size], {"X-Repo-Commit": commit.id}
    if request.flag("expand"):
        shown = _with_changes(found, commit, shown)
    if start + size < len(entries):
        query = urlencode({**{name: values[0] for name, values in request.query.items()}, "cursor": start + size})
        headers["Link"] = f'<{call.hub.endpoint}{request.path}?{query}>; rel="next"'
    return Response(200, shown, headers)


def _entries(commit: Commit, folder: str, *, deep: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    result: dict[str, dict[str, Any]] = {}
    for path, entry in commit.tree.items():
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for end in range(1, len(parts) if deep else min(2, len(parts))):
            name = prefix + "/".join(parts[:end])
            if name not in result:
                result[name] = _folder(commit, name)
        if deep or len(parts) == 1:
            result[path] = _file(path, entry)
    return [result[name] for name in sorted(result)]


def _file(path: str, entry: Entry) -> dict[str, Any]:
    lfs = {"lfs": {"oid": entry.sha256, **entry.lfs_facts()}} if entry.lfs else {}
    xet = {"xetHash": entry.xet} if entry.xet else {}
    return {"type": "file", "oid": entry.oid, "size": entry.size, "path": path, **lfs, **xet}


def _folder(commit: Commit, folder: str) -> dict[str, Any]:
    """A folder, with a name that changes with what is in it. git's own name for it would be another."""
    inside = [f"{path} {entry.oid}" for path, entry in commit.tree.items() if path.startswith(f"{folder}/")]
    oid = hashlib.sha1("\n".join(inside).encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": folder}


def _with_changes(found: Repository, commit: Commit, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    changes = found.last_changes(commit.id, [entry["path"] for entry in entries])
    return [
        {**entry, "lastCommit": {"id": change.id, "title": change.title, "date": change.date}}
        for entry in entries
        for change in [changes[entry["path"]]]
    ]


def lfs_files(call: Call, kind: str, repo_id: str) -> Response:
    """The large files of all branches, each content once, with the first commit that has it."""
    found, seen = call.repository(kind, repo_id, write=True), dict[str, dict[str, Any]]()
    for name, head in list(found.state.branches.items()):
        for commit in found.log(head):
            for path, entry in commit.tree.items():
                if entry.lfs:
                    about = {"fileOid": entry.sha256, "filename": path, "oid": entry.sha256, "size": entry.size}
                    seen[entry.sha256] = {**about, "pushedAt": commit.date, "ref": f"refs/heads/{name}"}
    return Response(200, sorted(seen.values(), key=lambda one: str(one["filename"])))


def paths_info(call: Call, kind: str, repo_id: str, revision: str) -> Response:
    """Those of the given paths that exist, with what the tree says of them."""
    found = call.repository(kind, repo_id)
    commit, body = found.at(revision), call.request.body.read()
    if "form" in call.request.headers.get("Content-Type", ""):
        form = parse_qs(body.decode("utf-8", "replace"))
        paths, expand = form.get("paths", []), form.get("expand", ["false"])[0].lower() == "true"
    else:
        given = call.request.json()
        paths, expand = given.get("paths") or [], bool(given.get("expand"))
    shown = []
    for path in dict.fromkeys(str(path).strip("/") for path in paths):
        if path in commit.tree:
            shown.append(_file(path, commit.tree[path]))
        elif any(name.startswith(f"{path}/") for name in commit.tree):
            shown.append(_folder(commit, path))
    return Response(200, _with_changes(found, commit, shown) if expand else shown)


def resolve(call: Call, kind: str, repo_id: str, revision: str, path: str) -> Response:
    """Send the client to where a file is: in git, the same server; otherwise, another origin, where its token does not go."""
    commit, entry, headers = _locate(call, kind, repo_id, revision, path)
    headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.etag}"'}
    if not entry.lfs:
        place = f"/api/resolve-cache/{kind}/{repo_id}/{commit.id}/{quote(path)}"
        return Response(307, b"Temporary Redirect", {**headers, "Location": place})
    place = call.hub.content + call.hub.signer.sign(f"/content/{kind}/{repo_id}/{entry.sha256}")
    if entry.xet:
        token = f"{call.hub.endpoint}/api/{kind}/{repo_id}/xet-read-token/{commit.id}"
        headers |= {"X-Xet-Hash": entry.xet, "Link": f'<{token}>; rel="xet-auth"'}
    return Response(302, b"Found", {**headers, "Location": place, "Access-Control-Expose-Headers": "X-Linked-ETag"})


def cached(call: Call, kind: str, repo_id: str, revision: str, path: str) -> Response:
    """The content of a file that git keeps."""
    _, entry, headers = _locate(call, kind, repo_id, revision, path)
    if entry.lfs:
        raise Refusal(404, "Entry not found", code="EntryNotFound", headers=headers)
    return _content(call, entry, {**headers, **IMMUTABLE, "Content-Type": "text/plain; charset=utf-8"})


def content(call: Call, kind: str, repo_id: str, sha256: str) -> Response:
    """The content of a large file, for a signed address."""
    call.hub.signer.check(call.request)
    found, xet = call.store.get(kind, repo_id), call.store.objects.xet.find(sha256)
    if found is None:
        raise Refusal(404, "Repository not found", code="RepoNotFound")
    size = call.store.objects.size(sha256)
    if size is None:
        raise Refusal(404, "the content of this file is gone from the hub's folder")
    return _content(call, Entry.large(sha256, size, xet.hash if xet else None), {})


def _locate(call: Call, kind: str, repo_id: str, revision: str, path: str) -> tuple[Commit, Entry, dict[str, str]]:
    found = call.repository(kind, repo_id)
    if path not in OPEN_FILES:
        check_gate(found, call.user())
    commit = found.at(revision)
    headers = {"X-Repo-Commit": commit.id}
    if path not in commit.tree:
        raise Refusal(404, "Entry not found", code="EntryNotFound", headers=headers)
    name = quote(path.rsplit("/", 1)[-1])
    headers |= {"Accept-Ranges": "bytes", "Content-Disposition": f"inline; filename*=UTF-8''{name}"}
    return commit, commit.tree[path], headers


def _content(call: Call, entry: Entry, headers: Mapping[str, str]) -> Response:
    """A content, or the part of it that a Range header asks for; a header of another form is not heeded, as HTTP wants."""
    xet = call.store.objects.xet.find(entry.sha256) if entry.xet else None
    path = call.store.objects.open_file(entry.sha256, xet)
    headers = {**headers, "ETag": f'"{entry.etag}"', "Accept-Ranges": "bytes"}
    start, end = _range(call.request.headers.get("Range", ""), entry.size)
    if (start, end) == (0, entry.size):
        return Response(200, Slice(path, 0, entry.size), headers)
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
    return Response(206, Slice(path, start, end - start), headers)


def _range(header: str, size: int) -> tuple[int, int]:
    """The first byte that is asked for, and the one after the last."""
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip())
    if not found or found.groups() == ("", ""):
        return 0, size
    first, last = found.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1 if last else size, size)
    if start >= end:
        raise Refusal(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return start, end
