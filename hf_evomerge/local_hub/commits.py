"""The endpoints that change and list history: what to upload how, commits, branches, tags."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .access import User
from .call import NO_WRITE, Call
from .cards import check_card
from .pulls import open_pull, record_commit
from .repository import SINGULAR, Commit, Entry, Repository, Tree
from .store import LARGE_ENDINGS, check_path, check_ref
from .wire import Refusal, Response

LARGEST_REGULAR = 10_000_000  # bytes; larger files are kept out of git
MOST_FILES = 256  # that one preupload asks about
NO_PULL = "refs/pr/"


def preupload(call: Call, kind: str, repo_id: str, revision: str) -> Response:
    """Say for each file that a client is about to commit: into git or not, ignored or not, and what is there now."""
    found = _writable(call, kind, repo_id, revision)
    files = call.request.objects("files")
    if len(files) > MOST_FILES:
        raise Refusal(400, f'"files" must be an array of at most {MOST_FILES}')
    tree, ignore = found.at(revision).tree, _patterns(call.request.json().get("gitIgnore"))
    answers = []
    for file in files:
        path = check_path(file.get("path"))
        mode = "lfs" if _is_large(path, file) else "regular"
        answer: dict[str, Any] = {"path": path, "uploadMode": mode, "shouldIgnore": _ignored(path, ignore)}
        if path in tree:
            answer["oid"] = tree[path].etag
        answers.append(answer)
    return Response(200, {"files": answers, "commitOid": found.resolve(revision)})


def _is_large(path: str, file: dict[str, Any]) -> bool:
    try:
        sample = base64.b64decode(file.get("sample") or "")
    except (binascii.Error, ValueError, TypeError):
        raise Refusal(400, f'"sample" of {path} is not base64') from None
    size = file.get("size")
    ending = path.rsplit("/", 1)[-1].rpartition(".")[2].lower()
    return ending in LARGE_ENDINGS or (isinstance(size, int) and size > LARGEST_REGULAR) or b"\0" in sample


def _patterns(text: Any) -> list[str]:
    lines = text.splitlines() if isinstance(text, str) else []
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _ignored(path: str, patterns: list[str]) -> bool:
    """Whether `.gitignore` lines name a file: by its path, by its name, or by a folder on the way to it."""
    parts = path.split("/")
    ways = {path, *parts[:-1], parts[-1], *("/".join(parts[:end]) for end in range(1, len(parts)))}
    return any(fnmatch.fnmatchcase(way, pattern.strip("/")) for pattern in patterns for way in ways)


def commit(call: Call, kind: str, repo_id: str, revision: str) -> Response:
    """Make a commit of the operations in the body, one a line, and move the branch to it, or open a pull request."""
    found = _writable(call, kind, repo_id, revision)
    user = call.known_user()
    head, operations = _read_lines(call.request.body.read())
    with found.lock:
        base = found.at(revision)
        if head.parent not in (None, base.id):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        tree = _apply(call, base.tree, operations)
        _check_readme(call, tree, base.tree, kind)
        made = found.add(Commit.make(tree, (base.id,), title=head.title, message=head.message, author=user.name))
        answer = {"success": True, "commitOid": made.id, "commitUrl": call.web_url(kind, repo_id, f"/commit/{made.id}")}
        if call.request.flag("create_pr"):
            number = open_pull(found, made, base, user=user, title=head.title, text=head.message)
            answer["pullRequestUrl"] = call.web_url(kind, repo_id, f"/discussions/{number}")
        elif revision in found.state.pulls:
            record_commit(found, revision, made)
        else:
            found.state.branches[revision.removeprefix("refs/heads/")] = made.id
        found.save()
    return Response(200, answer)


def _writable(call: Call, kind: str, repo_id: str, revision: str) -> Repository:
    """The repository, if the caller may commit to this revision of it, or open a pull request."""
    proposes = call.request.flag("create_pr")
    found = call.repository(kind, repo_id)
    user = call.known_user()
    if proposes or user.can_write(found.owner) or _may_push(found, revision, user):
        found.resolve(revision)
        name = revision.removeprefix("refs/heads/")
        if not proposes and name not in found.state.branches and revision not in found.state.pulls:
            raise Refusal(400, f"commits go to a branch or a pull request, and {revision} is neither")
        return found
    raise Refusal(403, NO_WRITE)


def _may_push(found: Repository, revision: str, user: User) -> bool:
    """Whether this is the ref of an open pull request of theirs."""
    number = revision.removeprefix(NO_PULL)
    if revision not in found.state.pulls or not number.isdecimal():
        return False
    return bool(found.state.discussions[int(number) - 1]["author"]["name"] == user.name)


@dataclass(frozen=True)
class _Head:
    title: str
    message: str
    parent: str | None


def _read_lines(body: bytes) -> tuple[_Head, list[tuple[str, dict[str, Any]]]]:
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        operations = [(line["key"], line["value"]) for line in lines]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Refusal(400, "a commit is one JSON object a line, with key and value") from None
    if not operations or operations[0][0] != "header" or not all(isinstance(value, dict) for _, value in operations):
        raise Refusal(400, "a commit begins with its header")
    header = operations[0][1]
    title = header.get("summary")
    if not isinstance(title, str) or not title.strip():
        raise Refusal(400, "the commit's summary is missing")
    return _Head(title, str(header.get("description") or ""), header.get("parentCommit")), operations[1:]


def _apply(call: Call, tree: Tree, operations: Iterable[tuple[str, dict[str, Any]]]) -> Tree:
    """The tree after the operations.

    Raises:
        Refusal: 400 for what cannot be, 404 for deleting what is not there.
    """
    tree = dict(tree)
    for key, value in operations:
        path = check_path(str(value.get("path", "")).rstrip("/") if key == "deletedFolder" else value.get("path"))
        if key == "file":
            tree[path] = call.store.regular(_content(path, value))
        elif key == "lfsFile":
            tree[path] = _large(call, path, str(value.get("oid")))
        elif key == "deletedFile":
            if tree.pop(path, None) is None:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", code="EntryNotFound")
        elif key == "deletedFolder":
            kept = {name: entry for name, entry in tree.items() if not name.startswith(f"{path}/")}
            if len(kept) == len(tree):
                raise Refusal(404, f"A folder with this name doesn't exist: {path}", code="EntryNotFound")
            tree = kept
        else:
            raise Refusal(400, f"unknown operation: {key}")
    folders = {"/".join(parts[:end]) for parts in (path.split("/") for path in tree) for end in range(1, len(parts))}
    if both := sorted(folders & tree.keys()):
        raise Refusal(400, f"a file and a folder have one name: {both[0]}")
    return tree


def _content(path: str, value: dict[str, Any]) -> bytes:
    content = value.get("content")
    if not isinstance(content, str):
        raise Refusal(400, f"{path} has no content")
    try:
        return base64.b64decode(content, validate=True) if value.get("encoding") == "base64" else content.encode()
    except ValueError:
        raise Refusal(400, f"the content of {path} is not base64") from None


def _large(call: Call, path: str, sha256: str) -> Entry:
    entry = call.store.large(sha256)
    if entry is None:
        raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path} ({sha256})")
    return entry


def _check_readme(call: Call, tree: Tree, before: Tree, kind: str) -> None:
    readme = tree.get("README.md")
    if readme is None or readme.lfs or readme == before.get("README.md"):
        return
    findings = check_card(call.store.read(readme).decode("utf-8", "replace"), SINGULAR[kind])
    if findings.errors:
        raise Refusal(400, f"Invalid metadata in README.md: {'; '.join(findings.errors)}", body=findings.to_json())


def refs(call: Call, kind: str, repo_id: str) -> Response:
    """Branches, tags and the refs of pull requests."""
    state = call.repository(kind, repo_id).state

    def shown(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in list(names.items())]

    answer: dict[str, Any] = {"branches": shown(state.branches, "refs/heads/"), "tags": shown(state.tags, "refs/tags/")}
    return Response(200, {**answer, "converts": [], "pullRequests": shown(state.pulls, "")})


def squash(call: Call, kind: str, repo_id: str, revision: str) -> Response:
    """Replace the history of a branch by one commit with the same files."""
    found, user = call.repository(kind, repo_id, write=True), call.known_user()
    with found.lock:
        if revision not in found.state.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        title = call.request.text("message", required=False) or f"Super-squash branch '{revision}'"
        tree = found.at(revision).tree
        found.state.branches[revision] = found.add(Commit.make(tree, (), title=title, message="", author=user.name)).id
        found.save()
    return Response(200, {})


def branch(call: Call, kind: str, repo_id: str, name: str) -> Response:
    """Create or delete a branch."""
    found = call.repository(kind, repo_id, write=True)
    with found.lock:
        branches = found.state.branches
        if call.request.method == "DELETE":
            if name == "main":
                raise Refusal(403, "the default branch cannot be deleted")
            if branches.pop(name, None) is None:
                raise Refusal(404, f"Invalid rev id: {name}", code="RevisionNotFound")
        else:
            if check_ref(name) in branches:
                raise Refusal(409, f"Reference already exists: refs/heads/{name}")
            start = call.request.text("startingPoint", required=False) or "main"
            branches[name] = found.resolve(start)
        found.save()
    return Response(200, {})


def tag(call: Call, kind: str, repo_id: str, revision: str) -> Response:
    """Create a tag at a revision, or delete the tag of that name."""
    found = call.repository(kind, repo_id, write=True)
    with found.lock:
        tags = found.state.tags
        if call.request.method == "DELETE":
            if tags.pop(revision, None) is None:
                raise Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        else:
            name = check_ref(call.request.text("tag"))
            if name in tags:
                raise Refusal(409, f"Tag reference exists already: {name}")
            tags[name] = found.resolve(revision)
        found.save()
    return Response(200, {})


def history(call: Call, kind: str, repo_id: str, revision: str) -> Response:
    """The commits of a revision, the newest first."""
    found = call.repository(kind, repo_id)
    page, size = call.request.count("p", 0), call.request.count("limit", 50, low=1, high=1000)
    commits = list(found.log(found.resolve(revision)))
    keys = ("id", "title", "message", "date")
    shown = [
        {**{key: getattr(one, key) for key in keys}, "authors": [{"user": one.author}]}
        for one in commits[page * size : (page + 1) * size]
    ]
    headers = {"X-Total-Count": str(len(commits))}
    if (page + 1) * size < len(commits):
        headers["Link"] = f'<{call.hub.endpoint}{call.request.path}?p={page + 1}&limit={size}>; rel="next"'
    return Response(200, shown, headers)
