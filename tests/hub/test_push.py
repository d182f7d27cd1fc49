"""Publishing: one commit that lands whole or not at all, loads everywhere, and can be pushed again
after any failure."""

import json
from pathlib import Path

import pytest
import torch
from classes import edit_json
from hub_fixtures import commit_titles, upload_models
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants
from refusals import refused
from searches import copy_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_evomerge import Recipe, SourceRef, run_search
from hf_evomerge.building.build_record import write_build_record
from hf_evomerge.checkpoints.hashes import file_sha256
from hf_evomerge.errors import HubError
from hf_evomerge.hub.card import markdown_text
from hf_evomerge.record import Record
from hf_evomerge.search.study.files import WRITTEN
from hf_evomerge.search.study.study import Study

LOAD = """
import json, sys
sys.modules["hf_evomerge"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
trust = {"trust_remote_code": sys.argv[2] == "trust"}
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], **trust).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], **trust)
inputs = tokenizer("w1 w2 w3", return_tensors="pt", return_token_type_ids=False)
tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
print(json.dumps([type(model).__name__, tokens.tolist(), model(**inputs).logits.sum().item()]))
"""


def _expected(folder):
    """What `LOAD` prints of a model that is loaded from a folder in this process."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("w1 w2 w3", return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        logits = pytest.approx(model(**inputs).logits.sum().item(), abs=1e-3)
    return [type(model).__name__, tokens.tolist(), logits]


def test_a_path_is_published_in_one_commit_and_loads_without_the_package(
    hybrid_search, lfs_api, program, push
):
    """Weights, code, tokenizer, recipe, record, pictures and card go up at once, and run where this
    package is not."""
    pushed = push(hybrid_search, examples=1)
    assert len(commit_titles(lfs_api)) == 2  # the Hub's own first one, and ours
    code = ("blocks", "configuration", "layers", "modeling", "sources")
    expected = {f"{part}_evo_merged.py" for part in code}
    expected |= {"model.safetensors", "config.json", "tokenizer.json", "README.md", "recipe.yaml"}
    expected |= {"study.json", "trials.parquet", "images/fitness.png", "images/path.png"}
    assert expected <= set(lfs_api.list_repo_files("local/merge"))
    loaded = json.loads(program(LOAD, "local/merge", "trust").splitlines()[-1])
    assert loaded == _expected(hybrid_search / "model")
    again = push(hybrid_search, examples=1)
    assert (again.model.changed, again.model.sha) == (False, pushed.model.sha)
    assert len(commit_titles(lfs_api)) == 2


@pytest.mark.usefixtures("lfs_api")
def test_push_to_hub_takes_the_code_along(hybrid_search, program):
    """transformers' own `push_to_hub` uploads the class's files, and a card with its tags; it loads
    without this package."""
    for kind in (AutoModelForCausalLM, AutoTokenizer):
        kind.from_pretrained(hybrid_search / "model").push_to_hub("local/direct")
    loaded = json.loads(program(LOAD, "local/direct", "trust").splitlines()[-1])
    assert loaded == _expected(hybrid_search / "model")
    assert {"merge", "evomerge"} <= set(ModelCard.load("local/direct").data.tags)


def test_a_parameter_space_merge_is_a_plain_model(plain, lfs_api, program, push, published_text):
    """A PS merge goes up without any code, and loads without trust in any; its card has no search
    and claims nothing."""
    push(plain)
    assert not any(name.endswith(".py") for name in lfs_api.list_repo_files("local/merge"))
    loaded = json.loads(program(LOAD, "local/merge", "no").splitlines()[-1])
    assert loaded == _expected(plain)
    assert "nothing is claimed about its quality" in published_text()


def _names(folder, place):
    """The files of a folder that name a place on this machine."""
    files = [file for file in folder.rglob("*") if file.is_file() and ".cache" not in file.parts]
    return [file.name for file in files if str(place).encode() in file.read_bytes()]


def test_the_recipe_says_what_it_gave_and_from_what(hybrid_search, tiny, lfs_api, tmp_path, push):
    """Sources that were published are pinned to commits everywhere, with their licenses; no folder
    of this machine is named."""
    folders = [tiny / name for name in ("b", "a", "base")]
    push(hybrid_search, published=upload_models(lfs_api, *folders, licenses=["mit"]))
    folder = Path(lfs_api.snapshot_download("local/merge", local_dir=tmp_path / "got"))
    assert Record.load(folder / "study.json").licenses == {"local/b": "mit"}
    recipe = Recipe.load(folder / "recipe.yaml")
    names = ["local/a", "local/b", "local/base"]
    pins = [(name, lfs_api.model_info(name).sha) for name in names]
    assert [(ref.model, ref.revision) for ref in recipe.parents] == pins
    config = json.loads((folder / "config.json").read_text())
    assert [(each["model"], each["revision"]) for each in config["sources"][:2]] == pins[:2]
    info = lfs_api.model_info("local/merge", files_metadata=True)
    shas = {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs}
    assert recipe.built.sha256 == {"model.safetensors": shas["model.safetensors"]}
    assert info.card_data.base_model == names
    assert _names(folder, tiny) == []


def test_folders_that_are_gone_are_still_not_named(plain, lfs_api, tmp_path, push):
    """A merge goes out after its sources were removed, without a word of where they were; nor does
    a tokenizer's note."""
    recipe = Recipe.load(plain / "recipe.yaml")
    gone = [SourceRef(model=f"{tmp_path}/gone/{name}") for name in "ab"]
    recipe.model_copy(update={"sources": gone}).save(plain / "recipe.yaml")
    write_build_record(plain)
    edit_json(plain / "tokenizer_config.json", name_or_path=f"{tmp_path}/x", model_max_length=48)
    assert "a and b are on this machine only" in str(push(plain).warnings)
    folder = Path(lfs_api.snapshot_download("local/merge", local_dir=tmp_path / "got"))
    assert _names(folder, tmp_path) == []
    card = (folder / "README.md").read_text()
    assert "| a | unknown | the folder is not there any more |" in card
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 48


