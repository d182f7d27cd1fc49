"""Tensors are compared with what the architecture's own class asks for, before anything is
written."""

import shutil

import pytest
import torch
import transformers
import yaml
from classes import CLASSES, edit_json, edited, random_class
from recipes import merge_of, path_of
from refused import refused
from tiny_models import tiny_model
from vlms import save_vlm

from hf_evomerge.building.build import build_model, check_recipe, open_recipe
from hf_evomerge.checkpoints.open import open_source


def save(kind, folder):
    """Save a tiny random model of a kind."""
    if kind == "llava":
        save_vlm(folder, kind, 0)
    else:
        model = random_class(kind, 0) if kind in CLASSES else tiny_model(kind, 2)
        model.save_pretrained(folder)
    return folder


def without(folder, *words):
    """Take the tensors out of a checkpoint whose names have all of these words."""
    with edited(folder) as tensors:
        for name in [name for name in tensors if all(word in name for word in words)]:
            del tensors[name]


@pytest.fixture
def llama(tmp_path):
    """A Llama that a test may change."""
    return save("llama", tmp_path / "llama")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "llava", *CLASSES])
def test_whole_models_of_any_kind_raise_no_alarm(kind, tmp_path):
    """What transformers saved is merged without a word: decoders, encoders, both, experts, models
    of text and images."""
    folder = save(kind, tmp_path / "a")
    assert check_recipe(merge_of(folder, shutil.copytree(folder, tmp_path / "b"))).warnings == []
    built = build_model(merge_of(folder, tmp_path / "b"), tmp_path / "out")
    (name,) = open_source(built).config.architectures
    _, info = getattr(transformers, name).from_pretrained(built, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


DAMAGES = {
    "layers.1.mlp.up_proj": (
        "needs tensors that are not there: model.layers.1.mlp.up_proj.weight; transformers would "
        "fill them with random numbers"
    ),
    ".layers.1.": (
        r"needs tensors that are not there: model.layers.1.input_layernorm.weight, .* and \d+ "
        "more; transformers"
    ),
    "lm_head": "needs tensors that are not there: lm_head.weight; ",
    "model.norm": (
        r"needs other shapes: model.norm.weight is \[8\], not \[32\]; correct its config.json"
    ),
}


@pytest.mark.parametrize(("word", "message"), DAMAGES.items())
def test_a_model_that_cannot_be_whole_is_refused(word, message, llama, tmp_path):
    """Tensors that are missing or misshapen in all sources alike are an error that names them, and
    nothing is written."""
    without(llama, word)
    if word == "model.norm":
        with edited(llama) as tensors:
            tensors["model.norm.weight"] = torch.ones(8)
    with refused(f"^{llama}: LlamaForCausalLM, as its config.json describes it, {message}"):
        build_model(merge_of(llama, llama), tmp_path / "out" / "model")
    assert not (tmp_path / "out").exists()


def test_an_expert_that_is_missing_is_seen(tmp_path):
    """Experts are stored one by one and held in one tensor: what transformers converts is compared
    after the conversion."""
    folder = save("mixtral", tmp_path / "mixtral")
    without(folder, "layers.0", "experts.1")
    with refused(r"needs other shapes: model\.layers\.0\.mlp\.experts\."):
        check_recipe(merge_of(folder, folder))


def test_a_tensor_without_a_place_is_told(llama):
    """A tensor that the architecture does not have is merged as it was, with a warning that it is
    of no use; buffers of old checkpoints are known to transformers."""
    added = ("model.layers.0.extra", "model.layers.0.self_attn.rotary_emb.inv_freq")
    with edited(llama) as tensors:
        tensors.update({name: torch.ones(4) for name in added})
    assert check_recipe(merge_of(llama, llama)).warnings == [
        f"{llama}: LlamaForCausalLM, as its config.json describes it, has no place for {added[0]}: "
        "they are merged, and left out when it is loaded"
    ]


def test_an_encoder_may_lack_its_pooler(tmp_path):
    """Classes that can be made without a pooler are often saved without it."""
    folder = tmp_path / "bert"
    random_class("bert", 0).bert.save_pretrained(folder)
    without(folder, "pooler")
    assert check_recipe(merge_of(folder, folder)).warnings == []


def test_an_architecture_that_is_not_known_is_left_alone(llama):
    """Where transformers has no such class the merge is made, with a warning that nothing was
    compared."""
    without(llama, "model.norm")
    edit_json(llama / "config.json", architectures=["LlamaForTelepathy"])
    assert check_recipe(merge_of(llama, llama)).warnings == [
        f"architecture of {llama}: transformers has no LlamaForTelepathy for the model type "
        "'llama', so its tensors were not "
        "compared with one"
    ]


def test_without_a_named_architecture_the_body_is_compared(llama):
    """A config that names no architecture may have any head; what every model of its type has must
    be there."""
    edit_json(llama / "config.json", architectures=None)
    assert check_recipe(merge_of(llama, llama)).warnings == []
    without(llama, "model.norm")
    with refused(r"^\S*: LlamaModel, .* not there: norm\.weight"):
        check_recipe(merge_of(llama, llama))


def test_stacked_layers_are_compared_with_their_own_config(llama):
    """The result of slices is checked as it will be, and a slice of a layer that is not in the
    files is refused."""
    merge = "slices: [layers: ['0:0-1', '1:0-1'], layers: ['0:1', '1:1']]"
    recipe = merge_of(llama, llama, merge=yaml.safe_load(merge))
    assert check_recipe(recipe).warnings == []
    without(llama, ".layers.1.")
    with refused(r"not there: model\.layers\.1\."):
        open_recipe(recipe)


def test_a_source_is_asked_once(llama, monkeypatch):
    """What a source's architecture says is found out once, however often it is merged."""
    source = open_source(llama)
    assert source.architecture_warnings == []
    monkeypatch.setattr("hf_evomerge.checkpoints.architecture.fit_of", None)
    assert source.architecture_warnings == []


def test_an_encoder_has_no_path(tmp_path):
    """Layers that see a whole text at once are refused in a path, in one line, and merged as
    ever."""
    folder = save("bert", tmp_path / "bert")
    said = rf"^{folder}: 'bert' is an encoder \(is_decoder is false\), whose layers"
    with refused(said):
        check_recipe(path_of(folder, hops="0:0-1"))
