"""The hub on loopback answers the real client as the Hub does."""

from pathlib import Path

import pytest
from huggingface_hub import _CACHED_NO_EXIST, HfApi, try_to_load_from_cache
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

CARD = """---
license: apache-2.0
base_model: [acme/a, acme/b]
library_name: transformers
---
"""
WEIGHTS = bytes(range(250)) * 1200


@pytest.fixture
def folder(tmp_path):
    """A model's folder: card, config, weights, and a file in a sub-folder."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "sub" / "note with space.txt").write_text("hello", encoding="utf-8")
    return folder


@pytest.fixture
def repo(api, folder):
    """A repository with that folder in it."""
    api.create_repo("acme/m")
    api.upload_folder(repo_id="acme/m", folder_path=folder)
    return "acme/m"


def _status(call, kind=HfHubHTTPError):
    """The status of a call that the hub has to refuse, with exactly this kind of error."""
    with pytest.raises(kind) as refused:
        call()
    assert type(refused.value) is kind
    return int(refused.value.response.status_code)


def test_who_am_i(api, hub):
    """The token's user is known with their organisations; no token and a wrong one are refused."""
    me = api.whoami()
    assert (me["name"], [org["name"] for org in me["orgs"]]) == ("local", ["acme"])
    stranger = HfApi(endpoint=hub.endpoint, token="hf_nobody")
    assert _status(stranger.whoami) == _status(lambda: stranger.model_info("acme/none")) == 401


def test_create_and_delete(api, hub):
    """A repository is created once, in one's own namespaces only, and gone after it was deleted."""
    for exists in (False, True):
        assert str(api.create_repo("acme/m", exist_ok=exists)) == f"{hub.endpoint}/acme/m"
    assert api.create_repo("mine").repo_id == "local/mine"
    assert _status(lambda: api.create_repo("acme/m")) == 409
    assert _status(lambda: api.create_repo("nobody/m")) == 403
    assert _status(lambda: api.create_repo("acme/m", repo_type="dataset", token=False)) == 401
    assert api.list_repo_files("acme/m") == [".gitattributes"]
    assert not api.repo_exists("acme/m", repo_type="dataset")
    api.delete_repo("acme/m")
    assert _status(lambda: api.delete_repo("acme/m"), RepositoryNotFoundError) == 404


def test_upload_folder_and_download(api, repo, folder):
    """What was uploaded comes back byte for byte; uploading it again makes no commit."""
    before = api.repo_info(repo).sha
    assert api.upload_folder(repo_id=repo, folder_path=folder).oid == before
    snapshot = Path(api.snapshot_download(repo))
    for file in (path for path in folder.rglob("*") if path.is_file()):
        assert (snapshot / file.relative_to(folder)).read_bytes() == file.read_bytes()
    assert api.verify_repo_checksums(repo).mismatches == []


def test_large_files_stay_out_of_git(api, hub, repo):
    """Weights are LFS files, which are fetched by an address of their own; text is in git."""
    by_path = {info.path: info for info in api.list_repo_tree(repo) if hasattr(info, "lfs")}
    weights = by_path["model.safetensors"]
    assert (weights.size, weights.lfs.size, weights.lfs.pointer_size) == (300_000, 300_000, 131)
    assert by_path["config.json"].lfs is None
    api.hf_hub_download(repo, "model.safetensors")
    moved = [seen for seen in hub.requests if seen.target.startswith(("/content/", "/lfs/"))]
    assert [seen.method for seen in moved] == ["PUT", "GET"]


def test_description(api, repo):
    """The description has card, sizes, and the tags that follow from the card."""
    info = api.model_info(repo, files_metadata=True)
    assert {"transformers", "base_model:merge:acme/b", "license:apache-2.0"} <= set(info.tags)
    assert (info.library_name, info.card_data.base_model) == ("transformers", ["acme/a", "acme/b"])
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert (sizes["model.safetensors"], sizes["sub/note with space.txt"]) == (300_000, 5)
    assert {sibling.size for sibling in api.model_info(repo).siblings} == {None}


def test_branches_tags_and_history(api, repo):
    """Branches and tags are created once, committed to or not, found by every name of a revision,
    and deleted."""
    start = api.repo_info(repo).sha
    api.create_branch(repo, branch="feature/x")
    assert _status(lambda: api.create_branch(repo, branch="feature/x")) == 409
    file = {"path_or_fileobj": b"dev", "path_in_repo": "d.txt", "repo_id": repo}
    made = api.upload_file(**file, revision="feature/x").oid
    api.create_tag(repo, tag="v1", revision="feature/x")
    for revision in ("feature/x", "v1", made, made[:10]):
        assert api.repo_info(repo, revision=revision).sha == made
        assert Path(api.hf_hub_download(repo, "d.txt", revision=revision)).read_bytes() == b"dev"
    assert api.repo_info(repo).sha == start
    refs = api.list_repo_refs(repo)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {
        "main": start,
        "feature/x": made,
    }
    assert [(ref.ref, ref.target_commit) for ref in refs.tags] == [("refs/tags/v1", made)]
    history = api.list_repo_commits(repo, revision="v1")
    assert [commit.commit_id for commit in history][:2] == [made, start]
    assert (history[-1].title, history[0].authors) == ("initial commit", ["local"])
    assert _status(lambda: api.upload_file(**file, revision="v1"), BadRequestError) == 400
    api.delete_tag(repo, tag="v1")
    assert not api.revision_exists(repo, "v1")
    assert _status(lambda: api.delete_tag(repo, tag="v1"), RevisionNotFoundError) == 404


def test_what_is_missing_has_its_own_error(api, repo):
    """A missing repository, revision and file are told apart, and a missing file is remembered as
    missing."""
    assert _status(lambda: api.model_info("acme/none"), RepositoryNotFoundError) == 404
    assert _status(lambda: api.model_info("acme/none", token=False), RepositoryNotFoundError) == 401
    assert _status(lambda: api.model_info(repo, revision="none"), RevisionNotFoundError) == 404
    assert _status(lambda: api.hf_hub_download(repo, "none.json"), RemoteEntryNotFoundError) == 404
    assert try_to_load_from_cache(repo, "none.json") is _CACHED_NO_EXIST


def test_private(api, hub):
    """A private repository does not exist for others, in any call, and does for who owns it."""
    api.create_repo("acme/hidden", private=True)
    assert api.model_info("acme/hidden").private is True
    nobody = HfApi(endpoint=hub.endpoint, token=False)
    assert not nobody.repo_exists("acme/hidden")
    with pytest.raises(RepositoryNotFoundError):
        nobody.upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id="acme/hidden")


def test_spaces(api):
    """A Space is a repository with an SDK, which its card may change."""
    api.create_repo("acme/s", repo_type="space", space_sdk="gradio")
    assert api.space_info("acme/s").sdk == "gradio"
    readme = {"path_in_repo": "README.md", "repo_id": "acme/s", "repo_type": "space"}
    api.upload_file(path_or_fileobj=b"---\nsdk: docker\n---\n", **readme)
    assert api.space_info("acme/s").sdk == "docker"
    with pytest.raises(ValueError, match="sdk"):
        api.upload_file(path_or_fileobj=b"---\nsdk: flask\n---\n", **readme)
