"""Merges of adapters as adapters: exact against the whole model, read by peft and transformers, bit
for bit the same again."""

import pytest
import torch
import yaml
from classes import edit_json, edited, read_json
from peft import AutoPeftModelForCausalLM, PeftModel
from recipes import merge_of
from refused import refused
from safetensors.torch import load_file
from slowly import slow_beyond
from tiny_adapters import best_of, products_of, save_adapter
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM
from words import word_tokenizer

from hf_evomerge.building.build import check_recipe
from hf_evomerge.building.build_record import read_build_record
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import RecipeError

# What a recipe says of the merge, and the settings of its adapters.
CASES = yaml.safe_load(r"""
rank-stabilised: {adapters: [{r: 9, use_rslora: true}, {}], weights: [0.5, 1.2]}
patterns:
  adapters:
    - &patterns
      lora_alpha: 8
      rank_pattern: {q_proj: 6}
      alpha_pattern: {layers\.1\.mlp\.down_proj: 3}
    - {}
  weights: [0.5, 0.9]
other modules:
  adapters:
    - {target_modules: [q_proj, k_proj, v_proj, o_proj]}
    - {target_modules: [q_proj, up_proj]}
per tensor: {weights: [{blocks.0.attn: 0.3, "*mlp*": 1.1, default: 0.8}, 1.0]}
rows:
  weights: [{"*q_proj*": [0.2, 0.9, -0.4], "*down_proj*": [1.5, 0.0], default: 0.5}, [0.1, 0.9]]
lambda: {merge: {options: {lambda: 0.4, normalize: true}}, weights: [2.0, -0.5]}
absent: {weights: [0.0, 0.5]}
three: {adapters: [{}, *patterns, {r: 1}], weights: [0.4, 0.3, 0.9]}
the head: {adapters: [{target_modules: [lm_head, q_proj]}, {}]}
the mean: {method: linear, weights: [1.0, 3.0]}
# GPT-2 stores its weights with the inputs as rows, and rows of a recipe are these
transposed:
  architecture: gpt2
  adapters:
    - &transposed {r: 3, target_modules: [c_attn, c_proj], fan_in_fan_out: true}
    - *transposed
  weights: [{"*c_attn*": [0.3, 0.9], default: 0.5}, 1.0]
""")
OFTEN = [*CASES.keys() - {"rank-stabilised", "per tensor", "three"}]


@pytest.fixture
def make(tmp_path):
    """Saves a base and adapters of random numbers, and makes a recipe that merges them."""

    def recipe(adapters=({}, {}), architecture="llama", method="task_arithmetic", **fields):
        base = tmp_path / "base"
        tiny_model(architecture, 2).save_pretrained(base)
        sources = [
            (base, save_adapter(base, tmp_path / f"adapter{number}", number + 1, **settings))
            for number, settings in enumerate(adapters)
        ]
        based = None if method == "linear" else base
        return merge_of(*sources, method=method, base=based, **fields)

    return recipe


def logits(model):
    """What a model computes of some tokens."""
    with torch.inference_mode():
        return model.eval()(torch.arange(1, 13)[None]).logits


@pytest.mark.parametrize("case", slow_beyond(OFTEN, CASES))
def test_the_adapter_is_the_whole_model(case, make, built):
    """The base with the adapter, loaded by peft, by transformers and by this package, computes what
    the merged model does."""
    recipe = make(**CASES[case])
    whole = AutoModelForCausalLM.from_pretrained(built(recipe, "whole", whole=True))
    folder = built(recipe)
    assert not (folder / "config.json").exists()
    wanted = logits(whole)
    base = AutoModelForCausalLM.from_pretrained(recipe.sources[0].model)
    assert not torch.allclose(wanted, logits(base), atol=0.05)
    for model in (
        PeftModel.from_pretrained(base, folder),
        AutoPeftModelForCausalLM.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder),
    ):
        assert (logits(model) - wanted).abs().max() < 3e-5
    source = open_source(folder)
    state = whole.state_dict()
    for name in source.tensors:
        assert torch.allclose(source.read(name), state[name], atol=1e-6), name


def test_a_router_that_an_adapter_changes(make):
    """One router is kept of those that were trained, which no adapter can say: the result is a
    whole model, and why is told."""
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["gate"]}
    recipe = make([settings], "mixtral", weights=[0.5])
    with refused(r"the result is no adapter: .* changes \S+gate.weight by more than the product"):
        check_recipe(recipe, whole=False)


def test_the_config_says_what_servers_read(make, built, tmp_path):
    """The rank is that of the largest module and the scaling 1; modules are named by their ends, as
    far as they are alike."""
    attention, *_ = CASES["other modules"]["adapters"]
    last = {"target_modules": ["q_proj"], "layers_to_transform": [1]}
    folder = built(make([attention, last]))
    config = read_json(folder / "adapter_config.json")
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (8, 8, False)
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    first = "model.layers.0.self_attn.q_proj"
    assert (
        config["rank_pattern"]
        == config["alpha_pattern"]
        == dict.fromkeys([first, "k_proj", "v_proj", "o_proj"], 4)
    )
    assert sorted(config["target_modules"]) == [
        "k_proj",
        first,
        "model.layers.1.self_attn.q_proj",
        "o_proj",
        "v_proj",
    ]


