"""LoRA adapters as part of a source: what peft's own merge gives, everywhere a source is read, or a
refusal in one line."""

import math
import re

import pytest
import torch
import yaml
from classes import edit_json, edited, tensors_of
from peft import PeftModel
from recipes import merge_of, ref_of
from refused import refused
from safetensors.torch import load_file, save_file
from slowly import slow_beyond
from tiny_adapters import save_adapter
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hf_evomerge.building.build import check_recipe
from hf_evomerge.checkpoints.headers import TensorInfo
from hf_evomerge.checkpoints.lora import Adapter
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import SourceError
from hf_evomerge.recipes.recipe import Recipe, SourceRef

BOTH = ["q_proj", "down_proj"]
CASES = yaml.safe_load(r"""
plain: {}
rank-stabilised: {r: 9, use_rslora: true}
patterns: {rank_pattern: {q_proj: 6}, alpha_pattern: {layers\.1\.mlp\.down_proj: 3}}
dora: {use_dora: true}
embeddings: {target_modules: [q_proj, down_proj, embed_tokens]}
modules to save: {modules_to_save: [lm_head]}
a head, saved with its weights: {target_modules: [q_proj, down_proj, lm_head]}
bias: {bias: all}
""")


def base_model(architecture="llama", dtype=torch.float32):
    """A small random model; the Llama has biases and a head of its own."""
    fields = {"attention_bias": True} if architecture == "llama" else {}
    return tiny_model(architecture, 2, **fields).to(dtype)


@pytest.fixture
def adapted(tmp_path):
    """Saves a base and an adapter of it; gives their folders."""

    def save(architecture="llama", dtype=torch.float32, **settings):
        base = tmp_path / "base"
        base_model(architecture, dtype).save_pretrained(base)
        given = {"target_modules": BOTH, **settings}
        return base, save_adapter(base, tmp_path / "adapter", 1, **given)

    return save


def merged_by_peft(base, adapter):
    """The tensors that peft's merge_and_unload gives."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    return dict(model.merge_and_unload().state_dict())


def opened(base, adapter):
    """The base with the adapter."""
    return open_source(SourceRef(**ref_of((base, adapter))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_it_is_what_peft_merges(case, dtype, adapted):
    """Every tensor equals that of merge_and_unload: to 1e-6 in float32, and in bfloat16 but for one
    rounding in a thousand."""
    base, adapter = adapted(dtype=dtype, **CASES[case])
    expected = merged_by_peft(base, adapter)
    before = tensors_of(base)
    source = opened(base, adapter)
    changed = [name for name in source.tensors if not torch.equal(source.read(name), before[name])]
    assert changed
    assert sorted(changed) == sorted(source.changes)
    for name, info in source.tensors.items():
        found = source.read(name)
        assert (found.dtype, found.shape) == (dtype, info.shape)
        if dtype == torch.float32:
            assert torch.allclose(found, expected[name], atol=1e-6, rtol=1e-6), name
        else:
            twice = "embed" in name  # peft rounds the difference of embeddings before it adds it
            assert torch.allclose(found, expected[name], rtol=2**-7, atol=2**-9 if twice else 0), (
                name
            )
            assert (found != expected[name]).float().mean() <= (0.5 if twice else 0.001), name


@pytest.mark.parametrize(
    ("architecture", "said", "settings"),
    [
        ("gpt2", True, "target_modules: [c_attn, c_proj]"),
        ("gpt2", True, "{target_modules: [c_attn, c_proj], use_dora: true}"),
        ("gpt2", False, "target_modules: [attn.c_proj]"),
        ("gpt2", False, "target_modules: [c_attn]"),
        ("llama", True, "{}"),
    ],
)
def test_transposed_layers(architecture, said, settings, adapted):
    """GPT-2 keeps its weights transposed, square ones too; what peft makes of them is made here,
    also where fan_in_fan_out is not the layers' own."""
    given = {"fan_in_fan_out": architecture == "gpt2", **yaml.safe_load(settings)}
    base, adapter = adapted(architecture, **given)
    edit_json(adapter / "adapter_config.json", fan_in_fan_out=said)
    expected = merged_by_peft(base, adapter)
    source = opened(base, adapter)
    assert source.changes
    for name in source.tensors:
        assert torch.allclose(source.read(name), expected[name], atol=1e-6), name


