"""Publishing: one commit that lands whole or not at all, loads everywhere, and can be pushed again
after any failure."""

import json
from pathlib import Path

import pytest
import torch
from classes import edit_json
from hub_fixtures import commit_titles, upload_models
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants, hf_hub_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_evomerge.building.build_record import write_build_record
from hf_evomerge.errors import HubError
from hf_evomerge.hub.push import preview_push, push_model
from hf_evomerge.hub.push_plan import PushOptions
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.record import Record
from hf_evomerge.search.study.study import Study

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


def _expected(folder):
    """What `LOAD` prints of a model that is loaded from a folder in this process."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(
        "w1 w2 w3", return_tensors="pt", return_token_type_ids=False
    )
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        return [
            type(model).__name__,
            tokens.tolist(),
            round(model(**inputs).logits.double().sum().item(), 4),
        ]


def test_a_path_is_published_in_one_commit_and_loads_without_the_package(
    hybrid_search, lfs_api, program
):
    """Weights, code, tokenizer, recipe, record, pictures and card go up at once, and run where this
    package is not."""
    pushed = push_model(hybrid_search, "local/merge", PushOptions(examples=1), api=lfs_api)
    assert pushed.model.changed
    assert len(commit_titles(lfs_api)) == 2  # the Hub's own first one, and ours
    there = set(lfs_api.list_repo_files("local/merge"))
    assert there >= {
        *(
            f"{part}_evo_merged.py"
            for part in ("blocks", "configuration", "layers", "modeling", "sources")
        ),
        *("model.safetensors", "config.json", "tokenizer.json"),
        *(
            "recipe.yaml",
            "study.json",
            "trials.parquet",
            "README.md",
            "images/fitness.png",
            "images/path.png",
        ),
    }
    stored = Path(hf_hub_download("local/merge", "model.safetensors")).read_bytes()
    assert stored == (hybrid_search / "model" / "model.safetensors").read_bytes()
    loaded = json.loads(program(LOAD, "local/merge", "trust").splitlines()[-1])
    assert loaded == _expected(hybrid_search / "model")
    assert lfs_api.model_info("local/merge").card_data is not None
    again = push_model(hybrid_search, "local/merge", PushOptions(examples=1), api=lfs_api)
    assert (again.model.changed, again.model.sha) == (False, pushed.model.sha)
    assert len(commit_titles(lfs_api)) == 2


def test_push_to_hub_takes_the_code_along(hybrid_search, lfs_api, program):
    """transformers' own `push_to_hub` uploads the class's files, and a card with its tags; it loads
    without this package."""
    for kind in (AutoModelForCausalLM, AutoTokenizer):
        kind.from_pretrained(hybrid_search / "model").push_to_hub("local/direct")
    loaded = json.loads(program(LOAD, "local/direct", "trust").splitlines()[-1])
    assert loaded == _expected(hybrid_search / "model")
    assert {"merge", "evomerge"} <= set(ModelCard.load("local/direct").data.tags)


def test_a_parameter_space_merge_is_a_plain_model(plain, lfs_api, program):
    """A PS merge goes up without any code, and loads without trust in any; its card has no search
    and claims nothing."""
    push_model(plain, "local/merge", api=lfs_api)
    assert not any(name.endswith(".py") for name in lfs_api.list_repo_files("local/merge"))
    loaded = json.loads(program(LOAD, "local/merge", "no").splitlines()[-1])
    assert loaded == _expected(plain)
    assert (
        "nothing is claimed about its quality"
        in Path(hf_hub_download("local/merge", "README.md")).read_text()
    )


def test_the_recipe_says_what_it_gave_and_from_what(hybrid_search, tiny, lfs_api, tmp_path):
    """Sources that were published are pinned to commits everywhere, with their licenses; no folder
    of this machine is named."""
    published = upload_models(
        lfs_api, *(tiny / name for name in ("b", "a", "base")), licenses=["mit"]
    )
    push_model(hybrid_search, "local/merge", PushOptions(published=published), api=lfs_api)
    folder = Path(lfs_api.snapshot_download("local/merge", local_dir=tmp_path / "got"))
    assert Record.load(folder / "study.json").licenses == {"local/b": "mit"}
    recipe = Recipe.load(folder / "recipe.yaml")
    heads = {name: lfs_api.model_info(f"local/{name}").sha for name in ("a", "b", "base")}
    assert [(ref.model, ref.revision) for ref in recipe.sources] == [
        (f"local/{name}", heads[name]) for name in ("a", "b")
    ]
    assert recipe.base.revision == heads["base"]
    info = lfs_api.model_info("local/merge", files_metadata=True)
    shas = {file.rfilename: file.lfs.sha256 for file in info.siblings or [] if file.lfs}
    assert recipe.built.sha256 == {"model.safetensors": shas["model.safetensors"]}
    config = json.loads((folder / "config.json").read_text())
    assert [(source["model"], source["revision"]) for source in config["sources"][:2]] == [
        (f"local/{name}", heads[name]) for name in ("a", "b")
    ]
    assert info.card_data.base_model == ["local/a", "local/b", "local/base"]
    for file in folder.rglob("*"):
        if file.is_file() and ".cache" not in file.parts:
            assert str(tiny).encode() not in file.read_bytes(), file.name


def test_folders_that_are_gone_are_still_not_named(plain, tiny, lfs_api, tmp_path):
    """A merge goes out after its sources were removed, without a word of where they were; nor does
    a tokenizer's note."""
    recipe = Recipe.load(plain / "recipe.yaml")
    gone = [
        ref.model_copy(update={"model": f"{tmp_path}/gone/{name}"})
        for name, ref in zip("ab", recipe.sources, strict=True)
    ]
    recipe.model_copy(update={"sources": gone}).save(plain / "recipe.yaml")
    write_build_record(plain)
    edit_json(plain / "tokenizer_config.json", name_or_path=f"{tmp_path}/x", model_max_length=48)
    pushed = push_model(plain, "local/merge", api=lfs_api)
    assert any("a and b are on this machine only" in warning for warning in pushed.warnings)
    folder = Path(lfs_api.snapshot_download("local/merge", local_dir=tmp_path / "got"))
    for file in folder.rglob("*"):
        if file.is_file() and ".cache" not in file.parts:
            assert str(tmp_path).encode() not in file.read_bytes(), file.name
    assert (
        "| a | unknown | the folder is not there any more |" in (folder / "README.md").read_text()
    )
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 48


