"""A path through one model as an adapter of peft, and such an adapter as a source."""

import pytest
import torch
import yaml
from classes import edit_json, read_json
from peft import LoraConfig, PeftModel, get_peft_model
from quantized import to_fp8
from recipes import merge_of, path_of
from refused import refused
from slowly import slow_beyond
from tiny_models import ARCHITECTURES, tiny_model, token_ids
from transformers import AutoModelForCausalLM

from hf_evomerge.building.build import check_recipe
from hf_evomerge.building.folded import fold
from hf_evomerge.checkpoints.inspect import inspect_model
from hf_evomerge.checkpoints.open import open_source

LAYERS = 4
PATHS = {
    "prune": "0:0, 0:2-3",
    "prune pairs": "0:2-3",
    "repeat": "0:0-2, 0:1-3",
    "reorder": "0:2-3, 0:0-1",
}
# Where layers have kinds, peft runs each as the kind of the base's in its place.
KINDS = {"gemma3_text": {"prune", "repeat"}, "qwen3_5_text": {"prune", "repeat"}}
COUNTED = {"qwen2": {"repeat"}, "smollm3": {"repeat"}}  # one kind, in a list as long as the base
HIDDEN = {"gpt2", "gpt_neox", "opt"}  # where peft finds no layers


def saved(folder, architecture="llama", layers=LAYERS, seed=0):
    """Save a random model."""
    tiny_model(architecture, layers, seed).save_pretrained(folder)
    return folder


def recipe_of(path, *models, **fields):
    """A path through models, as an adapter where it can be one."""
    return path_of(*models, hops=path, **{"adapter": "auto", **fields})


def answers(model):
    """Logits, and what it writes with its cache."""
    ids = token_ids()
    written = model.eval().generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    return model(input_ids=ids).logits, written


def same(model, other):
    """Tell whether two models compute and write the same."""
    return all(torch.equal(a, b) for a, b in zip(answers(model), answers(other), strict=True))


@pytest.mark.parametrize(
    "architecture", slow_beyond(["llama", "gemma3_text", "qwen2", "gpt2"], ARCHITECTURES)
)
@torch.no_grad()
def test_an_adapter_computes_what_the_path_does(architecture, built, tmp_path):
    """Wherever a path is an adapter, peft gives its logits and its text to the bit; where layers
    would run as another kind, or are not found, the whole model is written."""
    base = saved(tmp_path / "base", architecture)
    for name, path in PATHS.items():
        out = built(recipe_of(path, base), name)
        is_adapter = (out / "adapter_config.json").is_file()
        known = KINDS.get(architecture, set()) | COUNTED.get(architecture, set())
        if architecture in {"llama", *KINDS, *COUNTED, *HIDDEN}:
            assert is_adapter == (architecture not in HIDDEN and name not in known), name
        if not is_adapter:
            assert (out / "config.json").is_file()
            continue
        whole = built(recipe_of(path, base), f"{name} whole", whole=True)
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out)
        assert same(adapted, AutoModelForCausalLM.from_pretrained(whole)), name


@torch.no_grad()
def test_transformers_loads_it_alone(built, tmp_path):
    """`from_pretrained` of the adapter and `load_adapter` of its base give the path too; the files
    of weights and settings have a kilobyte each at most."""
    base = saved(tmp_path / "base")
    out = built(recipe_of(PATHS["repeat"], base))
    whole = built(recipe_of(PATHS["repeat"], base), "whole", whole=True)
    expected = AutoModelForCausalLM.from_pretrained(whole)
    later = AutoModelForCausalLM.from_pretrained(base)
    later.load_adapter(str(out))
    assert same(AutoModelForCausalLM.from_pretrained(out), expected)
    assert same(later, expected)
    config = read_json(out / "adapter_config.json")
    assert config["layer_replication"] == [[0, 3], [1, 4]]
    assert (out / "adapter_model.safetensors").stat().st_size < 1024


