"""A component merged in a diffusion pipeline: what diffusers loads is what the formulas give, and
nothing is lost."""

import json
import re
import shutil

import pytest
import torch
import yaml
from classes import edit_json, read_json
from pipelines import draw, loaded, save_dit, save_sdxl
from recipes import merge_of, path_of
from refused import refused
from safetensors.torch import load_file, save_file

from hf_evomerge.building.build import check_recipe
from hf_evomerge.checkpoints.component import Component
from hf_evomerge.checkpoints.inspect import inspect_model
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import EvoMergeError
from hf_evomerge.recipes.layer_groups import classify

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
KINDS = {"sdxl": ("unet", save_sdxl), "dit": ("transformer", save_dit)}


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """Three pipelines of each kind: base, a and b."""
    folder = tmp_path_factory.mktemp("pipelines")
    for kind, (_, save) in KINDS.items():
        for seed, name in enumerate(("base", "a", "b")):
            save(folder / kind / name, 10 * seed)
    return folder


def recipe_of(folder, kind="sdxl", method="linear", models=("a", "b"), weights=(), **fields):
    """A merge of one component of pipelines of a kind, or of other folders."""
    part = fields.pop("part", KINDS[kind][0])
    sources = [{"model": str(folder / kind / name), "component": part} for name in models]
    base = folder / kind / "base" if method == "task_arithmetic" else None
    return merge_of(*sources, method=method, base=base, weights=weights, **fields)


def state(folder, part):
    """A component's tensors as they are on disk."""
    return load_file(next((folder / part).glob("*.safetensors")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_component_is_what_the_formula_gives(kind, parents, built):
    """Task arithmetic; all other components are the first source's, bit for bit; it draws; every
    tensor is accounted for."""
    part = KINDS[kind][0]
    folder = parents / kind
    recipe = recipe_of(parents, kind, "task_arithmetic", weights=[0.4, 0.9])
    out = built(recipe)
    base, a, b, merged = (
        state(each, part) for each in (folder / "base", folder / "a", folder / "b", out)
    )
    for name, tensor in merged.items():
        if tensor.is_floating_point():
            wanted = base[name] + 0.4 * (a[name] - base[name]) + 0.9 * (b[name] - base[name])
            torch.testing.assert_close(tensor, wanted)
    assert merged.keys() == a.keys()
    pipeline = loaded(out)
    first = loaded(folder / "a")
    assert type(pipeline) is type(first)
    for name, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module) and name != part:
            own = first.components[name].state_dict()
            torch.testing.assert_close(module.state_dict(), own, rtol=0, atol=0)
    assert not torch.equal(draw(pipeline), draw(first))
    ledger = check_recipe(recipe).ledger
    for each in (folder / "a", out):
        count = sum(len(load_file(file)) for file in each.glob("*/*.safetensors"))
        assert count == ledger.kinds.total()
    others = {file.parent.name for file in out.glob("*/*.safetensors")} - {part}
    assert set(ledger.dropped) == {
        f"{other} of {name}, of which the result has another's"
        for other in others
        for name in ("b", "base")
    }
    record = (out / "build.json").read_text()
    assert str(ledger) in record
    assert f"{part}/diffusion_pytorch_model.safetensors" in record


def test_groups_of_a_unet(parents, built):
    """Attention and the rest, as EvoSDXL-JP has them: queries, keys, values and outputs, and
    everything else."""
    first = Component(open_source(parents / "sdxl" / "a"), "unet")
    attention = [name for name in first.tensors if classify(name)[2] == "attn"]
    assert attention == [n for n in first.tensors if re.search(r"\.to_([qkv]|out\.0)\.", n)]
    assert first.layer_count == 5  # two down, the middle, two up
    weights = [
        {"blocks.0-4.attn": share, "default": rest} for share, rest in ((0.25, 1.0), (0.75, 0.0))
    ]
    out = built(recipe_of(parents, weights=weights))
    a, b, merged = (
        state(folder, "unet") for folder in (parents / "sdxl" / "a", parents / "sdxl" / "b", out)
    )
    for name, tensor in merged.items():
        share = 0.25 if ".to_" in name else 1.0
        torch.testing.assert_close(tensor, share * a[name] + (1 - share) * b[name])


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("sdxl", ("down_blocks.0.", "up_blocks.1.")),
        ("dit", ("transformer_blocks.0.", "transformer_blocks.1.")),
    ],
)
def test_a_gradient_runs_over_the_blocks(kind, ends, parents, built):
    """Slerp from all of one to all of the other, from the first block that a picture passes through
    to the last."""
    part = KINDS[kind][0]
    recipe = recipe_of(parents, kind, "slerp", merge={"options": {"t": [0.0, 1.0]}})
    out = built(recipe)
    a, b, merged = (
        state(folder, part) for folder in (parents / kind / "a", parents / kind / "b", out)
    )
    for name, tensor in merged.items():
        for source, place in ((a, ends[0]), (b, ends[1])):
            if name.startswith(place):
                torch.testing.assert_close(tensor, source[name])
    assert any(name.startswith(ends[0]) for name in merged)
    if kind == "sdxl":
        middle = "mid_block.resnets.0.conv1.weight"
        assert not any(torch.allclose(merged[middle], source[middle]) for source in (a, b))


