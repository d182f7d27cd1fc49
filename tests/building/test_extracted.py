"""Adapters of whole fine-tunes: the best of a rank, and what is lost by name."""

import json
import math

import pytest
import torch
from peft import PeftModel
from recipes import merge_of
from safetensors.torch import load_file
from tiny_adapters import save_adapter
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from typer.testing import CliRunner

from hf_evomerge.building.build import build_model
from hf_evomerge.building.build_record import read_build_record
from hf_evomerge.building.extracted import extract_adapter
from hf_evomerge.cli import app
from hf_evomerge.errors import EvoMergeError, SearchError, SourceError
from hf_evomerge.recipes.strict_yaml import validate
from hf_evomerge.search.file.config import SearchConfig
from hf_evomerge.search.score_model import evaluate_model


def weights(folder):
    """The weights of a model in float64."""
    return {
        name: tensor.double()
        for name, tensor in AutoModelForCausalLM.from_pretrained(folder).state_dict().items()
    }


def test_every_linear_weight_is_cut_to_the_rank(tiny, tmp_path):
    """The product is the truncated SVD of the change, and the record and the table say what share
    of it is kept and lost."""
    report = str(extract_adapter(str(tiny / "a"), str(tiny / "base"), tmp_path / "out", rank=3))
    after = weights(tiny / "a")
    before = weights(tiny / "base")
    adapter = load_file(tmp_path / "out" / "adapter_model.safetensors")
    record = read_build_record(tmp_path / "out")
    linear = sorted(
        name.removesuffix(".weight")
        for name in before
        if "_proj" in name or name == "lm_head.weight"
    )
    assert sorted(record.energy) == linear
    kept = 0.0
    whole = sum(float((after[name] - before[name]).square().sum()) for name in before)
    for module in linear:
        u, values, v = torch.linalg.svd(after[f"{module}.weight"] - before[f"{module}.weight"])
        b, a = (
            adapter[f"base_model.model.{module}.lora_{letter}.weight"].double() for letter in "BA"
        )
        assert torch.allclose(b @ a, u[:, :3] @ values[:3].diag() @ v[:3], atol=1e-5)
        assert record.energy[module] == pytest.approx(
            float(values[:3].square().sum() / values.square().sum()), abs=1e-4
        )
        kept += float(values[:3].square().sum())
    lines = {line.split()[0]: line for line in report.splitlines()}
    assert lines["total"].split()[-1] == f"{kept / whole:.1%}"
    assert lines["q_proj"].split()[1] == "2"
    assert "embed_tokens (lost)" in report


@pytest.mark.parametrize(
    ("architecture", "linear", "count"),
    [("llama", ("_proj", "lm_head"), 15), ("gpt2", ("c_attn", "c_proj", "c_fc"), 8)],
)
def test_a_full_rank_loses_nothing_linear(architecture, linear, count, tiny, tmp_path):
    """With every rank the base with the adapter is the fine-tune in every linear weight, by peft,
    GPT-2's transposed too."""
    for seed, name in enumerate(("base", "a") if architecture == "gpt2" else ()):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=48, n_embd=24, n_layer=2, n_head=2, n_positions=32)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / name)
    folder = tmp_path if architecture == "gpt2" else tiny
    extract_adapter(str(folder / "a"), str(folder / "base"), tmp_path / "out", rank=1000)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder / "base"), tmp_path / "out"
    )
    merged = model.merge_and_unload().state_dict()
    after = weights(folder / "a")
    changed = [
        name
        for name in merged
        if name.removesuffix(".weight").endswith(linear) and name.endswith(".weight")
    ]
    assert len(changed) == count
    assert all(torch.allclose(merged[name].double(), after[name], atol=1e-5) for name in changed)