def test_private_repositories_and_branches(plain, lfs_api, push, published_text):
    """A new repository is private where asked; a branch is made, and its Space shows it."""
    push(plain, private=True, revision="try")
    assert lfs_api.model_info("local/merge").private
    assert "model.safetensors" in lfs_api.list_repo_files("local/merge", revision="try")
    assert "model.safetensors" not in lfs_api.list_repo_files("local/merge")
    again = push(plain, private=True, revision="try", space=True)
    assert "a secret HF_TOKEN" in str(again.warnings)
    assert json.loads(published_text("space.json", repo_type="space"))["revision"] == "try"


def test_a_later_winner_replaces_the_earlier_one(
    hybrid_search, plain, lfs_api, caplog, push, preview, published_text
):
    """Code, record, pictures and tokenizer of an earlier winner go; what no push made stays, and a
    card.

    Weights that are pickles go too. A dry run says so, and so does the push.
    """
    push(hybrid_search)
    ours = {"tokenizer.model", "model-00001-of-00002.safetensors", "pytorch_model.bin"}
    theirs = {"notes.py", "onnx/x.safetensors", "images/logo.png", "images/a/path.png"}
    files = [CommitOperationAdd(name, b"x") for name in ours | theirs]
    lfs_api.create_commit("local/merge", files, commit_message="before")
    card = published_text()
    lines = [line.strip() for line in str(preview(plain, card=False)).splitlines()]
    fates = {}
    for fate in ("replaced", "removed", "left"):
        (line,) = [line for line in lines if line.startswith(f"{fate}: ")]
        fates[fate] = set(line.partition(": ")[2].split(", "))
    assert fates["removed"] >= {*ours, "study.json", "trials.parquet", "images/path.png"}
    assert fates["replaced"] >= {"model.safetensors", "config.json", "recipe.yaml"}
    assert fates["left"] == {*theirs, "README.md"}
    caplog.set_level("INFO", logger="hf_evomerge")
    push(plain, card=False)
    said = {line.removeprefix("local/merge: ") for line in caplog.messages}
    assert said >= {line for line in lines if line.startswith((*fates,))}
    there = set(lfs_api.list_repo_files("local/merge"))
    assert there == fates["replaced"] | fates["left"] | {".gitattributes"}
    assert published_text() == card


def test_a_dry_run_lists_everything_and_changes_nothing(hybrid_search, hub, lfs_api, push, preview):
    """The plan names every file that would go up; the Hub is only read, and needs no login."""
    nobody = HfApi(endpoint=hub.endpoint, token=False)
    plan = preview(hybrid_search, api=nobody)
    with refused(HubError, "hf auth login"):
        push(hybrid_search, api=nobody)
    changing = [seen for seen in hub.requests if seen.method not in ("GET", "HEAD")]
    assert {seen.target for seen in changing} <= {"/api/validate-yaml"}
    push(hybrid_search)
    assert {*lfs_api.list_repo_files("local/merge")} == {".gitattributes", *plan.files}
    assert all(f"  {name}\n" in f"{plan}\n" for name in plan.files)


