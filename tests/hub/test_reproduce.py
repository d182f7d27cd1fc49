"""Rebuilding what was published: the same bits, or a report of what differs; and no faith in what
was downloaded."""

import json
import shutil

import pytest
import torch
from classes import edit_json
from faulty_hub import Fault
from hub_fixtures import hub_in, upload_models
from recipes import merge_of
from refusals import refused
from safetensors.torch import load_file, save, save_file
from sentence import sentence_folder
from words import word_tokenizer

from hf_evomerge import (
    EvoMergeError,
    PushOptions,
    Recipe,
    SourceRef,
    build_model,
    push_model,
    reproduce,
)
from hf_evomerge.building.build_record import write_build_record
from hf_evomerge.errors import HubError, SourceError
from hf_evomerge.hub.compare import compare_code
from hf_evomerge.hub.reproduce import Reproduction, TensorDifference


@pytest.fixture
def published(tiny, lfs_api):
    """The tiny family on the hub, by folder."""
    return upload_models(lfs_api, *(tiny / name for name in ("a", "b", "base")))


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """A DARE merge with a path through it, everything that could come out otherwise; and what a hub
    keeps that has it."""
    merge = {"parameters": [{"weight": 0.6, "density": 0.5}, {"weight": 0.7, "density": 0.5}]}
    flow = {"path": ["2:0", "1:1", "2:1"], "scales": [1, 0.5, 1.5]}
    fields = {"method": "dare_ties", "base": tiny / "base", "merge": merge, "flow": flow, "seed": 3}
    folder = tmp_path_factory.mktemp("made")
    build_model(merge_of(tiny / "a", tiny / "b", **fields), folder / "merged")
    with hub_in(folder) as (_, api):
        published = upload_models(api, *(tiny / name for name in ("a", "b", "base")))
        options = PushOptions(published=published)
        push_model(folder / "merged", "local/merge", options, api=api)
    return folder


@pytest.fixture
def merged(made, tmp_path):
    """That merge, which a test may change."""
    return shutil.copytree(made / "merged", tmp_path / "merged")


@pytest.fixture
def pushed(made, hub):
    """The merge, which is on the hub as local/merge, as its sources are."""
    hub.stop()
    shutil.copytree(made / "hub", hub.root, dirs_exist_ok=True)
    hub.start()
    return made / "merged"


def _put(api, name, content, repo_id="local/merge"):
    """Replace a file on the hub, and give its commit."""
    put = api.upload_file(repo_id=repo_id, path_in_repo=name, path_or_fileobj=content)
    return put.oid


def _cached(name, home):
    (file,) = (home / "hub" / f"models--local--{name}" / "snapshots").glob("*/model.safetensors")
    return file.resolve()


def test_a_published_merge_is_rebuilt_bit_for_bit(pushed, lfs_api, tmp_path, command):
    """From the recipe and the sources on the Hub alone, every file comes out the same, also by the
    command line."""
    result = reproduce("local/merge", out=tmp_path / "again", api=lfs_api)
    assert result.same
    again, first = (
        (folder / "model.safetensors").read_bytes() for folder in (tmp_path / "again", pushed)
    )
    assert again == first
    assert "the same bits, every weights file" in command("reproduce", "local/merge").stdout


def test_modules_after_an_encoder_are_rebuilt(lfs_api, tmp_path, push):
    """A Dense layer in a folder of its own is published, and comes out the same; another one is
    told."""
    tokenizer = word_tokenizer(["<pad>", "<bos>", "<eos>", "<unk>", "one"])
    folders = [
        sentence_folder(tmp_path / name, tokenizer, seed) for seed, name in enumerate(("de", "es"))
    ]
    upload_models(lfs_api, *folders)
    push(build_model(merge_of("local/de", "local/es"), tmp_path / "merged"))
    assert reproduce("local/merge", out=tmp_path / "again", api=lfs_api).same
    dense = "2_Dense/model.safetensors"
    again, merged, own = (
        (tmp_path / name / dense).read_bytes() for name in ("again", "merged", "de")
    )
    assert again == merged != own
    _put(lfs_api, dense, own)
    with refused(HubError, r"2_Dense/model\.safetensors is not the file that its rec"):
        reproduce("local/merge", api=lfs_api)


