"""The endpoints of whole repositories: who am I, create, delete, list, describe, settings, access to gated ones."""

from __future__ import annotations

import json
from typing import Any

from .call import Call
from .cards import SDKS, card_tags, check_card, read_card
from .repository import SINGULAR, Commit, Kind, Repository, State, now
from .spaces import keep_setting, runtime
from .store import check_name
from .weights import parameters
from .wire import Refusal, Response

PRIVATE = ("private", "protected")
CONFIG_KEYS = ("architectures", "model_type", "auto_map", "tokenizer_config")
KINDS: dict[str, Kind] = {"model": "models", "dataset": "datasets", "space": "spaces"}


def whoami(call: Call) -> Response:
    """The user behind the token."""
    user = call.known_user()
    orgs = [{"type": "org", "id": name, "name": name, "fullname": name, "roleInOrg": "admin"} for name in user.orgs]
    token = {"type": "access_token", "accessToken": {"displayName": "local", "role": "write"}}
    about = {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "isPro": False, "canPay": False}
    return Response(200, {**about, "emailVerified": True, "orgs": orgs, "auth": token})


def validate_yaml(call: Call) -> Response:
    """Check the metadata of a README that is about to be committed."""
    kind = call.request.json().get("repoType") or "model"
    findings = check_card(call.request.text("content", required=False), kind)
    return Response(400 if findings.errors else 200, findings.to_json())


def create(call: Call) -> Response:
    """Create a repository."""
    user, wanted = call.known_user(), call.request.json()
    kind, owner, repo_id = _names(call, user.name)
    if not user.can_write(owner):
        what = f'You don\'t have the rights to create a {SINGULAR[kind]} under the namespace "{owner}"'
        raise Refusal(403, what)
    state = State(kind, repo_id, private=bool(wanted.get("private")) or wanted.get("visibility") in PRIVATE)
    if kind == "spaces":
        _prepare_space(call, state)
    try:
        made = call.store.create(state, author=user.name)
    except Refusal as refusal:  # the client reads the address where it was told that the repository may exist
        raise Refusal(refusal.status, refusal.message, body={"url": call.web_url(kind, repo_id)}) from None
    return Response(200, {"url": call.web_url(kind, repo_id), "name": repo_id, "id": made.state.number})


def _prepare_space(call: Call, state: State) -> None:
    wanted = call.request.json()
    state.sdk, state.hardware = wanted.get("sdk"), str(wanted.get("hardware") or state.hardware)
    if state.sdk not in SDKS:
        raise Refusal(400, f'"sdk" must be one of [{", ".join(SDKS)}]')
    for which in ("secrets", "variables"):
        for item in call.request.objects(which):
            keep_setting(state, which, item)


def delete(call: Call) -> Response:
    """Delete a repository."""
    kind, _, repo_id = _names(call, call.known_user().name)
    call.store.delete(call.repository(kind, repo_id, write=True))
    return Response(200, b"OK")


def _names(call: Call, user: str) -> tuple[Kind, str, str]:
    wanted = call.request.json()
    kind = KINDS.get(wanted.get("type") or "model")
    if kind is None:
        raise Refusal(400, f"this hub has models, datasets and spaces, but no {wanted['type']}")
    owner = check_name(str(wanted.get("organization") or user))
    return kind, owner, f"{owner}/{check_name(call.request.text('name'))}"


def describe(call: Call, kind: str, repo_id: str, revision: str = "main") -> Response:
    """What a repository is at a revision: files, tags, card."""
    found = call.repository(kind, repo_id)
    return Response(200, _facts(call, found, found.at(revision), sizes=call.request.flag("blobs")))


def listing(call: Call, kind: str) -> Response:
    """The repositories that the caller can see, with every given tag, by an author, with a text in the name."""
    user, request = call.user(), call.request
    result = []
    for found in call.store.all(kind):
        if found.state.private and not (user and user.can_write(found.owner)):
            continue
        facts = _facts(call, found, found.at("main"), sizes=False)
        wanted = {*request.query.get("filter", []), *request.query.get("pipeline_tag", [])}
        named = request.option("search").lower() in found.id.lower()
        theirs = request.option("author", found.owner) == found.owner
        if named and theirs and wanted <= set(facts["tags"]):
            result.append(facts)
    key = "createdAt" if request.option("sort") == "createdAt" else "lastModified"
    result.sort(key=lambda facts: facts[key], reverse=True)
    return Response(200, result[: request.count("limit", 1000)])


