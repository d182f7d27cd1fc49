"""What holds for every architecture: one function per property, for tests and
benchmarks/pages/model-tests.md.

A function raises AssertionError where the property does not hold. It may return a remark or the
size of an error for the table.
"""

import copy
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from by_definition import deep_model, logits_by_definition, scaled_stream
from fold_cases import fold_error
from safetensors import safe_open
from tiny_models import ARCHITECTURES, OLD_CACHE_NAMES, logits_of, tiny_model, token_ids
from transformers import AutoModelForCausalLM

from hf_evomerge.building.routed import Routed
from hf_evomerge.checkpoints.source import Source
from hf_evomerge.checkpoints.writer import write_checkpoint
from hf_evomerge.modeling import EvoMergedForCausalLM
from hf_evomerge.modeling.origins import plan_tensors
from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.recipes.recipe import FlowPart, SourceRef
from hf_evomerge.routing.pool import LayerPool

SERIAL = LayerPath.parse(
    "0:0, 1:1, 1:3, 0:1, 1:2, 0:0, 1:3, 0:2", [1, 0.9, 1.1, 1, 1.2, 1, -0.8, 1]
)
SUMS = LayerPath.parse(
    ["0:0", "0:1*0.5 + 1:1*0.5", "1:2 + 0:2 + 0:0*-1", "0:2*1.5"], [1.2, 0.9, -0.8, 1.1]
)
PATHS = {"serial": SERIAL, "sums": SUMS}
NO_MLP_DELTA = {"mamba": "there is no MLP"}
NO_STATIC_CACHE = (
    "gpt_neo",
    *(("bloom",) if OLD_CACHE_NAMES else ()),
)  # the source architecture itself cannot use one
NO_SDPA = {
    "gemma2": "the source class has no sdpa: its scores are capped",
    "gpt_oss": "the source class has no sdpa: its attention has sinks",
    **dict.fromkeys(("gpt_neo", "bloom"), "the source class has no sdpa"),
    "mamba": "there is no attention",
}
TOLERANCE = 5e-5  # of the standard deviation of the logits
Check = Callable[[str, Path], str | None]


class Property(NamedTuple):
    """A property: its check, and the architectures to which it does not apply, with the reason."""

    check: Check
    not_applicable: dict[str, str]


PROPERTIES = {}


def _property(not_applicable=None):
    """Add a check to the table, under the name of its function."""

    def add(check):
        PROPERTIES[check.__name__] = Property(check, not_applicable or {})
        return check

    return add


@lru_cache(maxsize=2)
def pool_of(architecture):
    """A source of three layers and one of four. Kept for the next property: a check that changes
    weights copies them first."""
    return LayerPool([tiny_model(architecture, 3), tiny_model(architecture, 4, seed=1)])


@lru_cache(maxsize=6)
def model_of(architecture, path, scale_target="stream"):
    """The merged model of one of the `PATHS`, kept as well."""
    return pool_of(architecture).model(PATHS[path], scale_target)


def scale_targets(architecture):
    """The scale targets that the architecture knows."""
    return ["stream"] if architecture in NO_MLP_DELTA else ["stream", "mlp_delta"]


def generated(model, ids=None, *, seed=None, **options):
    """Tokens after the prompt, greedy by default; token 0 is padding."""
    ids = token_ids() if ids is None else ids
    if seed is not None:
        torch.manual_seed(seed)
    fixed = {
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "attention_mask": (ids != 0).long(),
    }
    return model.generate(ids, **{"max_new_tokens": 6, **fixed, **options})[:, ids.shape[1] :]


def defined(architecture, path, target):
    """The logits of the equation."""
    models = pool_of(architecture).models
    return logits_by_definition(architecture, models, path, target, token_ids())


def close(found, wanted):
    """Whether logits are equal but for rounding."""
    return bool((found - wanted).abs().max() <= TOLERANCE * wanted.std())


@_property()
def identity(architecture, folder):
    """The path that runs a source as it is gives that source's logits, whatever the scale target
    and the embedding source."""
    pool = pool_of(architecture)
    for target in ("stream", "mlp_delta"):
        merged = pool.model(LayerPath.parse("0:0-2"), target)
        assert torch.equal(logits_of(merged), logits_of(pool.models[0]))
    other = LayerPool(pool.models, embedding_source=1).model(LayerPath.parse("1:0-3"))
    assert torch.equal(logits_of(other), logits_of(pool.models[1]))


@_property()
def stream(architecture, folder):
    """With repeats and scales of the stream it is a plain deep model of copies: logits, and cached
    greedy tokens."""
    model = model_of(architecture, "serial")
    deep = scaled_stream(
        deep_model(architecture, pool_of(architecture).models, SERIAL), architecture, SERIAL.scales
    )
    assert close(logits_of(model), logits_of(deep))
    assert torch.equal(generated(model), generated(deep))