def test_private_repositories_and_branches(plain, lfs_api):
    """A new repository is private where asked; a branch is made, and its Space shows it."""
    push_model(plain, "local/merge", PushOptions(private=True, revision="try"), api=lfs_api)
    assert lfs_api.model_info("local/merge").private
    assert "model.safetensors" in lfs_api.list_repo_files("local/merge", revision="try")
    assert "model.safetensors" not in lfs_api.list_repo_files("local/merge")
    again = push_model(
        plain, "local/merge", PushOptions(private=True, revision="try", space=True), api=lfs_api
    )
    assert any("a secret HF_TOKEN" in warning for warning in again.warnings)
    settings = lfs_api.hf_hub_download("local/merge", "space.json", repo_type="space")
    assert json.loads(Path(settings).read_text())["revision"] == "try"


def test_a_later_winner_replaces_the_earlier_one(hybrid_search, plain, lfs_api, caplog):
    """Code, record, pictures and tokenizer of an earlier winner go; what no push made stays, and a
    card.

    Weights that are pickles go too. A dry run says so, and so does the push.
    """
    push_model(hybrid_search, "local/merge", api=lfs_api)
    ours = (
        "chat_template.jinja",
        "tokenizer.model",
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin",
    )
    theirs = (
        "notes.md",
        "notes.py",
        "steps/1/model.safetensors",
        "onnx/x.safetensors",
        "images/logo.png",
        "images/a/path.png",
    )
    files = [CommitOperationAdd(name, b"x") for name in (*ours, *theirs)]
    lfs_api.create_commit("local/merge", files, commit_message="before")
    card = Path(hf_hub_download("local/merge", "README.md")).read_text()
    planned = str(preview_push(plain, "local/merge", PushOptions(card=False), api=lfs_api))
    caplog.set_level("INFO", logger="hf_evomerge")
    push_model(plain, "local/merge", PushOptions(card=False), api=lfs_api)
    said = [line.removeprefix("local/merge: ") for line in caplog.messages]
    there = set(lfs_api.list_repo_files("local/merge"))
    assert there >= set(theirs)
    left = [
        name
        for name in there - set(theirs)
        if name.endswith((".safetensors", ".py", ".png", ".parquet"))
    ]
    assert left == ["model.safetensors"]
    assert not there & {*ours, "study.json"}
    lines = dict(line.strip().split(": ", 1) for line in planned.splitlines()[1:] if ": " in line)
    fates = {fate: set(lines[fate].split(", ")) for fate in ("replaced", "removed", "left")}
    assert fates["removed"] >= {*ours, "study.json", "images/path.png"}
    assert fates["replaced"] >= {"model.safetensors", "config.json", "recipe.yaml"}
    assert fates["left"] == {*theirs, "README.md"}
    assert set(said) >= {f"{fate}: {lines[fate]}" for fate in fates}
    assert Path(hf_hub_download("local/merge", "README.md")).read_text() == card