def tags_by_type(call: Call, kind: str) -> Response:
    """The tags that the public repositories have, by what they say."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for repository in call.store.all(kind):
        tags = [] if repository.state.private else _facts(call, repository, repository.at("main"), sizes=False)["tags"]
        for tag in tags:
            first, _, rest = tag.partition(":")
            of, label = (first, rest) if first in ("license", "dataset", "region") else ("other", tag)
            found.setdefault(of, {})[tag] = {"id": tag, "label": label, "type": of}
    return Response(200, {of: list(tags.values()) for of, tags in found.items()})


def _facts(call: Call, found: Repository, commit: Commit, *, sizes: bool) -> dict[str, Any]:
    state = found.state
    readme = commit.tree.get("README.md")
    card, text = read_card(call.store.read(readme)) if readme and not readme.lfs else ({}, "")
    config = _config(call, commit)
    facts = {
        "_id": state.number,
        "id": found.id,
        "author": found.owner,
        "sha": commit.id,
        "createdAt": state.created,
        "lastModified": commit.date,
        "private": state.private,
        "gated": state.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card_tags(card, text, kind=state.kind, config=config, names=list(commit.tree)),
        "cardData": card or None,
        "siblings": [{"rfilename": path, **(_sizes(commit, path) if sizes else {})} for path in commit.tree],
        "usedStorage": sum({entry.sha256: entry.size for entry in commit.tree.values()}.values()),
    }
    if state.kind == "models":
        library = card.get("library_name") or ("transformers" if config.get("model_type") else None)
        shown = {key: config[key] for key in CONFIG_KEYS if key in config}
        facts |= {"modelId": found.id, "library_name": library, "pipeline_tag": card.get("pipeline_tag"), "config": shown}
        facts |= {"model-index": card.get("model-index"), "spaces": []}
        if (counts := parameters(call.store, commit)) is not None:
            facts["safetensors"] = counts
    if state.kind == "spaces":
        facts |= {"sdk": card.get("sdk", state.sdk), "models": card.get("models", []), "datasets": card.get("datasets", [])}
        facts |= {"subdomain": found.id.replace("/", "-"), "host": None, "runtime": runtime(call, found)}
    return facts


def _sizes(commit: Commit, path: str) -> dict[str, Any]:
    entry = commit.tree[path]
    lfs = {"lfs": {"sha256": entry.sha256, **entry.lfs_facts()}} if entry.lfs else {}
    return {"size": entry.size, "blobId": entry.oid, **lfs}


def _config(call: Call, commit: Commit) -> dict[str, Any]:
    entry = commit.tree.get("config.json")
    try:
        config = json.loads(call.store.read(entry)) if entry and not entry.lfs else {}
    except (ValueError, RecursionError):
        config = {}
    return config if isinstance(config, dict) else {}


def settings(call: Call, kind: str, repo_id: str) -> Response:
    """Make a repository private or public, gated or open."""
    found, wanted = call.repository(kind, repo_id, write=True), call.request.json()
    with found.lock:
        if "gated" in wanted:
            if wanted["gated"] not in ("auto", "manual", False):
                raise Refusal(400, '"gated" must be one of [auto, manual, false]')
            found.state.gated = wanted["gated"]
        if "visibility" in wanted or "private" in wanted:
            found.state.private = bool(wanted.get("private")) or wanted.get("visibility") in PRIVATE
        found.save()
    return Response(200, {"private": found.state.private, "gated": found.state.gated})


def auth_check(call: Call, kind: str, repo_id: str, write: str = "") -> Response:
    """Whether the caller may read the files of a repository, or write."""
    call.readable(kind, repo_id)
    call.repository(kind, repo_id, write=bool(write))
    return Response(200, b"OK")


def ask_access(call: Call, kind: str, repo_id: str) -> Response:
    """Ask for access to a gated repository; granted at once where it is gated automatically."""
    found, user = call.repository(kind, repo_id), call.known_user()
    status = "accepted" if found.state.gated == "auto" else "pending"
    _set_access(found, user.name, status)
    return Response(200, {"status": status})


def grant_access(call: Call, kind: str, repo_id: str) -> Response:
    """Let a user in who has not asked."""
    found, name = call.repository(kind, repo_id, write=True), call.request.text("user")
    _check_grant(call, found, name)
    if found.state.access.get(name, {}).get("status") == "accepted":
        raise Refusal(400, f"{name} has access already")
    _set_access(found, name, "accepted")
    return Response(200, {})


def handle_access(call: Call, kind: str, repo_id: str) -> Response:
    """Accept, reject or put back a request for access."""
    found, name, status = call.repository(kind, repo_id, write=True), call.request.text("user"), call.request.text("status")
    _check_grant(call, found, name)
    if status not in ("accepted", "rejected", "pending"):
        raise Refusal(400, '"status" must be one of [accepted, rejected, pending]')
    if found.state.access.get(name, {}).get("status") in (None, status):
        raise Refusal(404, f"{name} has not asked for access, or the request is {status} already")
    _set_access(found, name, status)
    return Response(200, {})


def access_requests(call: Call, kind: str, repo_id: str, status: str) -> Response:
    """The requests for access of one status."""
    found = call.repository(kind, repo_id, write=True)
    asked = [(name, request) for name, request in list(found.state.access.items()) if request["status"] == status]
    return Response(200, [{"user": {"user": name, "fullname": name}, "requestId": name, **request} for name, request in asked])


def _check_grant(call: Call, found: Repository, name: str) -> None:
    if not found.state.gated:
        raise Refusal(400, "the repository is not gated")
    if not call.hub.users.known(name):
        raise Refusal(404, f"no user {name}")


def _set_access(found: Repository, name: str, status: str) -> None:
    with found.lock:
        found.state.access[name] = {"status": status, "timestamp": now()}
        found.save()
