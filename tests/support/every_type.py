"""A tiny random model of every type of causal language model in the installed transformers, from
its config's defaults."""

import dataclasses

import torch
from tiny_models import TABLES, built, config_of
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type, layers):
    """The config of a type with its own defaults, but few layers and small sizes."""
    kind = CONFIG_MAPPING[model_type]
    known = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map)
    small = {**TABLES["small"], "num_hidden_layers": layers}
    fields = {name: value for name, value in small.items() if name in known}
    if "kv_lora_rank" in known:
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    return config_of(model_type, {**fields, **TABLES["types"].get(model_type, {})}, layers)


def tiny_source(model_type, layers, seed=0):
    """A random model of a type, in eval mode, in which no two layers are alike."""

    def change(name, parameter):
        if parameter.dim() > 1 and "A_log" not in name:
            parameter.normal_(std=0.2)
        elif parameter.is_floating_point():
            parameter.add_(torch.randn_like(parameter) * 0.1)

    return built(tiny_config(model_type, layers), seed, change)
