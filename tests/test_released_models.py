"""The code in benchmarks/pages/released-models.md runs on stand-ins of the models that it names."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

PAGE = Path(__file__).parents[1] / "benchmarks" / "pages" / "released-models.md"
TOKENS = ["<unk>", "<s>", "</s>", "<image>", "a", "b", "c"]
SIZES = {
    **{
        "vocab_size": len(TOKENS),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    **{"num_key_value_heads": 1, "max_position_embeddings": 512},
}
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }} a b{% endfor %}"


def code(name):
    """The block of the page that names a model."""
    return next(
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
        if name in block
    )


def save_tokenizer(folder):
    """Words, and a template that begins with BOS as the models' own."""
    words = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def run(name, folder):
    """Run a block on a folder in place of the repository, with device and dtype of this machine."""
    text = (
        code(name)
        .replace(f'"{name}"', repr(str(folder)))
        .replace('device_map="auto"', 'device_map="cpu"')
    )
    scope = {}
    exec(
        text.replace("torch.float16", "torch.float32").replace(
            "max_new_tokens=", "do_sample=False, min_new_tokens=3, max_new_tokens=3 + 0 * "
        ),
        scope,
    )
    return scope


@pytest.fixture(autouse=True)
def seed():
    """The same stand-ins for every test."""
    torch.manual_seed(0)


def test_a_merge_of_weights_chats(tmp_path):
    """The block for the 7B models: a plain Mistral continues what its template wrote."""
    MistralForCausalLM(MistralConfig(**SIZES, initializer_range=0.5)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    found = run("SakanaAI/EvoLLM-JP-A-v1-7B", tmp_path)
    assert found["output"].shape == (1, found["inputs"]["input_ids"].shape[1] + 3)


def test_the_vision_model_sees(tmp_path, monkeypatch):
    """The block for the vision model, on a folder without the newer settings: the answer depends on
    the picture."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = MistralConfig(**SIZES, initializer_range=0.5)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=3,
        vision_feature_select_strategy="default",
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_center_crop": True,
    }
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({**settings, **sizes, "do_resize": True})
    )
    monkeypatch.chdir(tmp_path)
    logits = []
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 30), colour).save("picture.jpg")
        found = run("SakanaAI/EvoVLM-JP-v1-7B", tmp_path)
        ids = found["inputs"]["input_ids"][0].tolist()
        assert (ids[0], ids.count(3), ids.count(1)) == (1, 4, 1)
        with torch.no_grad():
            logits.append(found["model"](**found["inputs"]).logits)
    assert not torch.allclose(*logits)
    assert AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("<image>") == 3
