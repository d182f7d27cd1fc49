"""What else the client can ask for: answered as the Hub does, or refused with 501 and a line that says what is not imitated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import save_file

from hf_evomerge.local_hub import LocalHub


@pytest.fixture
def repo(api: HfApi, tmp_path: Path) -> str:
    """A repository with two small safetensors files, a card, and an earlier version of one file."""
    folder = tmp_path / "model"
    folder.mkdir()
    api.create_repo("acme/m")
    for value in (0.0, 1.0):
        save_file({"x": torch.full((3, 5), value)}, folder / "model-00001-of-00002.safetensors")
        save_file({"y": torch.ones(7, dtype=torch.bfloat16)}, folder / "model-00002-of-00002.safetensors")
        (folder / "README.md").write_text("---\nlicense: mit\ntags: [merge]\n---\n")
        api.upload_folder(repo_id="acme/m", folder_path=folder)
    return "acme/m"


def test_parameters_are_counted(api: HfApi, repo: str) -> None:
    """A model's description says how many numbers of which kind it has; one without weights says nothing."""
    found = api.model_info(repo).safetensors
    assert found is not None
    assert (found.parameters, found.total) == ({"F32": 15, "BF16": 7}, 22)
    api.create_repo("acme/empty")
    assert api.model_info("acme/empty").safetensors is None
    api.upload_file(repo_id="acme/empty", path_in_repo="model.safetensors", path_or_fileobj=b"no header")
    assert api.model_info("acme/empty").safetensors is None


def test_users_and_organizations(api: HfApi, repo: str) -> None:
    """Who somebody is, what is theirs, and who is in an organization."""
    api.create_repo("local/hidden", private=True)
    user = api.get_user_overview("local")
    assert (user.username, user.num_models, [org.name for org in user.orgs]) == ("local", 1, ["acme"])
    org = api.get_organization_overview("acme")
    assert (org.name, org.num_users, org.num_models) == ("acme", 1, 1)
    assert [member.username for member in api.list_organization_members("acme")] == ["local"]
    assert list(api.list_user_followers("local")) == list(api.list_organization_followers("acme")) == []
    assert api.list_liked_repos("local").total == 0
    assert [(one.id, one.type, one.visibility) for one in api.list_user_repos()] == [("local/hidden", "model", "private")]
    assert [one.id for one in api.list_user_repos("acme")] == ["acme/m"]
    for unknown in (api.get_user_overview, api.get_organization_overview):
        with pytest.raises(HfHubHTTPError, match="does not exist"):
            unknown("nobody")


def test_a_visitor_does_not_see_what_is_private(api: HfApi, visitor: HfApi) -> None:
    """Private repositories are neither counted for others nor in the list of tags, and an organization's sizes are its own."""
    api.create_repo("local/hidden", private=True)
    api.upload_file(repo_id="local/hidden", path_in_repo="README.md", path_or_fileobj=b"---\ntags: [secret]\n---\n")
    assert visitor.get_user_overview("local").num_models == 0
    assert "secret" not in str(visitor.get_model_tags())
    with pytest.raises(HfHubHTTPError, match="403"):
        list(visitor.list_user_repos("acme"))


def test_tags_by_type(api: HfApi, repo: str) -> None:
    """The tags that are in use, by type."""
    tags = api.get_model_tags()
    assert {"id": "license:mit", "label": "mit", "type": "license"} in tags["license"]
    assert "merge" in [tag["id"] for tag in tags["other"]]
    assert api.get_dataset_tags() == {}


def test_large_files_of_the_whole_history(api: HfApi, visitor: HfApi, repo: str) -> None:
    """Every content that is in git's history is listed once; squashing the history leaves those of the last commit."""
    assert [(one.filename[6:11], one.size) for one in api.list_lfs_files(repo)] == [
        *[("00001", api.get_paths_info(repo, "model-00001-of-00002.safetensors")[0].size)] * 2,
        ("00002", api.get_paths_info(repo, "model-00002-of-00002.safetensors")[0].size),
    ]
    files = api.list_repo_files(repo)
    api.super_squash_history(repo, commit_message="One")
    assert [commit.title for commit in api.list_repo_commits(repo)] == ["One"]
    assert api.list_repo_files(repo) == files
    assert len(list(api.list_lfs_files(repo))) == 2
    with pytest.raises(HfHubHTTPError, match="403"):
        visitor.super_squash_history(repo)


def test_discussions_are_renamed_and_comments_changed(api: HfApi, visitor: HfApi, repo: str) -> None:
    """By who wrote them or can write here, and by nobody else."""
    opened = visitor.create_discussion(repo, title="A", description="first")
    renamed = api.rename_discussion(repo, opened.num, new_title="B")
    assert (renamed.old_title, renamed.new_title) == ("A", "B")
    said = api.comment_discussion(repo, opened.num, comment="x")
    edited = api.edit_discussion_comment(repo, opened.num, said.id, new_content="y")
    assert (edited.content, edited.edited) == ("y", True)
    with pytest.raises(HfHubHTTPError, match="403"):
        visitor.edit_discussion_comment(repo, opened.num, said.id, new_content="z")
    with pytest.warns(UserWarning, match="irreversible"):
        hidden = api.hide_discussion_comment(repo, opened.num, said.id)
    assert hidden.hidden
    assert "y" not in hidden.content.split()
    assert api.get_discussion_details(repo, opened.num).title == "B"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda api: list(api.list_jobs(namespace="local")), "jobs"),
        (lambda api: list(api.list_webhooks()), "webhooks"),
        (lambda api: list(api.list_collections()), "collections"),
        (lambda api: list(api.list_papers(query="x")), "papers"),
        (lambda api: list(api.list_buckets()), "buckets"),
        (lambda api: api.move_repo(from_id="acme/m", to_id="acme/n"), "renaming and duplicating repositories"),
        (lambda api: list(api.fetch_space_logs("acme/s")), "running a Space, its logs"),
        (lambda api: list(api.list_repo_likers("acme/m")), "likes and downloads"),
        (lambda api: api.permanently_delete_lfs_files("acme/m", api.list_lfs_files("acme/m")), "deleting the contents"),
    ],
)
def test_what_is_not_imitated_is_named(api: HfApi, repo: str, call: Callable[[HfApi], Any], named: str) -> None:
    """A call for what the hub does not do fails at once, with what that is."""
    with pytest.raises(HfHubHTTPError, match="does not imitate") as caught:
        call(api)
    assert caught.value.response.status_code == 501
    assert named in str(caught.value)


def test_a_repository_may_have_the_name_of_what_is_not_imitated(api: HfApi, hub: LocalHub) -> None:
    """``duplicate`` and ``logs`` are names like others."""
    for name in ("duplicate", "logs", "jobs"):
        api.create_repo(f"local/{name}")
        assert api.model_info(f"local/{name}").id == f"local/{name}"
