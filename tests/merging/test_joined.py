"""Adapters that run on their base without being merged, against the same merges written into a
whole model."""

import itertools

import pytest
import torch
import yaml
from method_cases import check_slopes
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

# Configs of peft.
ADAPTERS = yaml.safe_load("""
two of one rank: [{r: 4}, {r: 4}]
ranks that differ: [{r: 2}, {r: 8}, {r: 1}]
rsLoRA and alpha: [{r: 4, use_rslora: true, lora_alpha: 3}, {r: 4, lora_alpha: 32}]
patterns: [{r: 4, rank_pattern: {layers.1.*: 2}, alpha_pattern: {q_proj: 5}}, {r: 2}]
other modules:
- {r: 4, target_modules: [q_proj, down_proj]}
- {r: 4, target_modules: [v_proj, q_proj]}
""")
# What peft takes adapters for, where that is not every linear layer.
SOME = {name: ["q_proj", "o_proj"] for name in ("mixtral", "qwen3_moe", "gpt_oss")} | {
    "mamba": ["in_proj"]
}  # else peft refuses
NAME = "model.layers.1.self_attn.q_proj.weight"
# Parameters of sources, and options.
WEIGHTS = yaml.safe_load("""
whole model: [[{weight: 0.7}, {weight: -0.4}, {weight: 1.3}], {}]
groups and lambda:
- [{weight: {embed: 0.3, "*mlp*": 0.0, default: 1.1}}, {weight: 0.5}, {}]
- {lambda: 0.6}
rows:
- - weight: {model.layers.1.self_attn.q_proj.weight: [0.1, 0.9, -0.5], default: 0.2}
  - weight: {model.layers.1.self_attn.q_proj.weight: [1.0, 0.0], default: 0.7}
  - {}
- {}
""")
CORE = yaml.safe_load("""
ties: [[{weight: 0.7, density: 0.6}, {weight: {"*mlp*": 0.4, default: 0.9}}], {}]
slerp: [[{}, {}], {t: 0.3}]
linear:
- - weight: {model.layers.1.self_attn.q_proj.weight: [0.1, 0.9, -0.5], default: 0.2}
  - weight: {model.layers.1.self_attn.q_proj.weight: [1.0, 0.3], default: 0.7}
- {normalize: false}
nuslerp: [[{weight: 0.7}, {weight: 0.4}], {}]
""")
DIAGONAL = list(zip(ADAPTERS, itertools.cycle(WEIGHTS), strict=False))


def save_adapters(folder, base, configs):
    """Save random adapters of a base, and open them."""
    sources = []
    for number, config in enumerate(configs):
        adapter = save_adapter(base, folder / f"adapter{number}", number, **config)
        sources.append(open_source(SourceRef(model=str(base), adapter=str(adapter))))
    return sources, open_source(str(base))


@pytest.fixture
def adapters(family, tmp_path):
    """Saves and opens adapters of the family's base, by the name of their kind or their configs."""
    return lambda kind: save_adapters(
        tmp_path, family / "base", ADAPTERS[kind] if isinstance(kind, str) else kind
    )


@pytest.fixture
def whole(family, load):
    """The base in memory."""
    return load(family / "base").requires_grad_(False)


def logits(model):
    """What the model says of some tokens."""
    with torch.inference_mode():
        return model(token_ids()).logits


def loss(model):
    """How far the model is from repeating some tokens."""
    return model(token_ids(), labels=token_ids()).loss


@pytest.mark.parametrize(
    ("kind", "weights"), slow_beyond(DIAGONAL, itertools.product(ADAPTERS, WEIGHTS))
)
def test_unmerged_equals_merged(kind, weights, adapters, family, load, whole):
    """Unmerged adapters say the same as the merged model, and have the same gradient, for each kind
    of number."""
    sources, base = adapters(kind)
    parameters, options = WEIGHTS[weights]
    parameters = parameters[: len(sources)]
    light = load(family / "base").requires_grad_(False)
    before = logits(light)
    merger = LiveMerger(sources, base, "task_arithmetic", {}, 0, whole.requires_grad_())
    joined = JoinedAdapters(sources, base, "task_arithmetic", light)
    merger.apply(parameters, options)
    joined.apply(parameters, options)
    assert not torch.allclose(logits(whole), before, atol=1e-2)
    assert torch.allclose(logits(whole), logits(light), atol=2e-5)
    gradient = MergeGradient(merger, whole)
    wanted = gradient(parameters, options, lambda: loss(whole).backward())
    found = joined.gradient(parameters, options, lambda: loss(light).backward())
    assert set(found) <= set(wanted)
    for number, slope in wanted.items():
        assert found.get(number, 0.0) == pytest.approx(slope, rel=1e-3, abs=1e-5), number
    assert found == joined.gradient(parameters, options, lambda: loss(light).backward())


