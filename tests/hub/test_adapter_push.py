"""Publishing an adapter as what it is: a card of peft that names its base, and the same bits for
whoever rebuilds it."""

import json

import pytest
import torch
from classes import edit_json
from hub_fixtures import upload_models
from recipes import merge_of, path_of
from refusals import refused
from safetensors.torch import save_file
from slowly import slow_beyond
from tiny_adapters import save_adapter
from transformers import AutoModelForCausalLM

from hf_evomerge import Recipe, build_model, fold, open_source, reproduce, run_search
from hf_evomerge.errors import HubError

LOAD = """
import json, sys
sys.modules["hf_evomerge"] = None
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
inputs = AutoTokenizer.from_pretrained(sys.argv[1])("w1 w2 w3", return_tensors="pt", return_token_type_ids=False)
for kind in AutoPeftModelForCausalLM, AutoModelForCausalLM:
    model = kind.from_pretrained(sys.argv[1]).eval()
    print(json.dumps(model(**inputs).logits.sum().item()))
"""  # noqa: E501


@pytest.fixture
def published(tiny, tmp_path, lfs_api):
    """A base and two adapters of it on the hub, by their folders."""
    base = tiny / "base"
    adapters = [save_adapter(base, tmp_path / name, i) for i, name in enumerate(("ja", "maths"))]
    return upload_models(lfs_api, base, *adapters)


def adapter_of(published, out, **fields):
    """Build the merge of the two adapters from their folders."""
    base, *adapters = published
    sources = [{"model": base, "adapter": adapter} for adapter in adapters]
    recipe = merge_of(*sources, method="task_arithmetic", base=base, weights=[0.7, 0.4], **fields)
    return build_model(recipe, out)


