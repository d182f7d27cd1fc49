"""The checkpoint executor: from sources on disk to a folder that loads as the parents do."""

import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from classes import edit_json, edited, read_json, tensors_of
from families import save_family, tiny_config
from method_cases import CASES
from recipes import merge_of
from refused import refused
from safetensors.torch import load_file
from tiny_adapters import save_adapter
from tiny_models import tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from hf_evomerge.building.build import build_model
from hf_evomerge.checkpoints.headers import TensorInfo
from hf_evomerge.checkpoints.shards import split, write_shards
from hf_evomerge.checkpoints.source import Source
from hf_evomerge.errors import EvoMergeError
from hf_evomerge.recipes.recipe import Recipe

DARE = yaml.safe_load("""
- {weight: 0.9, density: 0.5}
- {weight: 0.7, density: {embed: 1, blocks.0-1: 0.25, head: 0.5}}
""")


def digest(folder):
    """The bits of a folder's tensors, whatever the shards."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(
            name.encode() + tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return total.hexdigest()


def test_gradients_and_patterns_reach_the_tensors(family, make_recipe, built):
    """A gradient over the two blocks, and a pattern of names, give each tensor its own weight."""
    weights = """
        - weight: {"*down_proj*": 3.0, default: [0.0, 1.0]}
        - weight: {"*norm*": [2.0], default: 1.0}
    """
    options = {"normalize": False}
    recipe = make_recipe(family, "linear", yaml.safe_load(weights), options, base=False)
    merged = tensors_of(built(recipe))
    first, second = (tensors_of(family / name) for name in ("source0", "source1"))
    for name, tensor in merged.items():
        here = 3.0 if "down_proj" in name else 1.0 if "layers.1." in name else 0.0
        there = 2.0 if "norm" in name else 1.0
        assert torch.equal(tensor, first[name] * here + second[name] * there), name


def test_only_the_sources_that_take_part_count(family, make_recipe, built):
    """merge.sources picks and orders the sources; the others need not even exist."""
    recipe = make_recipe(family, "linear", count=3)
    data = recipe.model_dump()
    data["merge"]["sources"] = [2]
    data["sources"][0]["model"] = "/not/there"
    data["dtype"] = "float32"  # without it the dtype is the first source's
    out = built(type(recipe).model_validate(data))
    assert digest(out) == digest(family / "source2")


def test_the_dtype_of_the_recipe_is_that_of_the_result(family, make_recipe, load, built):
    """A recipe's dtype goes into the tensors and into the config; sums are made in float32 and
    rounded once."""
    exact = tensors_of(built(make_recipe(family, "linear"), "a"))
    out = built(make_recipe(family, "linear", dtype="bfloat16"), "b")
    assert read_json(out / "config.json")["dtype"] == "bfloat16"
    assert load(out).dtype == torch.bfloat16
    rounded = tensors_of(out)
    assert all(torch.equal(rounded[name], exact[name].bfloat16()) for name in exact)


def test_a_tied_head_stays_absent(family, half_family, make_recipe, load, built):
    """A tied head is neither asked for nor written, and is tied again on loading; an untied one is
    merged."""
    tied = built(make_recipe(family, "ties"), "tied")
    assert "lm_head.weight" not in tensors_of(tied)
    model = load(tied)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    free = built(make_recipe(half_family, "ties"), "free")
    assert "lm_head.weight" in tensors_of(free)


def test_a_tied_head_that_is_stored_all_the_same_is_left_out(family, make_recipe, built, tmp_path):
    """A checkpoint that stores its tied head twice merges with one that does not."""
    folder = shutil.copytree(family, tmp_path / "family")
    with edited(folder / "source0") as tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    found, expected = (
        built(make_recipe(each, "linear", base=False), name)
        for each, name in ((folder, "a"), (family, "b"))
    )
    assert digest(found) == digest(expected)


def test_shards_do_not_matter(half_family, make_recipe, load, built):
    """Shards hold the bits of one file, and an index by which transformers loads them."""
    recipe = make_recipe(half_family, "dare_ties", DARE)
    whole = built(recipe, "whole")
    cut = built(recipe, "cut", max_shard_size="20KB")
    assert len(list(cut.glob("model-*.safetensors"))) > 1
    assert not (whole / "model.safetensors.index.json").exists()
    assert digest(cut) == digest(whole)
    assert all(map(torch.equal, load(cut).parameters(), load(whole).parameters()))


@pytest.mark.slow
def test_hash_seed_and_threads_do_not_matter(tmp_path, make_recipe):
    """Another process with another hash seed and more threads writes the same bits, large tensors
    included."""
    family = save_family(
        tmp_path,
        tiny_config(hidden_size=128, vocab_size=2048, num_hidden_layers=1),
        torch.bfloat16,
        2,
    )
    recipes = [
        make_recipe(
            family, method, parameters, options, min(len(parameters), 2), base=method != "slerp"
        )
        for method, parameters, options in (
            (method, list(values)[:2], options) for method, values, options in CASES
        )
    ]
    code = (
        "import sys, torch; torch.set_num_threads(3)\n"
        "from hf_evomerge.building.build import build_model; from hf_evomerge.recipes.recipe "
        "import Recipe\n"
        "for file in sys.argv[1:]:\n"
        "    build_model(Recipe.load(file), f'{file}-there')"
    )
    files = [tmp_path / f"{position}.yaml" for position in range(len(recipes))]
    for file, recipe in zip(files, recipes, strict=True):
        recipe.save(file)
    expected = [digest(build_model(Recipe.load(file), f"{file}-here")) for file in files]
    subprocess.run(
        [sys.executable, "-c", code, *files], env={**os.environ, "PYTHONHASHSEED": "77"}, check=True
    )
    assert [digest(tmp_path / f"{file.name}-there") for file in files] == expected


CONFIGURATION = """
from transformers import LlamaConfig
class OwnConfig(LlamaConfig):
    model_type = "own_llama"
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_custom_code_needs_consent(family, built, tmp_path, monkeypatch):
    """A model that brings its own code is refused without consent; with it the code is run, and
    copied to the result."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    fields = """{model_type: own_llama, architectures: [OwnForCausalLM], auto_map: {
        AutoConfig: configuration_own.OwnConfig, AutoModelForCausalLM: modeling_own.OwnForCausalLM}}
    """
    folders = [
        shutil.copytree(family / f"source{index}", tmp_path / f"own{index}") for index in range(2)
    ]
    for folder in folders:
        (folder / "configuration_own.py").write_text(CONFIGURATION)
        (folder / "modeling_own.py").write_text(MODELING)
        edit_json(folder / "config.json", **yaml.safe_load(fields))
    recipe = merge_of(*folders)
    with refused("its config needs Python code that comes with the model; .*--trust-remote-code"):
        built(recipe)
    out = built(recipe, trust_remote_code=True)
    assert (out / "modeling_own.py").read_text() == MODELING
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM"


def test_code_that_is_not_copied_is_not_named(family, make_recipe, built, tmp_path):
    """A model that brings code for an architecture that transformers knows is merged without it,
    and the result names none."""
    for index in range(2):
        folder = shutil.copytree(family / f"source{index}", tmp_path / "family" / f"source{index}")
        edit_json(
            folder / "config.json", auto_map={"AutoConfig": "configuration_llama.LlamaConfig"}
        )
    out = built(make_recipe(tmp_path / "family", "linear", base=False))
    assert "auto_map" not in read_json(out / "config.json")


@pytest.mark.parametrize(("named", "whose"), [(None, "source0"), (1, "source1"), ("base", "base")])
def test_whose_tokenizer_is_copied(family, make_recipe, built, tmp_path, named, whose):
    """Tokenizer, templates, processor and generation settings are the first source's, or of the one
    that the recipe names; code, pickles and notes are not copied."""
    folder = shutil.copytree(family, tmp_path / "family")
    copied = {
        "preprocessor_config.json",
        "generation_config.json",
        "additional_chat_templates/tool.jinja",
    }
    for parent in ("source0", "source1", "base"):
        for name in [*copied, "modeling_x.py", "pytorch_model.bin", "README.md"]:
            (folder / parent / name).parent.mkdir(exist_ok=True)
            (folder / parent / name).write_text(json.dumps({"of": parent}))
        Tokenizer(WordLevel({parent: 0}, parent)).save(str(folder / parent / "tokenizer.json"))
    fields = {} if named is None else {"tokenizer": named}
    out = built(make_recipe(folder, "ties", **fields))
    made = {"tokenizer.json", "model.safetensors", "config.json", "recipe.yaml", "build.json"}
    found = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert found == copied | made
    assert {read_json(out / name)["of"] for name in copied} == {whose}
    assert Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab() == {whose: 0}


def test_a_chat_template_of_the_recipes_own(family, make_recipe, built, tmp_path):
    """The recipe's template takes the place of the tokenizer's, wherever that was kept."""
    folder = shutil.copytree(family, tmp_path / "family")
    (folder / "source0" / "chat_template.jinja").write_text("old")
    (folder / "source0" / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "old", "eos_token": "x"})
    )
    out = built(make_recipe(folder, "linear", chat_template="{{ messages }} 日本"))
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == "{{ messages }} 日本"
    assert read_json(out / "tokenizer_config.json") == {"eos_token": "x"}


def test_parents_of_two_dtypes_merge(family, make_recipe, load, built, tmp_path):
    """A float32 and a bfloat16 parent merge in float32, and the result has the first one's
    dtype."""
    folder = tmp_path / "family"
    load(family / "source0").save_pretrained(folder / "source0")
    load(family / "source1").bfloat16().save_pretrained(folder / "source1")
    out = built(make_recipe(folder, "linear", base=False))
    tensors = [tensors_of(path) for path in (folder / "source0", folder / "source1", out)]
    for name, merged in tensors[2].items():
        assert merged.dtype == torch.float32
        assert torch.equal(merged, (tensors[0][name] + tensors[1][name].float()) / 2)


@pytest.mark.parametrize("method", ["linear", "sce", "ties", "karcher"])
def test_numbers_that_are_not_finite_are_named(
    family, make_recipe, built, tmp_path, method, caplog
):
    """A source with NaN in a tensor merges, and the user is told which tensor of the result is
    spoilt."""
    folder = shutil.copytree(family, tmp_path / "family")
    with edited(folder / "source1") as tensors:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    recipe = make_recipe(folder, method, options={"select_topk": 0.5} if method == "sce" else {})
    built(recipe)
    said = "not all numbers are finite in model.layers.1.mlp.up_proj.weight: a source"
    assert said in caplog.text


def test_numbers_that_are_too_large_are_refused(family, make_recipe, built, tmp_path):
    """float16 ends at 65504; what would become infinite is an error that names a tensor, and no
    model is written."""
    recipe = make_recipe(
        family, "linear", [{"weight": 1e6}, {"weight": 1e6}], {"normalize": False}, dtype="float16"
    )
    with refused(r"^\S+\.weight: its numbers become too large for F16, those of", EvoMergeError):
        built(recipe)
    assert not (tmp_path / "out").exists()


def test_masks_are_copied_and_not_merged(make_recipe, built, tmp_path, load):
    """A tensor that is not a weight, such as GPT-2's stored causal mask, is taken from the first
    source."""
    name = "transformer.h.0.attn.bias"
    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
    for index in range(2):
        tiny_model("gpt2", 1, index).save_pretrained(tmp_path / f"source{index}")
        with edited(tmp_path / f"source{index}") as tensors:
            tensors[name] = mask
    out = built(make_recipe(tmp_path, "linear", base=False))
    assert torch.equal(tensors_of(out)[name], mask)
    assert type(load(out)) is GPT2LMHeadModel


def test_wide_dtypes_come_first(tmp_path):
    """Within a file tensors stand by the width of their dtype, so that each is aligned."""
    infos = {"mask": TensorInfo("BOOL", (3,)), "weight": TensorInfo("F32", (1,))}
    write_shards(tmp_path, infos, lambda name, write: write(bytes(infos[name].bytes)), max_size=100)
    data = (tmp_path / "model.safetensors").read_bytes()
    assert data.index(b"weight") < data.index(b"mask")


@pytest.mark.parametrize(("size", "files"), [("1.2 KB", 1), ("0.8KB", 2), (800, 2)])
def test_sizes_are_read(size, files):
    """A size is a number of bytes, or has one of the usual units; anything else is refused."""
    infos = {name: TensorInfo("F32", (100,)) for name in ("a", "b", "c")}
    assert len(split(infos, size).filename_to_tensors) == files
    with refused(r"max_shard_size: cannot read .*; write 4GB or 500MB", EvoMergeError):
        split(infos, "4")


def mapped(file):
    """Kilobytes of a file that are resident in this process, for each of its mappings."""
    found = list[int]()
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *words = line.split()
        if not key.endswith(":"):
            here = words[-1:] == [str(file)]
        elif here and key == "Rss:":
            found.append(int(words[0]))
    return found


@pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="the system says nothing of a mapping's pages"
)
def test_what_was_read_is_let_go(built, tmp_path, monkeypatch):
    """TIES of two adapters maps their base once, and never holds more of it than its largest
    tensor."""
    tiny_model("llama", seed=0, vocab_size=20_000).save_pretrained(tmp_path / "base")
    base = tmp_path / "base"
    sources = [(base, save_adapter(base, tmp_path / str(seed), seed)) for seed in (1, 2)]
    file = base / "model.safetensors"
    resident = []
    read = Source.read_stored

    def watched(self, info, name):
        if name == "model.norm.weight":  # the last one; to look takes a while
            resident.append(mapped(file))
        return read(self, info, name)

    gc.collect()
    monkeypatch.setattr(Source, "read_stored", watched)
    built(merge_of(*sources, method="ties", base=base, weights=[0.5, 0.3]))
    assert [len(mappings) for mappings in resident] == [1] * len(resident)
    assert (
        max(map(sum, resident)) < file.stat().st_size / 2 / 1024
    )  # its head and its embeddings are as large
