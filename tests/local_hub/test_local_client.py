"""The hub on loopback answers the real client as the Hub does: every call twice, with LFS and with Xet."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import _CACHED_NO_EXIST, CommitOperationAdd, CommitOperationCopy, HfApi, try_to_load_from_cache
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_evomerge.local_hub import LocalHub

Program = Callable[..., str]
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
def folder(tmp_path: Path) -> Path:
    """A model's folder: card, config, weights, and a file in a sub-folder."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "llama", "auto_map": {"AutoModel": "m.M"}}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "sub" / "note with space.txt").write_text("hello", encoding="utf-8")
    return folder


@pytest.fixture
def repo(api: HfApi, folder: Path) -> str:
    """A repository with that folder in it."""
    api.create_repo("acme/m")
    api.upload_folder(repo_id="acme/m", folder_path=folder)
    return "acme/m"


def _status(call: Callable[[], Any], kind: type[HfHubHTTPError] = HfHubHTTPError) -> int:
    """The status of a call that the hub has to refuse, with exactly this kind of error."""
    with pytest.raises(kind) as refused:
        call()
    assert type(refused.value) is kind
    return int(refused.value.response.status_code)


def test_who_am_i(api: HfApi, hub: LocalHub) -> None:
    """The token's user is known with their organisations; no token and a wrong one are refused."""
    me = api.whoami()
    assert (me["name"], [org["name"] for org in me["orgs"]]) == ("local", ["acme"])
    assert _status(lambda: api.whoami(token="hf_nobody")) == 401
    assert _status(lambda: HfApi(endpoint=hub.endpoint, token="hf_nobody").model_info("acme/none")) == 401


def test_create_and_delete(api: HfApi, hub: LocalHub) -> None:
    """A repository is created once, in one's own namespaces only, and gone after it was deleted."""
    assert str(api.create_repo("acme/m")) == f"{hub.endpoint}/acme/m"
    assert api.create_repo("mine").repo_id == "local/mine"
    assert str(api.create_repo("acme/m", exist_ok=True)) == f"{hub.endpoint}/acme/m"
    assert _status(lambda: api.create_repo("acme/m")) == 409
    assert _status(lambda: api.create_repo("visitor/m")) == 403
    assert _status(lambda: api.create_repo("acme/m", repo_type="dataset", token=False)) == 401
    assert api.list_repo_files("acme/m") == [".gitattributes"]
    assert api.repo_exists("acme/m")
    assert not api.repo_exists("acme/m", repo_type="dataset")
    api.delete_repo("acme/m")
    assert not api.repo_exists("acme/m")
    assert _status(lambda: api.delete_repo("acme/m"), RepositoryNotFoundError) == 404


def test_upload_folder_and_download(api: HfApi, repo: str, folder: Path, tmp_path: Path) -> None:
    """What was uploaded comes back byte for byte, file by file and as a snapshot; uploading it again makes no commit."""
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


def test_large_files_stay_out_of_git(api: HfApi, hub: LocalHub, repo: str, request: pytest.FixtureRequest) -> None:
    """Weights are LFS files, with a Xet hash where they came by Xet; text is in git."""
    by_path = {info.path: info for info in api.list_repo_tree(repo) if hasattr(info, "lfs")}
    weights = by_path["model.safetensors"]
    assert (weights.size, weights.lfs.size, weights.lfs.pointer_size) == (300_000, 300_000, 131)
    assert bool(weights.xet_hash) == ("xet" in request.node.callspec.id)
    assert by_path["config.json"].lfs is None
    api.hf_hub_download(repo, "model.safetensors")
    by_http = [seen.target for seen in hub.requests if seen.target.startswith(("/content/", "/lfs/"))]
    assert bool(by_http) == ("lfs" in request.node.callspec.id)


