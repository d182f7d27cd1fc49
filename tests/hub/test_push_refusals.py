"""What is not published: refused in one line, before anything is uploaded."""

import shutil
from pathlib import Path

import pytest
from hub_fixtures import upload_models
from huggingface_hub import CommitOperationAdd, HfApi
from recipes import merge_of

from hf_evomerge.errors import EvoMergeError, HubError
from hf_evomerge.hub.push import check_push, preview_push, push_model
from hf_evomerge.hub.push_plan import PushOptions
from hf_evomerge.hub.target import check_login
from hf_evomerge.search.study.study import Study


def test_a_published_source_must_be_the_one_that_was_merged(plain, tiny, lfs_api):
    """A repository that holds other weights than the folder is not taken for it."""
    lfs_api.create_repo("local/other")
    lfs_api.upload_folder(repo_id="local/other", folder_path=tiny / "b")
    with pytest.raises(HubError, match=r"local/other: model.safetensors there is not the one in"):
        push_model(
            plain,
            "local/merge",
            PushOptions(published={str(tiny / "a"): "local/other"}),
            api=lfs_api,
        )
    assert not lfs_api.repo_exists("local/merge")


def test_files_from_elsewhere_are_not_replaced_unasked(plain, lfs_api):
    """A repository whose files no push has put there is refused, by a dry run and before a search
    too.

    A recipe.yaml of another program makes it none of ours. With `replace`, or once a push has been
    there, it is not.
    """
    names = (
        "README.md",
        "adapter_config.json",
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin",
        "recipe.yaml",
    )
    lfs_api.create_repo("local/merge")
    files = [CommitOperationAdd(name, b"quant_stage: {}") for name in names]
    lfs_api.create_commit("local/merge", files, commit_message="theirs")
    for refused in (push_model, preview_push):
        with pytest.raises(
            HubError,
            match=(
                r"local/merge: holds files that hf-evomerge has not pushed \(README.md, "
                r".*--replace"
            ),
        ):
            refused(plain, "local/merge", api=lfs_api)
    with pytest.raises(HubError, match=r"has not pushed"):
        check_push("local/merge", [], PushOptions(), api=lfs_api)
    assert set(lfs_api.list_repo_files("local/merge")) == {".gitattributes", *names}
    push_model(plain, "local/merge", PushOptions(replace=True), api=lfs_api)
    there = set(lfs_api.list_repo_files("local/merge"))
    assert not {*names} & there - {"README.md", "recipe.yaml"}, "it would be loaded as another"
    assert not push_model(plain, "local/merge", api=lfs_api).model.changed
    push_model(plain, "local/merge", PushOptions(revision="next"), api=lfs_api)


def test_private_is_not_ignored(plain, hub, lfs_api):
    """Asked for a private repository, nothing is pushed to a public one that is there, nor to a
    public Space."""
    lfs_api.create_repo("local/merge")
    with pytest.raises(HubError, match=r"local/merge: the model exists and is public"):
        push_model(plain, "local/merge", PushOptions(private=True), api=lfs_api)
    assert not any(seen.method == "PUT" for seen in hub.requests)
    lfs_api.create_repo("local/other", repo_type="space", space_sdk="gradio")
    with pytest.raises(HubError, match=r"local/other: the Space exists and is public"):
        push_model(plain, "local/other", PushOptions(private=True, space=True), api=lfs_api)
    assert not lfs_api.repo_exists("local/other")


def test_a_space_with_an_app_of_its_own_is_not_replaced(plain, lfs_api):
    """A Space under the model's name that shows something else is refused before anything is
    pushed."""
    lfs_api.create_repo("local/merge", repo_type="space", space_sdk="gradio")
    lfs_api.upload_file(
        repo_id="local/merge",
        repo_type="space",
        path_in_repo="app.py",
        path_or_fileobj=b"print('mine')",
    )
    with pytest.raises(
        HubError, match=r"local/merge: is a Space with an app of its own \(app.py\)"
    ):
        push_model(plain, "local/merge", PushOptions(space=True), api=lfs_api)
    assert not lfs_api.repo_exists("local/merge")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (PushOptions(license="my own"), '"license" must be one of'),
        (PushOptions(languages=["japanese"]), '"japanese" is not valid'),
    ],
)
def test_metadata_that_the_hub_does_not_take_are_refused_first(
    plain, hub, lfs_api, options, complaint
):
    """A license or language that is none is refused by a dry run, before a search, and before
    anything is uploaded."""
    for refused in (push_model, preview_push):
        with pytest.raises(HubError, match=complaint):
            refused(plain, "local/merge", options, api=lfs_api)
    with pytest.raises(HubError, match=complaint):
        check_push("local/merge", [], options, api=lfs_api)
    assert not lfs_api.repo_exists("local/merge")
    assert not any(seen.method == "PUT" for seen in hub.requests)


@pytest.mark.parametrize("repo_id", ["merge", "a/b/c", "local/--", "local/with space"])
def test_names_that_cannot_be_are_refused(plain, lfs_api, repo_id):
    """A name that is no repository's is refused before anything is asked of the Hub."""
    with pytest.raises(HubError, match="not a name for a repository"):
        push_model(plain, repo_id, api=lfs_api)


