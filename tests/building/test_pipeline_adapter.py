"""LoRAs of one diffusion pipeline merged to one LoRA: what plain diffusers loads is what float64
gives by hand, and what the whole merged pipeline has."""

import json
import re

import core_reference
import pytest
import torch
from commands import invoke
from pipelines import draw, loaded, save_flux, save_sd, save_sdxl
from recipes import merge_of
from refused import refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from searches import digests
from slowly import slow_beyond

from hf_evomerge.building.build import build_model, check_recipe
from hf_evomerge.building.build_record import read_build_record
from hf_evomerge.checkpoints.inspect import inspect_model
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import EvoMergeError, RecipeError

FILE = "pytorch_lora_weights.safetensors"
KINDS = {"sd": save_sd, "sdxl": save_sdxl, "flux": save_flux}
RANKS = {4: 7, 8: 3, 16: 40}  # alphas
WEIGHTS = (0.7, -0.4, 1.1)
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
# A convolution; and a layer whose name is the end of another's, which has a higher rank.
MORE = {
    ("unet", 1): ["conv_in"],
    ("transformer", 0): ["single_transformer_blocks.0.proj_out"],
    ("transformer", 1): ["proj_out"],
}
CLIP = ["q_proj", "k_proj", "v_proj", "out_proj"]


@pytest.fixture(scope="module", autouse=True)
def any_peft():
    """transformers 5.24 asks for a peft that is not released, before it adapts a text encoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.17.0")
        yield


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """A pipeline of each kind and three LoRAs of it, saved by diffusers: of other ranks, alphas and
    modules; the second has a convolution, the third no text encoder."""
    folder = tmp_path_factory.mktemp("loras")
    for kind, save in KINDS.items():
        save(folder / kind / "base", 0)
        for number, (rank, alpha) in enumerate(RANKS.items()):
            save_lora(folder / kind / "base", folder / kind / f"lora{number}", number, rank, alpha)
    return folder


def save_lora(base, folder, number, rank, alpha):
    """Train nothing, and save random numbers as diffusers' training scripts do."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = loaded(base)
    part = "transformer" if hasattr(pipeline, "transformer") else "unet"
    more = MORE.get((part, number), [])
    targets = {part: [*ATTENTION, *more], "text_encoder": CLIP}
    if number == 2:
        del targets["text_encoder"]
    named = {}
    modules = {}
    for name, target in targets.items():
        modules[name] = getattr(pipeline, name)
        modules[name].add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=target))
        generator = torch.Generator().manual_seed(number)
        for key, parameter in modules[name].named_parameters():
            if "lora_" in key:
                values = torch.randn(parameter.shape, generator=generator)
                parameter.data = 0.2 * values / rank**0.5
        named[f"{name}_lora_layers"] = get_peft_model_state_dict(modules[name])
    type(pipeline).save_lora_weights(folder, **named, **_collate_lora_metadata(modules))


def recipe_of(folder, method="task_arithmetic", adapters=None, weights=WEIGHTS, **fields):
    """A merge of the three LoRAs, or of others."""
    base = folder / "base"
    adapters = adapters or [folder / f"lora{number}" for number in range(3)]
    based = None if method == "linear" else base
    sources = [(base, adapter) for adapter in adapters]
    return merge_of(*sources, method=method, base=based, weights=weights, adapter="auto", **fields)


def weights(pipeline):
    """All weights of a pipeline in float64."""
    found = {}
    for part, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            for name, tensor in module.state_dict().items():
                if "lora_" not in name:
                    found[f"{part}.{name.replace('.base_layer', '')}"] = tensor.double()
    return found


def products(folder, names):
    """The two factors of what a LoRA of diffusers adds to each weight, from its file, in
    float64."""
    with safe_open(folder / FILE, "pt") as opened:
        settings = json.loads(opened.metadata()["lora_adapter_metadata"])
    tensors = load_file(folder / FILE)
    found = {}
    for key in tensors:
        module, letter, _ = key.partition(".lora_A.weight")
        if letter:
            part = module.partition(".")[0]
            a = tensors[key].double().flatten(1)
            b = tensors[f"{module}.lora_B.weight"].double().flatten(1)
            scaling = settings[f"{part}.lora_alpha"] / settings[f"{part}.r"]
            name = f"{module}.weight"
            name = name if name in names else name.replace(".text_model.", ".")
            found[name] = (scaling * b.numpy(), a.numpy())
    return found


