"""Adapters of whole fine-tunes: the best of a rank, and what is lost by name."""

import json
import math

import pytest
import torch
from commands import invoke
from peft import PeftModel
from recipes import merge_of
from refused import refused
from safetensors.torch import load_file
from tiny_adapters import best_of, products_of, save_adapter
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM

from hf_evomerge.building.build_record import read_build_record
from hf_evomerge.building.extracted import extract_adapter
from hf_evomerge.errors import EvoMergeError, SearchError
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.score_model import evaluate_model


def extract(folder, name, out, **options):
    """Extract the adapter of a model from the base in the same folder."""
    return extract_adapter(folder / name, folder / "base", out, **options)


def changes(folder, name):
    """What a model changed of the base in the same folder, in float64, by module."""
    after, before = (
        AutoModelForCausalLM.from_pretrained(folder / each).state_dict() for each in (name, "base")
    )
    return {
        key.removesuffix(".weight"): after[key].double() - before[key].double() for key in after
    }


def test_every_linear_weight_is_cut_to_the_rank(tiny, tmp_path):
    """The product is the truncated SVD of the change, and the record and the table say what share
    of it is kept and lost."""
    report = str(extract(tiny, "a", tmp_path / "out", rank=3))
    change = changes(tiny, "a")
    adapter = products_of(tmp_path / "out")
    energies = read_build_record(tmp_path / "out").energy
    assert energies.keys() == adapter.keys()
    assert adapter.keys() == {name for name in change if "_proj" in name or name == "lm_head"}
    kept = 0.0
    for module, energy in energies.items():
        best, share = best_of(change[module], 3)
        assert torch.allclose(adapter[module], best, atol=1e-5)
        assert energy == pytest.approx(share, abs=1e-4)
        kept += share * float(change[module].square().sum())
    whole = sum(float(each.square().sum()) for each in change.values())
    lines = {line.split()[0]: line for line in report.splitlines()}
    assert lines["total"].split()[-1] == f"{kept / whole:.1%}"
    assert lines["q_proj"].split()[1] == "2"
    assert "embed_tokens (lost)" in report


@pytest.mark.parametrize(
    ("architecture", "linear", "count"),
    [("llama", ("_proj", "lm_head"), 15), ("gpt2", ("c_attn", "c_proj", "c_fc"), 8)],
)
def test_a_full_rank_loses_nothing_linear(architecture, linear, count, tmp_path):
    """With every rank the base with the adapter is the fine-tune in every linear weight, by peft,
    GPT-2's transposed too."""
    for seed, name in enumerate(("base", "a")):
        tiny_model(architecture, 2, seed).save_pretrained(tmp_path / name)
    extract(tmp_path, "a", tmp_path / "out", rank=1000)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    merged = PeftModel.from_pretrained(base, tmp_path / "out").merge_and_unload().state_dict()
    changed = [
        torch.allclose(merged[name], tensor, atol=1e-5)
        for name, tensor in tiny_model(architecture, 2, 1).state_dict().items()
        if name.endswith(".weight") and name.removesuffix(".weight").endswith(linear)
    ]
    assert changed == [True] * count


def test_extracted_adapters_are_merged(tiny, built, tmp_path):
    """They are sources as any other adapter, and the same again when they are extracted again."""
    for name in "ab":
        for out in (name, f"{name}-again"):
            extract(tiny, name, tmp_path / out, rank=2)
        files = [tmp_path / out / "adapter_model.safetensors" for out in (name, f"{name}-again")]
        assert files[0].read_bytes() == files[1].read_bytes()
    adapters = [tmp_path / "a", tmp_path / "b"]
    recipe = merge_of(*adapters, method="task_arithmetic", base=tiny / "base", weights=[0.5, 0.5])
    folder = built(recipe)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {tensor.shape[0] for name, tensor in tensors.items() if "_A" in name} == {4}


