"""Publishing: one commit that lands whole or not at all, loads everywhere, and can be pushed again after any failure."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_evomerge.building.build import build_model
from hf_evomerge.building.record import write_build_record
from hf_evomerge.errors import EvoMergeError, HubError
from hf_evomerge.hub import results
from hf_evomerge.hub.card import TEMPLATE
from hf_evomerge.hub.push import check_push, preview_push, push_model
from hf_evomerge.hub.push_plan import PushOptions
from hf_evomerge.local_hub import Fault, LocalHub
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.search.study import Study

COMMIT = r"POST /api/models/local/merge/commit/"
LFS_PUT = r"PUT /lfs"
LOAD = """
import json, sys
sys.modules["hf_evomerge"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
trust = sys.argv[2] == "trust"
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=trust).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=trust)
inputs = tokenizer("w1 w2 w3", return_tensors="pt", return_token_type_ids=False)
tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
logits = model(**inputs).logits
print(json.dumps([type(model).__name__, tokens.tolist(), round(logits.double().sum().item(), 4)]))
"""
PUSH = "from hf_evomerge.cli import app; app()"


@pytest.fixture
def plain(tiny: Path, tmp_path: Path) -> Path:
    """A merge in parameter space, built from a hand-written recipe."""
    sources = [{"model": str(tiny / "a")}, {"model": str(tiny / "b")}]
    recipe = Recipe.model_validate({"sources": sources, "merge": {"method": "linear"}})
    return build_model(recipe, tmp_path / "plain", progress=False)


def _commits(api: HfApi, repo_id: str = "local/merge", **more: Any) -> list[str]:
    return [commit.title for commit in api.list_repo_commits(repo_id, **more)]


def _expected(folder: Path) -> list[Any]:
    """What `LOAD` prints of a model that is loaded from a folder in this process."""
    from transformers import AutoTokenizer

    import hf_evomerge  # noqa: F401 - knows the class

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)("w1 w2 w3", return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        return [type(model).__name__, tokens.tolist(), round(model(**inputs).logits.double().sum().item(), 4)]


def test_a_path_is_published_in_one_commit_and_loads_without_the_package(
    hybrid_search: Path, api: HfApi, program: Callable[..., str]
) -> None:
    """Weights, code, tokenizer, recipe, record, pictures and card go up at once, and run where this package is not."""
    pushed = push_model(hybrid_search, "local/merge", PushOptions(examples=1), api=api)
    assert pushed.model.changed
    assert len(_commits(api)) == 2  # the Hub's own first one, and ours
    there = set(api.list_repo_files("local/merge"))
    assert there >= {
        *("model.safetensors", "config.json", "configuration_evo_merged.py", "layers_evo_merged.py", "modeling_evo_merged.py"),
        "tokenizer.json",
        *("recipe.yaml", "study.json", "trials.parquet", "README.md", "images/fitness.png", "images/path.png"),
    }
    stored = Path(hf_hub_download("local/merge", "model.safetensors")).read_bytes()
    assert stored == (hybrid_search / "model" / "model.safetensors").read_bytes()
    loaded = json.loads(program(LOAD, "local/merge", "trust").splitlines()[-1])
    assert loaded == _expected(hybrid_search / "model")
    assert api.model_info("local/merge").card_data is not None
    again = push_model(hybrid_search, "local/merge", PushOptions(examples=1), api=api)
    assert (again.model.changed, again.model.sha) == (False, pushed.model.sha)
    assert len(_commits(api)) == 2


def test_a_parameter_space_merge_is_a_plain_model(plain: Path, lfs_api: HfApi, program: Callable[..., str]) -> None:
    """A PS merge goes up without any code, and loads without trust in any; its card has no search and claims nothing."""
    push_model(plain, "local/merge", api=lfs_api)
    assert not any(name.endswith(".py") for name in lfs_api.list_repo_files("local/merge"))
    loaded = json.loads(program(LOAD, "local/merge", "no").splitlines()[-1])
    assert loaded == _expected(plain)
    assert "nothing is claimed about its quality" in Path(hf_hub_download("local/merge", "README.md")).read_text()


def test_the_recipe_says_what_it_gave_and_from_what(hybrid_search: Path, tiny: Path, lfs_api: HfApi, tmp_path: Path) -> None:
    """Sources that were published are pinned to commits everywhere; no folder of this machine is named."""
    published = {}
    for name in ("a", "b", "base"):
        lfs_api.create_repo(f"local/{name}")
        lfs_api.upload_folder(repo_id=f"local/{name}", folder_path=tiny / name)
        published[str(tiny / name)] = f"local/{name}"
    push_model(hybrid_search, "local/merge", PushOptions(published=published), api=lfs_api)
    folder = Path(lfs_api.snapshot_download("local/merge", local_dir=tmp_path / "got"))
    recipe = Recipe.load(folder / "recipe.yaml")
    heads = {name: lfs_api.model_info(f"local/{name}").sha for name in ("a", "b", "base")}
    assert [(ref.model, ref.revision) for ref in recipe.sources] == [(f"local/{name}", heads[name]) for name in ("a", "b")]
    assert recipe.base is not None
    assert recipe.base.revision == heads["base"]
    assert recipe.built is not None
    info = lfs_api.model_info("local/merge", files_metadata=True)
    shas = {file.rfilename: file.lfs.sha256 for file in info.siblings or [] if file.lfs}
    assert recipe.built.sha256 == {"model.safetensors": shas["model.safetensors"]}
    config = json.loads((folder / "config.json").read_text())
    assert [(source["model"], source["revision"]) for source in config["sources"][:2]] == [
        (f"local/{name}", heads[name]) for name in ("a", "b")
    ]
    assert info.card_data is not None
    assert info.card_data.base_model == ["local/a", "local/b", "local/base"]
    for file in folder.rglob("*"):
        if file.is_file() and ".cache" not in file.parts:
            assert str(tiny).encode() not in file.read_bytes(), file.name


def test_folders_that_are_gone_are_still_not_named(plain: Path, tiny: Path, lfs_api: HfApi, tmp_path: Path) -> None:
    """A merge goes out after its sources were removed, without a word of where they were; nor does a tokenizer's note."""
    recipe = Recipe.load(plain / "recipe.yaml")
    gone = [ref.model_copy(update={"model": f"{tmp_path}/gone/{name}"}) for name, ref in zip("ab", recipe.sources, strict=True)]
    recipe.model_copy(update={"sources": gone}).save(plain / "recipe.yaml")
    write_build_record(plain)
    settings = json.loads((plain / "tokenizer_config.json").read_text())
    settings |= {"name_or_path": f"{tmp_path}/x", "model_max_length": 48}
    (plain / "tokenizer_config.json").write_text(json.dumps(settings))
    pushed = push_model(plain, "local/merge", api=lfs_api)
    assert any("a and b are on this machine only" in warning for warning in pushed.warnings)
    folder = Path(lfs_api.snapshot_download("local/merge", local_dir=tmp_path / "got"))
    for file in folder.rglob("*"):
        if file.is_file() and ".cache" not in file.parts:
            assert str(tmp_path).encode() not in file.read_bytes(), file.name
    assert "| a | unknown | the folder is not there any more |" in (folder / "README.md").read_text()
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 48


