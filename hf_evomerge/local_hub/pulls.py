"""Pull requests: opened by a commit or by hand, pushed to, discussed a little, closed, merged file by file."""

from __future__ import annotations

import uuid
from typing import Any

from .access import User
from .call import Call
from .repository import SINGULAR, Commit, Repository, Tree, now
from .wire import Refusal, Response

PAGE = 50


def open_pull(found: Repository, head: Commit, base: Commit, *, user: User, title: str, text: str) -> int:
    """Open a pull request. The caller holds the lock, and saves.

    Args:
        found: The repository.
        head: What is proposed.
        base: What it was made from.
        user: Who proposes.
        title: One line.
        text: More.

    Returns:
        Its number.
    """
    number = _add(found, user, title, text, pull=True)
    found.state.pulls[f"refs/pr/{number}"] = head.id
    found.state.discussions[number - 1].update(base=base.id, status="open")
    if head != base:
        _event(found, number, "commit", user.name, {"subject": head.title, "oid": head.id})
    return number


def record_commit(found: Repository, ref: str, made: Commit) -> None:
    """Move the ref of a pull request to a new commit. The caller holds the lock, and saves.

    Raises:
        Refusal: 403, where it is closed or merged.
    """
    number = int(ref.removeprefix("refs/pr/"))
    if found.state.discussions[number - 1]["status"] not in ("open", "draft"):
        raise Refusal(403, f"pull request {number} is {found.state.discussions[number - 1]['status']}")
    found.state.pulls[ref] = made.id
    _event(found, number, "commit", made.author, {"subject": made.title, "oid": made.id})


def discussions(call: Call, kind: str, repo_id: str) -> Response:
    """List discussions and pull requests, or open one."""
    found = call.repository(kind, repo_id)
    if call.request.method == "POST":
        user, wanted = call.known_user(), call.request.json()
        title, text = call.request.text("title"), str(wanted.get("description") or "")
        with found.lock:
            if wanted.get("pullRequest"):
                main = found.at("main")
                number = open_pull(found, main, main, user=user, title=title, text=text)
                found.state.discussions[number - 1]["status"] = "draft"
            else:
                number = _add(found, user, title, text, pull=False)
            found.save()
        return Response(200, {"num": number, "url": call.web_url(kind, repo_id, f"/discussions/{number}")})
    wanted_type, status, author = (call.request.option(name) for name in ("type", "status", "author"))
    chosen = [
        _shown(found, one)
        for one in reversed(found.state.discussions)
        if wanted_type in ("", "all", "pull_request" if one["isPullRequest"] else "discussion")
        and (status in ("", "all") or (one["status"] in ("open", "draft")) == (status == "open"))
        and author in ("", one["author"]["name"])
    ]
    start = call.request.count("p", 0) * PAGE
    return Response(200, {"discussions": chosen[start : start + PAGE], "count": len(chosen), "start": start})


def discussion(call: Call, kind: str, repo_id: str, number: str) -> Response:
    """One discussion or pull request, with what happened in it."""
    found = call.repository(kind, repo_id)
    one = _find(found, number)
    conflicts = _merge(found, one)[1] if one["isPullRequest"] and one["status"] in ("open", "draft") else []
    changes = {"base": "refs/heads/main"} | ({"mergeCommitId": one["merged"]} if one.get("merged") else {})
    extra = {"events": one["events"], "changes": changes, "filesWithConflicts": conflicts, "diff": ""}
    return Response(200, {**_shown(found, one), **extra})


def comment(call: Call, kind: str, repo_id: str, number: str) -> Response:
    """Say something."""
    found, user = call.repository(kind, repo_id), call.known_user()
    with found.lock:
        one = _find(found, number)
        event = _event(found, one["num"], "comment", user.name, _comment(call.request.text("comment")))
        found.save()
    return Response(200, {"newMessage": event})


def rename(call: Call, kind: str, repo_id: str, number: str) -> Response:
    """Give another title."""
    found, user, title = call.repository(kind, repo_id), call.known_user(), call.request.text("title")
    with found.lock:
        one = _find(found, number)
        _check_theirs(found, one["author"]["name"], user)
        event = _event(found, one["num"], "title-change", user.name, {"from": one["title"], "to": title})
        one["title"] = title
        found.save()
    return Response(200, {"newTitle": event})


