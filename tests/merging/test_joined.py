"""Adapters that run on their base without being merged, against the same merges written into a
whole model."""

import copy
import itertools

import pytest
import torch
from peft import PeftModel
from refusals import refused
from slowly import slow_beyond
from tiny_adapters import save_adapter
from tiny_models import ARCHITECTURES, FAMILIES, tiny_model, token_ids
from transformers import AutoModelForCausalLM

from hf_evomerge.building.build import build_model
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import EvoMergeError, SourceError
from hf_evomerge.merging.gradient import MergeGradient
from hf_evomerge.merging.joined import JoinedAdapters, why_merged
from hf_evomerge.merging.live import LiveMerger
from hf_evomerge.recipes.recipe import Recipe, SourceRef
from hf_evomerge.search.evaluation.quantization import keep_differentiable, packed

ADAPTERS = {
    "two of one rank": [{"r": 4}, {"r": 4}],
    "ranks that differ": [{"r": 2}, {"r": 8}, {"r": 1}],
    "rsLoRA and alpha": [{"r": 4, "use_rslora": True, "lora_alpha": 3}, {"r": 4, "lora_alpha": 32}],
    "patterns": [
        {"r": 4, "rank_pattern": {"layers.1.*": 2}, "alpha_pattern": {"q_proj": 5}},
        {"r": 2},
    ],
    "other modules": [
        {"r": 4, "target_modules": ["q_proj", "down_proj"]},
        {"r": 4, "target_modules": ["v_proj", "q_proj"]},
    ],
}
# What peft takes adapters for, where that is not every linear layer.
SOME = {name: ["q_proj", "o_proj"] for name in ("mixtral", "qwen3_moe", "gpt_oss")} | {
    "mamba": ["in_proj"]
}  # else peft refuses
NAME = "model.layers.1.self_attn.q_proj.weight"
WEIGHTS = {
    "whole model": ([{"weight": 0.7}, {"weight": -0.4}, {"weight": 1.3}], {}),
    "groups and lambda": (
        [{"weight": {"embed": 0.3, "*mlp*": 0.0, "default": 1.1}}, {"weight": 0.5}, {}],
        {"lambda": 0.6},
    ),
    "rows": (
        [
            {"weight": {NAME: [0.1, 0.9, -0.5], "default": 0.2}},
            {"weight": {NAME: [1.0, 0.0], "default": 0.7}},
            {},
        ],
        {},
    ),
}
DIAGONAL = list(zip(ADAPTERS, itertools.cycle(WEIGHTS), strict=False))


def save_adapters(folder, base, configs):
    """Save random adapters of a base, and open them."""
    sources = []
    for number, config in enumerate(configs):
        adapter = save_adapter(base, folder / f"adapter{number}", number, **config)
        sources.append(open_source(SourceRef(model=str(base), adapter=str(adapter))))
    return sources, open_source(str(base))


def logits(model):
    """What the model says of some tokens."""
    with torch.inference_mode():
        found = model(token_ids()).logits
        return found


@pytest.mark.parametrize(
    ("adapters", "weights"), slow_beyond(DIAGONAL, itertools.product(ADAPTERS, WEIGHTS))
)
def test_unmerged_equals_merged(adapters, weights, family, load, tmp_path):
    """Unmerged adapters say the same as the merged model, and have the same gradient, for each kind
    of number."""
    sources, base = save_adapters(tmp_path, family / "base", ADAPTERS[adapters])
    parameters, options = WEIGHTS[weights]
    parameters = parameters[: len(sources)]
    whole = load(family / "base")
    light = load(family / "base").requires_grad_(False)
    merger = LiveMerger(sources, base, "task_arithmetic", {}, 0, whole)
    joined = JoinedAdapters(sources, base, "task_arithmetic", light)
    merger.apply(parameters, options)
    joined.apply(parameters, options)
    assert not torch.allclose(logits(whole), logits(load(family / "base")), atol=1e-2)
    assert torch.allclose(logits(whole), logits(light), atol=2e-5)

    def loss(model):
        return model(token_ids(), labels=token_ids()).loss.backward()

    wanted = MergeGradient(merger, whole)(parameters, options, lambda: loss(whole))
    found = joined.gradient(parameters, options, lambda: loss(light))
    assert set(found) <= set(wanted)
    for number, slope in wanted.items():
        assert found.get(number, 0.0) == pytest.approx(slope, rel=1e-3, abs=1e-5), number
    assert found == joined.gradient(parameters, options, lambda: loss(light))