def test_a_source_of_weight_0_takes_no_rank(make, built):
    """What is multiplied by 0 everywhere in a tensor is left out of its matrices."""
    recipe = make(weights=[{"*q_proj*": 0.0, "default": 0.5}, 1.0])
    tensors = load_file(built(recipe) / "adapter_model.safetensors")
    ranks = [
        len(tensors[f"base_model.model.model.layers.0.self_attn.{module}.lora_A.weight"])
        for module in ("q_proj", "k_proj")
    ]
    assert ranks == [4, 8]


def test_a_rank_is_the_best_of_that_rank(make, built, caplog):
    """Each module is the dense change's truncated SVD, and the record says what share of its energy
    that keeps."""
    recipe = make([{}, {"target_modules": ["q_proj"]}], weights=[0.7, 0.6], rank=5)
    dense = built(recipe.model_copy(update={"rank": None}), "exact")
    with caplog.at_level("INFO", "hf_evomerge"):
        folder = built(recipe)
    small = products_of(folder)
    energies = read_build_record(folder).energy
    assert energies.keys() == small.keys()
    sums = torch.zeros(2)
    for module, change in products_of(dense).items():
        best, share = best_of(change, 5)
        assert torch.allclose(small[module], best, atol=1e-6)
        assert energies[module] == pytest.approx(share, abs=1e-5)
        assert (energies[module] < 1) == ("q_proj" in module)
        sums += change.square().sum() * torch.tensor([share, 1.0])
    assert f"rank 5 keeps {sums[0] / sums[1]:.1%} of the change's energy" in caplog.text
    assert read_json(folder / "adapter_config.json")["r"] == 5


REFUSALS = {
    "method: ties": "ties is not linear",
    "{method: linear, merge: {options: {normalize: false}}}": "scales the base as well",
    "adapters: [{}, {use_dora: true}]": r"adapter1 changes model\.layers\.0\S+ by .*\(DoRA\)",
    "weights: [0.0, 0.0]": "every adapter has the weight 0",
    "vocabulary: union": "vocabulary: the result has other rows",
}


@pytest.mark.parametrize(("fields", "reason"), REFUSALS.items())
def test_what_is_no_adapter(fields, reason, make, built, tmp_path, caplog):
    """A merge that is no adapter is refused in one line where one is asked for; else the whole
    model is written, and why."""
    recipe = make(**yaml.safe_load(fields))
    word_tokenizer(["<pad>", "<bos>", "<eos>", "<unk>"]).save_pretrained(tmp_path / "base")
    with refused(rf"^the result is no adapter: .*{reason}.*; write the whole model$"):
        built(recipe, whole=False)
    with caplog.at_level("INFO", "hf_evomerge"):
        folder = built(recipe)
    assert "the whole model is written, as the result is no adapter" in caplog.text
    assert (folder / "config.json").exists()


def test_another_source_is_no_adapter(make, tmp_path):
    """A source with another base, or a base with an adapter of its own, is named; the base itself
    is fine, and so is its folder by another name."""
    recipe = make()
    first, second = recipe.sources
    tiny_model("llama", 2).save_pretrained(tmp_path / "other")
    (tmp_path / "link").symlink_to(tmp_path / "base")
    other, link = (
        second.model_copy(update={"model": str(tmp_path / name)}) for name in ("other", "link")
    )
    for fields, message in (
        ({"sources": [first, other]}, r"other \+ \S+adapter1 is no adapter of \S+base;"),
        ({"base": first}, r"adapter0 is no plain base: it has an adapter;"),
    ):
        with refused(message):
            check_recipe(recipe.model_copy(update=fields), whole=False)
    for other, rank in ((recipe.base, 4), (link, 8)):
        same = recipe.model_copy(update={"sources": [first, other]})
        assert f"adapter of rank {rank}" in check_recipe(same).summary


def test_a_rank_is_of_an_adapter_alone(make, built):
    """A recipe with a rank is never written as the whole model."""
    with refused("the result is no adapter: ties"):
        built(make(method="ties", rank=4))
    with refused("rank: the whole model has none", RecipeError):
        built(make(rank=4), whole=True)


def test_doubts_are_warnings(make, tmp_path):
    """Adapters that name different bases, and a rank above its weight's, are warned of before
    anything is built."""
    recipe = make([{"r": 5}, {"r": 300}])
    assert [line for line in check_recipe(recipe).warnings if "base" in line] == []
    edit_json(tmp_path / "adapter0/adapter_config.json", base_model_name_or_path="org/other")
    told = "\n".join(check_recipe(recipe).warnings)
    assert "the adapter says that it is of 'org/other'" in told
    assert "has rank 305, and 32 is enough for its weight; give a --rank" in told


@pytest.mark.parametrize("rank", [None, 3])
def test_numbers_that_cannot_be_added_up(rank, make, built, tmp_path):
    """An adapter with NaN is refused in one line, and nothing is left."""
    recipe = make(rank=rank)
    with edited(tmp_path / "adapter0", "adapter_model.safetensors") as tensors:
        next(iter(tensors.values())).fill_(float("nan"))
    with refused("the adapter has NaN, or infinite"):
        built(recipe)
    assert not (tmp_path / "out").exists()
