"""The hub on loopback answers the real client as the Hub does."""

import os
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
base_model_relation: merge
library_name: transformers
pipeline_tag: text-generation
language: [en, ja]
tags: [merge, evomerge]
---
# A model

See https://arxiv.org/abs/2403.13187.
"""
WEIGHTS = os.urandom(300_000)


@pytest.fixture
def folder(tmp_path):
    """A model's folder: card, config, weights, and a file in a sub-folder."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "config.json").write_text(
        '{"model_type": "llama", "auto_map": {"AutoModel": "m.M"}}', encoding="utf-8"
    )
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
    assert _status(lambda: api.whoami(token="hf_nobody")) == 401
    assert (
        _status(lambda: HfApi(endpoint=hub.endpoint, token="hf_nobody").model_info("acme/none"))
        == 401
    )


def test_create_and_delete(api, hub):
    """A repository is created once, in one's own namespaces only, and gone after it was deleted."""
    assert str(api.create_repo("acme/m")) == f"{hub.endpoint}/acme/m"
    assert api.create_repo("mine").repo_id == "local/mine"
    assert str(api.create_repo("acme/m", exist_ok=True)) == f"{hub.endpoint}/acme/m"
    assert _status(lambda: api.create_repo("acme/m")) == 409
    assert _status(lambda: api.create_repo("nobody/m")) == 403
    assert _status(lambda: api.create_repo("acme/m", repo_type="dataset", token=False)) == 401
    assert api.list_repo_files("acme/m") == [".gitattributes"]
    assert api.repo_exists("acme/m")
    assert not api.repo_exists("acme/m", repo_type="dataset")
    api.delete_repo("acme/m")
    assert not api.repo_exists("acme/m")
    assert _status(lambda: api.delete_repo("acme/m"), RepositoryNotFoundError) == 404


def test_upload_folder_and_download(api, repo, folder, tmp_path):
    """What was uploaded comes back byte for byte, file by file and as a snapshot; uploading it
    again makes no commit."""
    before = api.repo_info(repo).sha
    assert api.upload_folder(repo_id=repo, folder_path=folder).oid == before
    assert Path(api.hf_hub_download(repo, "model.safetensors")).read_bytes() == WEIGHTS
    assert Path(api.hf_hub_download(repo, "sub/note with space.txt")).read_text() == "hello"
    snapshot = Path(api.snapshot_download(repo))
    local = Path(api.snapshot_download(repo, local_dir=tmp_path / "there"))
    for root in (snapshot, local):
        for file in (path for path in folder.rglob("*") if path.is_file()):
            assert (root / file.relative_to(folder)).read_bytes() == file.read_bytes()
    assert api.verify_repo_checksums(repo).mismatches == []


def test_large_files_stay_out_of_git(api, hub, repo):
    """Weights are LFS files, which are fetched by an address of their own; text is in git."""
    by_path = {info.path: info for info in api.list_repo_tree(repo) if hasattr(info, "lfs")}
    weights = by_path["model.safetensors"]
    assert (weights.size, weights.lfs.size, weights.lfs.pointer_size) == (300_000, 300_000, 131)
    assert by_path["config.json"].lfs is None
    api.hf_hub_download(repo, "model.safetensors")
    moved = [seen for seen in hub.requests if seen.target.startswith(("/content/", "/lfs/"))]
    assert [(seen.method, seen.target.split("/")[1]) for seen in moved] == [
        ("PUT", "lfs"),
        ("GET", "content"),
    ]


def test_description(api, repo):
    """The description has card, sizes, and the tags that follow from the card."""
    info = api.model_info(repo, files_metadata=True)
    assert info.tags == [
        "transformers", "text-generation", "merge", "evomerge", "en", "ja", "base_model:acme/a", "base_model:acme/b",  # noqa: E501
        "base_model:merge:acme/a", "base_model:merge:acme/b", "license:apache-2.0",
    ]  # fmt: skip
    assert (info.library_name, info.pipeline_tag, info.private, info.gated) == (
        "transformers",
        "text-generation",
        False,
        False,
    )
    assert info.card_data.base_model == ["acme/a", "acme/b"]
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
    assert sizes["model.safetensors"] == 300_000
    assert sizes["sub/note with space.txt"] == 5


