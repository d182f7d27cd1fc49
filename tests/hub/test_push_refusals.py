"""What is not published: refused in one line, before anything is uploaded."""

import pytest
from hub_fixtures import upload_models
from huggingface_hub import CommitOperationAdd, HfApi
from refusals import refused

from hf_evomerge import EvoMergeError, PushOptions, push_model
from hf_evomerge.errors import HubError
from hf_evomerge.hub import push_plan
from hf_evomerge.hub.push import check_push
from hf_evomerge.hub.target import check_login
from hf_evomerge.search.study.study import Study


def test_a_published_source_must_be_the_one_that_was_merged(plain, tiny, lfs_api, push):
    """A repository that holds other weights than the folder is not taken for it."""
    upload_models(lfs_api, tiny / "b")
    with refused(HubError, r"local/b: model.safetensors there is not the one in"):
        push(plain, published={str(tiny / "a"): "local/b"})
    with refused(HubError, "nowhere is no folder"):
        push(plain, published={str(tiny / "nowhere"): "local/b"})
    assert not lfs_api.repo_exists("local/merge")


def test_files_from_elsewhere_are_not_replaced_unasked(plain, lfs_api, push, preview):
    """A repository whose files no push has put there is refused, by a dry run and before a search
    too.

    A recipe.yaml of another program makes it none of ours. With `replace`, or once a push has been
    there, it is not.
    """
    kept = {"README.md", "recipe.yaml"}
    names = {*kept, "adapter_config.json", "pytorch_model.bin"}
    lfs_api.create_repo("local/merge")
    files = [CommitOperationAdd(name, b"quant_stage: {}") for name in sorted(names)]
    lfs_api.create_commit("local/merge", files, commit_message="theirs")
    message = r"local/merge: holds files that hf-evomerge has not pushed \(README.md, .*--replace"
    for refuse in (push, preview):
        with refused(HubError, message):
            refuse(plain)
    with refused(HubError, message):
        check_push("local/merge", [], PushOptions(), api=lfs_api)
    assert set(lfs_api.list_repo_files("local/merge")) == {".gitattributes", *names}
    push(plain, replace=True)
    there = set(lfs_api.list_repo_files("local/merge"))
    assert names & there == kept, "it would be loaded as another"
    assert not push(plain).model.changed
    push(plain, revision="next")


@pytest.mark.parametrize("kind", ["model", "Space"])
def test_private_is_not_ignored(kind, plain, hub, lfs_api, push):
    """Asked for a private repository, nothing is pushed to a public one that is there, nor to a
    public Space."""
    lfs_api.create_repo("local/merge", repo_type=kind.lower(), space_sdk="static")
    with refused(HubError, f"local/merge: the {kind} exists and is public"):
        push(plain, private=True, space=True)
    assert not any(seen.method == "PUT" for seen in hub.requests)


def test_a_space_with_an_app_of_its_own_is_not_replaced(plain, lfs_api, push):
    """A Space under the model's name that shows something else is refused before anything is
    pushed."""
    lfs_api.create_repo("local/merge", repo_type="space", space_sdk="gradio")
    app = CommitOperationAdd("app.py", b"print('mine')")
    lfs_api.create_commit("local/merge", [app], commit_message="x", repo_type="space")
    with refused(HubError, r"is a Space with an app of its own \(app.py\)"):
        push(plain, space=True)
    assert not lfs_api.repo_exists("local/merge")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"license": "my own"}, '"license" must be one of'),
        ({"languages": ["japanese"]}, '"japanese" is not valid'),
    ],
)
def test_metadata_that_the_hub_does_not_take_are_refused_first(
    plain, lfs_api, options, complaint, push, preview
):
    """A license or language that is none is refused by a dry run, before a search, and before
    anything is uploaded."""
    for refuse in (push, preview):
        with refused(HubError, complaint):
            refuse(plain, **options)
    with refused(HubError, complaint):
        check_push("local/merge", [], PushOptions(**options), api=lfs_api)
    assert not lfs_api.repo_exists("local/merge")