CORE = {
    "ties": ([{"weight": 0.7, "density": 0.6}, {"weight": {"*mlp*": 0.4, "default": 0.9}}], {}),
    "slerp": ([{}, {}], {"t": 0.3}),
    "linear": (
        [{"weight": {NAME: [0.1, 0.9, -0.5], "default": 0.2}}, {"weight": {NAME: [1.0, 0.3]}}],
        {"normalize": False},
    ),
    "nuslerp": ([{"weight": 0.7}, {"weight": 0.4}], {}),
}


@pytest.mark.parametrize("method", CORE)
def test_core_space_is_the_adapter_that_is_built(method, family, load, tmp_path):
    """Candidates in core space say what the built adapter says, and slopes are those of
    differences."""
    sources, base = save_adapters(tmp_path, family / "base", ADAPTERS["other modules"])
    parameters, options = CORE[method]
    if method == "linear":
        parameters = [parameters[0], {"weight": {**parameters[1]["weight"], "default": 0.7}}]
    model = load(family / "base").double().requires_grad_(False)
    joined = JoinedAdapters(sources, base, method, model, core=True, seed=5)

    def loss():
        """In float64, so that differences have digits."""
        said = model(token_ids()).logits[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(said, token_ids()[:, 1:].flatten())

    found = joined.gradient(parameters, options, lambda: loss().backward())
    refs = [source.ref.model_dump() for source in sources]
    merge = {"method": method, "core_space": True, "parameters": parameters, "options": options}
    recipe = {"sources": refs, "base": base.ref.model_dump(), "merge": merge, "seed": 5}
    folder = build_model(Recipe.model_validate(recipe), tmp_path / "out")
    tuned = PeftModel.from_pretrained(load(family / "base").double(), folder).eval()
    assert torch.allclose(logits(model), logits(tuned), atol=2e-5)
    assert any(found.values())
    for (name, source, key), slope in found.items():
        ends = []
        for step in (1e-3, -1e-3):
            moved = copy.deepcopy(options if source is None else parameters[source])
            if isinstance(key, tuple):
                moved[name][key[0]][key[1]] += step
            elif key is not None:
                moved[name][key] += step
            else:
                moved[name] = moved.get(name, 1.0) + step
            others = [moved if at == source else own for at, own in enumerate(parameters)]
            joined.apply(others, moved if source is None else options)
            ends.append(float(loss()))
        wanted = (ends[0] - ends[1]) / 2e-3
        assert slope == pytest.approx(wanted, rel=0.02, abs=2e-6), (name, source, key)


def test_a_layer_that_the_score_does_not_pass_has_no_slope(family, load, tmp_path):
    """An encoder's pooler may have an adapter, and a score without it: only the others' slopes
    count."""
    sources, base = save_adapters(tmp_path, family / "base", ADAPTERS["two of one rank"])
    model = load(family / "base").requires_grad_(False)
    joined = JoinedAdapters(sources, base, "task_arithmetic", model)
    weights = [{"weight": {NAME: 0.5, "default": 0.7}}, {"weight": 0.5}]

    def first_layer():
        model.model(token_ids(), output_hidden_states=True).hidden_states[1].sum().backward()

    found = joined.gradient(weights, {}, first_layer)
    assert found["weight", 0, NAME] == 0
    assert found["weight", 1, None] != 0


def test_the_gradient_on_a_quantised_base(family, load, tmp_path):
    """On a base of 4 bits slopes are those of differences, also where scores without a gradient
    came before."""
    sources, base = save_adapters(tmp_path, family / "base", ADAPTERS["two of one rank"])
    model = AutoModelForCausalLM.from_pretrained(
        family / "base", **packed("4bit", torch.float32, "cpu")
    ).eval()
    keep_differentiable(model.requires_grad_(False))
    joined = JoinedAdapters(sources, base, "task_arithmetic", model)

    def loss(weight):
        joined.apply([{"weight": weight}, {"weight": 0.3}])
        with torch.no_grad():
            return float(model(token_ids(), labels=token_ids()).loss)

    wanted = (loss(0.51) - loss(0.49)) / 0.02

    def backward():
        model(token_ids(), labels=token_ids()).loss.backward()

    found = joined.gradient([{"weight": 0.5}, {"weight": 0.3}], {}, backward)
    assert found["weight", 0, None] == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("architecture", slow_beyond(FAMILIES, ARCHITECTURES))
def test_every_architecture(architecture, tmp_path):
    """Adapters of all linear layers say the same unmerged as merged, or the reason is said before
    anything is loaded."""
    tiny_model(architecture).save_pretrained(tmp_path / "base")
    targets = SOME.get(architecture, "all-linear")
    sources, base = save_adapters(
        tmp_path, tmp_path / "base", [{"r": rank, "target_modules": targets} for rank in (2, 3)]
    )
    refused = why_merged(sources, base, "task_arithmetic", {}) is not None
    assert refused == (architecture == "gpt2")  # its linear layers are stored the other way round
    if refused:
        return
    whole, light = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval() for _ in range(2)
    )
    weights = [{"weight": 0.8}, {"weight": 0.6}]
    LiveMerger(sources, base, "task_arithmetic", {}, 0, whole).apply(weights)
    JoinedAdapters(sources, base, "task_arithmetic", light).apply(weights)
    assert torch.allclose(logits(whole), logits(light), atol=1e-4)


