"""Tiny random models of many architectures, for the tests of the merged model."""

from inspect import signature
from itertools import cycle, islice
from pathlib import Path

import torch
import yaml
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MambaForCausalLM

from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.routing.pool import LayerPool

TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
COMMON = TABLES["common"]
VOCAB = COMMON["vocab_size"]
ARCHITECTURES = TABLES["architectures"]
MIXTURES = TABLES["mixtures"]

# Fields with an entry for each layer.
PER_LAYER = ("layer_types", "layers_block_type", "no_rope_layers", "attention_types")

# The families that every run of the tests has; the others are slow.
FAMILIES = ("llama", "gemma3_text", "gpt2", "mixtral", "qwen3_5_text")

# Until the cache had one name for all architectures, generation chose it by the name of the model's
# class.
OLD_CACHE_NAMES = "cache" not in signature(MambaForCausalLM.forward).parameters
if OLD_CACHE_NAMES:
    del ARCHITECTURES["mamba"]


def tiny_model(architecture, layers=3, seed=0, **fields):
    """A random model of a few thousand parameters in eval mode; every call gives a new object with
    the same weights."""
    given = {**COMMON, "num_hidden_layers": layers, **ARCHITECTURES.get(architecture, {}), **fields}
    config = config_of(architecture, given, layers)

    def change(name, parameter):
        if "norm" in name:
            parameter.add_(torch.randn_like(parameter) * 0.1)
        elif "A_log" not in name:
            parameter.normal_(std=0.2)

    return built(config, seed, change)


def config_of(model_type, fields, layers):
    """The config of a type with these fields that are not None, entries of layers repeated."""
    given = {name: value for name, value in fields.items() if value is not None}
    for name in given.keys() & {*PER_LAYER}:
        given[name] = list(islice(cycle(given[name]), layers))
    return CONFIG_MAPPING[model_type](**given)


def built(config, seed, change):
    """A random model of a config in eval mode, each of whose parameters is changed."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (kind[0] if isinstance(kind, (tuple, list)) else kind)(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                change(name, parameter)
    return model


def token_ids():
    """Two sequences of nine tokens."""
    return torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(5))


def logits_of(model):
    """What a model computes of these tokens."""
    return model(token_ids()).logits


def path_model(models, hops, scales=None, *more, **fields):
    """The merged model of a path through resident models."""
    return LayerPool(models).model(LayerPath.parse(hops, scales), *more, **fields)