def test_what_is_not_known_to_have_been_merged_is_said(plain: Path, tiny: Path, lfs_api: HfApi) -> None:
    """A source without a revision that this machine never downloaded is pinned to what is there now, with a warning."""
    for name in ("a", "b"):
        lfs_api.create_repo(f"local/{name}")
        lfs_api.upload_folder(repo_id=f"local/{name}", folder_path=tiny / name)
    sources = [{"model": "local/a"}, {"model": "local/b", "revision": "main"}]
    Recipe.model_validate({"sources": sources, "merge": {"method": "linear"}}).save(plain / "recipe.yaml")
    write_build_record(plain)
    warnings = push_model(plain, "local/merge", api=lfs_api).warnings
    assert [warning.split(":")[0] for warning in warnings if "may not be what was merged" in warning] == ["local/a"]


def test_a_published_source_must_be_the_one_that_was_merged(plain: Path, tiny: Path, lfs_api: HfApi) -> None:
    """A repository that holds other weights than the folder is not taken for it."""
    lfs_api.create_repo("local/other")
    lfs_api.upload_folder(repo_id="local/other", folder_path=tiny / "b")
    with pytest.raises(HubError, match=r"local/other: model.safetensors there is not the one in"):
        push_model(plain, "local/merge", PushOptions(published={str(tiny / "a"): "local/other"}), api=lfs_api)
    assert not lfs_api.repo_exists("local/merge")