def test_extracted_adapters_are_merged(tiny, tmp_path):
    """They are sources as any other adapter, and the same again when they are extracted again."""
    for name in "ab":
        for again in ("", "-again"):
            extract_adapter(
                str(tiny / name), str(tiny / "base"), tmp_path / f"{name}{again}", rank=2
            )
        files = [
            (tmp_path / f"{name}{again}" / "adapter_model.safetensors").read_bytes()
            for again in ("", "-again")
        ]
        assert files[0] == files[1]
    recipe = merge_of(
        tmp_path / "a",
        tmp_path / "b",
        method="task_arithmetic",
        base=tiny / "base",
        weights=[0.5, 0.5],
    )
    folder = build_model(recipe, tmp_path / "out")
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
        with pytest.raises(EvoMergeError, match=message):
            extract_adapter(str(tiny / model), str(base), out, rank=rank)
        assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(EvoMergeError, match="exists already"):
        extract_adapter(str(tiny / "a"), str(tiny / "base"), out)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_fine_tune_with_numbers_that_are_not_finite(name, number, tiny, tmp_path):
    """Where NaN or infinity is, also in what an adapter loses, is said in the words of merging."""
    model = AutoModelForCausalLM.from_pretrained(tiny / "a")
    model.get_parameter(name).data.flatten()[0] = number
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(
        SourceError,
        match=f"^not all numbers are finite in {name}: .*broken or its base has NaN or infi",
    ):
        extract_adapter(str(tmp_path / "broken"), str(tiny / "base"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rank", [1, 4])
def test_on_a_flat_spectrum_the_best_of_the_rank_is_kept(rank, tmp_path):
    """Where all directions of a change count about alike, the adapter keeps as much as the SVD
    does."""
    sizes = {"vocab_size": 48, "hidden_size": 160, "intermediate_size": 224, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    model.save_pretrained(tmp_path / "base")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(tmp_path / "tuned")
    folders = str(tmp_path / "tuned"), str(tmp_path / "base")
    energy = extract_adapter(*folders, tmp_path / "out", rank=rank).energy
    after = weights(tmp_path / "tuned")
    before = weights(tmp_path / "base")
    for module, kept in energy.items():
        squares = torch.linalg.svdvals(
            after[f"{module}.weight"] - before[f"{module}.weight"]
        ).square()
        assert kept == pytest.approx(float(squares[:rank].sum() / squares.sum()), abs=2e-6), module


def test_a_change_of_fewer_directions_than_the_rank(tiny, tmp_path):
    """Where one number has changed, the adapter is that change, whose energy is counted once."""
    model = AutoModelForCausalLM.from_pretrained(tiny / "base")
    model.model.layers[0].self_attn.q_proj.weight.data[2, 3] += 1
    model.save_pretrained(tmp_path / "tuned")
    adapter = extract_adapter(str(tmp_path / "tuned"), str(tiny / "base"), tmp_path / "out", rank=4)
    assert adapter.energy == {"model.layers.0.self_attn.q_proj": 1.0}
    b, a = (
        load_file(tmp_path / "out" / "adapter_model.safetensors")[name]
        for name in reversed(list(adapter.tensors))
    )
    wanted = torch.zeros(len(b), a.shape[1])
    wanted[2, 3] = 1
    assert torch.allclose(b @ a, wanted, atol=1e-6)


def test_the_report_in_json(tiny, search_settings, tmp_path):
    """`--json` prints the energy that each module keeps, as build.json has it, what is lost with
    its part in the change, and the scores."""
    file = tmp_path / "search.yaml"
    validate(SearchConfig, search_settings(), SearchError).save(file)
    out = tmp_path / "out"
    options = ["--base", str(tiny / "base"), "--out", str(out), "--search", str(file), "--json"]
    said = CliRunner().invoke(app, ["extract", str(tiny / "a"), *options, "--rank", "2"])
    found = json.loads(said.stdout)
    assert (found["folder"], found["rank"]) == (str(out), 2)
    assert found["energy"] == read_build_record(out).energy
    change = {
        name: float((weights(tiny / "a")[name] - w).square().sum())
        for name, w in weights(tiny / "base").items()
    }
    total = sum(change.values())
    for name, share in found["lost"].items():
        assert share == pytest.approx(change[name] / total, abs=1e-5)
    kept = sum(share * change[f"{name}.weight"] for name, share in found["energy"].items())
    assert found["kept"] == pytest.approx(kept / total, abs=1e-5)
    config = SearchConfig.load(file)
    cut = evaluate_model(str(tiny / "base"), config, adapter=str(out))
    assert found["fitness"]["adapter"] == cut.scores.mean
    assert found["fitness"]["fine_tune"] == evaluate_model(str(tiny / "a"), config).scores.mean
    said = CliRunner().invoke(
        app, ["extract", str(tiny / "a"), *options[:-1], "--rank", "2", "--overwrite"]
    )
    lines = said.stdout.splitlines()
    assert lines[0].split() == ["layer", "weights", "of", "the", "change", "kept"]
    assert lines[-2] == f"the base with the adapter: {cut}"
    assert lines[-1] == f"difference in fitness: {found['fitness']['difference']}"