def test_a_placeholder_is_no_name(plain, lfs_api):
    """The name that `next:` prints is to be replaced."""
    with pytest.raises(HubError, match="write your own name on the Hub"):
        push_model(plain, "YOUR-NAME/YOUR-MERGE", api=lfs_api)


def test_a_wrong_token_is_one_line_without_it(plain, hub, lfs_api):
    """A token that the Hub does not know is refused with the way to log in, and is not shown."""
    with pytest.raises(HubError, match="hf auth login") as caught:
        push_model(plain, "local/merge", api=HfApi(endpoint=hub.endpoint, token="hf_secret123"))
    assert "hf_secret123" not in str(caught.value)


def test_folders_that_hold_no_merge_are_refused(tiny, lfs_api, tmp_path, monkeypatch):
    """An empty folder, a model without a recipe and a search without a model are told apart."""
    with pytest.raises(HubError, match=r"neither a study nor a built model"):
        push_model(tmp_path, "local/merge", api=lfs_api)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match=r"^\.: neither a study nor a built model"):
        push_model(".", "local/merge", api=lfs_api)
    with pytest.raises(HubError, match=r"a folder of this machine; give the name on the Hub, and"):
        push_model("local/merge", str(tmp_path), api=lfs_api)
    with pytest.raises(HubError, match=r"nowhere: there is no such folder"):
        push_model(tmp_path / "nowhere", "local/merge", api=lfs_api)
    with pytest.raises(HubError, match=r"no recipe.yaml in it"):
        push_model(tiny / "a", "local/merge", api=lfs_api)
    Study.create(tmp_path / "study", {}).close()
    with pytest.raises(HubError, match=r"has not built its winner yet"):
        push_model(tmp_path / "study", "local/merge", api=lfs_api)
    with pytest.raises(
        HubError, match="you are logged in as local, who cannot write there; push to local/merge"
    ):
        push_model(_copy_with_recipe(tiny, tmp_path), "nobody/merge", api=lfs_api)


def _copy_with_recipe(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny / "a", tmp_path / "copy"))
    merge_of(tiny / "a").save(folder / "recipe.yaml")
    return folder


def test_a_license_conflict_publishes_nothing(plain, tiny, lfs_api, tmp_path):
    """Parents whose licenses contradict each other are refused before the repository is made,
    unless the user chooses."""
    published = upload_models(
        lfs_api, tiny / "a", tiny / "b", licenses=["cc-by-sa-4.0", "cc-by-nc-4.0"]
    )
    with pytest.raises(
        HubError, match=r"local/a is under cc-by-sa-4.0.*local/b under cc-by-nc-4.0.*--license"
    ):
        push_model(plain, "local/merge", PushOptions(published=published), api=lfs_api)
    assert not lfs_api.repo_exists("local/merge")
    chosen = push_model(
        plain, "local/merge", PushOptions(published=published, license="other"), api=lfs_api
    )
    assert any("is your choice; the parents' are" in warning for warning in chosen.warnings)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "recipe.yaml"])
def test_what_was_changed_after_the_build_is_not_published(plain, lfs_api, name):
    """One changed byte in weights, config or recipe is refused, by a dry run too, as the card would
    not be true."""
    content = (plain / name).read_bytes()
    (plain / name).write_bytes(
        content[:-1] + bytes([content[-1] ^ 1]) if name == "model.safetensors" else content + b"\n"
    )
    for refused in (push_model, preview_push):
        with pytest.raises(
            HubError,
            match=rf"{name} is not what was built from its recipe; build it again, or remove",
        ):
            refused(plain, "local/merge", api=lfs_api)
    assert not lfs_api.repo_exists("local/merge")


def test_a_link_out_of_the_folder_is_not_published(plain, lfs_api, tmp_path, monkeypatch):
    """A file that becomes a link out of the folder after the weights were read is refused, and
    nothing is published."""
    from hf_evomerge.hub import push_plan

    (tmp_path / "secret").write_text("{}")
    read = push_plan.weight_files

    def linked(folder):
        found = read(folder)
        (folder / "tokenizer_config.json").unlink()
        (folder / "tokenizer_config.json").symlink_to(tmp_path / "secret")
        return found

    (plain / "build.json").unlink(missing_ok=True)
    monkeypatch.setattr(push_plan, "weight_files", linked)
    with pytest.raises(
        EvoMergeError, match=r"tokenizer_config\.json: a link to .*secret, which is not in"
    ):
        push_model(plain, "local/linked", api=lfs_api)
    assert not lfs_api.repo_exists("local/linked")


def test_who_may_write_where(lfs_api, monkeypatch):
    """Names are of any case, and a token of few rights, which may not see its organisations, is
    left to the Hub to refuse."""
    with pytest.raises(HubError, match="who cannot write there"):
        check_login(lfs_api, "lab/merge")
    check_login(lfs_api, "LOCAL/merge")
    who = {"name": "local", "orgs": [], "auth": {"accessToken": {"role": "fineGrained"}}}
    monkeypatch.setattr(type(lfs_api), "whoami", lambda self: who)
    check_login(lfs_api, "lab/merge")
