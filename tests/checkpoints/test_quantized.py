"""Quantised checkpoints as sources: FP8 and MXFP4 are read as transformers dequantises them, all
others are refused by name."""

import pytest
import torch
import yaml
from classes import edit_json, edited, read_json, tensors_of
from quantized import FP8, save_mxfp4, to_fp8
from recipes import merge_of, path_of
from refused import refused
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config

from hf_evomerge.building.build import build_model
from hf_evomerge.checkpoints.inspect import inspect_model
from hf_evomerge.checkpoints.open import open_source

KINDS = ["llama", "one scale", "no block size", "qwen3_moe", "gpt_oss"]


def save(folder, kind, seed=0):
    """Save a quantised model."""
    if kind == "gpt_oss":
        return save_mxfp4(folder, seed)
    architecture = {"one scale": "qwen3", "no block size": "llama"}.get(kind, kind)
    large = {"hidden_size": 256, "intermediate_size": 384} if kind == "no block size" else {}
    tiny_model(architecture, 2, seed, **large).to(torch.bfloat16).save_pretrained(folder)
    if kind == "no block size":
        to_fp8(folder, weight_block_size=[128, 128])
        settings = {key: value for key, value in FP8.items() if key != "weight_block_size"}
        edit_json(folder / "config.json", quantization_config=settings)
        return folder
    return to_fp8(folder, **({"weight_block_size": None} if kind == "one scale" else {}))


def golden(folder, out):
    """Save the model that transformers dequantises."""
    kind = Mxfp4Config if "gpt_oss" in folder.name else FineGrainedFP8Config
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=kind(dequantize=True), dtype=torch.bfloat16
    )
    plain = AutoModelForCausalLM.from_config(open_source(folder).config).to(torch.bfloat16)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(out)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_those_that_transformers_dequantises(kind, tmp_path):
    """Every tensor has the bits of transformers' own dequantisation, and its names, shapes and
    dtype; so has a merge of two, whose config says nothing of quantisation."""
    folders = [save(tmp_path / f"{kind} {seed}", kind, seed) for seed in range(2)]
    plain = [golden(folder, tmp_path / f"plain {folder.name}") for folder in folders]
    source = open_source(folders[0])
    expected = tensors_of(plain[0])
    assert set(source.tensors) == set(expected)
    for name, info in source.tensors.items():
        assert (info.shape, info.dtype) == (tuple(expected[name].shape), "BF16")
        assert torch.equal(source.read(name), expected[name]), name
    for name, sources in (("merged", folders), ("expected", plain)):
        build_model(merge_of(*sources, weights=[0.3, 0.7]), tmp_path / name)
    built = tensors_of(tmp_path / "merged")
    for name, tensor in tensors_of(tmp_path / "expected").items():
        assert torch.equal(built[name], tensor), name
    config = read_json(tmp_path / "merged" / "config.json")
    assert (config["dtype"], "quantization_config" in config) == ("bfloat16", False)


def test_the_last_block_may_be_a_part_of_one(tmp_path):
    """A weight that no whole number of blocks covers has the scale of the block that each element
    is in."""
    tiny_model("llama", 2).to(torch.bfloat16).save_pretrained(tmp_path)
    stored = tensors_of(to_fp8(tmp_path, weight_block_size=[16, 24]))
    source = open_source(tmp_path)
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        scales = stored[f"{name}_scale_inv"]
        values = stored[name].float()
        for i, j in ((0, 0), (17, 25), (len(values) - 1, values.shape[1] - 1)):
            expected = (values[i, j] * scales[i // 16, j // 24]).to(torch.bfloat16)
            assert source.read(name)[i, j] == expected


def test_an_inspection_names_the_quantisation(tmp_path):
    """`inspect` says what is in the files, and the size that is read."""
    found = inspect_model(save(tmp_path / "llama", "llama"))
    assert found.quantization == "fp8"
    assert "F8_E4M3" in found.stored.dtypes
    assert set(found.effective.dtypes) == {"BF16"}


OTHERS = {
    "{quant_method: modelopt, quant_algo: NVFP4}": r"modelopt \(NVFP4\)",
    "{quant_method: compressed-tensors, format: nvfp4-pack-quantized}": (
        r"compressed-tensors \(nvfp4-pack-quantized\)"
    ),
    "{quant_method: awq, bits: 4}": "awq",
    "bits: 4": "an unnamed method",
    "{quant_method: bitsandbytes, load_in_4bit: true}": "bitsandbytes",
}


@pytest.mark.parametrize(("settings", "name"), OTHERS.items())
def test_other_quantisations_are_refused_by_name(settings, name, built, tmp_path):
    """What is not dequantised is refused before any work, with the name of what was found."""
    tiny_model("llama", 2).save_pretrained(tmp_path / "model")
    edit_json(tmp_path / "model" / "config.json", quantization_config=yaml.safe_load(settings))
    for recipe in (merge_of(tmp_path / "model"), path_of(tmp_path / "model", hops="0:0-1")):
        with refused(f"weights quantised by {name} cannot be"):
            built(recipe)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ("no scales", {}, r"up_proj.weight \(F8_E4M3\) has no scales; give"),
        ("no numbers", {}, r"up_proj.weight_scale_inv \(F32\) has no numbers; give"),
        ("transposed", {}, r"which do not fit"),
        ("", {"weight_block_size": [16, 16]}, r"which do not fit"),
        ("", {"weight_block_size": [0, 8]}, r"weight_block_size is \[0, 8\], not two sizes"),
    ],
)
def test_damaged_scales_are_refused(change, settings, message, tmp_path):
    """Scales that are missing, of another shape, or for blocks of no size are refused from headers
    alone."""
    folder = save(tmp_path / "llama", "llama")
    weight = "model.layers.1.mlp.up_proj.weight"
    with edited(folder) as tensors:
        if change == "no numbers":
            del tensors[weight]
        elif change == "no scales":
            del tensors[f"{weight}_scale_inv"]
        elif change == "transposed":
            tensors[f"{weight}_scale_inv"] = tensors[f"{weight}_scale_inv"].T.contiguous()
    edit_json(folder / "config.json", quantization_config={**FP8, **settings})
    with refused(message):
        _ = open_source(folder).tensors
