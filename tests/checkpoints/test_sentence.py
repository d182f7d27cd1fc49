"""Modules that sentence-transformers runs after an encoder, merged with it."""

import json
import shutil

import pytest
import torch
import yaml
from classes import edit_json, read_json
from recipes import merge_of
from refused import refused
from safetensors.torch import load_file, save_file
from sentence import sentence_folder
from words import word_tokenizer

from hf_evomerge import build_model, check_recipe
from hf_evomerge.building.build import open_recipe
from hf_evomerge.checkpoints.open import open_source

WEIGHTS = "model.safetensors"


@pytest.fixture
def folders(tmp_path):
    """Two encoders with a Dense layer and a LayerNorm."""
    tokenizer = word_tokenizer(["<pad>", "<bos>", "<eos>", "<unk>", "one", "two"])
    return [
        sentence_folder(tmp_path / name, tokenizer, seed, norm=True)
        for seed, name in enumerate("ab")
    ]


def change_modules(folder, change):
    """Change the list of modules of a folder."""
    file = folder / "modules.json"
    file.write_text(json.dumps(change(read_json(file))))


def recipe(folders, weights=(0.25, 0.75), **more):
    """Both, with their weights."""
    merge = {"options": {"normalize": False}}
    return merge_of(*folders, weights=weights, merge=merge, **more)


def test_modules_are_merged_with_the_encoder(folders, tmp_path):
    """Every tensor after the encoder is the weighted sum of the sources', in a file where
    sentence-transformers looks."""
    checked = open_recipe(recipe(folders))
    inputs = checked.origin("2_Dense/linear.weight").inputs
    assert [f"{source}: {name}" for source, name in inputs] == [
        f"{folder}: 2_Dense/linear.weight" for folder in folders
    ]
    built = build_model(recipe(folders), tmp_path / "out", max_shard_size=400)
    for module, names in (
        ("2_Dense", ["linear.weight", "linear.bias"]),
        ("3_LayerNorm", ["norm.weight", "norm.bias"]),
    ):
        merged, *both = (load_file(folder / module / WEIGHTS) for folder in (built, *folders))
        assert sorted(merged) == sorted(names)
        for name in names:
            torch.testing.assert_close(merged[name], 0.25 * both[0][name] + 0.75 * both[1][name])
        assert read_json(built / module / "config.json") == read_json(
            folders[0] / module / "config.json"
        )
    assert not any("/" in name for file in built.glob("*.safetensors") for name in load_file(file))
    assert set(open_source(built).tensors) == set(open_source(folders[0]).tensors)


def test_a_module_has_the_weight_of_its_group_or_name(folders, tmp_path):
    """Modules belong to the head; a name of a tensor counts more; another dtype is theirs too."""
    weights = [
        {"head": 1.0, "default": 0.5},
        {"2_Dense/linear.bias": 1.0, "head": 0.0, "default": 0.5},
    ]
    built = build_model(recipe(folders, weights, dtype="bfloat16"), tmp_path / "out")
    merged, *both = (load_file(folder / "2_Dense" / WEIGHTS) for folder in (built, *folders))
    assert torch.equal(merged["linear.weight"], both[0]["linear.weight"].bfloat16())
    total = both[0]["linear.bias"] + both[1]["linear.bias"]
    assert torch.equal(merged["linear.bias"], total.bfloat16())


def test_modules_come_from_the_first_source_whosever_the_tokenizer_is(folders, tmp_path):
    """With a plain model's tokenizer the result still names its modules."""
    for name in ("modules.json", "2_Dense", "3_LayerNorm", "1_Pooling", "4_Normalize"):
        place = folders[1] / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    parts = {name: load_file(folders[0] / name / WEIGHTS) for name in ("2_Dense", "3_LayerNorm")}
    with refused(r"tensor 2_Dense/linear\.bias of .*a is missing in .*b"):
        check_recipe(recipe(folders))
    for name in parts:
        shutil.rmtree(folders[0] / name)
    change_modules(folders[0], lambda entries: entries[:2])
    built = build_model(recipe(folders, tokenizer=1), tmp_path / "out")
    assert (built / "modules.json").read_text() == (folders[0] / "modules.json").read_text()
    assert (built / "1_Pooling" / "config.json").is_file()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("1_Pooling/config.json", "pooling_mode: cls", "1_Pooling: pooling is mean in .*a, cls in"),
        (
            "2_Dense/config.json",
            "activation_function: torch.nn.modules.linear.Identity",
            "2_Dense: activation_function is Tanh in .*a, Identity in .*b",
        ),
        (
            "config_sentence_transformers.json",
            "prompts: [query]",
            r"b: config_sentence_transformers\.json: prompts is no mapping",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(file, change, message, folders):
    """Pooling, activation and prompts are refused before work, with what is where."""
    edit_json(folders[1] / file, **yaml.safe_load(change))
    with refused(message):
        check_recipe(recipe(folders))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda entries: [one for one in entries if one["path"] != "2_Dense"],
            r"modules after the encoder differ: 1_Pooling .*, 2_Dense .*, 3_LayerNorm .*a, "
            r"1_Pooling .*, 3_LayerNorm .*b",
        ),
        (
            lambda entries: [*entries, {"type": "x.Dense", "path": "../a"}],
            r"b: modules\.json: Dense lies in '\.\./a', which is no folder such as 2_Dense",
        ),
        (lambda entries: [1, 2], r"b: modules\.json cannot be read"),
    ],
)
def test_modules_that_do_not_go_together_are_one_line(change, message, folders):
    """Another list of modules, a place outside and what is no list are refused before work."""
    change_modules(folders[1], change)
    with refused(message):
        check_recipe(recipe(folders))


def test_weights_of_modules_that_do_not_go_together_are_one_line(folders):
    """Another dimension, a pickle and no weights are refused before work."""
    file = folders[1] / "2_Dense" / WEIGHTS
    save_file({"linear.weight": torch.ones(4, 16), "linear.bias": torch.ones(4)}, file)
    with refused(r"2_Dense/linear\.weight: shape \[8, 16\] in .*a, \[4, 16\] in .*b"):
        check_recipe(recipe(folders))
    pickle = file.rename(file.with_name("pytorch_model.bin"))
    with refused(r"b: 2_Dense has no model\.safetensors \(only pytorch_model\.bin, a pickle, .*"):
        check_recipe(recipe(folders))
    pickle.unlink()
    with refused(r"b: 2_Dense has no model\.safetensors \(no weights\)"):
        check_recipe(recipe(folders))


def test_other_prompts_are_warned_about(folders):
    """Prompts, similarity and length that differ are the first's."""
    edit_json(
        folders[1] / "config_sentence_transformers.json",
        prompts={"query": "q: "},
        similarity_fn_name="dot",
    )
    edit_json(folders[1] / "sentence_bert_config.json", max_seq_length=8)
    said = "\n".join(check_recipe(recipe(folders)).warnings)
    for words in ("prompts differs", "similarity_fn_name differs", "max_seq_length differs"):
        assert words in said


def test_a_last_module_that_only_some_have_is_said(folders):
    """Vectors that are normalised by the first source alone, or not by it, are a line."""
    change_modules(folders[1], lambda entries: entries[:-1])
    line = (
        "the last module is Normalize in {}, LayerNorm in {}; the result has the modules of the "
        "first"
    )
    assert line.format(*folders) in "\n".join(check_recipe(recipe(folders)).warnings)
    assert "last module" not in "\n".join(check_recipe(recipe([folders[1], folders[1]])).warnings)
