"""The endpoints that change and list history: what goes where, and commits."""

import base64
import json

from .repository import Commit
from .store import LARGE_ENDINGS
from .wire import Refusal, Response

LARGEST_REGULAR = 10_000_000  # bytes; larger files are kept out of git


def preupload(call, kind, repo_id, revision):
    """Say for each file that a client is about to commit: into git or not, and what is there
    now."""
    repository = _writable(call, kind, repo_id, revision)
    there = repository.at(revision)
    answers = []
    for file in call.request.json()["files"]:
        path = file["path"]
        mode = "lfs" if _is_large(path, file) else "regular"
        answer = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        if path in there.tree:
            answer["oid"] = there.tree[path].etag
        answers.append(answer)
    return Response(200, {"files": answers, "commitOid": there.id})


def _is_large(path, file):
    ending = path.rsplit("/", 1)[-1].rpartition(".")[2].lower()
    sample = base64.b64decode(file.get("sample") or "")
    return ending in LARGE_ENDINGS or file["size"] > LARGEST_REGULAR or b"\0" in sample


def _writable(call, kind, repo_id, revision):
    """The repository, if the user may commit to this revision."""
    repository = call.repository(kind, repo_id, write=True)
    repository.resolve(revision)
    if revision.removeprefix("refs/heads/") not in repository.state.branches:
        raise Refusal(400, f"commits go to a branch, and {revision} is none")
    return repository


def commit(call, kind, repo_id, revision):
    """Make a commit of the operations in the body, one a line, and move the branch to it."""
    repository = _writable(call, kind, repo_id, revision)
    lines = [json.loads(line) for line in call.request.body().splitlines() if line.strip()]
    (_, header), *operations = ((line["key"], line["value"]) for line in lines)
    title = header["summary"]
    message = header.get("description") or ""
    with repository.lock:
        base = repository.at(revision)
        if header.get("parentCommit") not in (None, base.id):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        tree = _apply(call, base.tree, operations)
        made = repository.add(
            Commit.make(tree, base.id, title=title, message=message, author=call.user().name)
        )
        answer = {
            "success": True,
            "commitOid": made.id,
            "commitUrl": call.web_url(kind, repo_id, f"/commit/{made.id}"),
        }
        repository.state.branches[revision.removeprefix("refs/heads/")] = made.id
        repository.save()
    return Response(200, answer)


def _apply(call, tree, operations):
    """The tree after the operations; raises `Refusal` where one cannot be."""
    tree = dict(tree)
    for key, value in operations:
        path = value["path"].rstrip("/")
        if key == "file":
            content = value["content"]
            tree[path] = call.store.regular(base64.b64decode(content))
        elif key == "lfsFile":
            if (entry := call.store.large(value["oid"])) is None:
                raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
            tree[path] = entry
        elif key in ("deletedFile", "deletedFolder"):
            gone = [
                name
                for name in tree
                if name == path or (key == "deletedFolder" and name.startswith(f"{path}/"))
            ]
            if not gone:
                raise Refusal(
                    404, f"A file with this name doesn't exist: {path}", code="EntryNotFound"
                )
            tree = {name: entry for name, entry in tree.items() if name not in gone}
    return tree


def history(call, kind, repo_id, revision):
    """The commits of a revision, the newest first."""
    repository = call.repository(kind, repo_id)
    return Response(
        200,
        [
            {
                "id": one.id,
                "title": one.title,
                "message": one.message,
                "date": one.date,
                "authors": [{"user": one.author}],
            }
            for one in repository.log(repository.resolve(revision))
        ],
    )
