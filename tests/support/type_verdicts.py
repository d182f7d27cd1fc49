"""What the merged model does with each type of causal language model in transformers: works, works
in place, refuses.

Knows the types' tiny models and the package. `refusal` builds on the meta device only and is cheap;
`verdict` runs everything.
"""

import re
from typing import NamedTuple

import torch
from every_type import tiny_config, tiny_source
from tiny_models import logits_of, token_ids
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from hf_evomerge import (
    EvoMergedConfig,
    EvoMergedForCausalLM,
    EvoMergeError,
    FlowPart,
    LayerPath,
    LayerPool,
    SourceRef,
)
from hf_evomerge.building.routed import Routed
from hf_evomerge.checkpoints.source import Source
from hf_evomerge.checkpoints.writer import write_checkpoint
from hf_evomerge.modeling import check_alike
from hf_evomerge.modeling.layers_evo_merged import find_layers

# Two sources of four layers each.
IDENTITY = LayerPath.parse("0:0-3")
MOVED = LayerPath.parse("0:0, 1:1, 1:3, 0:1, 1:2, 0:0, 1:3, 0:2")
SUMS = LayerPath.parse(["0:0", "0:1*0.5 + 1:1*0.5", "1:3", "0:2"])
WORKS = "works"
IN_PLACE = "in place"
REFUSED = "refused"
PLAIN_FAILS = "the plain class fails"
FAILS = "NO"
SEES = "sees"


class Verdict(NamedTuple):
    """The outcome for one type of model, and its reason or a remark."""

    outcome: str
    why: str = ""


def refusal(model_type):
    """How the configuration alone refuses a type, or a path that moves its layers; None where it
    does not."""
    kind = CONFIG_MAPPING[model_type]
    try:
        check_alike([kind() if composite(kind) else tiny_config(model_type, 4)])
    except ValueError as cause:
        return Verdict(REFUSED, reason(cause))
    config = tiny_config(model_type, 4)
    for path, outcome in ((IDENTITY, REFUSED), (MOVED, IN_PLACE)):
        try:
            EvoMergedConfig.from_sources([config, config], path.as_text())
        except ValueError as cause:
            return Verdict(outcome, reason(cause))
    return Verdict(SEES) if composite(CONFIG_MAPPING[model_type]) else None


def composite(kind):
    """Whether a config has parts that are models, or an encoder: made without arguments, it is
    enough to be refused."""
    return "text_config" in kind.sub_configs or bool(
        kind.sub_configs.keys() - {"attn_config", "ffn_config"}
    )


def verdict(model_type, folder):
    """Make, run, save, build and load a type's models."""
    try:
        early = refusal(model_type)
    except Exception as cause:
        return Verdict(PLAIN_FAILS, reason(cause))
    if early is not None and (
        early.outcome in (REFUSED, SEES) or composite(CONFIG_MAPPING[model_type])
    ):
        return early
    try:
        sources = [tiny_source(model_type, 4, seed) for seed in (0, 1)]
        remark = plain(sources, folder)
    except Exception as cause:
        return Verdict(PLAIN_FAILS, reason(cause))
    try:
        unbuilt = check(sources, IDENTITY, folder / "identity", cached=not remark)
        if early is None:
            check(sources, MOVED, folder / "moved", cached=not remark)
        unsummed = ""
        try:
            if early is None:
                check(sources, SUMS, folder / "sums", cached=not remark)
        except EvoMergeError as cause:
            unsummed = reason(cause)
    except EvoMergeError as cause:
        return Verdict(REFUSED, reason(cause))
    except Exception as cause:
        return Verdict(FAILS, reason(cause))
    outcome, why = early or (WORKS, "")
    return Verdict(outcome, "; ".join(filter(None, (why, remark, unbuilt, unsummed))))


def plain(sources, folder):
    """Save the sources; raises where the plain class cannot run, or gives something else when it is
    loaded again.

    Returns a remark where it computes something else without a cache.
    """
    logits = logits_of(sources[0])
    assert torch.isfinite(logits).all(), "logits are not finite"
    steps = [
        torch.cat([greedy(source, use_cache=cache) for source in sources])
        for cache in (True, False)
    ]
    for number, source in enumerate(sources):
        source.save_pretrained(folder / str(number))
    assert alike(AutoModelForCausalLM.from_pretrained(folder / "0"), sources[0]), (
        "it is another model when it is loaded again"
    )
    return "" if close(*steps) else "the plain class's logits depend on the cache"