@pytest.mark.parametrize("offline", [False, True])
def test_a_dry_run_without_the_hub_names_what_it_did_not_ask(
    offline, plain, tiny, lfs_api, monkeypatch, push, preview
):
    """Without a connection the plan lists the files and one warning says what was not looked up; a
    push is one error."""
    published = upload_models(lfs_api, tiny / "a", licenses=["mit"])
    known = preview(plain, published=published)
    nowhere = HfApi(endpoint="http://127.0.0.1:9", token="hf_local")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    plan = preview(plain, published=published, api=nowhere)
    assert set(plan.files) == set(known.files)
    assert "license unknown" in str(plan)
    said = "not asked: what local/merge holds; whether the Hub takes the card; licenses of the "
    assert plan.warnings[0].startswith(f"{said}parents local/a; the Hub cannot be reached (")
    assert plan.warnings[1:] == known.warnings[:1]  # the other one judges the licenses
    with refused(HubError, "cannot be used"):
        push(plain, published=published, api=nowhere)


def test_without_a_record_of_the_build_nothing_is_claimed(plain, push, published_text):
    """A model whose build left no record goes up with a warning; recipe and card do not say that it
    gives these weights."""
    (plain / "build.json").unlink()
    said = "it is not known whether the weights are those that the recipe gives"
    assert said in str(push(plain).warnings)
    assert Recipe.from_yaml(published_text("recipe.yaml")).built is None
    assert "hf-evomerge reproduce" not in published_text()


def test_push_from_a_study_and_from_the_command_line(hybrid_search, lfs_api, command, push):
    """`push_model` of a study and `hf-evomerge push` publish the same; the command prints the
    address and never the token."""
    pushed = push(Study.open(hybrid_search), "local/one", api=None)
    assert pushed.model.url.endswith("/local/one")
    assert commit_titles(lfs_api, "local/one")[0].startswith("Evolved merge by hf_evomerge ")
    said = command("push", hybrid_search, "local/two")
    assert "published " in said.stdout
    assert "on this machine only" in said.stderr + said.log
    assert "hf_local" not in str(said)
    one, two = (sorted(lfs_api.list_repo_files(f"local/{name}")) for name in ("one", "two"))
    assert one == two


def test_a_merge_with_lora_has_its_table(search_config, tmp_path, push, published_text):
    """The card of the merge that a LoRA learned beside has the search's table, in which it is the
    published model, and says that it was trained; its pictures are not the winner's."""
    steps = "[{by: gradient, evaluations: 6, batch: 4}]"
    compare = "{baselines: [merge+lora]}"
    study = tmp_path / "study"
    result = run_search(search_config("ps", optimize=steps, compare=compare), study)
    push(study / "model-with-lora", examples=2)
    row = result.row("together")
    card = published_text()
    assert f"**{row.model} (this model)**" in card
    assert card.count("(this model)") == 1
    assert "A LoRA was trained beside them" in card
    assert "What was said of the search's own winner" not in card
    own = next(row for row in result.published().rows if row.stage == "together")
    assert all(f"- {markdown_text(sentence)}." in card for sentence in own.verdict)
    assert "base with adapter together" not in card
    assert "## Licenses" in card
    assert "together" not in card.partition("## Licenses")[2]  # its LoRA is nobody else's
    record = Record.model_validate_json(published_text("study.json"))
    assert record.winner.label == row.label
    right = [one.right["evolved"] for one in record.examples]
    assert right == row.scores.correct[:2].tolist()
    assert "images/fitness.png" in card
    assert "images/weights.png" not in card


def test_a_push_says_what_speaks_against_it(hybrid_search, tmp_path, push, published_text):
    """Where the record doubts the winner, the plan warns of it, and the card begins with it."""
    doubt = "Maths does as well: keep maths as it is; it has 0.500"
    study = copy_of(hybrid_search, tmp_path / "study")
    file = study / "results.json"
    results = json.loads(file.read_text())
    for row in results["rows"]:
        row["doubt"] = doubt if row["winner"] else ""
    file.write_text(json.dumps(results))
    with Study.open(study) as kept:
        kept.set_meta(WRITTEN, {**kept.meta(WRITTEN), file.name: file_sha256(file)})
    assert doubt in push(study).warnings
    assert f" {doubt}." in published_text().partition("## Use it")[0]
