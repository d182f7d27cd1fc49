"""Publishing an adapter as what it is: a card of peft that names its base, and the same bits for
whoever rebuilds it."""

import json

import pytest
import torch
from classes import edit_json
from hub_fixtures import upload_models
from recipes import merge_of
from safetensors.torch import save_file
from slowly import slow_beyond
from tiny_adapters import save_adapter
from transformers import AutoModelForCausalLM

from hf_evomerge.building.build import build_model
from hf_evomerge.building.folded import fold
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import HubError
from hf_evomerge.hub.reproduce import reproduce
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.search.run import run_search

LOAD = """
import json, sys
sys.modules["hf_evomerge"] = None
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
inputs = AutoTokenizer.from_pretrained(sys.argv[1])("w1 w2 w3", return_tensors="pt", return_token_type_ids=False)
for kind in AutoPeftModelForCausalLM, AutoModelForCausalLM:
    model = kind.from_pretrained(sys.argv[1]).eval()
    print(json.dumps(model(**inputs).logits.double().sum().item()))
"""  # noqa: E501


@pytest.fixture
def published(tiny, tmp_path, lfs_api):
    """A base and two adapters of it on the hub, by their folders."""
    folders = [
        tiny / "base",
        *(
            save_adapter(tiny / "base", tmp_path / name, i)
            for i, name in enumerate(("ja", "maths"))
        ),
    ]
    return upload_models(lfs_api, *folders)


def adapter_of(published, out, **fields):
    """Build the merge of the two adapters from their folders."""
    base, *adapters = published
    sources = [{"model": base, "adapter": adapter} for adapter in adapters]
    recipe = merge_of(*sources, method="task_arithmetic", base=base, weights=[0.7, 0.4], **fields)
    return build_model(recipe, out)


@pytest.mark.parametrize("rank", slow_beyond([None], [None, 5]))
def test_an_adapter_is_published_as_one(
    rank, published, lfs_api, tmp_path, program, command, push, published_text
):
    """It names its base by repository and commit, loads where this package is not, and is rebuilt
    to the same bits."""
    folder = adapter_of(published, tmp_path / "out", rank=rank)
    push(folder, published=published)
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "recipe.yaml",
        "README.md",
        "tokenizer.json",
    } <= set(lfs_api.list_repo_files("local/merge"))
    config = json.loads(published_text("adapter_config.json"))
    assert (config["base_model_name_or_path"], config["revision"]) == (
        "local/base",
        lfs_api.model_info("local/base").sha,
    )
    whole = build_model(
        Recipe.load(folder / "recipe.yaml").model_copy(update={"rank": None}),
        tmp_path / "whole",
        whole=True,
    )
    ids = open_source(str(folder)).tokenizer()(
        "w1 w2 w3", return_tensors="pt", return_token_type_ids=False
    )
    with torch.inference_mode():
        wanted = (
            AutoModelForCausalLM.from_pretrained(whole).eval()(**ids).logits.double().sum().item()
        )
    for line in program(LOAD, "local/merge").splitlines()[-2:]:
        assert (json.loads(line) == pytest.approx(wanted, abs=1e-3)) == (rank is None)
    result = reproduce("local/merge", api=lfs_api)
    assert result.same
    assert list(result.files) == ["adapter_model.safetensors"]
    assert "the same bits, every weights file" in command("reproduce", "local/merge").stdout


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
        assert (
            f"[local/base](https://huggingface.co/local/base) with adapter [local/{name}]" in card
        )
    assert (
        "vllm serve local/base --enable-lora --max-lora-rank 8 --lora-modules merge=local/merge"
        in card
    )
    code = card.partition("```python\n")[2].partition("```")[0]
    assert "AutoPeftModelForCausalLM" in code
    program(
        'import sys; sys.modules["hf_evomerge"] = None\n' + code.replace('"Your text"', '"w1 w2"')
    )


