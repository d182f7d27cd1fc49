"""The endpoints of files: tree, facts about paths, download with its redirect, LFS upload."""

import hashlib
import re
from urllib.parse import parse_qs

from .wire import Refusal, Response, Slice


def tree(call, kind, repo_id, revision, path=""):
    """The entries of a folder, or of everything below it."""
    commit = call.repository(kind, repo_id).at(revision)
    headers = {"X-Repo-Commit": commit.id}
    folder = path.strip("/")
    entries = _entries(commit, f"{folder}/" if folder else "", deep=call.request.flag("recursive"))
    if folder and not entries:
        raise Refusal(
            404, f'{folder} does not exist on "{revision}"', code="EntryNotFound", headers=headers
        )
    return Response(200, entries, headers)


def _entries(commit, prefix, *, deep):
    entries = {}
    for path in commit.tree:
        if path.startswith(prefix):
            parts = path.removeprefix(prefix).split("/")
            for end in range(1, len(parts) + 1 if deep else 2):
                name = prefix + "/".join(parts[:end])
                entries[name] = entries.get(name) or _shown(commit, name)
    return [entries[name] for name in sorted(entries)]


def _shown(commit, path):
    """What the API says of a file, or of a folder, whose name changes with what is in it. git would
    name it otherwise."""
    if (entry := commit.tree.get(path)) is not None:
        return {
            "type": "file",
            "oid": entry.oid,
            "size": entry.size,
            "path": path,
            **entry.lfs_facts("oid"),
        }
    inside = [
        f"{name} {entry.oid}" for name, entry in commit.tree.items() if name.startswith(f"{path}/")
    ]
    oid = hashlib.sha1("\n".join(inside).encode(), usedforsecurity=False).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path}


def paths_info(call, kind, repo_id, revision):
    """What the tree says of the given paths; one that is not there is left out."""
    commit = call.repository(kind, repo_id).at(revision)
    form = parse_qs(call.request.body().decode("utf-8", "replace"))
    paths = dict.fromkeys(path.strip("/") for path in form.get("paths", []))
    there = [
        path
        for path in paths
        if any(name == path or name.startswith(f"{path}/") for name in commit.tree)
    ]
    return Response(200, [_shown(commit, path) for path in there])


def resolve(call, kind, repo_id, revision, path):
    """Send a file that git keeps; send the client of a large file to another origin, where its
    token does not go."""
    commit = call.repository(kind, repo_id).at(revision)
    headers = {"X-Repo-Commit": commit.id}
    entry = commit.tree.get(path)
    if entry is None:
        raise Refusal(404, "Entry not found", code="EntryNotFound", headers=headers)
    headers |= {
        "Accept-Ranges": "bytes",
        "X-Linked-Size": str(entry.size),
        "X-Linked-ETag": f'"{entry.etag}"',
    }
    if entry.lfs:
        place = call.content_url(f"/content/{kind}/{repo_id}/{entry.sha256}")
        return Response(302, b"Found", {**headers, "Location": place})
    return _content(call, entry, {**headers, "Content-Type": "text/plain; charset=utf-8"})


def content(call, kind, repo_id, sha256):
    """The content of a large file, for who knows its hash."""
    entry = call.store.large(sha256)
    if entry is None:
        raise Refusal(404, f"the content of this file of {repo_id} is gone from the hub's folder")
    return _content(call, entry, {})


def _content(call, entry, headers):
    """A content, or the part of it that a Range header asks for; a header of another form is not
    heeded, as HTTP wants."""
    path = call.store.content(entry.sha256)
    headers = {**headers, "ETag": f'"{entry.etag}"', "Accept-Ranges": "bytes"}
    start, end = _range(call.request.headers.get("Range", ""), entry.size)
    if (start, end) == (0, entry.size):
        return Response(200, Slice(path, 0, entry.size), headers)
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
    return Response(206, Slice(path, start, end - start), headers)


def _range(header, size):
    """The first byte that is asked for, and the one after the last."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip())
    if not match or match.groups() == ("", ""):
        return 0, size
    first, last = match.groups()
    if not first:
        start = max(0, size - int(last))
        end = size
    else:
        start = int(first)
        end = min(int(last) + 1 if last else size, size)
    if start >= end:
        raise Refusal(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return start, end


def batch(call, kind, repo_id):
    """Say for each content where to upload it; one that is here already needs no upload."""
    call.repository(kind, repo_id)
    call.user()
    answers = []
    for item in call.request.json()["objects"]:
        sha256 = item["oid"]
        size = item["size"]
        answer = {"oid": sha256, "size": size, "authenticated": True}
        if call.store.large(sha256) is None:
            answer["actions"] = {"upload": {"href": call.content_url(f"/lfs/{sha256}")}}
        answers.append(answer)
    return Response(
        200,
        {"transfer": "basic", "objects": answers},
        {"Content-Type": "application/vnd.git-lfs+json"},
    )


def upload(call, sha256):
    """Take a content; it shows only where a commit names it."""
    call.store.receive(sha256, call.request.pieces())
    return Response(200)