def test_the_bits_do_not_depend_on_threads(adapted):
    """The same adapter gives the same bits with one thread and with several."""
    base, adapter = adapted(r=7)
    source = opened(base, adapter)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 4):
            torch.set_num_threads(threads)
            found.append([source.read(name) for name in source.changes])
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    finally:
        torch.set_num_threads(before)


def test_a_checkpoint_of_the_inner_model(adapted, tmp_path):
    """Tensors saved without the name of the inner model in front are found."""
    base, adapter = adapted("gpt2", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    base_model("gpt2").transformer.save_pretrained(tmp_path / "inner")
    whole = opened(base, adapter)
    inner = opened(tmp_path / "inner", adapter)
    name = "h.1.attn.c_attn.weight"
    assert name in inner.changes
    assert torch.equal(inner.read(name), whole.read(f"transformer.{name}"))


@pytest.mark.parametrize("case", slow_beyond(["dora"], ["plain", "dora", "modules to save"]))
@pytest.mark.parametrize("part", [{"merge": {"method": "linear"}}, {"flow": {"path": ["0:0-1"]}}])
def test_a_change_is_rounded_once_to_the_dtype_of_the_result(case, part, adapted, built, tmp_path):
    """In float32 an adapter of a bfloat16 base keeps what bfloat16 would swallow; in bfloat16 it
    has the stored bits."""
    base, adapter = adapted(dtype=torch.bfloat16, **CASES[case])
    wide = tmp_path / "wide"
    LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(wide)
    source = opened(base, adapter)
    exact = opened(wide, adapter)
    sources = [ref_of((base, adapter))]
    for dtype in ("float32", "float16", "bfloat16"):
        recipe = Recipe.model_validate({"sources": sources, "dtype": dtype, **part})
        found = tensors_of(built(recipe, dtype, whole=True))
        for name in source.changes:
            expected = (
                source.read(name)
                if dtype == "bfloat16"
                else exact.read(name).to(getattr(torch, dtype))
            )
            tensor = next(tensor for own, tensor in found.items() if own.endswith(name))
            assert torch.equal(tensor, expected), (dtype, name)


def test_a_search_scores_adapted_sources(search_config, tiny, built, tmp_path):
    """In a search an adapted source has the score of the same weights on disk, merged or by
    itself."""
    from hf_evomerge.search.evaluation.evaluator import Evaluator

    adapter = save_adapter(tiny / "b", tmp_path / "adapter", 1, r=2, target_modules=BOTH)
    pair = tiny / "b", adapter
    folder = built(merge_of(pair), "merged", whole=True)
    scores = []
    for source in (pair, folder, tiny / "b"):
        sources = [ref_of(tiny / "a"), ref_of(source)]
        evaluator = Evaluator(search_config(sources=sources))
        targets = (evaluator.config.sources[1], merge_of(*sources))
        found = [evaluator.evaluate(target) for target in targets]
        assert [one.error for one in found] == [None, None]
        scores.append([one.values.tolist() for one in found])
    assert scores[0] == scores[1]
    assert scores[0] != scores[2]


DOWN = "model.layers.0.mlp.down_proj"
REFUSED = {
    "peft_type: IA3": "peft_type is 'IA3'; only LORA adapters can be merged",
    "init_lora_weights: pissa_niter_4": "is 'pissa_niter_4', which changes the base",
    "target_parameters: [experts]": (
        "target_parameters is ['experts'], which is not supported; merge it with peft"
    ),
    "alora_invocation_tokens: [5]": "alora_invocation_tokens is [5], which is not supported$",
    "r: 5": f"{DOWN} has rank 4, adapter_config.json says 5",
    "use_dora: true": "which have a magnitude where adapter_config.json says use_dora",
    "target_modules: [q_proj]": f"target_modules does not name {DOWN}",
    "target_modules: {q_proj: 1}": "is {'q_proj': 1}, no list of at most 4096 names",
    "exclude_modules: [mlp.down_proj]": f"exclude_modules names {DOWN}",
    r"exclude_modules: model\..*\.q_proj": "exclude_modules names model.layers.0.self_attn.q",
    r"target_modules: .*\.q_proj": f"target_modules does not name {DOWN}",
    "layers_to_transform: [1]": f"layers_to_transform leaves out {DOWN}",
    "{layers_to_transform: 0, layers_pattern: h}": f"layers_to_transform leaves out {DOWN}",
    "exclude_modules: 5": "exclude_modules is 5, no list of at most 4096 names",
    "alpha_pattern: {(: 3}": "'(' is no regular expression",
    "alpha_pattern: [3]": "alpha_pattern is [3], not a mapping",
    "lora_alpha: x": f"lora_alpha of {DOWN} is 'x', not a finite number",
}


@pytest.mark.parametrize(("config", "message"), REFUSED.items())
def test_a_config_that_cannot_be_followed_is_refused(config, message, adapted):
    """Another kind of adapter, or settings that change the arithmetic or contradict the tensors,
    are refused in one line."""
    base, adapter = adapted()
    edit_json(adapter / "adapter_config.json", **yaml.safe_load(config))
    with pytest.raises(SourceError) as caught:
        check_recipe(merge_of((base, adapter)))
    assert message in f"{caught.value}$"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: {k.replace("layers.1", "layers.7"): v for k, v in t.items()},
            "layers.7.mlp.down_proj.weight, which",
        ),
        (
            lambda t: {k: v for k, v in t.items() if "lora_B" not in k},
            "has only one of the two LoRA matrices",
        ),
        (
            lambda t: {k: v[:3].contiguous() if "lora_A" in k else v for k, v in t.items()},
            "has LoRA matrices of different ranks, or of rank 0 ([3, 40] and [32, 4])",
        ),
        (
            lambda t: {k: v[..., :3].contiguous() if "lora_A" in k else v for k, v in t.items()},
            "in the adapter",
        ),
        (
            lambda t: {**t, "base_model.model.x.lora_C.weight": torch.ones(1)},
            "the tensor x.lora_C.weight has a meaning that is not known",
        ),
        (
            lambda t: {k.replace(".weight", ".default.weight"): v for k, v in t.items()},
            "down_proj.lora_A.default.weight has a meaning that is not known",
        ),
        (lambda t: {}, "adapter_model.safetensors has no tensors; save the adapter again"),
        (
            lambda t: {**t, f"{DOWN}.lora_A.weight": torch.ones(4, 40)},
            f"base_model.model.{DOWN}.lora_A.weight and {DOWN}.lora_A.weight are both for",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message, adapted):
    """An adapter of another model, half an adapter, and tensors of unknown meaning are refused
    before any merge."""
    base, adapter = adapted()
    file = adapter / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with refused(f"^{adapter}.*{re.escape(message)}"):
        check_recipe(merge_of((base, adapter)))


