"""Who may do what: the account and its token, private repositories, and addresses that are good without a token for a while."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass, field

from .repository import Repository
from .store import Store
from .wire import Refusal, Request

LINK_SECONDS = 3600
NO_ENTRY = "Invalid username or password."
NO_WRITE = (
    "Forbidden: you don't have write access to this repo; pass `create_pr=1` as a query parameter to create a Pull Request"
)


@dataclass(frozen=True)
class Account:
    """The user of a hub. The token is kept in memory only.

    Attributes:
        name: Their name, and the namespace of their repositories.
        token: Their token.
        orgs: More namespaces that are theirs.
    """

    name: str
    token: str = field(repr=False)
    orgs: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        """Whether what is in a namespace is theirs to change."""
        return namespace == self.name or namespace in self.orgs


class Signer:
    """Signs the addresses of contents, which clients fetch and upload without their token. The key ends with the program."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def sign(self, path: str) -> str:
        """Add a signature and an expiry to a path."""
        expires = str(int(time.time()) + LINK_SECONDS)
        return f"{path}?expires={expires}&signature={self._signature(path, expires)}"

    def check(self, request: Request) -> None:
        """Let a request pass whose address was signed here.

        Raises:
            Refusal: 400 where it carries a token, as S3 answers; 403 where the signature is wrong or too old.
        """
        if request.headers.get("Authorization"):
            raise Refusal(400, "Only one auth mechanism allowed")
        expires = request.option("expires")
        good = hmac.compare_digest(request.option("signature").encode(), self._signature(request.path, expires).encode())
        if not good or int(expires) < time.time():
            raise Refusal(403, "Request has expired, or its signature is wrong")

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self._key, f"{path}\n{expires}".encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Call:
    """One request under way, and what it is about.

    Attributes:
        request: The request.
        store: The repositories.
        account: The user of this hub.
        signer: Signs addresses of contents.
        endpoint: The address that clients know.
    """

    request: Request
    store: Store
    account: Account
    signer: Signer
    endpoint: str

    def content_url(self, path: str) -> str:
        """Sign the address of a content. It is another origin than the API, as on the real Hub."""
        return self.endpoint.replace("127.0.0.1", "localhost") + self.signer.sign(path)

    def web_url(self, kind: str, repo_id: str, rest: str = "") -> str:
        """The address of a page of a repository."""
        return f"{self.endpoint}/{'' if kind == 'models' else kind + '/'}{repo_id}{rest}"

    def is_known(self) -> bool:
        """Whether the request has the account's token; False without a token.

        Raises:
            Refusal: 401, where the token is another.
        """
        header = self.request.headers.get("Authorization")
        if not header:
            return False
        if not hmac.compare_digest(header.removeprefix("Bearer ").strip().encode(), self.account.token.encode()):
            raise Refusal(401, "Invalid credentials in Authorization header")
        return True

    def user(self) -> Account:
        """Who asks, where that has to be somebody.

        Raises:
            Refusal: 401.
        """
        if not self.is_known():
            raise Refusal(401, NO_ENTRY)
        return self.account

    def repository(self, kind: str, repo_id: str, *, write: bool = False) -> Repository:
        """Find the repository that is asked for.

        Args:
            kind: `models`, `datasets` or `spaces`.
            repo_id: `owner/name`.
            write: Whether it is to be changed.

        Raises:
            Refusal: Where it is not there or hidden, which look alike: 401 without a token, 404 with one; where it may not be
                changed, 401 and 403.
        """
        repository, known = self.store.get(kind, repo_id), self.is_known()
        if repository is None or (repository.state.private and not (known and self.account.owns(repository.owner))):
            if not known:  # the real 401 has no code: the client knows it by its https address, which this is not
                raise Refusal(401, NO_ENTRY, code="RepoNotFound")
            raise Refusal(404, "Repository not found", code="RepoNotFound")
        if write and not self.user().owns(repository.owner):
            raise Refusal(403, NO_WRITE)
        return repository
