"""Who may do what: users and their tokens, and links that are good without a token for a while."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

from .repository import Repository
from .wire import Refusal, Request

LINK_SECONDS = 3600


@dataclass(frozen=True)
class User:
    """A user and the organisations that they can write in. Tokens are kept apart, and only in memory."""

    name: str
    orgs: tuple[str, ...] = ()

    def can_write(self, owner: str) -> bool:
        """Whether what belongs to `owner` is theirs to change."""
        return owner == self.name or owner in self.orgs


class Users:
    """The users of a hub, by token."""

    def __init__(self) -> None:
        self._by_token: dict[str, User] = {}

    def add(self, user: User, token: str) -> None:
        """Let a token stand for a user."""
        self._by_token[token] = user

    def known(self, name: str) -> bool:
        """Whether a user of this name is there."""
        return self.named(name) is not None

    def named(self, name: str) -> User | None:
        """The user of this name."""
        return next((user for user in self._by_token.values() if user.name == name), None)

    def members(self, org: str) -> list[User]:
        """The users that can write in an organization, each once."""
        return list(dict.fromkeys(user for user in self._by_token.values() if org in user.orgs))

    def of(self, request: Request) -> User | None:
        """Who sends a request; None without a token.

        Raises:
            Refusal: 401, where the token is nobody's.
        """
        header = request.headers.get("Authorization")
        if not header:
            return None
        user = self._by_token.get(header.removeprefix("Bearer ").strip())
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user


def check_gate(repository: Repository, user: User | None) -> None:
    """Let pass who may download files of a gated repository.

    Raises:
        Refusal: 401 without a token, 403 with one; both with `GatedRepo`.
    """
    gated = repository.state.gated
    if not gated or (user and user.can_write(repository.owner)):
        return
    what = f"Access to model {repository.id} is restricted"
    if user is None:
        message = f"{what}. You must have access to it and be authenticated to access it. Please log in."
        raise Refusal(401, message, code="GatedRepo")
    if repository.state.access.get(user.name, {}).get("status") != "accepted":
        raise Refusal(403, f"{what} and you are not in the authorized list. Ask for access first.", code="GatedRepo")


class Signer:
    """Signs the addresses of contents, which clients fetch without their token. The key ends with the program."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def sign(self, path: str) -> str:
        """A path with a signature and an expiry in its query."""
        expires = str(int(time.time()) + LINK_SECONDS)
        return f"{path}?expires={expires}&signature={self._signature(path, expires)}"

    def check(self, request: Request, *, token: bool = False) -> None:
        """Let pass a request whose address was signed here.

        Args:
            request: The request.
            token: Whether it may carry a token as well.

        Raises:
            Refusal: 400 where it carries a token and may not, as S3 answers; 403 where the signature is wrong or too old.
        """
        if not token and request.headers.get("Authorization"):
            raise Refusal(400, "Only one auth mechanism allowed")
        expires = request.option("expires")
        good = hmac.compare_digest(request.option("signature").encode(), self._signature(request.path, expires).encode())
        if not good or not expires.isdecimal() or int(expires) < time.time():
            raise Refusal(403, "Request has expired, or its signature is wrong")

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self._key, f"{path}\n{expires}".encode(), hashlib.sha256).hexdigest()