def test_settings_that_are_not_named_are_those_of_peft(adapted):
    """Without lora_alpha it is 8, and without r the rank is."""
    base, adapter = adapted()
    edit_json(adapter / "adapter_config.json", lora_alpha=None)
    expected = merged_by_peft(base, adapter)
    source = opened(base, adapter)
    for name in source.changes:
        assert torch.allclose(source.read(name), expected[name], atol=1e-6), name
    edit_json(adapter / "adapter_config.json", r=None)
    with refused(r"has rank 4, adapter_config.json has no r, which is 8"):
        _ = opened(base, adapter).changes


def test_modules_to_save_that_no_model_has_are_no_matter(adapted):
    """peft names the heads of other classes too: those that the model has not need no tensor."""
    base, adapter = adapted(modules_to_save=["lm_head"])
    edit_json(adapter / "adapter_config.json", modules_to_save=["classifier", "score", "lm_head"])
    assert opened(base, adapter).changes["lm_head.weight"].whole


def test_a_magnitude_has_one_number_per_output(adapted):
    """DoRA's lengths are as many as the layer has outputs, which is checked before anything is
    built."""
    base, adapter = adapted(use_dora=True)
    with edited(adapter, "adapter_model.safetensors") as tensors:
        name = "base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector"
        assert len(tensors[name]) == 32
        tensors[name] = torch.ones(64)
    said = r"layers.1.self_attn.q_proj \(outputs\) has shape \[32\] .*, but \[64\] in the adapter"
    with refused(said):
        check_recipe(merge_of((base, adapter)))