def test_components_of_other_sources_bring_all_their_files(parents, built, tmp_path):
    """Text encoder and tokenizer of a pipeline with other words, and its scheduler: of another
    size, and of another class."""
    import diffusers

    other = save_sdxl(tmp_path / "other", 50, words="abcdef")
    other.scheduler = diffusers.DDIMScheduler()
    other.save_pretrained(tmp_path / "other")
    recipe = recipe_of(
        parents,
        models=("a", "b", tmp_path / "other"),
        merge={"sources": [0, 1]},
        components=dict.fromkeys(("text_encoder", "tokenizer", "scheduler"), 2),
    )
    pipeline = loaded(built(recipe))
    assert isinstance(pipeline.scheduler, diffusers.DDIMScheduler)
    assert len(pipeline.tokenizer) == 14 == pipeline.text_encoder.config.vocab_size
    assert len(pipeline.tokenizer_2) == 54
    ledger = check_recipe(recipe).ledger
    assert "text_encoder of a, of which the result has another's" in str(ledger)
    assert ledger.kinds["copied from other"]
    with refused(r"components.prior: there is no such component", EvoMergeError):
        check_recipe(recipe.model_copy(update={"components": {"prior": 2}}))


def test_another_component_can_be_merged(parents, built):
    """The decoder of pictures, in another dtype: all components have that then."""
    recipe = recipe_of(parents, part="text_encoder", dtype="bfloat16")
    out = built(recipe, max_shard_size="10KB")
    a, b = (state(parents / "sdxl" / n, "text_encoder") for n in ("a", "b"))
    name = next(n for n in a if n.endswith("layers.0.mlp.fc1.weight"))
    pipeline = loaded(out)
    expected = (0.5 * a[name] + 0.5 * b[name]).bfloat16()
    found = {n.partition("layers")[2]: t for n, t in pipeline.text_encoder.state_dict().items()}[
        name.partition("layers")[2]
    ]
    assert torch.equal(found, expected.to(found.dtype))
    index = read_json(out / "unet" / "diffusion_pytorch_model.safetensors.index.json")
    assert len(set(index["weight_map"].values())) > 1
    assert read_json(out / "text_encoder" / "config.json")["dtype"] == "bfloat16"