@_property(NO_MLP_DELTA)
def mlp_delta(architecture, folder):
    """With scales of the MLPs the logits are those of the equation, and differ from those of the
    stream."""
    logits = logits_of(model_of(architecture, "serial", "mlp_delta"))
    assert close(logits, defined(architecture, SERIAL, "mlp_delta"))
    assert not close(logits, logits_of(model_of(architecture, "serial")))


@_property()
def sums(architecture, folder):
    """Hops of several terms give the logits of the equation, for both scale targets."""
    for target in scale_targets(architecture):
        logits = logits_of(model_of(architecture, "sums", target))
        assert close(logits, defined(architecture, SUMS, target))
    return "stream" if architecture in NO_MLP_DELTA else None


@_property()
def caches(architecture, folder):
    """Greedy tokens are the same with a dynamic cache, no cache and, where the source class can, a
    static cache."""
    for path in PATHS:
        model = model_of(architecture, path)
        tokens = generated(model)
        assert torch.equal(generated(model, use_cache=False), tokens)
        if architecture not in NO_STATIC_CACHE:
            assert torch.equal(generated(model, cache_implementation="static"), tokens)
    return "no static cache" if architecture in NO_STATIC_CACHE else None


@_property()
def left_padding(architecture, folder):
    """A prompt in a left-padded batch gives the tokens that it gives alone."""
    model = model_of(architecture, "serial")
    short = token_ids()[:1, :6]
    padded = torch.cat(
        [torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1), token_ids()[1:]]
    )
    assert torch.equal(generated(model, padded)[:1], generated(model, short))


@_property()
def beams(architecture, folder):
    """Beam search returns several sequences per prompt, the same ones with and without a cache."""
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4}
    _several(model_of(architecture, "sums"), options)


@_property()
def samples(architecture, folder):
    """Sampling with num_return_sequences gives different sequences per prompt, the same ones with
    and without a cache."""
    options = {"num_return_sequences": 3, "do_sample": True, "top_k": 10, "max_new_tokens": 4}
    found = _several(model_of(architecture, "sums"), options)
    assert not torch.equal(found[0], found[1]) or not torch.equal(found[0], found[2])


def _several(model, options):
    cached, plain = (
        generated(model, seed=0, use_cache=cache, **options) for cache in (True, False)
    )
    assert cached.shape == (2 * options["num_return_sequences"], options["max_new_tokens"])
    assert torch.equal(cached, plain)
    return cached


@_property()
def inputs_embeds(architecture, folder):
    """Embeddings in place of tokens give the same logits, and a prompt of embeddings the same
    greedy tokens."""
    model = model_of(architecture, "sums")
    embeddings = model.get_input_embeddings()(token_ids())
    assert close(model(inputs_embeds=embeddings).logits, logits_of(model))
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    written = model.generate(inputs_embeds=embeddings, **options)
    assert torch.equal(written, generated(model))


@_property()
def hidden_states(architecture, folder):
    """A path of n hops has n + 1 hidden states, whatever the number of terms, and a shorter path
    has the same ones so far."""
    for name, path in PATHS.items():
        model = model_of(architecture, name)
        states = model(token_ids(), output_hidden_states=True).hidden_states
        assert len(states) == len(path) + 1
        begin = model.with_path(model.config.path[:3], path.scales[:3])
        assert torch.equal(
            begin(token_ids(), output_hidden_states=True).hidden_states[2], states[2]
        )


@_property()
def checkpointing(architecture, folder):
    """Gradient checkpointing runs every hop again, and changes no gradient."""
    model = copy.deepcopy(model_of(architecture, "sums")).train()
    inside = next(
        module
        for module in list(model.layers[1].modules())[1:]
        if list(module.parameters(recurse=False))
    )
    calls = []
    inside.register_forward_pre_hook(lambda module, args: calls.append(module))
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        calls.clear()
        if enabled:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        with torch.enable_grad():
            model(token_ids(), labels=token_ids(), use_cache=False).loss.backward()
        assert len(calls) == 1 + enabled
        gradients.append(
            {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        )
    for name, gradient in gradients[0].items():
        assert torch.allclose(
            gradients[1][name], gradient, atol=1e-5 * float(gradient.abs().max()) + 1e-8
        ), name


@_property()
def training(architecture, folder):
    """A step against the gradient lowers the loss, reaches every parameter, and leaves repeated
    layers shared."""
    model = copy.deepcopy(model_of(architecture, "serial"))
    with torch.enable_grad():
        before = model(token_ids(), labels=token_ids(), use_cache=False).loss
        before.backward()
    parameters = list(model.parameters())
    assert all(parameter.grad is not None for parameter in parameters)
    norm = torch.cat([parameter.grad.flatten() for parameter in parameters]).norm()
    for parameter in parameters:
        parameter -= 0.02 / norm * parameter.grad
    assert model(token_ids(), labels=token_ids(), use_cache=False).loss < before
    repeated = zip(model.layers[0].parameters(), model.layers[5].parameters(), strict=True)
    assert all(first is again for first, again in repeated)


@_property(NO_SDPA)
def attention(architecture, folder):
    """Both implementations of attention give the same logits."""
    model_of(architecture, "sums").save_pretrained(folder)
    logits = []
    for implementation in ("eager", "sdpa"):
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=implementation)
        assert model.inner.config._attn_implementation == implementation
        logits.append(logits_of(model))
    assert close(*logits)