@pytest.mark.parametrize(
    ("alpha", "metadata", "message"),
    [
        (1, "{", "lora_adapter_metadata cannot be read: Expecting property name"),
        (1, '{"unet.lora_alpha": [1, 2, 3]}', "lora_alpha of to_k is [1, 2, 3], not a finite"),
        (1, '{"unet.r": 8}', "to_k has rank 2, adapter_config.json says 8"),
        ([1, 2, 3], "{}", "lora_unet_to_q.alpha is [1.0, 2.0, 3.0], not a finite number"),
        (math.nan, "{}", "lora_unet_to_q.alpha is nan, not a finite number"),
    ],
)
def test_a_factor_that_cannot_be_read(alpha, metadata, message, tmp_path):
    """The factor of a pipeline's adapter, in its tensors or its header, is a number, or is refused
    before anything is built."""
    tensors = {"lora_unet_to_q.alpha": torch.tensor(alpha, dtype=torch.float32)}
    for down in ("unet.to_k.lora_A", "lora_unet_to_q.lora_down"):
        up = down.replace("down", "up").replace("_A", "_B")
        tensors |= {f"{down}.weight": torch.ones(2, 6), f"{up}.weight": torch.ones(8, 2)}
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(tensors, file, metadata={"lora_adapter_metadata": metadata})
    weights = {f"unet.to_{letter}.weight": TensorInfo("F32", (8, 6)) for letter in "qk"}
    with refused(f"^light: .*{re.escape(message)}"):
        Adapter(tmp_path, "light").changes(weights)


@pytest.mark.parametrize(
    "settings",
    [{"modules_to_save": ["wte"]}, {"target_modules": ["lm_head"]}, {"target_modules": ["wte"]}],
)
def test_what_unties_the_head_is_refused(settings, adapted):
    """Where head and embeddings are one matrix, an adapter runs with the one changed and the other
    not: a source has only one of them."""
    base, adapter = adapted(
        "gpt2", r=4, **{"target_modules": ["c_attn"], "fan_in_fan_out": True, **settings}
    )
    said = r"changes (transformer.wte|lm_head).*; save the base with a head of its own \(tie_word"
    with refused(said):
        _ = opened(base, adapter).changes


def test_a_base_that_was_untied_takes_adapted_embeddings(adapted):
    """With a head of its own the base and the adapter run as the merge does."""
    base, adapter = adapted("gpt2", r=4, target_modules=["wte"])
    tied = AutoModelForCausalLM.from_pretrained(base)
    tokens = torch.tensor([[3, 1, 4]])
    expected = PeftModel.from_pretrained(tied, adapter)(tokens).logits
    untied = AutoModelForCausalLM.from_pretrained(base)
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = torch.nn.Parameter(untied.transformer.wte.weight.detach().clone())
    untied.save_pretrained(base)
    source = opened(base, adapter)
    untied.transformer.wte.weight.data = source.read("transformer.wte.weight")
    assert torch.allclose(untied(tokens).logits, expected, atol=1e-5)


def test_a_change_that_is_no_product_says_what_it_is(adapted):
    """Trained biases stand beside the products of an adapter."""
    base, adapter = adapted(bias="all")
    assert {change.beyond for change in opened(base, adapter).changes.values()} == {"", "a bias"}


def test_an_adapter_that_is_not_there(tmp_path, adapted):
    """A folder without an adapter, one with a pickle, and a revision next to a folder are refused
    with what to do."""
    base, adapter = adapted()
    for folder, message in (
        (base, "no LoRA adapter: adapter_config.json: no such file"),
        (tmp_path, r"no adapter_config.json in \S+; an adapter is in \S+: give that folder"),
    ):
        with refused(message):
            opened(base, folder)
    with refused(r"a folder has no revision \(found 'main'\)"):
        open_source(SourceRef(**ref_of((base, adapter)), adapter_revision="main"))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with refused(r"no adapter_model.safetensors \(only adapter_model.bin, a pickle"):
        _ = opened(base, adapter).changes
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="/nowhere/x")
    said = "the base that its adapter_config.json names: /nowhere/x: no such folder; give"
    with refused(f"^{adapter}: {said}"):
        open_source(adapter)