def test_description(api: HfApi, repo: str) -> None:
    """The description has card, sizes, and the tags that the Hub derives from card and files."""
    info = api.model_info(repo, files_metadata=True)
    assert info.tags is not None
    assert {
        "transformers", "safetensors", "llama", "text-generation", "merge", "evomerge", "custom_code", "en", "ja",
        "arxiv:2403.13187", "base_model:acme/a", "base_model:merge:acme/b", "license:apache-2.0", "region:us",
    } == set(info.tags) - {"base_model:acme/b", "base_model:merge:acme/a"}  # fmt: skip
    assert (info.library_name, info.pipeline_tag, info.private, info.gated) == ("transformers", "text-generation", False, False)
    assert info.card_data is not None
    assert info.card_data.base_model == ["acme/a", "acme/b"]
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
    assert sizes["model.safetensors"] == 300_000
    assert sizes["sub/note with space.txt"] == 5
    assert [model.id for model in api.list_models(filter=["merge", "license:apache-2.0"])] == [repo]
    assert list(api.list_models(filter="license:mit")) == []
    assert [model.id for model in api.list_models(author="acme", search="M")] == [repo]


def test_tree_and_paths(api: HfApi, repo: str) -> None:
    """The tree lists one folder or everything below, with the last commit of each entry where that is asked for."""
    assert [info.path for info in api.list_repo_tree(repo)] == [
        ".gitattributes", "README.md", "config.json", "model.safetensors", "sub",
    ]  # fmt: skip
    assert [info.path for info in api.list_repo_tree(repo, "sub")] == ["sub/note with space.txt"]
    assert len(list(api.list_repo_tree(repo, recursive=True))) == 6
    newest = api.list_repo_commits(repo)[0]
    expanded = {info.path: info for info in api.list_repo_tree(repo, expand=True)}
    assert expanded["sub"].last_commit.oid == newest.commit_id
    assert expanded[".gitattributes"].last_commit.title == "initial commit"
    paths = api.get_paths_info(repo, ["model.safetensors", "sub", "none"])
    assert [info.path for info in paths] == ["model.safetensors", "sub"]
    assert _status(lambda: list(api.list_repo_tree(repo, "none")), RemoteEntryNotFoundError) == 404


def test_a_long_tree_comes_in_pages(api: HfApi, repo: str) -> None:
    """A tree of more entries than one answer holds is listed completely and in order."""
    names = [f"many/{number:04}.txt" for number in range(1200)]
    files = [(name, io.BytesIO(name.encode())) for name in names]
    operations = [CommitOperationAdd(name, file) for name, file in files]
    api.create_commit(repo, operations, commit_message="many")
    assert [info.path for info in api.list_repo_tree(repo, "many")] == names


def test_commits_move_only_from_where_they_began(api: HfApi, repo: str) -> None:
    """A commit on an old parent is refused with 412 and changes nothing; one on the newest goes through."""
    first = api.repo_info(repo).sha
    second = api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id=repo, parent_commit=first).oid
    stale = lambda: api.upload_file(path_or_fileobj=b"2", path_in_repo="b.txt", repo_id=repo, parent_commit=first)  # noqa: E731
    assert _status(stale) == 412
    assert api.repo_info(repo).sha == second
    assert not api.file_exists(repo, "b.txt")


def test_copy_and_delete(api: HfApi, repo: str) -> None:
    """Files are copied inside of a repository and deleted, alone or by folder; what is not there cannot be deleted."""
    api.create_commit(repo, [CommitOperationCopy("model.safetensors", "copy.safetensors")], commit_message="copy")
    assert Path(api.hf_hub_download(repo, "copy.safetensors")).read_bytes() == WEIGHTS
    api.delete_file("copy.safetensors", repo)
    api.delete_folder("sub", repo)
    assert api.list_repo_files(repo) == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert _status(lambda: api.delete_file("copy.safetensors", repo), RemoteEntryNotFoundError) == 404
    assert _status(lambda: api.delete_folder("sub", repo), RemoteEntryNotFoundError) == 404


