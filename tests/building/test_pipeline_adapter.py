"""LoRAs of one diffusion pipeline merged to one LoRA: what plain diffusers loads is what float64
gives by hand, and what the whole merged pipeline has."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_fixtures import command
from pipelines import SIZE, draw, loaded, save_flux, save_sd, save_sdxl
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from slowly import slow_beyond

from hf_evomerge.building.build import build_model, check_recipe
from hf_evomerge.checkpoints.inspect import inspect_model
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import EvoMergeError, RecipeError
from hf_evomerge.recipes.recipe import Recipe

FILE = "pytorch_lora_weights.safetensors"
KINDS = {"sd": save_sd, "sdxl": save_sdxl, "flux": save_flux}
RANKS = {4: 7, 8: 3, 16: 40}  # alphas
WEIGHTS = (0.7, -0.4, 1.1)
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CLIP = ["q_proj", "k_proj", "v_proj", "out_proj"]


@pytest.fixture(scope="module", autouse=True)
def any_peft() -> Iterator[None]:
    """transformers 5.24 asks for a peft that is not released, before it adapts a text encoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.17.0")
        yield


@pytest.fixture(scope="module", params=KINDS)
def parents(request, tmp_path_factory) -> Path:
    """A pipeline and three LoRAs of it, saved by diffusers: of other ranks, alphas and modules; the
    second has a convolution, the third no text encoder."""
    folder = tmp_path_factory.mktemp(request.param)
    KINDS[request.param](folder / "base", 0)
    for number, (rank, alpha) in enumerate(RANKS.items()):
        save_lora(folder / "base", folder / f"lora{number}", number, rank, alpha)
    return folder


def save_lora(base: Path, folder: Path, number: int, rank: int, alpha: int, **more: Any) -> None:
    """Train nothing, and save random numbers as diffusers' training scripts do."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = loaded(base)
    part = "transformer" if hasattr(pipeline, "transformer") else "unet"
    convolution = ["conv_in"] if number == 1 and part == "unet" else []
    targets = {part: [*ATTENTION, *convolution], "text_encoder": CLIP}
    if number == 2:
        del targets["text_encoder"]
    named = {}
    modules = {}
    for name, target in targets.items():
        modules[name] = getattr(pipeline, name)
        given = {"r": rank, "lora_alpha": alpha, "target_modules": target, **more}
        modules[name].add_adapter(LoraConfig(**given))
        generator = torch.Generator().manual_seed(number)
        for key, parameter in modules[name].named_parameters():
            if "lora_" in key:
                values = torch.randn(parameter.shape, generator=generator)
                parameter.data = 0.2 * values / rank**0.5
        named[f"{name}_lora_layers"] = get_peft_model_state_dict(modules[name])
    type(pipeline).save_lora_weights(folder, **named, **_collate_lora_metadata(modules))


def recipe_of(folder: Path, method: str = "task_arithmetic", **fields: Any) -> Recipe:
    """A merge of the three LoRAs."""
    base = {"model": str(folder / "base")}
    adapters = fields.pop("adapters", [str(folder / f"lora{number}") for number in range(3)])
    sources = [{**base, "adapter": adapter} for adapter in adapters]
    merge = {"method": method, "parameters": [{"weight": weight} for weight in WEIGHTS]}
    own = {} if method == "linear" else {"base": base}
    merge |= fields.pop("merge", {})
    return Recipe.model_validate(
        {"sources": sources, **own, "merge": merge, "adapter": "auto", **fields}
    )


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    """All weights of a pipeline in float64."""
    found = {}
    for part, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            for name, tensor in module.state_dict().items():
                if "lora_" not in name:
                    found[f"{part}.{name.replace('.base_layer', '')}"] = tensor.double()
    return found


def changes(folder: Path, names: Any) -> dict[str, torch.Tensor]:
    """What a LoRA of diffusers adds to each weight, from its file, in float64."""
    with safe_open(folder / FILE, "pt") as opened:
        settings = json.loads(opened.metadata()["lora_adapter_metadata"])
    tensors = load_file(folder / FILE)
    found = {}
    for key in tensors:
        module, letter, _ = key.partition(".lora_A.weight")
        if letter:
            part = module.partition(".")[0]
            a, b = (tensors[f"{module}.lora_{letter}.weight"].double() for letter in "AB")
            scaling = settings[f"{part}.lora_alpha"] / settings[f"{part}.r"]
            name = f"{module}.weight"
            product = scaling * b.flatten(1) @ a.flatten(1)
            name = name if name in names else name.replace(".text_model.", ".")
            found[name] = product.reshape(b.shape[0], *a.shape[1:])
    return found


def fused(base: Path, folder: Path) -> Any:
    """The base with a LoRA, by plain diffusers."""
    pipeline = loaded(base)
    pipeline.load_lora_weights(folder)
    pipeline.fuse_lora(components=pipeline._lora_loadable_modules)
    pipeline.unload_lora_weights()
    return pipeline


def by_hand(folder: Path, shares: Any, loras: Any = None) -> dict[str, torch.Tensor]:
    """The weights of the base with a weighted sum of LoRAs."""
    wanted = weights(loaded(folder / "base"))
    for number, share in enumerate(shares):
        for name, change in changes(folder / f"lora{number}", wanted).items():
            wanted[name] = wanted[name] + share * change
    return wanted


def difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference of two states of the same names."""
    assert found.keys() == wanted.keys()
    return max(float((found[name] - wanted[name]).abs().max()) for name in found)


SUMS = {
    "task_arithmetic": (WEIGHTS, {}),
    "linear": ([weight / sum(WEIGHTS) for weight in WEIGHTS], {}),
    "dare_linear": (WEIGHTS, {"core_space": True, "parameters": "density"}),
}


@pytest.mark.parametrize("method", SUMS)
def test_a_sum_is_the_sum(method, parents, tmp_path):
    """diffusers loads the file without a warning; fused it is the sum by hand, and pictures are
    those of the whole pipeline."""
    shares, merge = SUMS[method]
    if merge:
        merge = {**merge, "parameters": [{"weight": w, "density": 1.0} for w in WEIGHTS]}
    recipe = recipe_of(parents, method, merge=merge)
    said = check_recipe(recipe).summary
    assert said.endswith(f"as one LoRA of rank {said.split('rank ')[1].split()[0]} ({FILE}), as float32")
    out = build_model(recipe, tmp_path / "out", progress=False)
    assert sorted(file.name for file in out.iterdir()) == [
        "adapter_config.json", "build.json", FILE, "recipe.yaml",
    ]  # fmt: skip
    pipeline = fused(parents / "base", out)
    wanted = by_hand(parents, shares)
    assert difference(weights(pipeline), wanted) < 1e-6
    assert difference(wanted, weights(loaded(parents / "base"))) > 0.05
    whole = loaded(build_model(recipe, tmp_path / "whole", progress=False, whole=True))
    assert difference(weights(whole), wanted) < 1e-6
    assert (draw(pipeline) - draw(whole)).abs().max() < 1e-4
    assert (draw(pipeline) - draw(loaded(parents / "base"))).abs().max() > 1e-3
