"""Who may do what: the account with its token, and private repositories."""

from dataclasses import dataclass, field

from .store import Store
from .wire import Refusal, Request

NO_ENTRY = "Invalid username or password."
NO_WRITE = (
    "Forbidden: you don't have write access to this repo; pass `create_pr=1` as a query "
    "parameter to create a Pull Request"
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

    def owns(self, namespace):
        """Whether what is in a namespace is theirs to change."""
        return namespace == self.name or namespace in self.orgs


@dataclass(frozen=True)
class Call:
    """One request under way, and what it is about.

    Attributes:
        request: The request.
        store: The repositories.
        account: The user of this hub.
        endpoint: The address that clients know.
    """

    request: Request
    store: Store
    account: Account
    endpoint: str

    def content_url(self, path):
        """The address of a content: at another origin than the API, as on the real Hub, so that no
        token is sent there."""
        return self.endpoint.replace("127.0.0.1", "localhost") + path

    def web_url(self, kind, repo_id, rest=""):
        """The address of a page of a repository."""
        return f"{self.endpoint}/{'' if kind == 'models' else kind + '/'}{repo_id}{rest}"

    def is_known(self):
        """Whether the request has the account's token, False without a token; raises `Refusal`
        where it is another."""
        header = self.request.headers.get("Authorization")
        if not header:
            return False
        if header.removeprefix("Bearer ") != self.account.token:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return True

    def user(self):
        """Who asks; raises `Refusal` (401) where that is nobody."""
        if not self.is_known():
            raise Refusal(401, NO_ENTRY)
        return self.account

    def repository(self, kind, repo_id, *, write=False):
        """Find the repository that is asked for.

        Args:
            kind: `models`, `datasets` or `spaces`.
            repo_id: `owner/name`.
            write: Whether it is to be changed.

        Raises:
            Refusal: Where it is not there or hidden, which look alike: 401 without a token, 404
                with one; where it may not be changed, 401 and 403.
        """
        repository = self.store.get(kind, repo_id)
        known = self.is_known()
        if repository is None or (
            repository.state.private and not (known and self.account.owns(repository.owner))
        ):
            # the real 401 has no code: the client knows it by its https address, which this is not
            if not known:
                raise Refusal(401, NO_ENTRY, code="RepoNotFound")
            raise Refusal(404, "Repository not found", code="RepoNotFound")
        if write and not self.user().owns(repository.owner):
            raise Refusal(403, NO_WRITE)
        return repository
