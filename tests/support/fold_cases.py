"""Folding, checked for one architecture: the merged model, the folded checkpoint, and by how much
they differ."""

import torch
from tiny_models import TABLES, logits_of, tiny_model, token_ids
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from hf_evomerge import LayerPath, LayerPool, fold

HOPS = "0:0, 1:1, 1:3, 0:1, 1:2, 0:0, 1:3, 0:2"  # 0:0 and 1:3 run twice
SCALES = [0.8, 0.9, 1.1, 1.0, -1.2, 1.0, -0.8, -1.3]  # the last product is negative
# Beside the architectures of the other tests: an architecture and its fields.
VARIANTS = {name: next(iter(given.items())) for name, given in TABLES["variants"].items()}
# OPT's epsilon cannot be set; the state of linear attention amplifies rounding
TOLERANCE = {"opt": 2e-3, "qwen3_5_text": 1e-3, "qwen3_next": 1e-3}
NO_MLP = ("mamba",)  # blocks of one branch
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")


def pool_of(architecture, **fields):
    """A source of three layers and one of four, whose norms have hardly any epsilon."""
    known = vars(CONFIG_MAPPING[architecture]())
    fields = {**{name: 1e-12 for name in EPSILONS if name in known}, **fields}
    return LayerPool(
        [tiny_model(architecture, 3, **fields), tiny_model(architecture, 4, seed=1, **fields)]
    )


def folded(model, folder, **options):
    """Save, fold and load; nothing may be missing or left over."""
    model.save_pretrained(folder / "merged")
    fold(folder / "merged", folder / "plain", **options)
    plain, info = AutoModelForCausalLM.from_pretrained(folder / "plain", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return plain


def fold_error(architecture, fields, scale_target, folder):
    """The largest difference of the logits, whose size is about 1; it must be small, and the greedy
    tokens equal.

    The path repeats layers and its scales are negative too; without an MLP of its own only the
    embeddings are scaled.
    """
    pool = pool_of(architecture, **fields)
    scales = (
        SCALES if architecture not in NO_MLP or scale_target == "stream" else [-0.5] + [1.0] * 7
    )
    model = pool.model(LayerPath.parse(HOPS, scales), scale_target)
    plain = folded(model, folder)
    assert type(plain) is type(pool.models[0])
    assert plain.config.num_hidden_layers == len(SCALES)
    assert getattr(plain.config, "layer_types", None) == getattr(
        model.config.text_config, "layer_types", None
    )
    wanted = logits_of(model)
    given = logits_of(plain)
    error = float((wanted - given).abs().max())
    assert error <= TOLERANCE.get(architecture, 5e-5)
    assert torch.equal(_greedy(plain), _greedy(model))
    unscaled = logits_of(pool.model(LayerPath.parse(HOPS)))
    assert (wanted - unscaled).abs().max() > 0.05
    return error


def _greedy(model):
    """Six greedy tokens after two prompts."""
    return model.generate(
        token_ids(), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
    )
