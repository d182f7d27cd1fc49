"""Every worked example of docs/recipes.md and docs/adapters.md is built, on a tiny family with as
many layers as the examples have."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from families import save_family, tiny_config
from slowly import slow_beyond
from tiny_adapters import save_adapter
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from hf_evomerge.building.build import build_model, check_recipe
from hf_evomerge.mergekit import from_mergekit
from hf_evomerge.recipes.recipe import Recipe, SourceRef

DOCS = Path(__file__).parents[2] / "docs"
PAGE = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("recipes.md", "adapters.md"))
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
MERGEKIT = re.findall(r"```yml\n(.*?)```", PAGE, re.DOTALL)
FINE_TUNES = ("japanese-7b", "maths-7b", "maths-7b-instruct", "chat-7b-with-added-tokens")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A base, fine-tunes of it, one of them with more tokens, and two adapters."""
    folder = tmp_path_factory.mktemp("family")
    config = tiny_config(hidden_size=8, intermediate_size=12, num_hidden_layers=32, vocab_size=24)
    save_family(folder, config, torch.float32, len(FINE_TUNES))
    (folder / "base").rename(folder / "base-7b")
    for number, name in enumerate(FINE_TUNES):
        (folder / f"source{number}").rename(folder / name)
    more = LlamaForCausalLM.from_pretrained(folder / FINE_TUNES[-1])
    more.resize_token_embeddings(27, mean_resizing=False)
    more.save_pretrained(folder / FINE_TUNES[-1])
    for number, name in enumerate(("japanese-lora", "maths-lora")):
        save_adapter(folder / "base-7b", folder / name, number, r=2, target_modules=["q_proj"])
    vision = {"model_type": "clip_vision_model", "num_hidden_layers": 1, "num_attention_heads": 1}
    sizes = {"hidden_size": 8, "intermediate_size": 8, "image_size": 4, "patch_size": 4}
    sight = LlavaConfig(
        vision_config={**vision, **sizes},
        text_config={**config.to_dict(), "vocab_size": 26},
        image_token_index=25,
    )
    LlavaForConditionalGeneration(sight).save_pretrained(folder / "sight-7b")
    words = [*(f"w{n}" for n in range(24)), "<|im_start|>", "<|im_end|>", "<pad>"]
    counts = dict.fromkeys(("base-7b", *FINE_TUNES), 24) | {FINE_TUNES[-1]: 27, "sight-7b": 26}
    for name, count in counts.items():
        vocabulary = {word: n for n, word in enumerate(words[:count])}
        model = {"type": "WordLevel", "unk_token": "w0", "vocab": vocabulary}
        tokenizer = {"version": "1.0", "added_tokens": [], "model": model}
        (folder / name / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def local(text, family):
    """The example on the tiny family: folders in place of repositories, without their revisions."""

    def here(ref):
        adapter = ref.adapter and str(family / Path(ref.adapter).name)
        return SourceRef(
            model=str(family / Path(ref.model).name), adapter=adapter, component=ref.component
        )

    return Recipe.from_yaml(text).renamed(here)


def test_the_mergekit_file_builds(family, tmp_path):
    """The mergekit file that the page shows is read and built, without a word about what was left
    out."""
    read = from_mergekit(MERGEKIT[0].replace("your-name/", f"{family}/"))
    assert read.notes == []
    model = AutoModelForCausalLM.from_pretrained(build_model(read.recipe, tmp_path / "out"))
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("number", slow_beyond(range(4), range(len(BLOCKS))))
def test_every_example_builds(number, family, tmp_path):
    """The example passes the check, is built, and the model loads and runs."""
    recipe = local(BLOCKS[number], family)
    assert str(check_recipe(recipe)).startswith("fine: ")
    kind = AutoModelForImageTextToText if recipe.has_components else AutoModelForCausalLM
    model = kind.from_pretrained(build_model(recipe, tmp_path / "out"))
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    shutil.rmtree(tmp_path / "out")