def test_a_later_winner_replaces_the_earlier_one(hybrid_search: Path, plain: Path, lfs_api: HfApi) -> None:
    """Code, record and pictures of an earlier winner go; files that are not ours, and with --no-card the card, stay."""
    push_model(hybrid_search, "local/merge", api=lfs_api)
    lfs_api.upload_file(repo_id="local/merge", path_in_repo="notes.md", path_or_fileobj=b"mine")
    lfs_api.upload_file(repo_id="local/merge", path_in_repo="model-00001-of-00002.safetensors", path_or_fileobj=b"old")
    card = Path(hf_hub_download("local/merge", "README.md")).read_text()
    push_model(plain, "local/merge", PushOptions(card=False), api=lfs_api)
    there = set(lfs_api.list_repo_files("local/merge"))
    assert "notes.md" in there
    assert [name for name in there if name.endswith((".safetensors", ".py", ".png", ".parquet")) or name == "study.json"] == [
        "model.safetensors"
    ]
    assert Path(hf_hub_download("local/merge", "README.md")).read_text() == card


def test_private_branches_and_pull_requests(plain: Path, hub: LocalHub, lfs_api: HfApi) -> None:
    """A new repository is private where asked; a branch is made; a pull request leaves the branch as it is."""
    push_model(plain, "local/merge", PushOptions(private=True, revision="try"), api=lfs_api)
    assert lfs_api.model_info("local/merge").private
    assert "model.safetensors" in lfs_api.list_repo_files("local/merge", revision="try")
    assert "model.safetensors" not in lfs_api.list_repo_files("local/merge")
    again = push_model(plain, "local/merge", PushOptions(private=True, revision="try", space=True), api=lfs_api)
    assert any("a secret HF_TOKEN" in warning for warning in again.warnings)
    settings = lfs_api.hf_hub_download("local/merge", "space.json", repo_type="space")
    assert json.loads(Path(settings).read_text())["revision"] == "try"
    pushed = push_model(plain, "local/merge", PushOptions(create_pr=True), api=lfs_api)
    assert "model.safetensors" not in lfs_api.list_repo_files("local/merge")
    assert "model.safetensors" in lfs_api.list_repo_files("local/merge", revision="refs/pr/1")
    assert pushed.model.url == f"{hub.endpoint}/local/merge/discussions/1"


def test_what_a_push_did_not_make_is_kept_and_what_changes_the_model_goes(plain: Path, lfs_api: HfApi) -> None:
    """An earlier winner's chat template and tokenizer would change this model; weights and pictures in folders do not."""
    ours = ("chat_template.jinja", "tokenizer.model", "images/path.png")
    theirs = ("steps/1/model.safetensors", "onnx/x.safetensors", "images/logo.png", "images/more/path.png", "notes.py")
    lfs_api.create_repo("local/merge")
    files = [CommitOperationAdd(name, b"x") for name in (*ours, *theirs)]
    lfs_api.create_commit("local/merge", files, commit_message="before")
    planned = str(preview_push(plain, "local/merge", api=lfs_api))
    push_model(plain, "local/merge", api=lfs_api)
    there = set(lfs_api.list_repo_files("local/merge"))
    assert there >= {*theirs, "model.safetensors"}
    assert not there & set(ours)
    for name in ours:
        assert f"removed  {name}\n" in planned
    assert not any(f"removed  {name}" in planned for name in theirs)