# The name of the file, of a module in it, and of the two matrices.
LAYOUTS = {
    "diffusers": ("pytorch_lora_weights", "unet.{}", "lora_A", "lora_B"),
    "kohya": ("light", "lora_unet_{}", "lora_down", "lora_up"),
    "peft": ("adapter_model", "base_model.model.{}", "lora_A", "lora_B"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_adapter_is_fused(layout, parents, built, tmp_path):
    """A low-rank product on a linear layer and on a convolution, in three layouts of files, is what
    diffusers adds."""
    file, called, *letters = LAYOUTS[layout]
    modules = {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": 2,
        "mid_block.resnets.0.conv1": 3,
        "conv_in": 2,
    }
    torch.manual_seed(0)
    tensors = {}
    wanted = state(parents / "sdxl" / "a", "unet")
    for module, rank in modules.items():
        weight = wanted[f"{module}.weight"]
        down = torch.randn(rank, *weight.shape[1:])
        up = torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2))
        place = called.format(module.replace(".", "_") if layout == "kohya" else module)
        for letter, matrix in zip(letters, (down, up), strict=True):
            tensors[f"{place}.{letter}.weight"] = matrix
        if layout == "kohya":
            tensors[f"{place}.alpha"] = torch.tensor(8.0)
        product = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        wanted[f"{module}.weight"] = weight + 8.0 / rank * product
    settings = {
        "r": 2,
        "rank_pattern": {"mid_block.resnets.0.conv1": 3},
        "lora_alpha": 8,
        "target_modules": list(modules),
    }
    metadata = {"format": "pt"}
    folder = tmp_path / "adapter"
    folder.mkdir()
    if layout == "diffusers":
        own = {f"unet.{key}": value for key, value in settings.items()}
        metadata["lora_adapter_metadata"] = json.dumps(own)
    if layout == "peft":
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
    save_file(tensors, folder / f"{file}.safetensors", metadata=metadata)
    named = folder / "light.safetensors" if layout == "kohya" else folder
    recipe = recipe_of(parents, weights=[1.0, 0.0])
    recipe.sources[0] = recipe.sources[0].model_copy(update={"adapter": str(named)})
    merged = state(built(recipe), "unet")
    torch.testing.assert_close(merged, wanted)
    if layout == "diffusers":
        pipeline = loaded(parents / "sdxl" / "a")
        pipeline.load_lora_weights(folder)
        pipeline.fuse_lora()
        theirs = {n.replace(".base_layer", ""): t for n, t in pipeline.unet.state_dict().items()}
        for name, tensor in merged.items():
            torch.testing.assert_close(tensor, theirs[name], msg=name)


@pytest.mark.parametrize(
    ("entry", "said"),
    {
        "unet: [my_unet, U]": "unet is of my_unet: code that comes with the pipeline",
        "_class_name: [my_pipeline, Mine]": ("_class_name is .* code that comes with the pipeline"),
        "unet: [diffusers, 3]": "unet is .* not a library and a class",
        "../unet: [diffusers, UNet2DConditionModel]": "not a library and a class",
        "gone: [diffusers, UNet2DConditionModel]": "names gone, and there is no such folder",
        "pickle": "only diffusion_pytorch_model.bin, a pickle",
        "damage": "not a safetensors file",
    }.items(),
)
def test_what_is_refused(entry, said, parents, built, tmp_path):
    """Pickles, code and damage end in one line, and nothing is written."""
    spoiled = shutil.copytree(parents / "sdxl" / "b", tmp_path / "spoiled")
    if entry == "pickle":
        (spoiled / WEIGHTS).rename((spoiled / WEIGHTS).with_suffix(".bin"))
    elif entry == "damage":
        (spoiled / WEIGHTS).write_bytes(b"x")
    else:
        edit_json(spoiled / "model_index.json", **yaml.safe_load(entry))
    with refused(said, EvoMergeError):
        built(recipe_of(parents, models=("a", spoiled)))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_meant_is_refused(parents):
    """A pipeline without a component, one that is not there, pipelines that do not fit, and a path
    through one."""
    other = parents / "dit" / "a"
    check_recipe(recipe_of(parents, models=("a", other), part="vae"))  # the same kind of decoder
    for recipe, message in (
        (
            recipe_of(parents, part=None),
            "takes part by a component; write component: with one of .*unet",
        ),
        (recipe_of(parents, part="prior"), "has no component 'prior'; it has .*unet"),
        (recipe_of(parents, models=("a", other)), "has no component 'unet'"),
        (path_of(other, hops=["0:0"]), "'diffusion_pipeline' has no causal language model"),
    ):
        with refused(message, EvoMergeError):
            check_recipe(recipe)


def test_inspect_says_what_a_pipeline_is(parents):
    """Its class, and how many tensors each component has."""
    report = inspect_model(parents / "sdxl" / "a")
    assert report.architecture == "StableDiffusionXLPipeline"
    assert report.parts.keys() == {"vae", "text_encoder", "text_encoder_2", "unet"}
    assert "None" not in str(report)
