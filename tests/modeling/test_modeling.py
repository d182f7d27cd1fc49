import copy
import json
import pickle
import re

import pytest
import torch
import warm
from tiny_models import VOCAB, tiny_model, token_ids
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from vlms import CLASSES, inputs, random_model, vlm_config

from hf_evomerge.modeling import EvoMergedConfig, EvoMergedForCausalLM, EvoMergedModel, register
from hf_evomerge.recipes.layer_path import LayerPath as LayerPath
from hf_evomerge.routing.pool import LayerPool

PATH = ["0:0", "1:1", "0:1*0.5 + 1:2*0.25", "0:0", "1:1", "0:2*1.5"]
SCALES = [1.1, 0.9, 1.0, -0.7, 1.2, 0.8]


@pytest.fixture(scope="module")
def sources() -> list[PreTrainedModel]:
    """A Llama of three layers and one of four."""
    return [tiny_model("llama", 3), tiny_model("llama", 4, seed=1)]


@pytest.fixture
def model(sources: list[PreTrainedModel]) -> EvoMergedForCausalLM:
    """Repeats, scales and weighted sums in one path."""
    return LayerPool(sources).model(LayerPath.parse(PATH, SCALES))


def greedy(model: PreTrainedModel, ids: torch.Tensor, **options: object) -> torch.Tensor:
    """Greedy tokens after the prompt; token 0 is padding."""
    given = {
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "attention_mask": (ids != 0).long(),
    }
    return model.generate(ids, **{**given, **options})[:, ids.shape[1] :]


def test_a_hop_of_two_halves_of_one_layer_is_that_layer(sources):
    """0:1*0.5 + 0:1*0.5 is 0:1, to the bit."""
    pool = LayerPool(sources)
    halves = pool.model(LayerPath.parse(["0:0", "0:1*0.5 + 0:1*0.5", "0:2"]))
    assert torch.equal(halves(token_ids()).logits, sources[0](token_ids()).logits)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_is_taken_by_either_name(model, name):
    """A step that continues from a cache gives the logits of the whole sequence, whatever transformers calls the argument."""
    ids = token_ids()
    first = model(ids[:, :6], use_cache=True)
    cache = getattr(first, "cache", None) or first.past_key_values
    rest = model(ids[:, 6:], **{name: cache}, use_cache=True).logits
    assert torch.allclose(rest, model(ids).logits[:, 6:], atol=1e-5)


def test_two_names_for_the_cache_are_one_too_many(model):
    """A cache given under both names is an error, not a choice."""
    first = model(token_ids(), use_cache=True)
    cache = getattr(first, "cache", None) or first.past_key_values
    with pytest.raises(ValueError, match="cache: given twice"):
        model(token_ids(), cache=cache, past_key_values=cache)


def test_the_base_model_loads_from_the_same_folder(model, tmp_path):
    """AutoModel gives the same path without head, ending in the last hidden state."""
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is EvoMergedModel
    hidden = base(token_ids()).last_hidden_state
    assert torch.equal(model.get_output_embeddings()(hidden), model(token_ids()).logits)


def test_the_saved_model_loads_without_this_package(model, tmp_path):
    """Where the package cannot be imported, trust_remote_code loads the model, and what that saves loads again."""
    model.save_pretrained(tmp_path / "saved")
    sight = LayerPool([random_model(vlm_config("llava"), 0, CLASSES["llava"])]).model(LayerPath.parse("0:0, 0:1, 0:1"))
    sight.save_pretrained(tmp_path / "sight")
    seen = {"given": inputs("llava"), "seen": sight(**inputs("llava")).logits.detach()}
    torch.save({"ids": token_ids(), "logits": model(token_ids()).logits.detach(), **seen}, tmp_path / "expected.pt")
    program = f"""
import sys; sys.modules["hf_evomerge"] = None
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
expected = torch.load({str(tmp_path / "expected.pt")!r})
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "saved")!r}, trust_remote_code=True)
assert torch.equal(model(expected["ids"]).logits, expected["logits"])
assert model.generate(expected["ids"], max_new_tokens=3, do_sample=False).shape == (2, 12)
model.save_pretrained({str(tmp_path / "resaved")!r})
again = AutoModelForCausalLM.from_pretrained({str(tmp_path / "resaved")!r}, trust_remote_code=True)
assert torch.equal(again(expected["ids"]).logits, expected["logits"])
sight = AutoModelForImageTextToText.from_pretrained({str(tmp_path / "sight")!r}, trust_remote_code=True)
assert torch.equal(sight(**expected["given"]).logits, expected["seen"])
print("fine")
"""
    environment = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PATH": "/usr/bin:/bin",
    }
    done = warm.run(program, env=environment)
    assert done.stdout.strip() == "fine", done.stderr
    assert sorted(file.name for file in (tmp_path / "saved").iterdir()) == [
        *("config.json", "configuration_evo_merged.py", "generation_config.json", "layers_evo_merged.py"),
        *("model.safetensors", "modeling_evo_merged.py", "sources_evo_merged.py"),
    ]


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_a_copy_is_independent(model, twin):
    """A deep copy computes the same with its own weights: changing the original does not change it."""
    expected = model(token_ids()).logits
    copied = twin(model)  # type: ignore[operator]
    saved = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(copied(token_ids()).logits, expected)
    model.load_state_dict(saved)