def test_a_dry_run_lists_everything_and_changes_nothing(hybrid_search, hub, lfs_api):
    """The plan names every file that would go up; the Hub is only read, and needs no login."""
    nobody = HfApi(endpoint=hub.endpoint, token=False)
    text = str(preview_push(hybrid_search, "local/merge", api=nobody))
    with pytest.raises(HubError, match="hf auth login"):
        push_model(hybrid_search, "local/merge", api=nobody)
    changing = [seen for seen in hub.requests if seen.method not in ("GET", "HEAD")]
    assert {seen.target for seen in changing} <= {"/api/validate-yaml"}
    push_model(hybrid_search, "local/merge", api=lfs_api)
    for name in set(lfs_api.list_repo_files("local/merge")) - {".gitattributes"}:
        assert f"  {name}\n" in text + "\n"


@pytest.mark.parametrize("offline", [False, True])
def test_a_dry_run_without_the_hub_names_what_it_did_not_ask(
    offline, plain, tiny, lfs_api, waits, monkeypatch
):
    """Without a connection the plan lists the files and one warning says what was not looked up; a
    push is one error."""
    upload_models(lfs_api, tiny / "a", licenses=["mit"])
    options = PushOptions(published={str(tiny / "a"): "local/a"})
    known = preview_push(plain, "local/merge", options, api=lfs_api)
    nowhere = HfApi(endpoint="http://127.0.0.1:9", token="hf_local")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    plan = preview_push(plain, "local/merge", options, api=nowhere)
    assert set(plan.files) == set(known.files)
    assert "license unknown" in str(plan)
    said = "not asked: what local/merge holds; whether the Hub takes the card; licenses of the "
    assert plan.warnings[0].startswith(f"{said}parents local/a; the Hub cannot be reached (")
    assert plan.warnings[1:] == known.warnings[:1]  # the other one judges the licenses
    assert not waits
    with pytest.raises(HubError, match="cannot be used"):
        push_model(plain, "local/merge", options, api=nowhere)


def test_without_a_record_of_the_build_nothing_is_claimed(plain, lfs_api):
    """A model whose build left no record goes up with a warning; recipe and card do not say that it
    gives these weights."""
    (plain / "build.json").unlink()
    pushed = push_model(plain, "local/merge", api=lfs_api)
    assert any(
        "it is not known whether the weights are those that the recipe gives" in warning
        for warning in pushed.warnings
    )
    assert Recipe.load(hf_hub_download("local/merge", "recipe.yaml")).built is None
    assert "build.json" not in lfs_api.list_repo_files("local/merge")
    assert (
        "hf-evomerge reproduce" not in Path(hf_hub_download("local/merge", "README.md")).read_text()
    )


def test_push_from_a_study_and_from_the_command_line(hybrid_search, lfs_api, command):
    """`push_model` of a study and `hf-evomerge push` publish the same; the command prints the
    address and never the token."""
    pushed = push_model(Study.open(hybrid_search), "local/one", PushOptions(private=True))
    assert pushed.model.url.endswith("/local/one")
    assert commit_titles(lfs_api, "local/one")[0].startswith("Evolved merge by hf_evomerge ")
    assert lfs_api.model_info("local/one").private
    said = command("push", hybrid_search, "local/two")
    assert "published " in said.stdout
    assert "on this machine only" in said.stderr + said.log
    assert not any("hf_local" in text for text in said[1:])
    names = [sorted(lfs_api.list_repo_files(f"local/{name}")) for name in ("one", "two")]
    assert names[0] == names[1]
