"""The endpoints about users and organizations: what they are and what is theirs. Nobody follows or likes anything here."""

from __future__ import annotations

from typing import Any

from .access import User
from .call import Call
from .repository import SINGULAR, Repository
from .wire import Refusal, Response


def user_overview(call: Call, name: str) -> Response:
    """A user, and how many repositories they have."""
    user = _user(call, name)
    return Response(200, {**_shown(user), **_counts(call, name), "orgs": [_org(org) for org in user.orgs]})


def org_overview(call: Call, name: str) -> Response:
    """An organization, and how many members and repositories it has."""
    return Response(200, {**_org(name), **_counts(call, name), "numUsers": len(_members(call, name)), "isVerified": False})


def members(call: Call, name: str) -> Response:
    """The members of an organization."""
    return Response(200, [_shown(user) for user in _members(call, name)])


def nobody(call: Call, name: str) -> Response:
    """Followers, followed and liked: an empty list, of a user or an organization that is there."""
    if not call.hub.users.known(name):
        _members(call, name)
    return Response(200, [])


def repositories(call: Call, name: str = "") -> Response:
    """The repositories of the caller or of an organization of theirs, with their sizes."""
    user = call.known_user()
    if name and name not in user.orgs:
        raise Refusal(403, f"you are no member of {name}")
    return Response(200, [_stored(found) for found in _all(call, name or user.name)])


def _user(call: Call, name: str) -> User:
    found = call.hub.users.named(name)
    if found is None:
        raise Refusal(404, "This user does not exist")
    return found


def _members(call: Call, name: str) -> list[User]:
    found = call.hub.users.members(name)
    if not found:
        raise Refusal(404, "This organization does not exist")
    return found


def _shown(user: User) -> dict[str, Any]:
    return {"user": user.name, "fullname": user.name, "avatarUrl": "", "isPro": False, "type": "user"}


def _org(name: str) -> dict[str, Any]:
    return {"name": name, "fullname": name, "avatarUrl": "", "type": "org"}


def _all(call: Call, owner: str) -> list[Repository]:
    return [found for kind in SINGULAR for found in call.store.all(kind) if found.owner == owner]


def _counts(call: Call, owner: str) -> dict[str, int]:
    """How many repositories the caller can see."""
    user, seen = call.user(), _all(call, owner)
    visible = [found for found in seen if not found.state.private or (user is not None and user.can_write(owner))]
    return {f"num{kind.capitalize()}": sum(found.state.kind == kind for found in visible) for kind in SINGULAR}


def _stored(found: Repository) -> dict[str, Any]:
    tree, state = found.at("main").tree, found.state
    return {
        "id": found.id,
        "type": SINGULAR[state.kind],
        "storage": sum({entry.sha256: entry.size for entry in tree.values()}.values()),
        "visibility": "private" if state.private else "public",
        "updatedAt": found.at("main").date,
    }