@pytest.mark.parametrize(
    ("fields", "reason"),
    {
        "{path: 0:0-3, flow: {scales: [1, 1, 0.5, 1]}}": "layers side by side, or scales",
        "path: 0:0, 0:1 + 0:2, 0:3": "side by side",
        "path: 0:0-1, 1:2-3": "runs through several models",
        "{path: 0:0-1, flow: {embedding_source: 1}}": "runs through several models",
        "{path: 0:0-1, dtype: bfloat16}": ("dtype: an adapter leaves the base's, torch.float32"),
    }.items(),
)
def test_what_is_more_than_an_order_of_layers_is_no_adapter(fields, reason, built, tmp_path):
    """With `auto` the whole model is written; an adapter that is insisted on is refused with the
    reason."""
    models = [saved(tmp_path / f"model{seed}", seed=seed) for seed in range(2)]
    given = yaml.safe_load(fields)
    recipe = recipe_of(given.pop("path"), *models, **given)
    out = built(recipe)
    assert (out / "config.json").is_file()
    with refused(f"the result is no adapter: .*{reason}"):
        built(recipe, "adapter", whole=False)


def test_a_source_that_has_an_adapter_or_quantised_weights_is_no_base(built, tmp_path):
    """The refusal names which of the two it is."""
    base = saved(tmp_path / "base")
    adapted = built(recipe_of("0:0-3", base), "adapter")
    edit_json(adapted / "adapter_config.json", layer_replication=None)
    quantised = to_fp8(saved(tmp_path / "quantised"))
    for model, reason in (
        ((base, adapted), r"\S+ \+ \S+ has an adapter already"),
        (quantised, r"\S+ has quantised weights"),
    ):
        with refused(f"no adapter: {reason}"):
            check_recipe(recipe_of("0:0-1", model), whole=False)


def test_a_path_is_a_whole_model_unless_asked(built, tmp_path):
    """A recipe that does not ask for an adapter gives a model, as before."""
    recipe = recipe_of("0:0-1", saved(tmp_path / "base"), adapter=None)
    assert (built(recipe) / "config.json").is_file()
    out = built(recipe, "adapter", whole=False)
    assert (out / "adapter_config.json").is_file()


@torch.no_grad()
def test_an_adapter_that_moves_layers_is_a_source(built, tmp_path):
    """It is read as the model that peft makes of it, its matrices for each layer included: alone,
    merged with another, inspected, and folded."""
    base = saved(tmp_path / "base")
    config = LoraConfig(
        r=2, target_modules=["q_proj", "down_proj"], layer_replication=[[0, 2], [1, 4]]
    )
    torch.manual_seed(0)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in tuned.named_parameters():
        parameter.normal_(std=0.1) if "lora_B" in name else None
    tuned.save_pretrained(tmp_path / "adapter")
    source = base, tmp_path / "adapter"
    assert inspect_model(tmp_path / "adapter").layers == 5
    plain = AutoModelForCausalLM.from_pretrained(fold(tmp_path / "adapter", tmp_path / "plain"))
    assert torch.allclose(answers(plain)[0], answers(tuned)[0], atol=1e-5)
    assert torch.equal(answers(plain)[1], answers(tuned)[1])
    other = saved(tmp_path / "other", layers=5, seed=1)
    out = built(merge_of(source, other), "merged")
    merged = AutoModelForCausalLM.from_pretrained(out)
    there = AutoModelForCausalLM.from_pretrained(other)
    for name, tensor in merged.named_parameters():
        mean = (plain.get_parameter(name) + there.get_parameter(name)) / 2
        assert torch.allclose(tensor, mean, atol=1e-6), name
    for sources in ([source, base], [base, source]):
        with refused(
            rf"adapter: its layer_replication makes 5 layers, and {base} has 4; merge models"
        ):
            check_recipe(merge_of(*sources))
    out = built(merge_of(source, source, base=source), "two")
    assert (out / "config.json").is_file()  # an adapter would leave the layers as they are


@pytest.mark.parametrize(
    ("architecture", "ranges", "message"),
    [
        ("llama", [[0, 9]], "layer_replication names layer 8, of which the base has 4, from 0"),
        ("llama", [[2, 1]], r"layer_replication is \[\[2, 1\]\], not ranges of layers"),
        ("llama", 7, "layer_replication is 7, not ranges of layers"),
        ("llama", [[0, 10**9]], "not ranges of layers"),
        ("gemma3_text", [[0, 1], [2, 4]], "runs each layer as the kind of the base's in its place"),
    ],
)
def test_ranges_that_cannot_run_are_refused(architecture, ranges, message, built, tmp_path):
    """Layers that are not there, ranges that are none, and layers of other kinds are refused in one
    line."""
    base = saved(tmp_path / "base", architecture)
    out = built(recipe_of("0:2-3", base))
    edit_json(out / "adapter_config.json", layer_replication=ranges)
    with refused(message):
        _ = open_source(out).config