def test_what_cannot_be_extracted(tiny, tmp_path):
    """A model that is its own base, one of another shape, a base that is a model with an adapter, a
    rank of 0 and a folder that is there are refused in one line."""
    out = tmp_path / "out"
    adapter = save_adapter(tiny / "base", tmp_path / "lora", 0, target_modules=["q_proj"])
    for model, base, rank, message in (
        ("base", tiny / "base", 1, "no linear weight differs from"),
        ("deep", tiny / "base", 1, "sources must be fine-tunes of one base"),
        ("a", adapter, 1, "is a model with an adapter"),
        ("a", tiny / "base", 0, "rank: an adapter has at least 1, not 0"),
    ):
        with refused(message, EvoMergeError):
            extract_adapter(tiny / model, base, out, rank=rank)
        assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with refused("exists already", EvoMergeError):
        extract(tiny, "a", out)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_fine_tune_with_numbers_that_are_not_finite(name, number, tiny, tmp_path):
    """Where NaN or infinity is, also in what an adapter loses, is said in the words of merging."""
    model = AutoModelForCausalLM.from_pretrained(tiny / "a")
    model.get_parameter(name).data.flatten()[0] = number
    model.save_pretrained(tmp_path / "broken")
    with refused(f"^not all numbers are finite in {name}: .*broken or its base has NaN or infi"):
        extract_adapter(tmp_path / "broken", tiny / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rank", [1, 4])
def test_on_a_flat_spectrum_the_best_of_the_rank_is_kept(rank, tmp_path):
    """Where all directions of a change count about alike, the adapter keeps as much as the SVD
    does."""
    for seed, name in enumerate(("base", "tuned")):
        model = tiny_model("llama", 1, seed, hidden_size=160, intermediate_size=224)
        model.save_pretrained(tmp_path / name)
    energy = extract(tmp_path, "tuned", tmp_path / "out", rank=rank).energy
    change = changes(tmp_path, "tuned")
    for module, kept in energy.items():
        assert kept == pytest.approx(best_of(change[module], rank)[1], abs=2e-6), module


def test_a_change_of_fewer_directions_than_the_rank(tiny, tmp_path):
    """Where one number has changed, the adapter is that change, whose energy is counted once."""
    model = AutoModelForCausalLM.from_pretrained(tiny / "base")
    weight = model.model.layers[0].self_attn.q_proj.weight.data
    wanted = torch.zeros_like(weight, dtype=torch.float64)
    wanted[2, 3] = 1
    weight += wanted
    model.save_pretrained(tmp_path / "tuned")
    adapter = extract_adapter(tmp_path / "tuned", tiny / "base", tmp_path / "out", rank=4)
    module = "model.layers.0.self_attn.q_proj"
    assert adapter.energy == {module: 1.0}
    assert torch.allclose(products_of(tmp_path / "out")[module], wanted, atol=1e-6)


def test_the_report_in_json(tiny, search_settings, tmp_path):
    """`--json` prints the energy that each module keeps, as build.json has it, what is lost with
    its part in the change, and the scores."""
    file = tmp_path / "search.yaml"
    config = validate(SearchConfig, search_settings(), SearchError)
    config.save(file)
    out = tmp_path / "out"
    words = ["extract", tiny / "a", "--base", tiny / "base", "--out", out, "--search", file]
    words += ["--rank", 2]
    found = json.loads(invoke(*words, "--json").stdout)
    assert (found["folder"], found["rank"]) == (str(out), 2)
    assert found["energy"] == read_build_record(out).energy
    squares = {name: float(each.square().sum()) for name, each in changes(tiny, "a").items()}
    total = sum(squares.values())
    lost = {name: squares[name.removesuffix(".weight")] / total for name in found["lost"]}
    assert found["lost"] == pytest.approx(lost, abs=1e-5)
    kept = sum(share * squares[name] for name, share in found["energy"].items())
    assert found["kept"] == pytest.approx(kept / total, abs=1e-5)
    cut = evaluate_model(str(tiny / "base"), config, adapter=str(out))
    assert found["fitness"]["adapter"] == cut.scores.mean
    assert found["fitness"]["fine_tune"] == evaluate_model(str(tiny / "a"), config).scores.mean
    lines = invoke(*words, "--overwrite").stdout.splitlines()
    assert lines[0].split() == ["layer", "weights", "of", "the", "change", "kept"]
    assert lines[-2] == f"the base with the adapter: {cut}"
    assert lines[-1] == f"difference in fitness: {found['fitness']['difference']}"