def fused(base, folder):
    """The base with a LoRA, by plain diffusers."""
    pipeline = loaded(base)
    pipeline.load_lora_weights(folder)
    pipeline.fuse_lora(components=pipeline._lora_loadable_modules)
    pipeline.unload_lora_weights()
    return pipeline


def by_hand(folder, merge):
    """The weights of the base with a merge of the LoRAs."""
    wanted = weights(loaded(folder / "base"))
    pairs = {}
    for number in range(3):
        for name, pair in products(folder / f"lora{number}", wanted).items():
            pairs.setdefault(name, {})[number] = pair
    for name, own in pairs.items():
        change = torch.from_numpy(merge(own))
        wanted[name] = wanted[name] + change.reshape(wanted[name].shape)
    return wanted


def total(pairs, shares=WEIGHTS):
    """The weighted sum."""
    return sum(shares[number] * b @ a for number, (b, a) in pairs.items())


def in_core(merge):
    """A merge of small matrices."""
    numbers = [[weight] for weight in WEIGHTS]
    return lambda pairs: core_reference.by_hand(pairs, numbers, 3, merge)


def difference(found, wanted):
    """The largest difference of two states of the same names."""
    assert found.keys() == wanted.keys()
    return max(float((found[name] - wanted[name]).abs().max()) for name in found)


DENSE = [{"weight": weight, "density": 1.0} for weight in WEIGHTS]
HALF = [{"weight": weight, "density": 0.5} for weight in WEIGHTS]
MERGES = {
    "task_arithmetic": ({}, total),
    "linear": ({}, lambda pairs: total(pairs, [weight / sum(WEIGHTS) for weight in WEIGHTS])),
    "dare_linear": ({"core_space": True, "parameters": DENSE}, total),
    "ties": ({"core_space": True, "parameters": HALF}, in_core(core_reference.ties)),
}
CASES = [(method, kind) for method in MERGES for kind in KINDS]
OFTEN = [("task_arithmetic", "flux"), ("ties", "sd"), ("dare_linear", "sdxl")]


@pytest.mark.parametrize(("method", "kind"), slow_beyond(OFTEN, CASES))
def test_diffusers_loads_what_a_hand_computes(method, kind, parents, built):
    """Fused by plain diffusers, the file is a merge in float64; pictures are those of the whole
    pipeline."""
    folder = parents / kind
    merge, formula = MERGES[method]
    recipe = recipe_of(folder, method, merge=merge)
    said = check_recipe(recipe).summary
    assert said.startswith(f"{method} of 3 sources")
    assert re.search(rf", as one LoRA of rank \d+ \({FILE}\), as float32$", said)
    out = built(recipe)
    files = ["adapter_config.json", "build.json", FILE, "recipe.yaml"]
    assert sorted(file.name for file in out.iterdir()) == files
    pipeline = fused(folder / "base", out)
    wanted = by_hand(folder, formula)
    assert difference(weights(pipeline), wanted) < 1e-6
    base = loaded(folder / "base")
    assert difference(wanted, weights(base)) > 0.05
    whole = loaded(built(recipe, "whole", whole=True))
    assert difference(weights(whole), wanted) < 1e-6
    picture = draw(pipeline)
    assert (picture - draw(whole)).abs().max() < 1e-4
    assert (picture - draw(base)).abs().max() > 1e-3


def test_it_is_read_again(parents, built):
    """The result names its base: it is inspected by its folder alone, is a source of another merge,
    and may be overwritten; the same recipe gives the same bits."""
    folder = parents / "sd"
    recipe = recipe_of(folder, rank=5)
    out = built(recipe)
    again = built(recipe, "again")
    build_model(recipe, again, overwrite=True)
    assert digests(again) == digests(out)
    assert 0 < min(read_build_record(out).energy.values()) < 1
    facts = inspect_model(out)
    assert facts.model == str(folder / "base")
    assert facts.adapter["ranks"] == [4, 5]  # conv_in has four inputs and outputs
    assert "rank 4/5" in invoke("inspect", out).stdout
    alone = open_source(out)
    assert alone.adapter.label == str(out)
    twice = recipe_of(folder, adapters=[out], weights=[2.0])
    double = built(twice, "double")
    base = weights(loaded(folder / "base"))
    once = weights(fused(folder / "base", out))
    wanted = {name: 2 * tensor - base[name] for name, tensor in once.items()}
    assert difference(weights(fused(folder / "base", double)), wanted) < 1e-6


