"""Tiny stand-ins for the models that a mergekit file names: one by name, so that the same name is
always the same model.

A model has as many layers as the file's highest ``layer_range`` asks for, 4 where it asks for none;
where that is 16 or more all numbers of layers are divided by 4. The tokenizer has 40 tokens, and
those that fine-tunes of the name's kind add: ChatML's two, a padding token, or both.
"""

import json
import zlib

import torch
import yaml
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from words import save_pair_tokenizer

WIDTH = 16
INNER = 24
HEADS = 4
KV_HEADS = 2
WORDS = [
    "<unk>",
    "<s>",
    "</s>",
    *"abcdefghijklmnopqrstuvwxyz ",
    "th",
    "he",
    "in",
    "er",
    "an",
    "re",
    "on",
    "at",
    "en",
    "nd",
]
CHATML = ("hermes", "dolphin", "chatml", "openchat", "orca")
PADDED = ("wizard", "vicuna")
MODEL_KEYS = ("model", "base_model", "tokenizer_source", "source", "path")


def localise(text, folder):
    """The file with a folder for each name of a model; models that are not there yet are made."""
    data = yaml.safe_load(text)
    spans = list(_spans(data))
    if max([span[1] for span in spans], default=0) >= 16:
        for span in spans:
            span[0] //= 4
            span[1] = max(span[0] + 1, span[1] // 4)
    depth = max([4, *(span[1] for span in spans)])
    return yaml.safe_dump(_renamed(data, folder, depth), sort_keys=False)


def _spans(data):
    for value in (
        data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    ):
        yield from _spans(value)
    if isinstance(data, dict) and "layer_range" in data:
        yield data["layer_range"]


def _renamed(data, folder, depth, key=""):
    if isinstance(data, dict):
        return {
            name: _renamed(value, folder, depth, name)
            for name, value in data.items()
            if name != "revision"
        }
    if isinstance(data, list):
        return [_renamed(value, folder, depth) for value in data]
    if key in MODEL_KEYS and isinstance(data, str) and data not in ("union", "base"):
        model, _, adapter = data.replace("\\", "/").partition("+")
        parts = [save_model(folder, model.partition("@")[0], depth)]
        parts += [save_adapter(folder, adapter.partition("@")[0], depth)] if adapter else []
        return "+".join(map(str, parts))
    return data


def tokens_of(name):
    """The tokens that a model of this name has."""
    lower = name.lower()
    added = ["<|im_end|>", "<|im_start|>"] if any(word in lower for word in CHATML) else []
    return [*WORDS, *(["[PAD]"] if any(word in lower for word in PADDED) else []), *added]


def save_model(folder, name, depth):
    """A Llama whose weights are those of a common base and noise that the name decides."""
    place = folder / f"{name.replace('/', '--')}-{depth}"
    if place.exists():
        return place
    place.mkdir(parents=True)
    tokens = tokens_of(name)
    own, common = (torch.Generator().manual_seed(seed) for seed in (zlib.crc32(name.encode()), 0))
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": depth,
        "vocab_size": len(tokens),
    }
    config = LlamaConfig(
        **sizes, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, dtype="float32"
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(place)
    with torch.device("meta"):
        shapes = {
            key: tuple(tensor.shape)
            for key, tensor in LlamaForCausalLM(config).state_dict().items()
        }
    tensors = {}
    for key, shape in shapes.items():
        known = (len(WORDS), *shape[1:]) if shape[0] == len(tokens) else shape
        tensor = torch.randn(shape, generator=own) * 0.01
        tensor[: known[0]] += torch.randn(known, generator=common) * 0.1 + key.endswith(
            "norm.weight"
        )
        tensors[key] = tensor
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    save_pair_tokenizer(place, tokens, ("<unk>", "<s>", "</s>"), bos_token="<s>", eos_token="</s>")
    return place


def save_adapter(folder, name, depth):
    """A LoRA adapter of rank 2 of the queries and the values."""
    place = folder / f"{name.replace('/', '--')}-lora-{depth}"
    if place.exists():
        return place
    place.mkdir(parents=True)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    tensors = {}
    for layer in range(depth):
        for module, rows in (("q_proj", WIDTH), ("v_proj", WIDTH // HEADS * KV_HEADS)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(2, WIDTH, generator=generator) * 0.1
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(rows, 2, generator=generator) * 0.1
    save_file(tensors, place / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj"],
    }
    (place / "adapter_config.json").write_text(json.dumps(config))
    return place