def test_branches_tags_and_history(api: HfApi, repo: str) -> None:
    """Branches and tags are created once, committed to or not, found by every name of a revision, and deleted."""
    start = api.repo_info(repo).sha
    api.create_branch(repo, branch="feature/x")
    assert _status(lambda: api.create_branch(repo, branch="feature/x")) == 409
    made = api.upload_file(path_or_fileobj=b"dev", path_in_repo="d.txt", repo_id=repo, revision="feature/x").oid
    api.create_tag(repo, tag="v1", revision="feature/x", tag_message="first")
    assert _status(lambda: api.create_tag(repo, tag="v1")) == 409
    for revision in ("feature/x", "v1", made, made[:10]):
        assert api.repo_info(repo, revision=revision).sha == made
        assert Path(api.hf_hub_download(repo, "d.txt", revision=revision)).read_bytes() == b"dev"
    assert api.repo_info(repo).sha == start
    refs = api.list_repo_refs(repo)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": start, "feature/x": made}
    assert [(ref.ref, ref.target_commit) for ref in refs.tags] == [("refs/tags/v1", made)]
    history = api.list_repo_commits(repo, revision="v1")
    assert [commit.commit_id for commit in history][:2] == [made, start]
    assert (history[-1].title, history[0].authors) == ("initial commit", ["local"])
    upload = lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo, revision="v1")  # noqa: E731
    assert _status(upload, BadRequestError) == 400
    api.delete_tag(repo, tag="v1")
    api.delete_branch(repo, branch="feature/x")
    assert not api.revision_exists(repo, "v1")
    assert _status(lambda: api.delete_branch(repo, branch="main")) == 403
    assert _status(lambda: api.delete_tag(repo, tag="v1"), RevisionNotFoundError) == 404


def test_what_is_missing_has_its_own_error(api: HfApi, repo: str) -> None:
    """A missing repository, revision and file are told apart, and a missing file is remembered as missing."""
    assert _status(lambda: api.model_info("acme/none"), RepositoryNotFoundError) == 404
    assert _status(lambda: api.model_info("acme/none", token=False), RepositoryNotFoundError) == 401
    assert _status(lambda: api.model_info(repo, revision="none"), RevisionNotFoundError) == 404
    assert _status(lambda: api.hf_hub_download(repo, "none.json"), RemoteEntryNotFoundError) == 404
    assert try_to_load_from_cache(repo, "none.json") is _CACHED_NO_EXIST


def test_pull_requests(api: HfApi, visitor: HfApi, repo: str, folder: Path) -> None:
    """Anybody can propose a commit; who owns the repository merges it, unless both sides changed one file."""
    assert _status(lambda: visitor.upload_file(path_or_fileobj=b"v", path_in_repo="v.txt", repo_id=repo)) == 403
    first = visitor.upload_file(path_or_fileobj=b"v", path_in_repo="v.txt", repo_id=repo, create_pr=True)
    assert (first.pr_num, first.pr_revision) == (1, "refs/pr/1")
    visitor.upload_file(path_or_fileobj=b"w" * 9, path_in_repo="w.bin", repo_id=repo, revision="refs/pr/1")
    assert Path(api.hf_hub_download(repo, "w.bin", revision="refs/pr/1")).read_bytes() == b"w" * 9
    assert not api.file_exists(repo, "v.txt")
    second = visitor.upload_folder(repo_id=repo, folder_path=folder / "sub", create_pr=True)
    third = visitor.upload_file(path_or_fileobj=b"theirs", path_in_repo="config.json", repo_id=repo, create_pr=True)
    api.upload_file(path_or_fileobj=b"ours", path_in_repo="config.json", repo_id=repo)

    assert _status(lambda: visitor.merge_pull_request(repo, 1)) == 403
    api.comment_discussion(repo, 1, "thank you")
    api.merge_pull_request(repo, 1)
    assert api.file_exists(repo, "w.bin")
    assert Path(api.hf_hub_download(repo, "config.json")).read_bytes() == b"ours"
    details = api.get_discussion_details(repo, 1)
    assert (details.status, details.merge_commit_oid) == ("merged", api.repo_info(repo).sha)
    assert [event.type for event in details.events] == ["comment", "commit", "commit", "comment", "status-change"]
    assert _status(lambda: api.merge_pull_request(repo, third.pr_num)) == 409
    assert api.get_discussion_details(repo, third.pr_num).conflicting_files == ["config.json"]
    api.change_discussion_status(repo, second.pr_num, "closed")
    numbers = [pull.num for pull in api.get_repo_discussions(repo, discussion_status="open")]
    assert numbers == [third.pr_num]
    assert len(api.list_repo_refs(repo, include_pull_requests=True).pull_requests or []) == 3