@pytest.mark.parametrize("method", CORE)
def test_core_space_is_the_adapter_that_is_built(method, adapters, family, load, whole, tmp_path):
    """Candidates in core space say what the built adapter says, and slopes are those of
    differences."""
    sources, base = adapters("other modules")
    parameters, options = CORE[method]
    model = whole.double()  # so that differences have digits
    joined = JoinedAdapters(sources, base, method, model, core=True, seed=5)

    def loss():
        """In float64 to the end."""
        said = model(token_ids()).logits[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(said, token_ids()[:, 1:].flatten())

    found = joined.gradient(parameters, options, lambda: loss().backward())
    merge = {"method": method, "core_space": True, "parameters": parameters, "options": options}
    recipe = Recipe(sources=[each.ref for each in sources], base=base.ref, merge=merge, seed=5)
    folder = build_model(recipe, tmp_path / "out")
    tuned = PeftModel.from_pretrained(load(family / "base").double(), folder).eval()
    assert torch.allclose(logits(model), logits(tuned), atol=2e-5)
    assert any(found.values())

    def measure(values, options):
        joined.apply(values, options)
        return float(loss())

    check_slopes(found, parameters, options, measure, 1e-3, rel=0.02, abs=2e-6)


def test_a_layer_that_the_score_does_not_pass_has_no_slope(adapters, whole):
    """An encoder's pooler may have an adapter, and a score without it: only the others' slopes
    count."""
    joined = JoinedAdapters(*adapters("two of one rank"), "task_arithmetic", whole)
    weights = [{"weight": {NAME: 0.5, "default": 0.7}}, {"weight": 0.5}]

    def first_layer():
        whole.model(token_ids(), output_hidden_states=True).hidden_states[1].sum().backward()

    found = joined.gradient(weights, {}, first_layer)
    assert found["weight", 0, NAME] == 0
    assert found["weight", 1, None] != 0


def test_the_gradient_on_a_quantised_base(adapters, family):
    """On a base of 4 bits slopes are those of differences, also where scores without a gradient
    came before."""
    settings = packed("4bit", torch.float32, "cpu")
    model = AutoModelForCausalLM.from_pretrained(family / "base", **settings).eval()
    keep_differentiable(model.requires_grad_(False))
    joined = JoinedAdapters(*adapters("two of one rank"), "task_arithmetic", model)
    ends = []
    for weight in (0.51, 0.49):
        joined.apply([{"weight": weight}, {"weight": 0.3}])
        with torch.no_grad():
            ends.append(float(loss(model)))
    numbers = [{"weight": 0.5}, {"weight": 0.3}]
    found = joined.gradient(numbers, {}, lambda: loss(model).backward())
    assert found["weight", 0, None] == pytest.approx((ends[0] - ends[1]) / 0.02, rel=0.02)


@pytest.mark.parametrize("architecture", slow_beyond(FAMILIES, ARCHITECTURES))
def test_every_architecture(architecture, tmp_path):
    """Adapters of all linear layers say the same unmerged as merged, or the reason is said before
    anything is loaded."""
    folder = tmp_path / "base"
    tiny_model(architecture).save_pretrained(folder)
    targets = SOME.get(architecture, "all-linear")
    configs = [{"r": rank, "target_modules": targets} for rank in (2, 3)]
    sources, base = save_adapters(tmp_path, folder, configs)
    refused = why_merged(sources, base, "task_arithmetic", {}) is not None
    assert refused == (architecture == "gpt2")  # its linear layers are stored the other way round
    if refused:
        return
    whole, light = (AutoModelForCausalLM.from_pretrained(folder).eval() for _ in range(2))
    weights = [{"weight": 0.8}, {"weight": 0.6}]
    LiveMerger(sources, base, "task_arithmetic", {}, 0, whole).apply(weights)
    JoinedAdapters(sources, base, "task_arithmetic", light).apply(weights)
    assert torch.allclose(logits(whole), logits(light), atol=1e-4)


@pytest.mark.parametrize(("method", "core"), [("task_arithmetic", False), ("ties", True)])
def test_one_adapter_alone_is_what_peft_has(method, core, adapters, family, load, whole, tmp_path):
    """A source alone says what peft's unmerged model says, and no source what the base says."""
    before = logits(whole)
    joined = JoinedAdapters(*adapters("rsLoRA and alpha"), method, whole, core=core)
    for number in (1, 0):
        joined.run_alone(number)
        by_peft = PeftModel.from_pretrained(load(family / "base"), tmp_path / f"adapter{number}")
        assert torch.allclose(logits(whole), logits(by_peft.eval()), atol=1e-5)
    joined.run_alone(None)
    assert torch.equal(logits(whole), before)


def test_what_is_merged_instead(adapters, family, whole):
    """A method that is no sum of task vectors, whole models, adapters of another base or of none,
    what is no plain product, and a change of what one source gives: the reason says so."""
    sources, base = adapters([{"r": 2}, {"r": 2, "use_dora": True}])
    with refused(SourceError, r"by more than .* \(DoRA\); write unmerged: false"):
        JoinedAdapters(sources, base, "task_arithmetic", whole)
    sources = sources[:1]
    others = [open_source(str(family / f"source{number}")) for number in range(2)]
    for line, method, options, *given in (
        ("ties is not the sum", "ties", {}, sources, base),
        ("linear is not", "linear", {}, sources, base),
        ("is not the", "task_arithmetic", {"normalize": True}, sources, base),
        ("is no LoRA", "task_arithmetic", {}, [*sources, others[0]], base),
        ("is no adapter of", "task_arithmetic", {}, sources, others[1]),
    ):
        assert line in (why_merged(*given, method, options) or ""), line
    assert why_merged(sources, base, "ties", {}, core=True) is None
    kept = list(sources[0].changes)[:1]
    assert "not merged)" in why_merged(sources, base, "task_arithmetic", {}, kept=kept)


def test_more_numbers_than_rows(adapters, whole):
    """More numbers than a tensor has rows are refused, as by a build."""
    joined = JoinedAdapters(*adapters([{"r": 2}]), "task_arithmetic", whole)
    with refused(EvoMergeError, "33 numbers for the 32 rows"):
        joined.apply([{"weight": {NAME: [1.0] * 33, "default": 1.0}}])