def check(sources, path, folder, *, cached):
    """What is made in memory, saved and loaded, rerouted and built from files is one model, whose
    layers compute as at home.

    Returns why it cannot be built from files, if so.
    """
    model = LayerPool(sources).model(path)
    logits = logits_of(model)
    if path is IDENTITY:
        assert torch.equal(logits, logits_of(sources[0])), "the identity path is not the source"
    assert torch.equal(logits_of(model.with_path(model.config.path)), logits), "with_path differs"
    model.save_pretrained(folder / "saved")
    flow = FlowPart(path=path.as_text(), scales=path.scales)
    files = [
        Source(folder.parent / str(number), SourceRef(model=str(number)))
        for number in range(len(sources))
    ]
    unbuilt = ""
    try:
        write_checkpoint(Routed(files, flow), folder / "built")
    except EvoMergeError as cause:
        unbuilt = f"not built from files: {reason(cause)}"
    for name in ("saved", *([] if unbuilt else ["built"])):
        again = AutoModelForCausalLM.from_pretrained(folder / name)
        assert type(again) is EvoMergedForCausalLM
        assert alike(again, model), f"{name}: another model when it is loaded"
    if cached:
        assert close(greedy(model, use_cache=True), greedy(model, use_cache=False)), (
            "logits depend on the cache"
        )
    counts = [
        len(each(token_ids(), output_hidden_states=True).hidden_states or ())
        for each in (model, sources[0])
    ]
    assert not counts[1] or counts[0] - len(path) == counts[1] - len(IDENTITY), (
        "hidden states are not counted by hop"
    )
    if path is not SUMS:
        assert at_home(model, sources), "a layer computes something else than in its source"
    return unbuilt


def at_home(model, sources):
    """Whether every hop returns what the source's own layer returns for the same arguments."""
    own = []
    for source in sources:
        layers = find_layers(source, source.config.num_hidden_layers)
        own.append(list(source.get_submodule(layers).children()))
    calls = []
    hooks = [
        layer.register_forward_hook(
            lambda module, *call, slot=slot: calls.append((slot, *call)), with_kwargs=True
        )
        for slot, layer in enumerate(model.layers)
    ]
    model(token_ids(), use_cache=False)
    for hook in hooks:
        hook.remove()
    same = []
    for slot, args, kwargs, output in calls:
        source, layer = model.config.slots[slot]
        found = own[source][layer](*args, **kwargs)
        if isinstance(found, tuple | list):
            found = found[0]
            output = output[0]
        same.append(torch.equal(found, output))
    return bool(same) and all(same)


def alike(again, model):
    """Whether two models have the same bits in every tensor, buffers included, and the same logits
    but for rounding."""
    ours, theirs = (
        {**each.state_dict(), **dict(each.named_buffers(remove_duplicate=False))}
        for each in (model, again)
    )
    if ours.keys() != theirs.keys():
        return False
    if not all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()):
        return False
    wanted = logits_of(model)
    return bool((logits_of(again) - wanted).abs().max() <= 1e-5 * wanted.std())


def greedy(model, **options):
    """The logits of each step of a greedy generation."""
    steps = model.generate(
        token_ids(),
        attention_mask=torch.ones_like(token_ids()),
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return torch.stack(steps.logits)


def close(found, wanted):
    """Whether logits are equal but for rounding."""
    return bool((found - wanted).abs().max() <= 1e-3 * wanted.std())


def row(line):
    """A line of the table in benchmarks/pages/model-tests.md as a type and its verdict; None where
    it is another line."""
    cells = re.split(r"(?<!\\) *\| *", line.strip())[1:-1]
    known = len(cells) == 3 and cells[1] in (WORKS, IN_PLACE, REFUSED, SEES, PLAIN_FAILS, FAILS)
    return (cells[0].strip(), Verdict(cells[1], cells[2])) if known else None


def reason(cause):
    """An error as a cell of a table: one line, without the field's name."""
    text = " ".join(str(cause).split()).replace("|", "\\|")
    text = re.sub(r"^text_config\.\w+: ", "", text)
    if not isinstance(cause, EvoMergeError | ValueError | AssertionError):
        text = f"{type(cause).__name__}: {text}"
    return text[:200]