def test_a_repository_of_something_else_is_refused(plain: Path, hub: LocalHub, lfs_api: HfApi) -> None:
    """Beside an adapter's config, transformers would load another model than the one that is pushed."""
    lfs_api.create_repo("local/merge")
    lfs_api.upload_file(repo_id="local/merge", path_in_repo="adapter_config.json", path_or_fileobj=b"{}")
    for refused in (push_model, preview_push):
        with pytest.raises(HubError, match=r"local/merge: holds an adapter \(adapter_config.json\), not a model"):
            refused(plain, "local/merge", api=lfs_api)
    with pytest.raises(HubError, match=r"holds an adapter"):
        check_push("local/merge", [], PushOptions(), api=lfs_api)


def test_private_is_not_ignored(plain: Path, hub: LocalHub, lfs_api: HfApi) -> None:
    """Asked for a private repository, nothing is pushed to a public one that is there, nor to a public Space."""
    lfs_api.create_repo("local/merge")
    with pytest.raises(HubError, match=r"local/merge: exists and is public"):
        push_model(plain, "local/merge", PushOptions(private=True), api=lfs_api)
    assert not any(seen.method == "PUT" for seen in hub.requests)
    lfs_api.create_repo("local/other", repo_type="space", space_sdk="gradio")
    with pytest.raises(HubError, match=r"local/other: the Space exists and is public"):
        push_model(plain, "local/other", PushOptions(private=True, space=True), api=lfs_api)
    assert not lfs_api.repo_exists("local/other")


def test_a_space_with_an_app_of_its_own_is_not_replaced(plain: Path, lfs_api: HfApi) -> None:
    """A Space under the model's name that shows something else is refused before anything is pushed."""
    lfs_api.create_repo("local/merge", repo_type="space", space_sdk="gradio")
    lfs_api.upload_file(repo_id="local/merge", repo_type="space", path_in_repo="app.py", path_or_fileobj=b"print('mine')")
    with pytest.raises(HubError, match=r"local/merge: is a Space with an app of its own \(app.py\)"):
        push_model(plain, "local/merge", PushOptions(space=True), api=lfs_api)
    assert not lfs_api.repo_exists("local/merge")


def test_a_space_that_fails_says_that_the_model_is_there(plain: Path, hub: LocalHub, lfs_api: HfApi) -> None:
    """Where only the Space cannot be made, the error says that the model is published, and pushing again makes the Space."""
    hub.faults.add(Fault(r"POST /api/spaces/local/merge/commit/", "status", status=403))
    with pytest.raises(HubError, match=r"the model is published, http.*/local/merge at [0-9a-f]{12}, but not its Space: "):
        push_model(plain, "local/merge", PushOptions(space=True), api=lfs_api)
    again = push_model(plain, "local/merge", PushOptions(space=True), api=lfs_api)
    assert not again.model.changed
    assert again.space is not None


def test_a_pull_request_is_gone_on_with(plain: Path, hub: LocalHub, lfs_api: HfApi, waits: list[float]) -> None:
    """After a failure the same pull request is finished; it is open, and none is opened where there is nothing to change."""
    hub.faults.add(Fault(COMMIT, "status", status=500, times=None))
    with pytest.raises(HubError, match="push again later"):
        push_model(plain, "local/merge", PushOptions(create_pr=True), api=lfs_api)
    hub.faults.clear()
    pushed = [push_model(plain, "local/merge", PushOptions(create_pr=True), api=lfs_api).model for _ in range(2)]
    assert [(commit.url.rsplit("/", 1)[-1], commit.changed) for commit in pushed] == [("1", True), ("1", False)]
    assert [(one.num, one.status) for one in lfs_api.get_repo_discussions("local/merge")] == [(1, "open")]
    lfs_api.merge_pull_request("local/merge", 1)
    again = push_model(plain, "local/merge", PushOptions(create_pr=True), api=lfs_api).model
    assert (again.changed, again.url) == (False, f"{hub.endpoint}/local/merge")
    assert len(list(lfs_api.get_repo_discussions("local/merge"))) == 1
    with pytest.raises(HubError, match="leave out --revision or --create-pr"):
        push_model(plain, "local/merge", PushOptions(create_pr=True, revision="try"), api=lfs_api)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (PushOptions(license="my own"), '"license" must be one of'),
        (PushOptions(languages=["japanese"]), '"japanese" is not valid'),
    ],
)
def test_metadata_that_the_hub_does_not_take_are_refused_first(
    plain: Path, hub: LocalHub, lfs_api: HfApi, options: PushOptions, complaint: str
) -> None:
    """A license or language that is none is refused by a dry run, before a search, and before anything is uploaded."""
    for refused in (push_model, preview_push):
        with pytest.raises(HubError, match=complaint):
            refused(plain, "local/merge", options, api=lfs_api)
    with pytest.raises(HubError, match=complaint):
        check_push("local/merge", [], options, api=lfs_api)
    assert not lfs_api.repo_exists("local/merge")
    assert not any(seen.method == "PUT" for seen in hub.requests)


