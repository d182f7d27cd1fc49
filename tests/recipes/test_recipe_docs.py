"""Every worked example of docs/recipes.md and docs/adapters.md is built, on a tiny family with as
many layers as the examples have."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from slowly import slow_beyond
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from hf_evomerge.building.build import build_model, check_recipe
from hf_evomerge.mergekit import from_mergekit
from hf_evomerge.recipes.recipe import Recipe

DOCS = Path(__file__).parents[2] / "docs"
PAGE = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("recipes.md", "adapters.md"))
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
MERGEKIT = re.findall(r"```yml\n(.*?)```", PAGE, re.DOTALL)
FINE_TUNES = ("japanese-7b", "maths-7b", "maths-7b-instruct", "chat-7b-with-added-tokens")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A base, fine-tunes of it, one of them with more tokens, and two adapters."""
    folder = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 32}
    base = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))
    base.save_pretrained(folder / "base-7b")
    for name in FINE_TUNES:
        tuned = LlamaForCausalLM(base.config)
        with torch.no_grad():
            for parameter, origin in zip(tuned.parameters(), base.parameters(), strict=True):
                parameter.copy_(origin + 0.01 * torch.randn_like(origin))
        if "added" in name:
            tuned.resize_token_embeddings(27, mean_resizing=False)
        tuned.save_pretrained(folder / name)
    for name in ("japanese-lora", "maths-lora"):
        get_peft_model(
            LlamaForCausalLM(base.config), LoraConfig(r=2, target_modules=["q_proj"])
        ).save_pretrained(folder / name)
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 4,
    }
    sight = LlavaConfig(
        vision_config={**vision, "model_type": "clip_vision_model", "patch_size": 4},
        text_config={**base.config.to_dict(), "vocab_size": 26},
        image_token_index=25,
    )
    LlavaForConditionalGeneration(sight).save_pretrained(folder / "sight-7b")
    for name, count in (
        *((name, 27 if "added" in name else 24) for name in ("base-7b", *FINE_TUNES)),
        ("sight-7b", 26),
    ):
        words = [*(f"w{n}" for n in range(24)), "<|im_start|>", "<|im_end|>", "<pad>"][:count]
        model = {
            "type": "WordLevel",
            "unk_token": "w0",
            "vocab": {word: n for n, word in enumerate(words)},
        }
        (folder / name / "tokenizer.json").write_text(
            json.dumps({"version": "1.0", "added_tokens": [], "model": model})
        )
    return folder


def local(text, family):
    """The example on the tiny family: folders in place of repositories, without their revisions."""
    recipe = Recipe.from_yaml(text).model_dump(exclude_none=True)
    for ref in [*recipe["sources"], *([recipe["base"]] if "base" in recipe else [])]:
        for key in ("model", "adapter"):
            if key in ref:
                ref[key] = str(family / Path(ref[key]).name)
            ref.pop("revision" if key == "model" else "adapter_revision", None)
    return Recipe.model_validate(recipe)


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