@pytest.mark.parametrize("revision", [None, "main", "v1"])
@pytest.mark.usefixtures("published")
def test_what_was_merged_is_what_is_published(
    revision, lfs_api, tmp_path, command, push, published_text
):
    """A source that moves between the merge and the push, also in the cache, is published by the
    commit that was merged."""
    lfs_api.create_tag("local/a", tag="v1")
    commit = lfs_api.model_info("local/a").sha
    merge_of({"model": "local/a", "revision": revision}, "local/b").save(tmp_path / "recipe.yaml")
    assert command("merge", tmp_path / "recipe.yaml", "--out", tmp_path / "merged").returncode == 0
    weights = _cached("b", tmp_path / "client")
    head = _put(lfs_api, "model.safetensors", weights, "local/a")
    if revision == "v1":
        lfs_api.delete_tag("local/a", tag="v1")
        lfs_api.create_tag("local/a", tag="v1", revision=head)
    lfs_api.snapshot_download("local/a", revision=revision)
    push(tmp_path / "merged")
    first, _ = Recipe.from_yaml(published_text("recipe.yaml")).sources
    assert first.revision == commit != head
    assert reproduce("local/merge", api=lfs_api).same


def test_sources_that_bring_code_need_consent(tiny, lfs_api, tmp_path, push):
    """Code that comes with the sources is not run to rebuild a model, unless the caller says so; a
    push as such needs none."""
    code = "from transformers import LlamaConfig\nclass Own(LlamaConfig):\n    model_type = 'own'\n"
    for name in ("a", "b"):
        folder = shutil.copytree(tiny / name, tmp_path / name)
        (folder / "own.py").write_text(code)
        edit_json(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own"})
        upload_models(lfs_api, folder)
    recipe = merge_of("local/a", "local/b", dtype="float32")
    message = "read it, and pass --trust-remote-code"
    with refused(SourceError, message):
        build_model(recipe, tmp_path / "merged")
    push(build_model(recipe, tmp_path / "merged", trust_remote_code=True))
    with refused(SourceError, message):
        reproduce("local/merge", api=lfs_api)
    assert reproduce("local/merge", api=lfs_api, trust_remote_code=True).same


@pytest.mark.usefixtures("pushed")
def test_one_changed_byte_in_a_source_is_refused(lfs_api, tmp_path):
    """A downloaded source whose content is not what the Hub says, though its size is, is not built
    from."""
    assert reproduce("local/merge", api=lfs_api).same
    file = _cached("b", tmp_path / "client")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with refused(Exception, r"local/b.*sha256") as caught:
        reproduce("local/merge", api=lfs_api)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("pushed")
@pytest.mark.parametrize("reset", [False, True])
def test_a_source_that_comes_in_part_is_not_built_from(hub, lfs_api, reset):
    """A download that is cut short is made whole; one that is cut off is one line, and made whole
    the next time."""
    # the first request reads the header, the second fetches the file
    fault = Fault(r"GET /content/", "truncate", skip=1, after_bytes=3000, rst=reset)
    hub.faults.add(fault)
    if reset:
        with refused(SourceError, r"^local/a: model.safetensors: .*reset"):
            reproduce("local/merge", api=lfs_api)
    assert reproduce("local/merge", api=lfs_api).same
    assert fault.hits == 1


def test_a_model_that_is_not_what_its_recipe_gives_is_reported(
    merged, published, lfs_api, command, push
):
    """The tensors that differ are named, with how many numbers and by how much; the command ends
    with an error."""
    tensors = load_file(merged / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name][0, 0] += 0.25
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
    write_build_record(merged)  # a publisher who says what is not so
    push(merged, published=published)
    result = reproduce("local/merge", api=lfs_api)
    assert not result.same
    what = f"1 of {tensors[name].numel()} numbers differ"
    assert result.differences == (TensorDifference(name, what, pytest.approx(0.25, abs=1e-6)),)
    said = command("reproduce", "local/merge")
    assert (said.returncode, f"1 of {result.tensors} tensors differ" in said.stdout) == (1, True)


@pytest.mark.parametrize("where", ["model.safetensors", "other/x.safetensors"])
def test_weights_that_were_added_after_the_push_are_refused(
    merged, published, lfs_api, tmp_path, where, push
):
    """A file that transformers would load in place of the recipe's own does not go unnoticed, at
    the top or by the index."""
    recipe = Recipe.load(merged / "recipe.yaml")
    parts = build_model(recipe, tmp_path / "parts", max_shard_size="20KB")
    push(parts, published=published)
    _put(lfs_api, where, save({"x": torch.zeros(2)}))
    if "/" in where:
        name = "model.safetensors.index.json"
        index = json.loads((parts / name).read_text())
        index["weight_map"]["lm_head.weight"] = where
        _put(lfs_api, name, json.dumps(index).encode())
    with refused(HubError, f"{where} is not in its recipe.yaml, and may be loaded in"):
        reproduce("local/merge", api=lfs_api)


@pytest.mark.usefixtures("pushed")
def test_a_config_that_the_recipe_does_not_give_is_reported(lfs_api, published_text):
    """The path, its scales and everything else that config.json decides are compared as the weights
    are."""
    config = json.loads(published_text("config.json"))
    config["scales"][1] = 0.75
    config["text_config"]["rms_norm_eps"] = 0.5
    _put(lfs_api, "config.json", json.dumps(config).encode())
    result = reproduce("local/merge", api=lfs_api)
    assert not result.same
    assert result.differences == ()
    assert result.settings == (
        "scales: [1.0, 0.75, 1.5] is published, the recipe gives [1.0, 0.5, 1.5]",
        "text_config.rms_norm_eps: 0.5 is published, the recipe gives 1e-06",
    )
    assert "config.json is not what the recipe gives" in str(result)


def test_code_that_was_changed_is_not_called_the_same(pushed, lfs_api, command):
    """A changed file of the class is reported in capitals, and ends the command with an error;
    other code is named."""
    name = "modeling_evo_merged.py"
    _put(lfs_api, name, (pushed / name).read_bytes() + b"\nimport os\n")
    result = reproduce("local/merge", api=lfs_api)
    assert (result.same, result.differences, result.settings) == (False, (), ())
    said = command("reproduce", "local/merge")
    assert said.returncode == 1
    assert f"CODE DIFFERS: {name} is not that of hf-evomerge" in said.stdout
    _put(lfs_api, name, pushed / name)
    _put(lfs_api, "extra.py", b"x = 1\n")
    settings = json.loads((pushed / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["extra.X", None]}
    _put(lfs_api, "tokenizer_config.json", json.dumps(settings).encode())
    result = reproduce("local/merge", api=lfs_api)
    assert result.same
    assert "CODE NOT COMPARED: extra.py is not part of hf-evomerge" in str(result)
    assert "CODE NOT COMPARED: tokenizer_config.json names code of its own" in str(result)
    versions = {"hf-evomerge": ("0.0.9", "0.1.0")}
    (line,) = compare_code(pushed, {name: pushed / "config.json"}, versions)[1]
    was = "is from hf-evomerge 0.0.9, and this is 0.1.0; read it, or install that version"
    assert line == f"{name} {was}"


@pytest.mark.usefixtures("pushed")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{here}/secret", "not read"),
        ("../secret", "not read"),
        ("~nobody-at-all/x", "not read"),
        ("here/it", "not read"),
        ("a/" + "b" * 5000, "Repo id must"),
    ],
)
def test_a_recipe_of_a_stranger_reads_no_folder(
    lfs_api, tmp_path, monkeypatch, name, said, published_text
):
    """A published recipe cannot name a folder of whoever rebuilds it, whether it is there or
    not."""
    for folder in ("secret", "here/it"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.from_yaml(published_text("recipe.yaml"))
    sources = [SourceRef(model=name.format(here=tmp_path)), recipe.sources[1]]
    recipe = recipe.model_copy(update={"sources": sources})
    _put(lfs_api, "recipe.yaml", recipe.to_yaml().encode())
    with refused(EvoMergeError, said):
        reproduce("local/merge", api=lfs_api)


@pytest.mark.usefixtures("pushed")
def test_a_recipe_of_a_stranger_lists_no_folder(lfs_api, tmp_path):
    """A published recipe whose sources are a run is refused before the run is looked for."""
    (tmp_path / "private-1").mkdir()
    (tmp_path / "private-1" / "config.json").write_text("{}")
    text = f"sources: {{run: {tmp_path}}}\nmerge: {{method: linear}}\n"
    _put(lfs_api, "recipe.yaml", text.encode())
    with refused(HubError, r"local/merge: recipe\.yaml: sources: must be a list") as refusal:
        reproduce("local/merge", api=lfs_api)
    assert "private-1" not in str(refusal.value)


def test_names_from_a_repository_do_not_reach_the_terminal_raw():
    """A tensor's name that holds control characters cannot clear the screen or colour what
    follows."""
    hostile = TensorDifference("x\x1b[2J\ny", "1 of 2 numbers differ", 0.5)
    text = str(Reproduction("u/m", "0" * 40, {}, 2, (hostile,), (), {}))
    assert text.splitlines()[1] == "  x?[2J?y: 1 of 2 numbers differ, by at most 0.5"


def test_what_cannot_be_rebuilt_is_refused(merged, lfs_api, push):
    """A model without a recipe, with unpublished sources, or that is not there, is refused with the
    reason."""
    push(merged)
    lfs_api.create_repo("local/empty")
    refusals = {
        "local/merge": "only its author can rebuild it: a, b and base cannot be had from the Hub",
        "local/empty": "holds no recipe.yaml",
        "local/nothing": "local/nothing: cannot be read",
    }
    for name, said in refusals.items():
        with refused(HubError, said):
            reproduce(name, api=lfs_api)