def test_a_component_and_weights_by_component(parents, built):
    """Where one component is merged, the others have the first LoRA; a pattern gives a component
    its own numbers; a gradient has no blocks to run over."""
    folder = parents / "sd"
    recipe = recipe_of(folder)
    refs = [ref.model_copy(update={"component": "unet"}) for ref in recipe.sources]
    base = recipe.base.model_copy(update={"component": "unet"})
    part = recipe.model_copy(update={"sources": refs, "base": base})
    values = [
        {"unet/*": unet, "text_encoder/*": text, "default": 0.0}
        for unet, text in zip(WEIGHTS, (1.0, 0.0, 0.0), strict=True)
    ]
    named = recipe_of(folder, weights=values)
    found = [
        weights(fused(folder / "base", built(each, name)))
        for name, each in (("part", part), ("named", named))
    ]
    assert difference(*found) < 1e-7
    whole = built(part, "whole", whole=True)
    assert difference(found[0], weights(loaded(whole))) < 1e-6
    for value in ([0.0, 1.0], {"blocks.0": 1.0, "default": 0.0}):
        with refused("blocks are numbered within a component", RecipeError):
            check_recipe(recipe_of(folder, weights=[value] * 3))


def test_a_file_of_kohya(parents, built, tmp_path):
    """A LoRA in the layout of kohya's scripts, with alphas in the file, is merged as diffusers'
    is."""
    folder = parents / "sd"
    tensors = load_file(folder / "lora0" / FILE)
    renamed = {}
    for key, tensor in tensors.items():
        module, _, letter = key.partition(".lora_")
        flat = module.replace(".", "_").replace("text_encoder", "te", 1)
        flat = flat.replace("te_encoder", "te_text_model_encoder")  # as the scripts have it
        name = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[letter]
        renamed[f"lora_{flat}.{name}"] = tensor
        renamed[f"lora_{flat}.alpha"] = torch.tensor(7.0)
    save_file(renamed, tmp_path / "kohya.safetensors")
    names = [tmp_path / "kohya.safetensors", folder / "lora1", folder / "lora2"]
    out = built(recipe_of(folder, adapters=names))
    wanted = by_hand(folder, total)
    assert difference(weights(fused(folder / "base", out)), wanted) < 1e-6


def pair(module, *more):
    """A product of rank 1 for a module of eight inputs and outputs, linear or a convolution."""
    return {
        f"{module}.lora_A.weight": torch.ones(1, 8, *more),
        f"{module}.lora_B.weight": torch.ones(8, 1, *more),
    }


ATTENDS = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FOREIGN = {
    "DoRA is read of linear layers alone": {f"{ATTENDS}.lora_magnitude_vector": torch.ones(8)},
    r"changes unet/conv_in.weight by more than .* \(a whole tensor\)": {
        "unet.conv_in.weight": torch.ones(4, 4, 3, 3)
    },
    "changes transformer.proj_out.weight, which the model does not have": pair(
        "transformer.proj_out"
    ),
    "diffusers loads no LoRA into the vae of a StableDiffusionPipeline": pair(
        "vae.quant_conv", 1, 1
    ),
}


@pytest.mark.parametrize("said", FOREIGN)
def test_what_is_no_lora_is_refused(said, parents, tmp_path):
    """DoRA, full tensors, components that the pipeline has not or diffusers loads nothing into."""
    folder = parents / "sd"
    save_file(load_file(folder / "lora0" / FILE) | FOREIGN[said], tmp_path / FILE)
    with refused(said, EvoMergeError):
        check_recipe(recipe_of(folder, adapters=[tmp_path], weights=[1.0]), whole=False)