def test_a_hub_that_shuts_the_door_meanwhile_is_one_line(
    plain: Path, hub: LocalHub, lfs_api: HfApi, waits: list[float]
) -> None:
    """Where the commit's answer is lost and the repository cannot be read any more, that is said."""
    hub.faults.add(Fault(COMMIT, "status", status=503))
    lfs_api.create_repo("local/merge")
    hub.faults.add(Fault(r"GET /api/models/local/merge/revision/main", "status", status=403, skip=1, times=None))
    with pytest.raises(HubError, match=r"not known whether the commit was taken"):
        push_model(plain, "local/merge", api=lfs_api)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(COMMIT, "status", status=503, times=2),
        Fault(COMMIT, "status", status=429, times=2),
        Fault(COMMIT, "reset", times=2),
    ],
    ids=["503", "429", "reset"],
)
def test_the_commit_is_sent_again(plain: Path, hub: LocalHub, lfs_api: HfApi, waits: list[float], fault: Fault) -> None:
    """A commit that did not reach the Hub is sent again, and is there once."""
    hub.faults.add(fault)
    push_model(plain, "local/merge", api=lfs_api)
    assert fault.hits == 2
    assert len(_commits(lfs_api)) == 2


def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    plain: Path, hub: LocalHub, lfs_api: HfApi, waits: list[float]
) -> None:
    """Where the Hub has taken the commit and only its answer got lost, it is found, and not sent again."""
    fault = hub.faults.add(Fault(COMMIT, "truncate", rst=True))
    pushed = push_model(plain, "local/merge", api=lfs_api)
    assert fault.hits == 1
    assert len(_commits(lfs_api)) == 2
    assert lfs_api.model_info("local/merge").sha == pushed.model.sha
    assert sum(seen.target.startswith("/api/models/local/merge/commit/") for seen in hub.requests) == 1


def test_a_push_that_fails_says_what_is_there_and_can_be_finished(
    plain: Path, hub: LocalHub, lfs_api: HfApi, waits: list[float]
) -> None:
    """After the last attempt one line says that nothing is committed; pushing again uploads nothing twice and finishes."""
    hub.faults.add(Fault(COMMIT, "status", status=500, times=None))
    with pytest.raises(
        HubError, match=r"all files are uploaded, but nothing is committed and the branch is still at"
    ) as caught:
        push_model(plain, "local/merge", api=lfs_api)
    assert "\n" not in str(caught.value)
    assert hub.token not in str(caught.value)
    assert waits == [1.0, 2.0, 4.0, 8.0, *[16.0] * 6]
    assert len(_commits(lfs_api)) == 1
    hub.faults.clear()
    uploads = sum(seen.method == "PUT" for seen in hub.requests)
    push_model(plain, "local/merge", api=lfs_api)
    assert sum(seen.method == "PUT" for seen in hub.requests) == uploads
    assert len(_commits(lfs_api)) == 2


def test_uploads_that_break_off_are_sent_again(plain: Path, hub: LocalHub, lfs_api: HfApi) -> None:
    """An upload that is cut off half way is sent again by the client; the file on the Hub is whole."""
    fault = hub.faults.add(Fault(LFS_PUT, "reset", after_bytes=2000))
    push_model(plain, "local/merge", api=lfs_api)
    assert fault.hits == 1
    stored = load_file(hf_hub_download("local/merge", "model.safetensors"))
    for name, tensor in load_file(plain / "model.safetensors").items():
        assert torch.equal(stored[name], tensor)