@_property()
def saved(architecture, folder):
    """What is saved, loaded, deep-copied or built from the sources' files is the same; files hold
    every layer once."""
    pool = pool_of(architecture)
    for number, source in enumerate(pool.models):
        source.save_pretrained(folder / str(number))
    for name, path in PATHS.items():
        model = model_of(architecture, name)
        logits = logits_of(model)
        assert torch.equal(logits_of(copy.deepcopy(model)), logits)
        model.save_pretrained(folder / name / "saved")
        flow = FlowPart(path=path.as_text(), scales=path.scales)
        refs = [SourceRef(model="first"), SourceRef(model="second")]
        opened = [Source(folder / str(number), ref) for number, ref in enumerate(refs)]
        write_checkpoint(Routed(opened, flow), folder / name / "built")
        for where in (folder / name / "saved", folder / name / "built"):
            again, info = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True)
            assert type(again) is EvoMergedForCausalLM
            assert not info["missing_keys"]
            assert not info["unexpected_keys"]
            assert torch.equal(logits_of(again), logits)
            assert again.num_parameters() == model.num_parameters()
            assert (
                set(safe_open(where / "model.safetensors", "pt").keys())
                == plan_tensors(model.config).keys()
            )


@_property()
def offloaded(architecture, folder):
    """With all of the model on disk (accelerate) the logits are the same, and what it saves is the
    same file."""
    model = model_of(architecture, "serial")
    model.save_pretrained(folder / "saved")
    again = AutoModelForCausalLM.from_pretrained(
        folder / "saved", device_map={"": "disk"}, offload_folder=folder / "disk"
    )
    assert {parameter.device.type for parameter in again.parameters()} == {"meta"}
    assert close(logits_of(again), logits_of(model))
    again.save_pretrained(folder / "resaved")
    saved, resaved = (
        (folder / name / "model.safetensors").read_bytes() for name in ("saved", "resaved")
    )
    assert saved == resaved


@_property()
def threads(architecture, folder):
    """Four threads that generate at once, two on a model and two on another path over its layers,
    get what each gets alone."""
    model = model_of(architecture, "serial", scale_targets(architecture)[-1])
    sibling = model.with_path(model.config.path[::-1], [0.7] * len(SERIAL), scale_target="stream")
    race([model, sibling], token_ids(), rounds=1)


def race(models, ids, *, rounds):
    """Two threads per model generate at the same time, round after round; every result must be that
    of one thread alone."""
    prompts = [ids[:1], ids[1:, :5]]
    wanted = {
        (m, p): generated(model, prompt)
        for m, model in enumerate(models)
        for p, prompt in enumerate(prompts)
    }
    found = []
    start = threading.Barrier(len(wanted))

    def work(key):
        for _ in range(rounds):
            start.wait(timeout=60)
            found.append((key, generated(models[key[0]], prompts[key[1]])))

    workers = [threading.Thread(target=work, args=(key,)) for key in wanted]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == rounds * len(wanted)
    assert all(torch.equal(tokens, wanted[key]) for key, tokens in found)


@_property()
def fold_stream(architecture, folder):
    """The folded checkpoint is a plain model of the same greedy tokens; the cell is the largest
    difference of a logit."""
    return _size(fold_error(architecture, {}, "stream", folder))


@_property()
def fold_mlp_delta(architecture, folder):
    """The same with scales of the MLPs; of the embeddings alone where mlp_delta does not apply."""
    return _size(fold_error(architecture, {}, "mlp_delta", folder))


def _size(error):
    return f"{error:.0e}" if error else "0"


CASES = [
    (architecture, name)
    for architecture in ARCHITECTURES
    for name, item in PROPERTIES.items()
    if architecture not in item.not_applicable
]