def test_who_may_do_what_with_a_pull_request(api: HfApi, visitor: HfApi, repo: str) -> None:
    """Large files can be proposed by anybody; a pull request is its author's while it is open, and nobody's afterwards."""
    made = visitor.upload_file(path_or_fileobj=b"v" * 99, path_in_repo="v.bin", repo_id=repo, create_pr=True)
    assert Path(api.hf_hub_download(repo, "v.bin", revision=made.pr_revision)).read_bytes() == b"v" * 99
    theirs = api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=repo, create_pr=True)

    def push(ref: str | None) -> None:
        visitor.upload_file(path_or_fileobj=b"w", path_in_repo="w.txt", repo_id=repo, revision=ref)

    assert _status(lambda: push(theirs.pr_revision)) == 403
    assert _status(lambda: visitor.change_discussion_status(repo, theirs.pr_num or 0, "closed")) == 403
    visitor.change_discussion_status(repo, made.pr_num or 0, "closed", comment="no longer")
    assert _status(lambda: push(made.pr_revision)) == 403
    assert _status(lambda: api.merge_pull_request(repo, made.pr_num or 0), BadRequestError) == 400
    assert [one.num for one in api.get_repo_discussions(repo, author="visitor")] == [made.pr_num]
    talk = api.create_discussion(repo, "a question", description="why?")
    assert [one.num for one in api.get_repo_discussions(repo, discussion_type="discussion")] == [talk.num]
    assert _status(lambda: api.get_discussion_details(repo, 99)) == 404


def test_a_long_history_comes_in_pages(api: HfApi) -> None:
    """A history longer than one answer is listed whole, the newest first."""
    api.create_repo("acme/m")
    for number in range(60):
        api.create_commit("acme/m", [CommitOperationAdd("n.txt", b"%d" % number)], commit_message=f"{number}")
    titles = [commit.title for commit in api.list_repo_commits("acme/m")]
    assert titles == [*(f"{number}" for number in reversed(range(60))), "initial commit"]


def test_ignored_files(api: HfApi, tmp_path: Path) -> None:
    """Files that the folder's own .gitignore names are not uploaded: by name, ending, path, or a folder above."""
    api.create_repo("acme/m")
    files = ["keep.txt", "a.log", "sub/b.log", "cache/x/y.txt", "sub/only/here.txt", "only/here.txt", "build"]
    for name in files:
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_text(name)
    (tmp_path / "f" / ".gitignore").write_text("# comment\n*.log\ncache/\n/sub/only\n\nbuild\n")
    api.upload_folder(repo_id="acme/m", folder_path=tmp_path / "f")
    assert api.list_repo_files("acme/m") == [".gitattributes", ".gitignore", "keep.txt", "only/here.txt"]


def test_gated(api: HfApi, visitor: HfApi, repo: str, tmp_path: Path) -> None:
    """A gated repository is described to everybody, and its files are for those who were let in."""
    api.update_repo_settings(repo, gated="manual")
    assert visitor.model_info(repo).gated == "manual"
    assert visitor.list_repo_files(repo) == api.list_repo_files(repo)
    fetch = lambda: visitor.hf_hub_download(repo, "model.safetensors", cache_dir=tmp_path / "v")  # noqa: E731
    assert _status(fetch, GatedRepoError) == 403
    assert _status(lambda: visitor.auth_check(repo), GatedRepoError) == 403
    assert _status(lambda: api.auth_check(repo, token=False), GatedRepoError) == 401
    api.auth_check(repo, write=True)
    api.grant_access(repo, "visitor")
    assert Path(fetch()).read_bytes() == WEIGHTS
    assert [request.username for request in api.list_accepted_access_requests(repo)] == ["visitor"]
    api.reject_access_request(repo, "visitor", rejection_reason=None)
    assert _status(lambda: visitor.auth_check(repo), GatedRepoError) == 403


def test_private(api: HfApi, hub: LocalHub, visitor: HfApi, repo: str, tmp_path: Path) -> None:
    """A private repository does not exist for others, in any call, and does for those who own it."""
    api.update_repo_settings(repo, private=True)
    assert api.model_info(repo).private is True
    for other in (visitor, HfApi(endpoint=hub.endpoint, token=False)):
        assert not other.repo_exists(repo)
        assert list(other.list_models()) == []
        with pytest.raises(RepositoryNotFoundError):
            other.snapshot_download(repo, cache_dir=tmp_path / "v")
        with pytest.raises(RepositoryNotFoundError):
            other.upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id=repo)
    assert api.create_repo("acme/born-private", private=True).repo_id
    assert api.model_info("acme/born-private").private is True