def test_an_upload_that_is_refused_says_what_is_missing(plain: Path, hub: LocalHub, lfs_api: HfApi) -> None:
    """Where the Hub takes no large file, the error names the file, and says that nothing is committed."""
    hub.faults.add(Fault(LFS_PUT, "status", status=403, times=None))
    with pytest.raises(
        HubError, match=r"model.safetensors cannot be uploaded \(nothing is committed, .* of \d+ files"
    ) as caught:
        push_model(plain, "local/merge", api=lfs_api)
    assert "push again to go on" in str(caught.value)
    assert len(_commits(lfs_api)) == 1


def test_somebody_elses_commit_is_not_overwritten(
    plain: Path, lfs_api: HfApi, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    """A commit by somebody else between the check and ours stops the push; pushing again goes on top of it."""
    usual, calls = lfs_api.create_commit, []

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        if not calls:
            calls.append(1)
            usual("local/merge", [CommitOperationAdd("theirs.txt", b"x")], commit_message="theirs")
        return usual(*arguments, **keywords)

    monkeypatch.setattr(lfs_api, "create_commit", interrupted)
    with pytest.raises(HubError, match=r"somebody else has committed"):
        push_model(plain, "local/merge", api=lfs_api)
    push_model(plain, "local/merge", api=lfs_api)
    assert {"theirs.txt", "model.safetensors"} <= set(lfs_api.list_repo_files("local/merge"))


def test_a_push_survives_kill_9(plain: Path, hub: LocalHub, lfs_api: HfApi, tmp_path: Path) -> None:
    """Killed between its uploads and its commit, a push has published nothing; run again, it finishes."""
    fault = hub.faults.add(Fault(COMMIT, "delay", seconds=20))
    environment = {**os.environ, **hub.environment(xet=False, home=tmp_path / "client")}
    process = subprocess.Popen([sys.executable, "-c", PUSH, "push", str(plain), "local/merge"], env=environment)
    deadline = time.monotonic() + 60
    while fault.hits == 0 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert fault.hits == 1
    assert "model.safetensors" not in lfs_api.list_repo_files("local/merge")
    uploads = sum(seen.method == "PUT" for seen in hub.requests)
    push_model(plain, "local/merge", api=lfs_api)
    assert "model.safetensors" in lfs_api.list_repo_files("local/merge")
    assert sum(seen.method == "PUT" for seen in hub.requests) == uploads


@pytest.mark.parametrize("repo_id", ["merge", "a/b/c", "local/--", "local/with space"])
def test_names_that_cannot_be_are_refused(plain: Path, lfs_api: HfApi, repo_id: str) -> None:
    """A name that is no repository's is refused before anything is asked of the Hub."""
    with pytest.raises(HubError, match="not a name for a repository"):
        push_model(plain, repo_id, api=lfs_api)


def test_a_wrong_token_is_one_line_without_it(plain: Path, hub: LocalHub, lfs_api: HfApi) -> None:
    """A token that the Hub does not know is refused with the way to log in, and is not shown."""
    with pytest.raises(HubError, match="hf auth login") as caught:
        push_model(plain, "local/merge", api=HfApi(endpoint=hub.endpoint, token="hf_secret123"))
    assert "hf_secret123" not in str(caught.value)


def test_folders_that_hold_no_merge_are_refused(tiny: Path, lfs_api: HfApi, tmp_path: Path) -> None:
    """An empty folder, a model without a recipe and a search without a model are told apart."""
    with pytest.raises(HubError, match=r"no config.json in it; give the folder of a built model"):
        push_model(tmp_path, "local/merge", api=lfs_api)
    with pytest.raises(HubError, match=r"no recipe.yaml in it"):
        push_model(tiny / "a", "local/merge", api=lfs_api)
    Study.create(tmp_path / "study", {}).close()
    with pytest.raises(HubError, match=r"has not built its winner yet"):
        push_model(tmp_path / "study", "local/merge", api=lfs_api)
    with pytest.raises(HubError, match=r"cannot be created"):
        push_model(_copy_with_recipe(tiny, tmp_path), "nobody/merge", api=lfs_api)


def _copy_with_recipe(tiny: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny / "a", tmp_path / "copy"))
    Recipe.model_validate({"sources": [{"model": str(tiny / "a")}], "merge": {"method": "linear"}}).save(folder / "recipe.yaml")
    return folder