def change_comment(call: Call, kind: str, repo_id: str, number: str, *, comment: str, what: str) -> Response:
    """Say something else, or nothing any more."""
    found, user = call.repository(kind, repo_id), call.known_user()
    with found.lock:
        event = next((one for one in _find(found, number)["events"] if one["id"] == comment), None)
        if event is None or event["type"] != "comment":
            raise Refusal(404, f"no comment {comment[:30]}")
        _check_theirs(found, event["author"]["name"], user)
        if what == "edit":
            event["data"] = {**_comment(call.request.text("content")), "edited": True}
        else:
            event["data"] = {**_comment("This comment has been hidden"), "hidden": True}
        found.save()
    return Response(200, {"updatedComment": event})


def set_status(call: Call, kind: str, repo_id: str, number: str) -> Response:
    """Open or close."""
    found, user, status = call.repository(kind, repo_id), call.known_user(), call.request.text("status")
    if status not in ("open", "closed"):
        raise Refusal(400, '"status" must be one of [open, closed]')
    with found.lock:
        one = _find(found, number)
        if one["status"] == "merged":
            raise Refusal(400, "it is merged")
        _check_theirs(found, one["author"]["name"], user)
        one["status"] = status
        event = _event(found, one["num"], "status-change", user.name, {"status": status})
        found.save()
    return Response(200, {"newStatus": event})


def merge(call: Call, kind: str, repo_id: str, number: str) -> Response:
    """Merge a pull request into main, where no file was changed on both sides."""
    found, user = call.repository(kind, repo_id, write=True), call.known_user()
    with found.lock:
        one = _find(found, number)
        if not one["isPullRequest"] or one["status"] not in ("open", "draft"):
            raise Refusal(400, f"discussion {number} is no open pull request")
        tree, conflicts = _merge(found, one)
        if conflicts:
            raise Refusal(409, f"both sides changed {', '.join(conflicts)}")
        head, ref = found.state.branches["main"], f"refs/pr/{one['num']}"
        title = f"{one['title']} (#{one['num']})"
        made = Commit.make(tree, (head, found.state.pulls[ref]), title=title, message="", author=user.name)
        found.state.branches["main"] = found.add(made).id
        one.update(status="merged", merged=made.id)
        _event(found, one["num"], "status-change", user.name, {"status": "merged"})
        found.save()
    return Response(200, {"success": True, "commitOid": made.id})


def _merge(found: Repository, one: dict[str, Any]) -> tuple[Tree, list[str]]:
    """main with what the pull request changed since it began, and the files that both changed differently."""
    ours = found.at("main").tree
    theirs, base = found.at(f"refs/pr/{one['num']}").tree, found.commit(one["base"]).tree
    tree, conflicts = dict(ours), []
    for path in sorted(theirs.keys() | base.keys()):
        mine, new, old = ours.get(path), theirs.get(path), base.get(path)
        if new in (old, mine):
            continue
        if mine != old:
            conflicts.append(path)
        elif new is None:
            del tree[path]
        else:
            tree[path] = new
    return tree, conflicts


def _check_theirs(found: Repository, author: str, user: User) -> None:
    if user.name != author and not user.can_write(found.owner):
        raise Refusal(403, "only who wrote it and who can write to the repository may do this")


def _find(found: Repository, number: str) -> dict[str, Any]:
    if not number.isdecimal() or not 0 < int(number) <= len(found.state.discussions):
        raise Refusal(404, f"no discussion {number[:20]}")
    return found.state.discussions[int(number) - 1]


def _add(found: Repository, user: User, title: str, text: str, *, pull: bool) -> int:
    number = len(found.state.discussions) + 1
    one = {"num": number, "title": title, "status": "open", "isPullRequest": pull, "author": {"name": user.name}}
    found.state.discussions.append({**one, "createdAt": now(), "events": []})
    _event(found, number, "comment", user.name, _comment(text))
    return number


def _event(found: Repository, number: int, kind: str, author: str, data: dict[str, Any]) -> dict[str, Any]:
    event = {"id": uuid.uuid4().hex[:24], "type": kind, "author": {"name": author}, "createdAt": now(), "data": data}
    found.state.discussions[number - 1]["events"].append(event)
    return event


def _comment(text: str) -> dict[str, Any]:
    return {"edited": False, "hidden": False, "latest": {"raw": text}}


def _shown(found: Repository, one: dict[str, Any]) -> dict[str, Any]:
    keys = ("num", "title", "status", "isPullRequest", "author", "createdAt")
    return {**{key: one[key] for key in keys}, "repo": {"name": found.id, "type": SINGULAR[found.state.kind]}}
