"""Tiny checkpoints whose weights are quantised as people publish them: FP8 with block scales, and
MXFP4."""

import math

import torch
from classes import edit_json
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [8, 8]}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}


def to_fp8(folder, **settings):
    """Quantise the linear maps of a model's layers, with a float32 scale for each block."""
    settings = {**FP8, **settings}
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        weight = tensors[name].float()
        block = settings["weight_block_size"]
        sizes = zip(weight.shape, block or weight.shape, strict=True)
        scales = torch.empty([math.ceil(count / size) for count, size in sizes])
        for i, j in torch.cartesian_prod(*map(torch.arange, scales.shape)).tolist():
            scales[i, j] = _block(weight, i, j, block).abs().max() / 448
            _block(weight, i, j, block).div_(scales[i, j])
        tensors[name] = weight.to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales if block else scales.reshape(())
    return _write(folder, tensors, settings)


def save_mxfp4(folder, seed=0):
    """Save a random gpt-oss whose experts are blocks of four bits with a byte of exponent each."""
    model = tiny_model("gpt_oss", 2, seed, hidden_size=64, intermediate_size=32)
    model.to(torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    numbers = torch.Generator().manual_seed(seed)
    for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
        experts, inputs, outputs = tensors.pop(name).shape
        groups = experts, outputs, inputs // 32
        tensors[f"{name}_blocks"] = torch.randint(
            256, (*groups, 16), dtype=torch.uint8, generator=numbers
        )
        tensors[f"{name}_scales"] = torch.randint(
            115, 125, groups, dtype=torch.uint8, generator=numbers
        )
    return _write(folder, tensors, MXFP4)


def _block(weight, row, column, size):
    rows, columns = size or weight.shape
    return weight[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]


def _write(folder, tensors, settings):
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit_json(folder / "config.json", quantization_config=settings)
    return folder