def test_a_license_conflict_publishes_nothing(plain: Path, tiny: Path, lfs_api: HfApi, tmp_path: Path) -> None:
    """Parents whose licenses contradict each other are refused before the repository is made, unless the user chooses."""
    published = {}
    for name, license in (("a", "cc-by-sa-4.0"), ("b", "cc-by-nc-4.0")):
        lfs_api.create_repo(f"local/{name}")
        lfs_api.upload_folder(repo_id=f"local/{name}", folder_path=tiny / name)
        card = f"---\nlicense: {license}\n---\n".encode()
        lfs_api.upload_file(repo_id=f"local/{name}", path_in_repo="README.md", path_or_fileobj=card)
        published[str(tiny / name)] = f"local/{name}"
    with pytest.raises(HubError, match=r"local/a is under cc-by-sa-4.0.*local/b under cc-by-nc-4.0.*--license"):
        push_model(plain, "local/merge", PushOptions(published=published), api=lfs_api)
    assert not lfs_api.repo_exists("local/merge")
    chosen = push_model(plain, "local/merge", PushOptions(published=published, license="other"), api=lfs_api)
    assert any("is your choice; the parents' are" in warning for warning in chosen.warnings)


def test_a_dry_run_lists_everything_and_changes_nothing(
    hybrid_search: Path, hub: LocalHub, lfs_api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan names every file that would go up, a benchmark's figure included, and the Hub is only read."""
    monkeypatch.setattr(results, "_benchmark", lambda study: "gsm8k")
    monkeypatch.setattr(results, "_accuracy", lambda study: 0.5)
    text = str(preview_push(hybrid_search, "local/merge", api=lfs_api))
    changing = [seen for seen in hub.requests if seen.method not in ("GET", "HEAD")]
    assert {seen.target for seen in changing} <= {"/api/validate-yaml"}
    push_model(hybrid_search, "local/merge", api=lfs_api)
    for name in set(lfs_api.list_repo_files("local/merge")) - {".gitattributes"}:
        assert f"  {name}\n" in text + "\n"
    assert "  .eval_results/gsm8k.yaml\n" in text


def _flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "recipe.yaml"])
def test_what_was_changed_after_the_build_is_not_published(plain: Path, lfs_api: HfApi, name: str) -> None:
    """One changed byte in weights, config or recipe is refused, by a dry run too, as the card would not be true."""
    content = (plain / name).read_bytes()
    (plain / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if name == "model.safetensors" else content + b"\n")
    for refused in (push_model, preview_push):
        with pytest.raises(HubError, match=rf"{name} is not what was built from its recipe; build it again, or remove"):
            refused(plain, "local/merge", api=lfs_api)
    assert not lfs_api.repo_exists("local/merge")


