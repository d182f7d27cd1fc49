"""Merges of adapters as adapters: exact against the whole model, read by peft and transformers, bit
for bit the same again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from classes import edit_json
from peft import AutoPeftModelForCausalLM, PeftModel
from recipes import merge_of
from safetensors.torch import load_file, save_file
from slowly import slow_beyond
from tiny_adapters import save_adapter
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM
from words import word_tokenizer

from hf_evomerge.building.build import build_model, check_recipe
from hf_evomerge.building.build_record import read_build_record
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import RecipeError, SourceError
from hf_evomerge.recipes.recipe import Recipe

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
PLAIN = {"r": 4, "lora_alpha": 7, "target_modules": ALL}
PATTERNS = {
    "r": 4,
    "rank_pattern": {"q_proj": 6},
    "alpha_pattern": {r"layers\.1\.mlp\.down_proj": 3},
    "target_modules": ALL,
}
ROWS = {"*q_proj*": [0.2, 0.9, -0.4], "*down_proj*": [1.5, 0.0], "default": 0.5}
# The settings of the adapters, and what a recipe says of the merge.
CASES = {
    "rank-stabilised": (
        [{**PLAIN, "r": 9, "use_rslora": True}, PLAIN],
        {"parameters": [{"weight": 0.5}, {"weight": 1.2}]},
    ),
    "patterns": ([PATTERNS, PLAIN], {"parameters": [{"weight": 0.5}, {"weight": 0.9}]}),
    "other modules": (
        [
            {**PLAIN, "target_modules": ATTENTION},
            {**PLAIN, "target_modules": ["q_proj", "up_proj"]},
        ],
        {},
    ),
    "per tensor": (
        [PLAIN, PLAIN],
        {"parameters": [{"weight": {"blocks.0.attn": 0.3, "*mlp*": 1.1, "default": 0.8}}, {}]},
    ),
    "rows": ([PLAIN, PLAIN], {"parameters": [{"weight": ROWS}, {"weight": [0.1, 0.9]}]}),
    "lambda": (
        [PLAIN, PLAIN],
        {
            "options": {"lambda": 0.4, "normalize": True},
            "parameters": [{"weight": 2.0}, {"weight": -0.5}],
        },
    ),
    "absent": ([PLAIN, PLAIN], {"parameters": [{"weight": 0.0}, {"weight": 0.5}]}),
    "three": (
        [PLAIN, PATTERNS, {**PLAIN, "r": 1}],
        {"parameters": [{"weight": 0.4}, {"weight": 0.3}, {"weight": 0.9}]},
    ),
    "the head": ([{**PLAIN, "target_modules": ["lm_head", "q_proj"]}, PLAIN], {}),
    "the mean": (
        [PLAIN, PLAIN],
        {"method": "linear", "parameters": [{"weight": 1.0}, {"weight": 3.0}]},
    ),
}
OFTEN = ["patterns", "other modules", "rows", "lambda", "absent", "the head", "the mean"]
Make = Callable[..., Recipe]


@pytest.fixture
def make(tmp_path):
    """Saves a base and adapters of random numbers, and makes a recipe that merges them."""

    def recipe(adapters, architecture="llama", **fields):
        base = tmp_path / "base"
        tiny_model(architecture, 2).save_pretrained(base)
        sources = []
        for number, settings in enumerate(adapters):
            save_adapter(base, tmp_path / f"adapter{number}", number + 1, **settings)
            sources.append({"model": str(base), "adapter": str(tmp_path / f"adapter{number}")})
        own = {key: fields.pop(key) for key in ("rank", "dtype", "vocabulary") if key in fields}
        merge = {"method": "task_arithmetic", **fields}
        based = {} if merge["method"] == "linear" else {"base": {"model": str(base)}}
        return Recipe.model_validate({"sources": sources, "merge": merge, **based, **own})

    return recipe


def logits(model):
    """What a model computes of some tokens."""
    with torch.inference_mode():
        return model.eval()(torch.arange(1, 13)[None]).logits


@pytest.mark.parametrize("case", slow_beyond(OFTEN, CASES))
def test_the_adapter_is_the_whole_model(case, make, tmp_path):
    """The base with the adapter, loaded by peft, by transformers and by this package, computes what
    the merged model does."""
    recipe = make(CASES[case][0], **CASES[case][1])
    whole = AutoModelForCausalLM.from_pretrained(
        build_model(recipe, tmp_path / "whole", whole=True)
    )
    folder = build_model(recipe, tmp_path / "out")
    assert not (folder / "config.json").exists()
    wanted = logits(whole)
    base = tiny_model("llama", 2)
    assert not torch.allclose(wanted, logits(base), atol=0.05)
    for model in (
        PeftModel.from_pretrained(base, folder),
        AutoPeftModelForCausalLM.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder),
    ):
        assert (logits(model) - wanted).abs().max() < 3e-5
    source = open_source(str(folder))
    state = whole.state_dict()
    for name in source.tensors:
        assert torch.allclose(source.read(name), state[name], atol=1e-6), name


def test_transposed_layers(make, tmp_path):
    """GPT-2 stores its weights with the inputs as rows; rows of a recipe are these, and peft
    computes the same."""
    settings = {"r": 3, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    recipe = make(
        [settings, settings],
        "gpt2",
        parameters=[{"weight": {"*c_attn*": [0.3, 0.9], "default": 0.5}}, {}],
    )
    whole = AutoModelForCausalLM.from_pretrained(
        build_model(recipe, tmp_path / "whole", whole=True)
    )
    folder = build_model(recipe, tmp_path / "out")
    assert (
        logits(PeftModel.from_pretrained(tiny_model("gpt2", 2), folder)) - logits(whole)
    ).abs().max() < 5e-6


def test_a_router_that_an_adapter_changes(tmp_path):
    """One router is kept of those that were trained, which no adapter can say: the result is a
    whole model, and why is told."""
    sizes = {
        "vocab_size": 48,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 1,
        "num_local_experts": 3,
    }
    config = MixtralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["gate"]}
    save_adapter(tmp_path / "base", tmp_path / "adapter", 1, **settings)
    source = {"model": str(tmp_path / "base"), "adapter": str(tmp_path / "adapter")}
    recipe = merge_of(source, method="task_arithmetic", base=tmp_path / "base", weights=[0.5])
    with pytest.raises(
        SourceError,
        match=r"the result is no adapter: .* changes \S+gate.weight by more than the product",
    ):
        check_recipe(recipe, whole=False)


def test_the_config_says_what_servers_read(make, tmp_path):
    """The rank is that of the largest module and the scaling 1; modules are named by their ends, as
    far as they are alike."""
    settings = [
        {**PLAIN, "target_modules": ATTENTION},
        {**PLAIN, "target_modules": ["q_proj"], "layers_to_transform": [1]},
    ]
    folder = build_model(make(settings), tmp_path / "out")
    config = json.loads((folder / "adapter_config.json").read_text())
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


def test_a_source_of_weight_0_takes_no_rank(make, tmp_path):
    """What is multiplied by 0 everywhere in a tensor is left out of its matrices."""
    weight = {"*q_proj*": 0.0, "default": 0.5}
    folder = build_model(
        make([PLAIN, PLAIN], parameters=[{"weight": weight}, {}]), tmp_path / "out"
    )
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    assert shapes["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] == (4, 32)
    assert shapes["base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"] == (8, 32)


def test_a_rank_is_the_best_of_that_rank(make, tmp_path, caplog):
    """Each module is the dense change's truncated SVD, and the record says what share of its energy
    that keeps."""
    recipe = make(
        [PLAIN, {**PLAIN, "target_modules": ["q_proj"]}],
        parameters=[{"weight": 0.7}, {"weight": 0.6}],
        rank=5,
    )
    dense = build_model(recipe.model_copy(update={"rank": None}), tmp_path / "exact")
    with caplog.at_level("INFO", "hf_evomerge"):
        folder = build_model(recipe, tmp_path / "out")
    exact = load_file(dense / "adapter_model.safetensors")
    small = load_file(folder / "adapter_model.safetensors")
    record = read_build_record(folder)
    cut = {module: energy for module, energy in record.energy.items() if energy < 1}
    assert sorted(cut) == [f"model.layers.{layer}.self_attn.q_proj" for layer in range(2)]
    assert len(record.energy) == 2 * len(ALL)
    for module, energy in cut.items():
        letters = [f"base_model.model.{module}.lora_{letter}.weight" for letter in "BA"]
        change, kept = (
            tensors[letters[0]].double() @ tensors[letters[1]].double()
            for tensors in (exact, small)
        )
        u, values, v = torch.linalg.svd(change)
        assert torch.allclose(kept, u[:, :5] @ values[:5].diag() @ v[:5], atol=1e-6)
        assert energy == pytest.approx(
            float(values[:5].square().sum() / values.square().sum()), abs=1e-5
        )
        assert 0.5 < energy < 1
    energies = torch.zeros(2, dtype=torch.float64)
    for module in record.energy:
        b, a = (
            exact[f"base_model.model.{module}.lora_{letter}.weight"].double() for letter in "BA"
        )
        squares = torch.linalg.svdvals(b @ a).square()
        energies += torch.stack([squares[:5].sum(), squares.sum()])
    assert f"rank 5 keeps {energies[0] / energies[1]:.1%} of the change's energy" in caplog.text
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 5
    unchanged = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    assert torch.equal(exact[unchanged], small[unchanged])


REFUSALS = {
    "ties": ([PLAIN, PLAIN], {"method": "ties"}, "ties is not linear"),
    "a sum of models": (
        [PLAIN, PLAIN],
        {"method": "linear", "options": {"normalize": False}},
        "scales the base as well",
    ),
    "dora": (
        [PLAIN, {**PLAIN, "use_dora": True}],
        {},
        r"adapter1 changes model\.layers\.0\S+ by more .*\(DoRA\)",
    ),
    "weight 0": (
        [PLAIN, PLAIN],
        {"parameters": [{"weight": 0.0}, {"weight": 0.0}]},
        "every adapter has the weight 0",
    ),
    "vocabulary": (
        [PLAIN, PLAIN],
        {"vocabulary": "union"},
        "vocabulary: the result has other rows",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_no_adapter(case, make, tmp_path, caplog):
    """A merge that is no adapter is refused in one line where one is asked for; else the whole
    model is written, and why."""
    adapters, fields, reason = REFUSALS[case]
    recipe = make(adapters, **fields)
    word_tokenizer(["<pad>", "<bos>", "<eos>", "<unk>"]).save_pretrained(tmp_path / "base")
    with pytest.raises(
        SourceError, match=rf"^the result is no adapter: .*{reason}.*; write the whole model$"
    ):
        build_model(recipe, tmp_path / "out", whole=False)
    with caplog.at_level("INFO", "hf_evomerge"):
        folder = build_model(recipe, tmp_path / "out")
    assert "the whole model is written, as the result is no adapter" in caplog.text
    assert (folder / "config.json").exists()


def test_another_source_is_no_adapter(make, tmp_path):
    """A source with another base, or a base with an adapter of its own, is named; the base itself
    is fine, and so is its folder by another name."""
    recipe = make([PLAIN, PLAIN])
    tiny_model("llama", 2).save_pretrained(tmp_path / "other")
    (tmp_path / "link").symlink_to(tmp_path / "base")
    other = recipe.sources[1].model_copy(update={"model": str(tmp_path / "other")})
    with pytest.raises(SourceError, match=r"other \+ \S+adapter1 is no adapter of \S+base;"):
        build_model(
            recipe.model_copy(update={"sources": [recipe.sources[0], other]}),
            tmp_path / "out",
            whole=False,
        )
    with pytest.raises(SourceError, match=r"adapter0 is no plain base: it has an adapter;"):
        build_model(
            recipe.model_copy(update={"base": recipe.sources[0]}), tmp_path / "out", whole=False
        )
    link = recipe.sources[1].model_copy(update={"model": str(tmp_path / "link")})
    for other, rank in ((recipe.base, 4), (link, 8)):
        same = recipe.model_copy(update={"sources": [recipe.sources[0], other]})
        assert f"adapter of rank {rank}" in check_recipe(same).summary


def test_a_rank_is_of_an_adapter_alone(make, tmp_path):
    """A recipe with a rank is never written as the whole model."""
    with pytest.raises(SourceError, match="the result is no adapter: ties"):
        build_model(make([PLAIN, PLAIN], method="ties", rank=4), tmp_path / "out")
    with pytest.raises(RecipeError, match="rank: the whole model has none"):
        build_model(make([PLAIN, PLAIN], rank=4), tmp_path / "out", whole=True)


def test_doubts_are_warnings(make):
    """Adapters that name different bases, and a rank above its weight's, are warned of before
    anything is built."""
    recipe = make([{**PLAIN, "r": 5}, {**PLAIN, "r": 300}])
    assert [line for line in check_recipe(recipe).warnings if "base" in line] == []
    edit_json(
        Path(str(recipe.sources[0].adapter)) / "adapter_config.json",
        base_model_name_or_path="org/other",
    )
    warnings = check_recipe(recipe).warnings
    assert any("the adapter says that it is of 'org/other'" in line for line in warnings)
    said = "has rank 305, and 32 is enough for its weight; give a --rank"
    assert any(line.endswith(said) for line in warnings)


@pytest.mark.parametrize("rank", [None, 3])
def test_numbers_that_cannot_be_added_up(rank, make, tmp_path):
    """An adapter with NaN is refused in one line, and nothing is left."""
    recipe = make([PLAIN, PLAIN], **({} if rank is None else {"rank": rank}))
    file = Path(str(recipe.sources[0].adapter)) / "adapter_model.safetensors"
    tensors = {
        name: tensor.fill_(float("nan")) if "q_proj" in name else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(SourceError, match="the adapter has NaN, or infinite"):
        build_model(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
