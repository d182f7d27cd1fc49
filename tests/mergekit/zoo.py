"""Tiny stand-ins for the models that a mergekit file names: one by name, so that the same name is
always the same model.

A model has as many layers as the file's highest ``layer_range`` asks for, 4 where it asks for none;
where that is 16 or more all numbers of layers are divided by 4. The tokenizer has 40 tokens, and
those that fine-tunes of the name's kind add: ChatML's two, a padding token, or both.
"""

import zlib

import torch
import yaml
from tiny_adapters import save_adapter
from transformers import LlamaConfig, LlamaForCausalLM
from words import save_pair_tokenizer

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
    if isinstance(data, dict):
        if "layer_range" in data:
            yield data["layer_range"]
        data = list(data.values())
    for value in data if isinstance(data, list) else ():
        yield from _spans(value)


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
        parts += [adapter_of(folder, adapter.partition("@")[0], depth)] if adapter else []
        return "+".join(map(str, parts))
    return data


def tokens_of(name):
    """The tokens that a model of this name has."""
    lower = name.lower()
    tokens = list(WORDS)
    if any(word in lower for word in PADDED):
        tokens.append("[PAD]")
    if any(word in lower for word in CHATML):
        tokens += ["<|im_end|>", "<|im_start|>"]
    return tokens


def save_model(folder, name, depth):
    """A Llama whose weights are those of a common base and noise that the name decides."""
    place = folder / f"{name.replace('/', '--')}-{depth}"
    if place.exists():
        return place
    tokens = tokens_of(name)
    own, common = (torch.Generator().manual_seed(seed) for seed in (zlib.crc32(name.encode()), 0))
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=depth,
        vocab_size=len(tokens),
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            known = (len(WORDS), *tensor.shape[1:]) if len(tensor) == len(tokens) else tensor.shape
            tensor.copy_(torch.randn(tensor.shape, generator=own) * 0.01)
            tensor[: known[0]] += torch.randn(known, generator=common) * 0.1
            tensor[: known[0]] += key.endswith("norm.weight")
    model.save_pretrained(place)
    save_pair_tokenizer(place, tokens, ("<unk>", "<s>", "</s>"), bos_token="<s>", eos_token="</s>")
    return place


def adapter_of(folder, name, depth):
    """A LoRA adapter of rank 2 of the queries and the values."""
    place = folder / f"{name.replace('/', '--')}-lora-{depth}"
    if place.exists():
        return place
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    return save_adapter(
        save_model(folder, "a", depth), place, zlib.crc32(name.encode()), **settings
    )
