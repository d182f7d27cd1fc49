"""The code in benchmarks/pages/released-models.md runs on stand-ins of the models that it names."""

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
    "vocab_size": len(TOKENS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = MistralConfig(
    **SIZES, num_key_value_heads=1, max_position_embeddings=512, initializer_range=0.5
)
TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }} a b{% endfor %}"


PREPROCESSOR = """{
  "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor",
  "do_resize": true, "size": {"shortest_edge": 28},
  "do_center_crop": true, "crop_size": {"height": 28, "width": 28}
}"""


def save_tokenizer(folder):
    """Words, and a template that begins with BOS as the models' own."""
    words = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, additional_special_tokens=["<image>"], **special
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


def run(name, folder):
    """Run the page's block of a model on a folder in place of the repository, with device and dtype
    of this machine."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    (text,) = (block for block in blocks if name in block)
    for theirs, ours in {
        f'"{name}"': repr(str(folder)),
        'device_map="auto"': 'device_map="cpu"',
        "torch.float16": "torch.float32",
        "max_new_tokens=": "do_sample=False, min_new_tokens=3, max_new_tokens=3 + 0 * ",
    }.items():
        text = text.replace(theirs, ours)
    scope = {}
    exec(text, scope)
    return scope


@pytest.fixture(autouse=True)
def seed():
    """The same stand-ins for every test."""
    torch.manual_seed(0)


def test_a_merge_of_weights_chats(tmp_path):
    """The block for the 7B models: a plain Mistral continues what its template wrote."""
    MistralForCausalLM(TEXT).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    found = run("SakanaAI/EvoLLM-JP-A-v1-7B", tmp_path)
    assert found["output"].shape == (1, found["inputs"]["input_ids"].shape[1] + 3)


def test_the_vision_model_sees(tmp_path, monkeypatch):
    """The block for the vision model, on a folder without the newer settings: the answer depends on
    the picture."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SIZES, image_size=28, patch_size=14),
        text_config=TEXT,
        image_token_index=3,
        vision_feature_select_strategy="default",
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(PREPROCESSOR)
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
