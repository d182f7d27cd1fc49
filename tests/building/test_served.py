"""Adapters as servers read them: the rules that vLLM and SGLang state for an adapter's files,
checked without either."""

import re

import pytest
import torch
from classes import edit_json, edited, read_json
from peft import AutoPeftModel, AutoPeftModelForCausalLM
from recipes import merge_of
from safetensors import safe_open
from slowly import slow_beyond
from tiny_adapters import save_adapter
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from vlms import inputs, save_vlm

from hf_evomerge.building.build import build_model

# vLLM: `MaxLoRARanks` in vllm/config/lora.py, and `--max-lora-rank` must be one of them.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Prefixes of a vision-language model's modules in transformers, and in vLLM (`hf_to_vllm_mapper` of
# its classes). What none of them begins ends nowhere, and vLLM says nothing.
PREFIXES = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."}


def check_served(folder, model, *, sees=False):
    """Check an adapter by the rules of both servers.

    vLLM (`PEFTHelper`, `parse_fine_tuned_lora_name`, `check_unexpected_modules`): neither DoRA nor
    modules_to_save nor biases; ``r`` at most the rank that is served; one scaling, ``lora_alpha /
    r``, for all modules, whatever the patterns say; each tensor is called ``base_model.model.MODULE
    .lora_A.weight``, and the last part of MODULE is that of a linear layer. SGLang
    (`get_normalized_target_modules`): target_modules is a list, whose last parts are those of
    linear layers.
    """
    config = read_json(folder / "adapter_config.json")
    linear = {name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    ends = {name.rpartition(".")[2] for name in linear}
    assert not config["use_dora"]
    assert not config.get("modules_to_save")
    assert config["bias"] == "none"
    assert config["r"] <= RANKS[-1]
    assert isinstance(config["target_modules"], list)
    assert {name.rpartition(".")[2] for name in config["target_modules"]} <= ends
    scaling = config["lora_alpha"] / config["r"]
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    modules = set()
    for name, shape in shapes.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        assert match, name
        rank = shape[0] if match[2] == "A" else shape[1]
        assert rank <= config["r"]
        last = match[1].rpartition(".")[2]
        own = [config["rank_pattern"], config["alpha_pattern"]]
        ranks, alphas = (each.get(match[1], each.get(last)) for each in own)
        assert (alphas or config["lora_alpha"]) / (ranks or config["r"]) == scaling
        modules.add(match[1])
    assert modules <= linear
    if sees:
        assert all(name.startswith(tuple(PREFIXES)) for name in modules)


@pytest.mark.parametrize(
    "architecture", slow_beyond(["llama", "qwen3_5_text"], ["llama", "qwen3_5_text", "phi3"])
)
def test_servers_take_a_merge_of_adapters(architecture, built, tmp_path):
    """A merge of adapters of different ranks and modules passes the rules; `load_adapter` of
    transformers computes what peft does."""
    base = tmp_path / "base"
    tiny_model(architecture, 2).save_pretrained(base)
    sources = []
    for seed, targets in enumerate((["o_proj", "down_proj"], ["o_proj"])):
        settings = {"target_modules": targets, "r": 2 + seed, "use_rslora": bool(seed)}
        sources.append((base, save_adapter(base, tmp_path / f"adapter{seed}", seed, **settings)))
    recipe = merge_of(*sources, method="task_arithmetic", base=base)
    folder = built(recipe)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    check_served(folder, model)
    model.load_adapter(str(folder))
    ids = torch.arange(1, 8)[None]
    with torch.inference_mode():
        expected = AutoPeftModelForCausalLM.from_pretrained(folder).eval()(ids).logits
        assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize(
    "name", slow_beyond(["qwen2_5_vl"], ["llava", "gemma3", "qwen2_5_vl", "smolvlm"])
)
@pytest.mark.parametrize("is_plain", [True, False])
def test_adapters_of_a_model_that_sees_have_the_names_of_the_whole(name, is_plain, tmp_path):
    """Adapters that were trained on the language part alone, whose names begin with `model.layers`,
    are read, as are those with today's names of modules; the merged one has names that peft and
    vLLM find in the vision-language model. A layer of a sequence, which is called by a number, is
    named whole, so that peft takes no block for it."""
    base = tmp_path / "base"
    save_vlm(base, name, 0)
    sources = []
    for seed in range(2):
        whole = AutoModelForImageTextToText.from_pretrained(base)
        out = tmp_path / f"adapter{seed}"
        targets = r".*(language|text)_model.*\.(q_proj|up_proj)" if is_plain else "all-linear"
        save_adapter(whole, out, seed, target_modules=targets, task_type=None)
        if is_plain:
            _call_as_plain(out)
        sources.append((base, out))
    recipe = merge_of(*sources, method="task_arithmetic", base=base)
    folder = build_model(recipe, tmp_path / "out")
    plain = AutoModelForImageTextToText.from_pretrained(base).eval()
    check_served(folder, plain, sees=is_plain and name != "smolvlm")
    built = build_model(recipe, tmp_path / "whole", whole=True)
    merged = AutoModelForImageTextToText.from_pretrained(built).eval()
    seen = inputs(name)
    with torch.inference_mode():
        adapted = AutoPeftModel.from_pretrained(folder).eval()
        assert (adapted(**seen).logits - merged(**seen).logits).abs().max() < 2e-5
        assert (plain(**seen).logits - merged(**seen).logits).abs().max() > 1e-3


def _call_as_plain(folder):
    """Give the tensors of an adapter the names that they have in a plain language model."""
    with edited(folder, "adapter_model.safetensors") as tensors:
        for name in list(tensors):
            plain = re.sub(r"model\.(language|text)_model\.layers", "model.layers", name)
            tensors[plain] = tensors.pop(name)
    edit_json(folder / "adapter_config.json", target_modules=["q_proj", "up_proj"])