def test_a_path_is_published_as_an_adapter(
    published, lfs_api, tmp_path, push, preview, published_text
):
    """The card of an adapter that moves layers says who reads it and how to fold it; it is rebuilt
    to the same bits, and no Space is made of it."""
    base = next(iter(published))
    fields = {"sources": [{"model": base}], "flow": {"path": "0:1, 0:0-1"}, "adapter": "auto"}
    folder = build_model(Recipe.model_validate(fields), tmp_path / "out")
    with pytest.raises(HubError, match=r"moves layers, .* push it without --space"):
        preview(folder, published=published, space=True)
    push(folder, "local/path", published=published)
    card = published_text(repo_id="local/path")
    assert "AutoPeftModelForCausalLM" in card
    assert "vLLM, SGLang and llama.cpp do not read that key" in card
    assert "hf-evomerge fold local/path --out path-plain" in card
    assert "vllm serve" not in card
    assert reproduce("local/path", api=lfs_api).same
    plain = fold("local/path", tmp_path / "plain")
    assert AutoModelForCausalLM.from_pretrained(plain).config.num_hidden_layers == 3


def test_a_search_over_adapters_is_pushed(
    published, lfs_api, tmp_path, search_config, push, published_text
):
    """The winner of a search goes up with the record of the search, its card as an adapter's."""
    base, *adapters = published
    run_search(
        search_config("ps", sources=[{"model": base, "adapter": adapter} for adapter in adapters]),
        tmp_path / "out",
    )
    push(tmp_path / "out", published=published, examples=1)
    assert {"adapter_model.safetensors", "study.json", "trials.parquet"} <= set(
        lfs_api.list_repo_files("local/merge")
    )
    card = published_text()
    assert "library_name: peft" in card
    assert "This adapter is a merge of the weights of" in card


def test_a_base_that_nobody_has_is_refused(published, tmp_path, preview):
    """An adapter of a folder on this machine would load nowhere."""
    folder = adapter_of(published, tmp_path / "out")
    with pytest.raises(
        HubError,
        match=r"base: the adapter's base is on this machine only, .* or merge again with --whole",
    ):
        preview(folder)


def test_a_changed_adapter_is_not_the_same(published, tmp_path, preview):
    """A file that is not what was built is refused by the record of the build."""
    folder = adapter_of(published, tmp_path / "out")
    edit_json(folder / "adapter_config.json", lora_alpha=9)
    with pytest.raises(HubError, match=r"adapter_config\.json is not what was built"):
        preview(folder, published=published)


def test_a_lora_of_a_pipeline_is_published(tmp_path, lfs_api, push, published_text):
    """Its card is of diffusers and loads the base first; it is opened by its name alone and rebuilt
    to the same bits; a Space is refused."""
    pipelines = pytest.importorskip("pipelines")
    pipelines.save_sdxl(tmp_path / "base", 0)
    ones = {
        f"unet.conv_in.lora_{letter}.weight": torch.ones(shape)
        for letter, shape in {"A": (2, 4, 3, 3), "B": (4, 2, 1, 1)}.items()
    }
    for name in ("ja", "maths"):
        (tmp_path / name).mkdir()
        save_file(ones, tmp_path / name / "pytorch_lora_weights.safetensors")
    folders = [tmp_path / name for name in ("base", "ja", "maths")]
    published = upload_models(lfs_api, *folders)
    folder = adapter_of(published, tmp_path / "out", adapter="auto")
    with pytest.raises(HubError, match="a LoRA of a pipeline, which a Space cannot show"):
        push(folder, "local/lora", published=published, space=True)
    push(folder, "local/lora", published=published)
    card = published_text(repo_id="local/lora")
    assert "library_name: diffusers" in card
    assert "base_model: local/base" in card
    loads = (
        'DiffusionPipeline.from_pretrained("local/base")\npipeline.load_lora_weights("local/lora")'
    )
    assert loads in card
    assert "component" not in card
    assert "None" not in card
    assert open_source("local/lora").changes.keys() == {"unet/conv_in.weight"}
    assert reproduce("local/lora", api=lfs_api).same