def test_another_path_over_the_same_parameters(model, sources):
    """with_path gives what the pool gives for that path, over the same storage, and leaves the model as it was."""
    before = model(token_ids()).logits
    path = ["0:0", "1:2*0.5 + 1:1*0.5", "0:2", "0:2"]
    other = model.with_path(path, [1, 0.5, 2, 1], scale_target="mlp_delta")
    pooled = LayerPool(sources).model(LayerPath.parse(path, [1, 0.5, 2, 1]), "mlp_delta")
    assert torch.equal(other(token_ids()).logits, pooled(token_ids()).logits)
    assert {p.data_ptr() for p in other.parameters()} <= {p.data_ptr() for p in model.parameters()}
    assert torch.equal(model(token_ids()).logits, before)
    again = other.with_path(LayerPath.parse("0:0, 0:2"))
    assert torch.equal(again(token_ids()).logits, model.with_path("0:0, 0:2")(token_ids()).logits)


def test_another_path_needs_layers_that_are_there(model):
    """with_path refuses a layer that this model does not hold."""
    with pytest.raises(ValueError, match="path: layer 1:3 is not part of this model"):
        model.with_path(["0:0", "1:3"])


def test_attentions_are_one_per_slot(model):
    """output_attentions gives those of every term of every hop."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    out = eager(token_ids(), output_attentions=True)
    assert len(out.attentions) == 7
    assert torch.allclose(out.logits, model(token_ids()).logits, atol=1e-4)


def test_arguments_are_the_source_class_s_own(model):
    """Embeddings in place of tokens, labels, the last logits only and tuples work as for the source architecture."""
    ids = token_ids()
    logits = model(ids).logits
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, logits)
    assert torch.allclose(model(ids, logits_to_keep=1).logits, logits[:, -1:], atol=1e-5)
    loss = functional.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
    assert torch.allclose(model(ids, labels=ids).loss, loss)
    assert torch.equal(model(ids, return_dict=False)[0], logits)


def test_generation_takes_what_the_source_class_takes():
    """generate takes the arguments of the source class, and refuses those that it does not know or would drop silently."""
    ids, options = token_ids(), {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    source = tiny_model("gpt2")
    model = LayerPool([source]).model(LayerPath.identity(3))
    kinds = torch.ones_like(ids)
    written = [each.generate(ids, token_type_ids=kinds, **options) for each in (model, source)]
    assert torch.equal(*written)
    with pytest.raises(ValueError, match=r"not used by the model: \['tokn_type_ids'\]"):
        model.generate(ids, tokn_type_ids=kinds, **options)
    model = LayerPool([tiny_model("openai-gpt")]).model(LayerPath.identity(3))
    with pytest.raises(ValueError, match=r"^inputs_embeds: OpenAIGPTLMHeadModel cannot generate from embeddings"):
        model.generate(inputs_embeds=model.get_input_embeddings()(ids), **options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scales": [1.0]}, "scales: 1 numbers for a path of 6 hops"),
        ({"scales": [1.0] * 5 + [float("nan")]}, "scales[5]: nan is not a finite number"),
        ({"scale_target": "attention"}, "scale_target: 'attention' is unknown"),
        ({"path": ["0:0"] * 6}, "text_config.num_hidden_layers: 7, but the path needs 6 cache slots"),
        ({"embedding_source": 7}, "embedding_source: 7, but there are 2 sources, from 0"),
    ],
)
def test_fields_that_are_changed_later_are_checked_too(model, fields, message, tmp_path):
    """Whether given to from_pretrained or set on a configuration, a wrong field is refused before a module is made."""
    model.save_pretrained(tmp_path)
    config = copy.deepcopy(model.config)
    for name, value in fields.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        AutoModelForCausalLM.from_pretrained(tmp_path, **fields)


def test_use_cache_is_the_source_architecture_s(model, tmp_path):
    """use_cache can be set on the configuration, as Trainer does, or given to from_pretrained; it is stored in text_config."""
    model.save_pretrained(tmp_path / "first")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "first", use_cache=False)
    model.config.use_cache = False
    for each in (model, again):
        out = each(token_ids())
        assert out.get("cache", out.get("past_key_values")) is None
    model.save_pretrained(tmp_path / "second")
    written = json.loads((tmp_path / "second" / "config.json").read_text())
    assert "use_cache" not in written
    assert written["text_config"]["use_cache"] is False
    assert AutoConfig.from_pretrained(tmp_path / "second").use_cache is False


def test_the_vocabulary_can_grow(model, tmp_path):
    """Resized embeddings are saved and loaded."""
    twin = copy.deepcopy(model)
    twin.resize_token_embeddings(VOCAB + 6)
    twin.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(token_ids()).logits, twin(token_ids()).logits)
    assert again(token_ids()).logits.shape[-1] == VOCAB + 6


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "mixtral", "gpt2"])
def test_a_larger_vocabulary_can_be_trained(architecture):
    """With resized embeddings the loss is that of the logits, whichever size the source class computes it with."""
    ids = token_ids()
    model = LayerPool([tiny_model(architecture)]).model(LayerPath.parse("0:0, 0:1, 0:0"))
    twin = copy.deepcopy(model)
    twin.resize_token_embeddings(VOCAB + 6)
    for each in (twin, twin.with_path("0:0, 0:1")):
        out = each(ids, labels=ids)
        loss = functional.cross_entropy(out.logits[:, :-1].reshape(-1, VOCAB + 6).float(), ids[:, 1:].reshape(-1))
        assert torch.allclose(out.loss, loss, atol=1e-5)


def test_a_fresh_model_can_be_made_from_a_configuration(model, tmp_path):
    """AutoModelForCausalLM.from_config gives random weights with the same sharing, which save and load."""
    fresh = AutoModelForCausalLM.from_config(copy.deepcopy(model.config)).eval()
    assert fresh.num_parameters() == model.num_parameters()
    fresh.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(token_ids()).logits, fresh(token_ids()).logits)


def test_bfloat16_stays_exact(sources, tmp_path):
    """In bfloat16 as well, the reloaded model gives the same bits."""
    halves = []
    for number, source in enumerate(sources):
        source.save_pretrained(tmp_path / str(number))
        halves.append(AutoModelForCausalLM.from_pretrained(tmp_path / str(number), dtype=torch.bfloat16))
    merged = LayerPool(halves).model(LayerPath.parse(PATH, SCALES))
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert again.dtype == torch.bfloat16
    assert torch.equal(again(token_ids()).logits, merged(token_ids()).logits)


def test_mlp_delta_is_refused_where_it_has_no_meaning():
    """Blocks that are not a residual plus an MLP refuse mlp_delta in one line, but run with scales of 1."""
    pool = LayerPool([tiny_model("bloom")])
    with pytest.raises(Exception, match=r"^scale_target: 'mlp_delta' is not defined for the layers of 'bloom'; use 'stream'$"):
        pool.model(LayerPath.parse("0:0, 0:1", [1, 0.5]), "mlp_delta")
    pool.model(LayerPath.parse("0:0, 0:1"), "mlp_delta")


def test_registering_twice_is_harmless():
    """The Auto classes know the model as soon as the package is imported; registering again changes nothing."""
    register()
    register()
    assert type(AutoConfig.for_model("evo_merged")) is EvoMergedConfig