def test_branches_tags_and_history(api, repo):
    """Branches and tags are created once, committed to or not, found by every name of a revision,
    and deleted."""
    start = api.repo_info(repo).sha
    api.create_branch(repo, branch="feature/x")
    assert _status(lambda: api.create_branch(repo, branch="feature/x")) == 409
    made = api.upload_file(
        path_or_fileobj=b"dev", path_in_repo="d.txt", repo_id=repo, revision="feature/x"
    ).oid
    api.create_tag(repo, tag="v1", revision="feature/x", tag_message="first")
    assert _status(lambda: api.create_tag(repo, tag="v1")) == 409
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

    def upload():
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo, revision="v1")

    assert _status(upload, BadRequestError) == 400
    api.delete_tag(repo, tag="v1")
    api.delete_branch(repo, branch="feature/x")
    assert not api.revision_exists(repo, "v1")
    assert _status(lambda: api.delete_branch(repo, branch="main")) == 403
    assert _status(lambda: api.delete_tag(repo, tag="v1"), RevisionNotFoundError) == 404


def test_what_is_missing_has_its_own_error(api, repo):
    """A missing repository, revision and file are told apart, and a missing file is remembered as
    missing."""
    assert _status(lambda: api.model_info("acme/none"), RepositoryNotFoundError) == 404
    assert _status(lambda: api.model_info("acme/none", token=False), RepositoryNotFoundError) == 401
    assert _status(lambda: api.model_info(repo, revision="none"), RevisionNotFoundError) == 404
    assert _status(lambda: api.hf_hub_download(repo, "none.json"), RemoteEntryNotFoundError) == 404
    assert try_to_load_from_cache(repo, "none.json") is _CACHED_NO_EXIST


def test_pull_requests(api, repo, folder):
    """A pull request is opened by a commit, is listed and read, takes no other commit, and main
    stays."""
    head = api.repo_info(repo).sha
    first = api.upload_file(
        path_or_fileobj=b"v", path_in_repo="v.txt", repo_id=repo, create_pr=True
    )
    assert (first.pr_num, first.pr_revision) == (1, "refs/pr/1")
    assert Path(api.hf_hub_download(repo, "v.txt", revision="refs/pr/1")).read_bytes() == b"v"
    with pytest.raises(BadRequestError, match="commits go to a branch"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=repo, revision="refs/pr/1")
    assert api.upload_folder(repo_id=repo, folder_path=folder / "sub", create_pr=True).pr_num == 2
    listed = [(one.num, one.status, one.author) for one in api.get_repo_discussions(repo)]
    assert listed == [(2, "open", "local"), (1, "open", "local")]
    assert len(api.list_repo_refs(repo, include_pull_requests=True).pull_requests or []) == 2
    assert api.repo_info(repo).sha == head


def test_private(api, hub, repo, tmp_path):
    """A private repository does not exist for others, in any call, and does for who owns it."""
    api.create_repo("acme/hidden", private=True)
    assert api.model_info("acme/hidden").private is True
    nobody = HfApi(endpoint=hub.endpoint, token=False)
    assert nobody.repo_exists(repo)
    assert not nobody.repo_exists("acme/hidden")
    with pytest.raises(RepositoryNotFoundError):
        nobody.snapshot_download("acme/hidden", cache_dir=tmp_path / "v")
    with pytest.raises(RepositoryNotFoundError):
        nobody.upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id="acme/hidden")


def test_spaces(api, folder):
    """A Space is a repository with an SDK, which its card may change."""
    api.create_repo("acme/s", repo_type="space", space_sdk="gradio")
    (folder / "app.py").write_text("print(1)")
    api.upload_folder(
        repo_id="acme/s",
        repo_type="space",
        folder_path=folder,
        allow_patterns=["app.py", "*.safetensors"],
    )
    assert api.space_info("acme/s").sdk == "gradio"
    assert (
        Path(api.hf_hub_download("acme/s", "model.safetensors", repo_type="space")).read_bytes()
        == WEIGHTS
    )
    card = b"---\nsdk: docker\n---\n"
    api.upload_file(
        path_or_fileobj=card, path_in_repo="README.md", repo_id="acme/s", repo_type="space"
    )
    assert api.space_info("acme/s").sdk == "docker"
    bad = b"---\nsdk: flask\n---\n"
    with pytest.raises(ValueError, match="sdk"):
        api.upload_file(
            path_or_fileobj=bad, path_in_repo="README.md", repo_id="acme/s", repo_type="space"
        )