def test_a_link_out_of_the_folder_is_not_published(
    plain: Path, lfs_api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that becomes a link out of the folder after the weights were read is refused, and nothing is published."""
    from hf_evomerge.hub import push_plan

    (tmp_path / "secret").write_text("{}")
    read = push_plan.weight_files

    def linked(folder: Path) -> Any:
        found = read(folder)
        (folder / "tokenizer_config.json").unlink()
        (folder / "tokenizer_config.json").symlink_to(tmp_path / "secret")
        return found

    (plain / "build.json").unlink(missing_ok=True)
    monkeypatch.setattr(push_plan, "weight_files", linked)
    with pytest.raises(EvoMergeError, match=r"tokenizer_config\.json: a link to .*secret, which is not in"):
        push_model(plain, "local/linked", api=lfs_api)
    assert not lfs_api.repo_exists("local/linked")


def test_without_a_record_of_the_build_nothing_is_claimed(plain: Path, lfs_api: HfApi) -> None:
    """A model whose build left no record goes up with a warning; recipe and card do not say that it gives these weights."""
    (plain / "build.json").unlink()
    pushed = push_model(plain, "local/merge", api=lfs_api)
    assert any("it is not known whether the weights are those that the recipe gives" in warning for warning in pushed.warnings)
    assert Recipe.load(hf_hub_download("local/merge", "recipe.yaml")).built is None
    assert "build.json" not in lfs_api.list_repo_files("local/merge")
    assert "hf-evomerge reproduce" not in Path(hf_hub_download("local/merge", "README.md")).read_text()


def test_a_model_is_built_again_before_it_is_published(plain: Path, lfs_api: HfApi) -> None:
    """`verify` needs no record, compares every bit, and the card says that it was done."""
    (plain / "build.json").unlink()
    push_model(plain, "local/merge", PushOptions(verify=True), api=lfs_api)
    recipe = Recipe.load(hf_hub_download("local/merge", "recipe.yaml"))
    assert recipe.built is not None
    assert list(recipe.built.sha256) == ["model.safetensors"]
    _flip_a_bit(plain / "model.safetensors")
    write_build_record(plain)
    with pytest.raises(HubError, match=r"is not what its recipe gives \(1 differences; .*: 1 of \d+ numbers differ\)"):
        push_model(plain, "local/other", PushOptions(verify=True), api=lfs_api)
    assert not lfs_api.repo_exists("local/other")


def test_a_dry_run_needs_no_login(plain: Path, hub: LocalHub, lfs_api: HfApi) -> None:
    """Without a token the plan is the same, and says what was not checked; pushing still asks to log in."""
    nobody = HfApi(endpoint=hub.endpoint, token=False)
    text, known = str(preview_push(plain, "local/merge", api=nobody)), str(preview_push(plain, "local/merge", api=lfs_api))
    note = "warning: nobody is logged in, so it was not checked whether you may push to local/merge, or what of it is private"
    assert text == f"{known}\n{note}"
    with pytest.raises(HubError, match="hf auth login"):
        push_model(plain, "local/merge", api=nobody)


def test_a_commit_that_cannot_be_compared_is_still_a_commit(
    plain: Path, hub: LocalHub, lfs_api: HfApi, waits: list[float]
) -> None:
    """Where the Hub stops answering after it took the commit, that is a warning, and the Space is made."""
    hub.faults.add(Fault(r"POST /api/models/local/merge/paths-info/", "status", status=503, skip=1, times=None))
    pushed = push_model(plain, "local/merge", PushOptions(space=True), api=lfs_api)
    assert lfs_api.model_info("local/merge").sha == pushed.model.sha
    assert any("taken the commit, but what it holds was not compared" in warning for warning in pushed.warnings)
    assert pushed.space is not None


def test_the_template_is_found(tmp_path: Path) -> None:
    """The card's template is where the package looks for it."""
    from hf_evomerge.hub.bundled import bundled

    assert (bundled("model_cards") / TEMPLATE).is_file()
    with pytest.raises(HubError, match="install it again"):
        bundled("nothing")


def test_push_from_a_study_and_from_the_command_line(hybrid_search: Path, lfs_api: HfApi, program: Callable[..., str]) -> None:
    """`Study.push_to_hub` and `hf-evomerge push` publish the same; the command prints the address and never the token."""
    code = "import sys; from hf_evomerge import Study; study = Study.open(sys.argv[1])\n"
    code += "print(study.push_to_hub('local/one', private=True, commit_message='Mine').model.url)"
    assert program(code, str(hybrid_search)).strip().endswith("/local/one")
    assert lfs_api.list_repo_commits("local/one")[0].title == "Mine"
    assert lfs_api.model_info("local/one").private
    printed = program(PUSH, "push", str(hybrid_search), "local/two", "--commit-message", "Ours", check=False)
    assert lfs_api.list_repo_commits("local/two")[0].title == "Ours"
    assert "published " in printed
    assert "on this machine only" in printed
    assert "hf_local" not in printed
    names = [sorted(lfs_api.list_repo_files(f"local/{name}")) for name in ("one", "two")]
    assert names[0] == names[1]