@pytest.mark.parametrize(
    ("repo_id", "said"),
    [
        ("merge", "not a name for a repository"),
        ("a/b/c", "not a name for a repository"),
        ("local/with space", "not a name for a repository"),
        ("YOUR-NAME/YOUR-MERGE", "write your own name on the Hub"),
        ("nobody/merge", "logged in as local, who cannot write there; push to local/merge"),
    ],
)
def test_names_that_cannot_be_are_refused(plain, push, repo_id, said):
    """A name that is no repository's, the one that `next:` prints, and somebody else's are refused
    before anything is asked of the Hub."""
    with refused(HubError, said):
        push(plain, repo_id)


def test_a_wrong_token_is_one_line_without_it(plain, hub):
    """A token that the Hub does not know is refused with the way to log in, and is not shown."""
    with refused(HubError, "hf auth login") as caught:
        push_model(plain, "local/merge", api=HfApi(endpoint=hub.endpoint, token="hf_secret123"))
    assert "hf_secret123" not in str(caught.value)


def test_folders_that_hold_no_merge_are_refused(tiny, tmp_path, monkeypatch, push):
    """An empty folder, a model without a recipe and a search without a model are told apart."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    Study.create(tmp_path / "study", {}).close()
    refusals = {
        ".": r"^\.: neither a study nor a built model",
        tmp_path / "nowhere": "nowhere: there is no such folder",
        tiny / "a": "no recipe.yaml in it",
        tmp_path / "study": "has not built its winner yet",
    }
    for folder, said in refusals.items():
        with refused(HubError, said):
            push(folder)
    with refused(HubError, r"a folder of this machine; give the name on the Hub, and"):
        push("local/merge", str(tmp_path))


def test_a_license_conflict_publishes_nothing(plain, tiny, lfs_api, push):
    """Parents whose licenses contradict each other are refused before the repository is made,
    unless the user chooses."""
    licenses = ["cc-by-sa-4.0", "cc-by-nc-4.0"]
    published = upload_models(lfs_api, tiny / "a", tiny / "b", licenses=licenses)
    message = "local/a is under cc-by-sa-4.0.*local/b under cc-by-nc-4.0.*--license"
    with refused(HubError, message):
        push(plain, published=published)
    assert not lfs_api.repo_exists("local/merge")
    chosen = push(plain, published=published, license="other")
    assert "is your choice; the parents' are" in str(chosen.warnings)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "recipe.yaml"])
def test_what_was_changed_after_the_build_is_not_published(plain, lfs_api, name, push, preview):
    """One changed byte in weights, config or recipe is refused, by a dry run too, as the card would
    not be true."""
    content = (plain / name).read_bytes()
    if name == "model.safetensors":
        content = content[:-1] + bytes([content[-1] ^ 1])
    else:
        content += b"\n"
    (plain / name).write_bytes(content)
    for refuse in (push, preview):
        with refused(HubError, rf"{name} is not what was built from its recipe; build"):
            refuse(plain)
    assert not lfs_api.repo_exists("local/merge")


def test_a_link_out_of_the_folder_is_not_published(plain, lfs_api, tmp_path, monkeypatch, push):
    """A file that becomes a link out of the folder after the weights were read is refused, and
    nothing is published."""
    (tmp_path / "secret").write_text("{}")
    read = push_plan.weight_files

    def linked(folder):
        found = read(folder)
        (folder / "tokenizer_config.json").unlink()
        (folder / "tokenizer_config.json").symlink_to(tmp_path / "secret")
        return found

    (plain / "build.json").unlink()
    monkeypatch.setattr(push_plan, "weight_files", linked)
    with refused(EvoMergeError, r"_config\.json: a link to .*secret, which is not in"):
        push(plain)
    assert not lfs_api.repo_exists("local/merge")


def test_who_may_write_where(lfs_api, monkeypatch):
    """Names are of any case, and a token of few rights, which may not see its organisations, is
    left to the Hub to refuse."""
    with refused(HubError, "who cannot write there"):
        check_login(lfs_api, "lab/merge")
    check_login(lfs_api, "LOCAL/merge")
    who = {"name": "local", "orgs": [], "auth": {"accessToken": {"role": "fineGrained"}}}
    monkeypatch.setattr(type(lfs_api), "whoami", lambda self: who)
    check_login(lfs_api, "lab/merge")
