"""Tiny model folders as sentence-transformers saves them."""

import json

import torch
from classes import random_class
from safetensors.torch import save_file

# what files called them before version 5.2
OLD = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}


def sentence_folder(
    folder,
    tokenizer,
    seed,
    *,
    pooling="mean",
    activation="torch.nn.modules.activation.Tanh",
    size=8,
    norm=False,
    **settings,
):
    """An encoder with pooling, a Dense layer where `size` is given, a LayerNorm where wanted, and
    Normalize."""
    random_class("bert", seed).bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    pooled = {"pooling_mode": pooling}
    if pooling in [*OLD]:
        pooled = {f"pooling_mode_{name}": key == pooling for key, name in OLD.items()}
    pooled["word_embedding_dimension"] = 16
    modules = {"Transformer": (None, {}), "Pooling": (pooled, {})}
    if size is not None:
        config = {"in_features": 16, "out_features": size, "bias": True}
        config["activation_function"] = activation
        maps = {"linear.weight": torch.randn(size, 16), "linear.bias": torch.randn(size)}
        modules["Dense"] = (config, maps)
    if norm:
        wide = size or 16
        maps = {"norm.weight": torch.rand(wide) + 1, "norm.bias": torch.randn(wide)}
        modules["LayerNorm"] = ({"dimension": wide}, maps)
    modules["Normalize"] = ({}, {})
    entries = []
    for number, (kind, (config, tensors)) in enumerate(modules.items()):
        path = f"{number}_{kind}" if number else ""
        name = f"sentence_transformers.models.{kind}"
        entries.append({"idx": number, "name": str(number), "path": path, "type": name})
        (folder / path).mkdir(exist_ok=True)
        if config is not None:
            (folder / path / "config.json").write_text(json.dumps(config))
        if tensors:
            save_file(tensors, folder / path / "model.safetensors")
    files = {
        "modules.json": entries,
        "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": False},
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine", **settings},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder
