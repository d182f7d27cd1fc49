"""The endpoints of whole repositories: who am I, create, delete, describe, branches and tags."""

from .cards import card_tags, check_card, read_card
from .repository import KINDS, State
from .wire import Refusal, Response


def whoami(call):
    """The user behind the token."""
    user = call.user()
    about = {
        "type": "user",
        "name": user.name,
        "orgs": [{"name": name} for name in user.orgs],
        "auth": {"accessToken": {"displayName": "local", "role": "write"}},
    }
    return Response(200, about)


def validate_yaml(call):
    """Check the metadata of a README that is about to be committed."""
    kind = call.request.json().get("repoType") or "model"
    errors, warnings = check_card(call.request.json()["content"], kind)
    answer = {
        "errors": [{"message": message} for message in errors],
        "warnings": [{"message": message} for message in warnings],
    }
    return Response(400 if errors else 200, answer)


def create(call):
    """Create a repository."""
    user = call.user()
    wanted = call.request.json()
    kind, owner, repo_id = _names(call)
    if not user.owns(owner):
        raise Refusal(403, f'You don\'t have the rights to create a repo under "{owner}"')
    private = bool(wanted.get("private")) or wanted.get("visibility") in ("private", "protected")
    state = State(kind, repo_id, private=private, sdk=wanted.get("sdk"))
    url = call.web_url(kind, repo_id)
    if not call.store.create(state, author=user.name):
        # the client reads the address where it was told that the repository may exist
        raise Refusal(409, f"You already created this repo: {repo_id}", body={"url": url})
    return Response(200, {"url": url, "name": repo_id})


def delete(call):
    """Delete a repository."""
    kind, _, repo_id = _names(call)
    call.store.delete(call.repository(kind, repo_id, write=True))
    return Response(200, b"OK")


def _names(call):
    """Kind, namespace and id of the repository that a body names."""
    wanted = call.request.json()
    user = call.user()
    kind = KINDS[wanted.get("type") or "model"]
    owner = wanted.get("organization") or user.name
    return kind, owner, f"{owner}/{wanted['name']}"


def describe(call, kind, repo_id, revision="main"):
    """What a repository is at a revision: files, tags, card."""
    repository = call.repository(kind, repo_id)
    commit = repository.at(revision)
    state = repository.state
    readme = commit.tree.get("README.md")
    card = {}
    if readme is not None and not readme.lfs:
        card = read_card(call.store.content(readme.sha256).read_bytes())
    facts = {
        "id": repository.id,
        "sha": commit.id,
        "private": state.private,
        "tags": card_tags(card),
        "cardData": card or None,
        "siblings": [
            {"rfilename": path, **(_sizes(entry) if call.request.flag("blobs") else {})}
            for path, entry in commit.tree.items()
        ],
        **{key: card.get(key) for key in ("library_name", "pipeline_tag", "model-index")},
        "sdk": card.get("sdk", state.sdk),
    }
    return Response(200, facts)


def _sizes(entry):
    return {"size": entry.size, "blobId": entry.oid, **entry.lfs_facts("sha256")}


def refs(call, kind, repo_id):
    """Branches and tags."""
    state = call.repository(kind, repo_id).state

    def shown(names, prefix):
        return [
            {"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in names.items()
        ]

    answer = {
        "branches": shown(state.branches, "refs/heads/"),
        "tags": shown(state.tags, "refs/tags/"),
        "converts": [],
    }
    return Response(200, answer)


def branch(call, kind, repo_id, name):
    """Create a branch, or delete it."""
    if call.request.method == "DELETE" and name == "main":
        raise Refusal(403, "the default branch cannot be deleted")
    return _ref(
        call, "branches", kind, repo_id, name, call.request.json().get("startingPoint") or "main"
    )


def tag(call, kind, repo_id, revision):
    """Create a tag at a revision, or delete the tag of that name."""
    name = revision if call.request.method == "DELETE" else call.request.json()["tag"]
    return _ref(call, "tags", kind, repo_id, name, revision)


def _ref(call, which, kind, repo_id, name, revision):
    repository = call.repository(kind, repo_id, write=True)
    with repository.lock:
        names = getattr(repository.state, which)
        if call.request.method == "DELETE":
            if names.pop(name, None) is None:
                raise Refusal(404, f"Invalid rev id: {name}", code="RevisionNotFound")
        elif name in names:
            raise Refusal(409, f"Reference already exists: {name}")
        else:
            names[name] = repository.resolve(revision)
        repository.save()
    return Response(200, {})