CARDS = """
from huggingface_hub import HfApi, ModelCard, metadata_update
card = ModelCard.load("acme/m")
card.validate()
metadata_update("acme/m", {"license": "mit"}, overwrite=True)
print(card.data.license, card.data["base_model_relation"], *HfApi().model_info("acme/m").tags)
"""


def test_cards(api: HfApi, repo: str, program: Program) -> None:
    """A card is loaded, changed and validated through the hub, and one with wrong metadata is not committed."""
    words = program(CARDS).split()
    assert words[:2] == ["apache-2.0", "merge"]
    assert "license:mit" in words[2:]
    with pytest.raises(ValueError, match='"license" must be one of'):
        api.upload_file(path_or_fileobj=b"---\nlicense: made up\n---\n", path_in_repo="README.md", repo_id=repo)


def test_safetensors_header(api: HfApi, repo: str) -> None:
    """The client reads shapes and types from the header of a file without downloading the rest."""
    import numpy as np
    from safetensors.numpy import save

    weights = save({"w": np.zeros((300, 100), np.float32), "b": np.zeros(7, np.float16)})
    api.upload_file(path_or_fileobj=weights, path_in_repo="model.safetensors", repo_id=repo)
    assert api.get_safetensors_metadata(repo).parameter_count == {"F32": 30_000, "F16": 7}


def test_spaces(api: HfApi, folder: Path) -> None:
    """A Space is created and filled; secrets are named but never told, variables are told, hardware is what was asked for."""
    secret = [{"key": "HF_TOKEN", "value": "secret-value"}]
    api.create_repo("acme/s", repo_type="space", space_sdk="gradio", space_secrets=secret)
    assert api.get_space_runtime("acme/s").stage == "NO_APP_FILE"
    (folder / "app.py").write_text("print(1)")
    api.upload_folder(repo_id="acme/s", repo_type="space", folder_path=folder, allow_patterns=["app.py", "*.safetensors"])
    info = api.space_info("acme/s")
    assert (info.sdk, info.runtime.stage) == ("gradio", "RUNNING")
    assert Path(api.hf_hub_download("acme/s", "model.safetensors", repo_type="space")).read_bytes() == WEIGHTS
    api.add_space_secret("acme/s", "OTHER", "secret-value", description="why")
    api.add_space_variable("acme/s", "MODE", "fast")
    assert {name: one.description for name, one in api.get_space_secrets("acme/s").items()} == {
        "HF_TOKEN": None,
        "OTHER": "why",
    }
    assert {name: one.value for name, one in api.get_space_variables("acme/s").items()} == {"MODE": "fast"}
    api.delete_space_secret("acme/s", "OTHER")
    api.delete_space_variable("acme/s", "MODE")
    assert list(api.get_space_secrets("acme/s")) == ["HF_TOKEN"]
    assert api.get_space_variables("acme/s") == {}
    assert api.request_space_hardware("acme/s", "t4-small").requested_hardware == "t4-small"
    assert api.set_space_sleep_time("acme/s", 3600).sleep_time == 3600
    assert api.pause_space("acme/s").stage == "PAUSED"
    assert api.restart_space("acme/s").stage == "RUNNING"
    bad = b"---\nsdk: gradio\ncolorFrom: mauve\n---\n"
    with pytest.raises(ValueError, match="colorFrom"):
        api.upload_file(path_or_fileobj=bad, path_in_repo="README.md", repo_id="acme/s", repo_type="space")


def test_datasets(api: HfApi) -> None:
    """A dataset is a repository of its own kind under the same name."""
    api.create_repo("acme/d")
    api.create_repo("acme/d", repo_type="dataset")
    line = json.dumps({"prompt": "1+1", "answer": "2"}).encode()
    api.upload_file(path_or_fileobj=line, path_in_repo="train.jsonl", repo_id="acme/d", repo_type="dataset")
    assert Path(api.hf_hub_download("acme/d", "train.jsonl", repo_type="dataset")).read_bytes() == line
    assert api.dataset_info("acme/d").id == "acme/d"
    assert [dataset.id for dataset in api.list_datasets()] == ["acme/d"]
    assert api.list_repo_files("acme/d") == [".gitattributes"]
