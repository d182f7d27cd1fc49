"""One request under way: who asks, for which repository, and whether they may. What every endpoint begins with."""

from __future__ import annotations

from dataclasses import dataclass

from .access import Signer, User, Users, check_gate
from .repository import Repository
from .store import Store
from .wire import Refusal, Request

NO_ENTRY = "Invalid username or password."
NO_WRITE = (
    "Forbidden: you don't have write access to this repo; pass `create_pr=1` as a query parameter to create a Pull Request"
)


@dataclass(frozen=True)
class Hub:
    """What the endpoints work on.

    Attributes:
        endpoint: The address that clients know.
        content: The same server under another name: contents come from another origin than the API, as on the real Hub.
        part_size: Larger LFS files are uploaded in parts of this many bytes; None for whole files always.
    """

    store: Store
    users: Users
    signer: Signer
    endpoint: str
    content: str
    part_size: int | None = None


@dataclass(frozen=True)
class Call:
    """A request, and the hub that it came to."""

    hub: Hub
    request: Request

    @property
    def store(self) -> Store:
        """The repositories."""
        return self.hub.store

    def user(self) -> User | None:
        """Who asks; see `Users.of`."""
        return self.hub.users.of(self.request)

    def known_user(self) -> User:
        """Who asks, where that has to be somebody.

        Raises:
            Refusal: 401.
        """
        user = self.user()
        if user is None:
            raise Refusal(401, NO_ENTRY)
        return user

    def repository(self, kind: str, repo_id: str, *, write: bool = False) -> Repository:
        """The repository that is asked for.

        Args:
            kind: `models`, `datasets` or `spaces`.
            repo_id: `owner/name`.
            write: Whether it is to be changed.

        Raises:
            Refusal: Where it is not there or hidden, which look alike: 401 without a token, 404 with one; where it may not be
                changed, 401 and 403.
        """
        found, user = self.store.get(kind, repo_id), self.user()
        if found is None or (found.state.private and not (user and user.can_write(found.owner))):
            if user is None:  # the real 401 has no code: the client knows it by its https address, which this is not
                raise Refusal(401, NO_ENTRY, code="RepoNotFound")
            raise Refusal(404, "Repository not found", code="RepoNotFound")
        if write and user is None:
            raise Refusal(401, NO_ENTRY)
        if write and user and not user.can_write(found.owner):
            raise Refusal(403, NO_WRITE)
        return found

    def readable(self, kind: str, repo_id: str) -> Repository:
        """The repository, if its files may be downloaded."""
        found = self.repository(kind, repo_id)
        check_gate(found, self.user())
        return found

    def web_url(self, kind: str, repo_id: str, rest: str = "") -> str:
        """The address of a page of a repository."""
        return f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{repo_id}{rest}"
