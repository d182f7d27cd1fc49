"""Tiny model folders as sentence-transformers saves them."""

import json

import torch
from classes import random_class
from safetensors.torch import save_file

OLD = {
    "cls": "cls_token",
    "mean": "mean_tokens",
    "max": "max_tokens",
}  # what files called them before version 5.2


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
    old = {f"pooling_mode_{name}": key == pooling for key, name in OLD.items()}
    pooled = old if pooling in (*OLD,) else {"pooling_mode": pooling}
    modules = [("Pooling", {"word_embedding_dimension": 16, **pooled}, {})]
    if size is not None:
        config = {
            "in_features": 16,
            "out_features": size,
            "bias": True,
            "activation_function": activation,
        }
        modules.append(
            (
                "Dense",
                config,
                {"linear.weight": torch.randn(size, 16), "linear.bias": torch.randn(size)},
            )
        )
    if norm:
        wide = size or 16
        modules.append(
            (
                "LayerNorm",
                {"dimension": wide},
                {"norm.weight": torch.rand(wide) + 1, "norm.bias": torch.randn(wide)},
            )
        )
    modules.append(("Normalize", {}, {}))
    entries = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    ]
    for number, (kind, config, tensors) in enumerate(modules, 1):
        path = f"{number}_{kind}"
        entries.append(
            {
                "idx": number,
                "name": str(number),
                "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
        )
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(config))
        if tensors:
            save_file(tensors, folder / path / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 16, "do_lower_case": False})
    )
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"similarity_fn_name": "cosine", **settings})
    )
    return folder
