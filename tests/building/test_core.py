"""Merges in core space: adapters that equal a computation by hand, their whole models, and what is
refused."""

import itertools
from functools import partial

import merge_reference as reference
import numpy as np
import pytest
import torch
import yaml
from classes import edited, read_json, tensors_of
from core_reference import by_hand, ties
from peft import PeftModel
from recipes import merge_of
from refused import refused
from safetensors.torch import load_file
from slowly import slow_beyond
from tiny_adapters import best_of, products_of, save_adapter
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, ViTConfig, ViTForImageClassification

from hf_evomerge.building.build import check_recipe
from hf_evomerge.building.build_record import read_build_record
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import EvoMergeError, RecipeError
from hf_evomerge.mergekit import to_mergekit
from hf_evomerge.merging.joined import why_merged
from hf_evomerge.recipes.recipe import Recipe

# Three adapters: of other ranks and scalings, and two of them of other modules.
SETTINGS = yaml.safe_load("""
- {r: 4, lora_alpha: 7}
- {r: 3, lora_alpha: 5, use_rslora: true, target_modules: [q_proj, down_proj, c_attn]}
- {r: 5, lora_alpha: 4}
""")
WEIGHTS = [0.7, 1.2, 0.4]
GROUPED = [{"blocks.1": weight, "default": 2 - weight} for weight in WEIGHTS]
ROWS = [[0.2, 0.9, 1.4], [1.0], [0.3, 1.1]]


def della(cores, weights, n):
    """DELLA at density .5, of small matrices."""
    shape = cores[0].shape
    kept = []
    for at, core in enumerate(cores):
        field = reference.random_field(3, at, n, core.size)
        kept.append(reference.della(core, 0.5, 0.15, field).ravel())
    return reference.vote(np.zeros(cores[0].size), kept, weights, True).reshape(shape)


def total(cores, weights):
    """The weighted sum."""
    return sum(weight * core for weight, core in zip(weights, cores, strict=True))


# The method, behind a comma what is special; what else a recipe says of the merge; how to compute
# it by hand.
KINDS = {
    "linear": ("{}", lambda m, w, n: total(m, w) / sum(w)),
    "task_arithmetic": ("options: {lambda: 0.6}", lambda m, w, n: 0.6 * total(m, w)),
    "slerp": (
        "{sources: [2, 0], options: {t: 0.3}}",
        lambda m, w, n: reference.slerp(m[0], m[1], 0.3),
    ),
    "ties": ("{}", lambda m, w, n: ties(m, w)),
    "della": ("{}", della),
    "sce": ("{}", lambda m, w, n: reference.sce(np.zeros(m[0].shape), m)),
}
KINDS |= {"ties, groups": KINDS["ties"], "linear, rows": KINDS["linear"]}
OFTEN = [
    ("ties", "llama"),
    ("ties", "gpt2"),  # the same merge of weights that are stored the other way round
    ("sce", "llama"),
    ("linear, rows", "qwen2"),
    ("slerp", "gpt2"),
]
ARCHITECTURES = ["llama", "qwen2", "gpt2"]  # the last two have tied embeddings


def save_family(folder, architecture):
    """Save a tiny base and its adapters; return the sources of a recipe."""
    base = folder / "base"
    tiny_model(architecture).save_pretrained(base)
    return [
        (base, save_adapter(base, folder / f"adapter{number}", number + 1, **settings))
        for number, settings in enumerate(SETTINGS)
    ]


def make_recipe(refs, method, merge=None, **fields):
    """A recipe in core space."""
    merge = {"core_space": True, **(merge or {})}
    return merge_of(*refs, method=method, base=refs[0][0], merge=merge, seed=3, **fields)


def products(sources):
    """Scaled factors of each weight as it is stored, by the adapter's number, from its file."""
    found = {}
    for number, (_, folder) in enumerate(sources):
        config = read_json(folder / "adapter_config.json")
        rank = config["r"]
        scaling = config["lora_alpha"] / (np.sqrt(rank) if config["use_rslora"] else rank)
        state = load_file(folder / "adapter_model.safetensors")
        for key in (key for key in state if "lora_A" in key):
            a = state[key].double().numpy()
            b = state[key.replace("lora_A", "lora_B")].double().numpy()
            scaled = scaling * b
            left, right = (a.T, scaled.T) if ".c_" in key else (scaled, a)  # GPT-2's way round
            name = key.removeprefix("base_model.model.").replace("lora_A.", "")
            found.setdefault(name, {})[number] = (left, right)
    return found


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """The sources of each architecture."""
    return {name: save_family(tmp_path_factory.mktemp(name), name) for name in ARCHITECTURES}


@pytest.mark.parametrize(
    ("kind", "architecture"), slow_beyond(OFTEN, itertools.product(KINDS, ARCHITECTURES))
)
def test_the_adapter_is_what_a_hand_computes(kind, architecture, families, built):
    """Merged into the base by peft alone, the adapter gives the weights of a computation in
    float64; and so does the whole model."""
    method = kind.partition(",")[0]
    text, merge = KINDS[kind]
    fields = yaml.safe_load(text)
    sources = families[architecture]
    merged = fields.get("sources", [0, 1, 2])
    named = products(sources)
    by_rows = next(iter(named))
    values = WEIGHTS
    if "groups" in kind:
        values = GROUPED
    elif "rows" in kind:
        values = [{by_rows: own, "default": 0.5} for own in ROWS]
    density = {"density": 0.5} if method in ("ties", "della") else {}
    weighted = method not in ("slerp", "sce")
    given = [{"weight": value, **density} for value in values] if weighted else []
    recipe = make_recipe(sources, method, {**fields, "parameters": given})
    folder = built(recipe)
    assert not (folder / "config.json").exists()
    base = AutoModelForCausalLM.from_pretrained(sources[0][0])
    plain = {name: tensor.double() for name, tensor in base.state_dict().items()}
    found = PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
    whole = open_source(built(recipe, "whole", whole=True))
    changed = 0
    for name in whole.tensors:
        live = next(own for own in plain if own.endswith(name))
        wanted = plain[live].numpy()
        pairs = {
            merged.index(number): pair
            for number, pair in named.get(live, {}).items()
            if number in merged
        }
        if pairs:
            numbers = [numbers_of(value, live, by_rows) for value in values]
            change = by_hand(pairs, numbers, len(merged), partial(merge, n=name))
            wanted = wanted + change
            changed += np.abs(change).max() > 0.01
        assert np.abs(found[live].double().numpy() - wanted).max() < 1e-6, name
        assert np.abs(whole.read(name).double().numpy() - wanted).max() < 1e-6, name
    assert changed > 4


def numbers_of(value, name, by_rows):
    """The numbers of a source for the rows of a tensor."""
    if not isinstance(value, dict):
        return [value]
    if by_rows in value:
        return value[by_rows] if name == by_rows else [value["default"]]
    return [value["blocks.1" if ".1." in name else "default"]]


def test_equal_adapters_give_themselves(families, built):
    """An adapter merged with itself is itself; directions that float32 does not tell from 0 are 0,
    and the largest entry of the others is positive."""
    first = families["llama"][0]
    recipe = make_recipe([first, first], "ties", {"parameters": [{"density": 1.0}] * 2})
    out = built(recipe)
    merged = products_of(out)
    state = load_file(out / "adapter_model.safetensors")
    for name, pairs in products([first]).items():
        module = name.removesuffix(".weight")
        left, right = pairs[0]
        assert np.abs(merged[module].numpy() - left @ right).max() < 1e-6
        a = state[f"base_model.model.{module}.lora_A.weight"]
        assert a.shape[0] == 8
        vectors = a[a.any(dim=1)]
        assert len(vectors) == 4
        assert (vectors.gather(1, vectors.abs().argmax(1, keepdim=True)) > 0).all()