@pytest.mark.parametrize(("method", "core"), [("task_arithmetic", False), ("ties", True)])
def test_one_adapter_alone_is_what_peft_has(method, core, family, load, tmp_path):
    """A source alone says what peft's unmerged model says, and no source what the base says."""
    sources, base = save_adapters(tmp_path, family / "base", ADAPTERS["rsLoRA and alpha"])
    model = load(family / "base")
    joined = JoinedAdapters(sources, base, method, model, core=core)
    for number in (1, 0):
        joined.run_alone(number)
        by_peft = PeftModel.from_pretrained(
            load(family / "base"), tmp_path / f"adapter{number}"
        ).eval()
        assert torch.allclose(logits(model), logits(by_peft), atol=1e-5)
    joined.run_alone(None)
    assert torch.equal(logits(model), logits(load(family / "base")))


def test_other_adapters_are_merged(family, load, tmp_path):
    """An adapter that is no plain product is refused before its hooks are set."""
    sources, base = save_adapters(tmp_path, family / "base", [{"r": 2}, {"r": 2, "use_dora": True}])
    with refused(SourceError, r"by more than .* \(DoRA\); write unmerged: false"):
        JoinedAdapters(sources, base, "task_arithmetic", load(family / "base"))


def test_what_is_merged_instead(family, tmp_path):
    """A method that is no sum of task vectors, whole models, adapters of another base or of none,
    and a change of what one source gives: the reason says so."""
    sources, base = save_adapters(tmp_path, family / "base", [{"r": 2}])
    whole = open_source(str(family / "source0"))
    other = open_source(str(family / "source1"))
    for line, method, options, *given in (
        ("ties is not the sum", "ties", {}, sources, base),
        ("linear is not", "linear", {}, sources, base),
        ("is not the", "task_arithmetic", {"normalize": True}, sources, base),
        ("is no LoRA", "task_arithmetic", {}, [*sources, whole], base),
        ("is no adapter of", "task_arithmetic", {}, sources, other),
    ):
        assert line in (why_merged(*given, method, options) or ""), line
    assert why_merged(sources, base, "ties", {}, core=True) is None
    kept = list(sources[0].changes)[:1]
    assert "not merged)" in why_merged(sources, base, "task_arithmetic", {}, kept=kept)


def test_more_numbers_than_rows(family, load, tmp_path):
    """More numbers than a tensor has rows are refused, as by a build."""
    sources, base = save_adapters(tmp_path, family / "base", [{"r": 2}])
    joined = JoinedAdapters(sources, base, "task_arithmetic", load(family / "base"))
    with refused(EvoMergeError, "33 numbers for the 32 rows"):
        joined.apply([{"weight": {NAME: [1.0] * 33, "default": 1.0}}])