@pytest.mark.parametrize("rank", slow_beyond([None], [None, 5]))
def test_an_adapter_is_published_as_one(
    rank, published, lfs_api, tmp_path, program, push, published_text
):
    """It names its base by repository and commit, loads where this package is not, and is rebuilt
    to the same bits."""
    folder = adapter_of(published, tmp_path / "out", rank=rank)
    push(folder, published=published)
    expected = {"adapter_config.json", "adapter_model.safetensors", "recipe.yaml", "tokenizer.json"}
    assert expected <= set(lfs_api.list_repo_files("local/merge"))
    config = json.loads(published_text("adapter_config.json"))
    base = (config["base_model_name_or_path"], config["revision"])
    assert base == ("local/base", lfs_api.model_info("local/base").sha)
    recipe = Recipe.load(folder / "recipe.yaml").model_copy(update={"rank": None})
    whole = build_model(recipe, tmp_path / "whole", whole=True)
    model = AutoModelForCausalLM.from_pretrained(whole).eval()
    tokenizer = open_source(str(folder)).tokenizer()
    ids = tokenizer("w1 w2 w3", return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        wanted = pytest.approx(model(**ids).logits.sum().item(), abs=1e-3)
    for line in program(LOAD, "local/merge").splitlines()[-2:]:
        assert (json.loads(line) == wanted) == (rank is None)
    result = reproduce("local/merge", api=lfs_api)
    assert (result.same, list(result.files)) == (True, ["adapter_model.safetensors"])


@pytest.mark.slow
def test_the_card_says_what_it_is(published, lfs_api, tmp_path, program, push, published_text):
    """The card is of peft's library, of the base alone, names the merged adapters, and its code
    runs as it stands."""
    push(adapter_of(published, tmp_path / "out"), published=published)
    data = lfs_api.model_info("local/merge").card_data
    found = (data.library_name, data.base_model, data["base_model_relation"], data.pipeline_tag)
    assert found == ("peft", "local/base", "adapter", "text-generation")
    card = published_text()
    for name in ("ja", "maths"):
        shown = f"[local/base](https://huggingface.co/local/base) with adapter [local/{name}]"
        assert shown in card
    served = (
        "vllm serve local/base --enable-lora --max-lora-rank 8 --lora-modules merge=local/merge"
    )
    assert served in card
    code = card.partition("```python\n")[2].partition("```")[0]
    assert "AutoPeftModelForCausalLM" in code
    without = 'import sys; sys.modules["hf_evomerge"] = None\n'
    program(without + code.replace('"Your text"', '"w1 w2"'))


def test_a_path_is_published_as_an_adapter(
    published, lfs_api, tmp_path, push, preview, published_text
):
    """The card of an adapter that moves layers says who reads it and how to fold it; it is rebuilt
    to the same bits, and no Space is made of it."""
    recipe = path_of(next(iter(published)), hops="0:1, 0:0-1", adapter="auto")
    folder = build_model(recipe, tmp_path / "out")
    with refused(HubError, r"moves layers, .* push it without --space"):
        preview(folder, published=published, space=True)
    push(folder, published=published)
    card = published_text()
    assert "AutoPeftModelForCausalLM" in card
    assert "vLLM, SGLang and llama.cpp do not read that key" in card
    assert "hf-evomerge fold local/merge --out merge-plain" in card
    assert "vllm serve" not in card
    assert reproduce("local/merge", api=lfs_api).same
    plain = fold("local/merge", tmp_path / "plain")
    assert AutoModelForCausalLM.from_pretrained(plain).config.num_hidden_layers == 3


def test_a_search_over_adapters_is_pushed(
    published, lfs_api, tmp_path, search_config, push, published_text
):
    """The winner of a search goes up with the record of the search, its card as an adapter's."""
    base, *adapters = published
    sources = [{"model": base, "adapter": adapter} for adapter in adapters]
    run_search(search_config("ps", sources=sources), tmp_path / "out")
    push(tmp_path / "out", published=published, examples=1)
    expected = {"adapter_model.safetensors", "study.json", "trials.parquet"}
    assert expected <= set(lfs_api.list_repo_files("local/merge"))
    assert "library_name: peft" in published_text()
    assert "This adapter is a merge of the weights of" in published_text()


def test_a_base_that_nobody_has_is_refused(published, tmp_path, preview):
    """An adapter of a folder on this machine would load nowhere."""
    folder = adapter_of(published, tmp_path / "out")
    message = r"base: the adapter's base is on this machine only, .* or merge again with --whole"
    with refused(HubError, message):
        preview(folder)


def test_a_changed_adapter_is_not_the_same(published, tmp_path, preview):
    """A file that is not what was built is refused by the record of the build."""
    folder = adapter_of(published, tmp_path / "out")
    edit_json(folder / "adapter_config.json", lora_alpha=9)
    with refused(HubError, r"adapter_config\.json is not what was built"):
        preview(folder, published=published)


def test_a_lora_of_a_pipeline_is_published(tmp_path, lfs_api, push, published_text):
    """Its card is of diffusers and loads the base first; it is opened by its name alone and rebuilt
    to the same bits; a Space is refused."""
    pipelines = pytest.importorskip("pipelines")
    pipelines.save_sdxl(tmp_path / "base", 0)
    shapes = {"A": (2, 4, 3, 3), "B": (4, 2, 1, 1)}
    ones = {f"unet.conv_in.lora_{key}.weight": torch.ones(size) for key, size in shapes.items()}
    for name in ("ja", "maths"):
        (tmp_path / name).mkdir()
        save_file(ones, tmp_path / name / "pytorch_lora_weights.safetensors")
    folders = [tmp_path / name for name in ("base", "ja", "maths")]
    published = upload_models(lfs_api, *folders)
    folder = adapter_of(published, tmp_path / "out", adapter="auto")
    with refused(HubError, "a LoRA of a pipeline, which a Space cannot show"):
        push(folder, published=published, space=True)
    push(folder, published=published)
    card = published_text()
    assert "library_name: diffusers" in card
    assert "base_model: local/base" in card
    loads = '.from_pretrained("local/base")\npipeline.load_lora_weights("local/merge")'
    assert loads in card
    assert not [word for word in ("component", "None") if word in card]
    assert open_source("local/merge").changes.keys() == {"unet/conv_in.weight"}
    assert reproduce("local/merge", api=lfs_api).same