def test_a_rank_and_a_dtype(families, built):
    """A smaller rank is the best one of the merged change, as for a sum; the record has what it
    keeps."""
    merge = {"parameters": [{"density": 0.5}] * 3}
    exact, small = (
        built(make_recipe(families["llama"], "ties", merge, **own), str(len(own)))
        for own in ({}, {"rank": 2, "dtype": "bfloat16"})
    )
    module = "model.layers.1.mlp.down_proj"
    best, share = best_of(products_of(exact)[module], 2)
    assert torch.allclose(products_of(small)[module], best, atol=0.02)
    assert read_build_record(small).energy[module] == pytest.approx(share, abs=1e-5)
    tensors = load_file(small / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_a_sum_is_the_same_merge(families, built):
    """Task arithmetic in core space has the bits that it has without."""
    weights = [
        built(make_recipe(families["llama"], "task_arithmetic", {"core_space": core}), str(core))
        / "adapter_model.safetensors"
        for core in (True, None)
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_same_recipe_gives_the_same_bits(families, built):
    """Number of threads and a second build do not matter."""
    recipe = make_recipe(families["qwen2"], "dare_ties", {"parameters": [{"density": 0.5}] * 3})
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3, 1):
        torch.set_num_threads(threads)
        folder = built(recipe, str(len(found)))
        found.append((folder / "adapter_model.safetensors").read_bytes())
    torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_a_convolution_is_a_matrix_too(built, tmp_path):
    """A vision transformer's patches are merged in core space as a computation by hand does it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1}
    config = ViTConfig(**sizes, num_attention_heads=2, image_size=16, patch_size=8)
    base = tmp_path / "base"
    ViTForImageClassification(config).save_pretrained(base)
    settings = {"target_modules": ["projection"], "task_type": None}
    sources = []
    for rank in (2, 3):
        model = ViTForImageClassification.from_pretrained(base)
        adapter = save_adapter(model, tmp_path / f"adapter{rank}", rank - 1, r=rank, **settings)
        sources.append((base, adapter))
    recipe = make_recipe(sources, "ties", {"parameters": [{"density": 0.5}] * 2})
    adapted = [open_source(source) for source in recipe.sources]
    reason = why_merged(adapted, open_source(base), "ties", {}, core=True)
    assert str(reason).endswith("projection.weight, a convolution")  # a search merges it
    folder = built(recipe)
    model = ViTForImageClassification.from_pretrained(base)
    name = "vit.embeddings.patch_embeddings.projection.weight"
    before = model.state_dict()[name].double().numpy()
    found = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()[name]
    pairs = {
        number: tuple(matrix.reshape(len(matrix), -1) for matrix in pair)
        for number, pair in products(sources)[name].items()
    }
    change = by_hand(pairs, [[1.0]] * 2, 2, ties)
    assert np.abs(change).max() > 0.01
    assert np.abs(found.double().numpy() - before - change.reshape(before.shape)).max() < 1e-6


def test_a_head_that_is_saved_as_the_base_has_it(families, built, tmp_path):
    """peft saves a head beside a LoRA of it: where it is the base's, the product is the change, and
    another head is refused."""
    first = families["llama"][0]
    base = first[0]
    folder = save_adapter(base, tmp_path / "adapter", 5, r=2, target_modules=["q_proj", "lm_head"])
    recipe = make_recipe([first, (base, folder)], "ties")
    before = built(recipe, "before") / "adapter_model.safetensors"
    weights = tensors_of(base)
    with edited(folder, "adapter_model.safetensors") as state:
        state["base_model.model.lm_head.base_layer.weight"] = weights["lm_head.weight"]
        embeddings = "model.embed_tokens.weight"
        state[f"base_model.model.{embeddings}"] = weights[embeddings]
    after = built(recipe, "after") / "adapter_model.safetensors"
    assert before.read_bytes() == after.read_bytes()
    with edited(folder, "adapter_model.safetensors") as state:
        state["base_model.model.lm_head.base_layer.weight"] += 1
    with refused(r"changes lm_head.weight by .* \(a whole tensor\)", EvoMergeError):
        check_recipe(recipe)


@pytest.mark.parametrize(
    ("settings", "line"),
    {
        "{use_dora: true, target_modules: [q_proj]}": r"by more than the product .*\(DoRA\)",
        "target_modules: [embed_tokens]": r"\(embeddings\)",
        "null": "is no LoRA adapter",
    }.items(),
)
def test_what_is_no_product_is_refused(settings, line, families, tmp_path):
    """DoRA, whole tensors, embeddings and whole models have no place in core space."""
    first = families["llama"][0]
    other = base = first[0]
    if given := yaml.safe_load(settings):
        other = base, save_adapter(base, tmp_path / "adapter", 5, **given)
    with refused(rf"^merge.core_space: .*{line}.*; leave it out$", EvoMergeError):
        check_recipe(make_recipe([first, other], "ties"))


def test_what_does_not_go_with_it(families):
    """Keys that change more than linear layers are refused when the recipe is read; mergekit has
    no such merge."""
    recipe = make_recipe(families["llama"], "ties")
    with refused("mergekit merges whole weights", RecipeError):
        to_mergekit(recipe)
    fields = recipe.model_dump(mode="json", exclude_none=True)
    for change, message in {
        "base: null": "base: merge.core_space is for adapters of one base",
        "vocabulary: union": "vocabulary: merge.core_space changes linear layers",
        "merge: {method: ties, core_space: true, slices: [{layers: ['0:0-1']}]}": (
            "merge.slices: merge.core_space changes"
        ),
        "sources: [{model: a, adapter: b, component: text}]": (
            "component: merge.core_space changes"
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            Recipe.model_validate({**fields, **yaml.safe_load(change)})
