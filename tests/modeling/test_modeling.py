import copy
import pickle
import warnings

import pytest
import torch
import warm
from classes import edited
from peft import LoraConfig, PeftModel, get_peft_model
from slowly import slow_beyond
from tiny_models import VOCAB, logits_of, path_model, tiny_model, token_ids
from torch.nn import functional
from transformers import AutoModelForCausalLM
from vlms import CLASSES, inputs, random_model, vlm_config

from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.routing.pool import LayerPool

PATH = ["0:0", "1:1", "0:1*0.5 + 1:2*0.25", "0:0", "1:1", "0:2*1.5"]
SCALES = [1.1, 0.9, 1.0, -0.7, 1.2, 0.8]
WEIGHT = "mlp.up_proj.weight"


@pytest.fixture(scope="module")
def sources():
    """A Llama of three layers and one of four."""
    return [tiny_model("llama", 3), tiny_model("llama", 4, seed=1)]


@pytest.fixture
def model(sources):
    """Repeats, scales and weighted sums in one path, with weights of its own."""
    return copy.deepcopy(path_model(sources, PATH, SCALES))


def cached(out):
    """The cache of an output, whatever transformers calls it."""
    return out.get("cache", out.get("past_key_values"))


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_is_taken_by_either_name(model, name):
    """A step that continues from a cache gives the logits of the whole sequence, whatever
    transformers calls the argument."""
    ids = token_ids()
    cache = cached(model(ids[:, :6], use_cache=True))
    rest = model(ids[:, 6:], **{name: cache}, use_cache=True).logits
    assert torch.allclose(rest, model(ids).logits[:, 6:], atol=1e-5)


def test_two_names_for_the_cache_are_one_too_many(model):
    """A cache given under both names is an error, not a choice."""
    cache = cached(model(token_ids(), use_cache=True))
    with pytest.raises(ValueError, match="cache: given twice"):
        model(token_ids(), cache=cache, past_key_values=cache)


def test_the_saved_model_loads_without_this_package(model, tmp_path):
    """Where the package cannot be imported, trust_remote_code loads the model, and what that saves
    loads again."""
    model.save_pretrained(tmp_path / "saved")
    sight = path_model([random_model(vlm_config("llava"), 0, CLASSES["llava"])], "0:0, 0:1, 0:1")
    sight.save_pretrained(tmp_path / "sight")
    seen = {"given": inputs("llava"), "seen": sight(**inputs("llava")).logits.detach()}
    torch.save(
        {"ids": token_ids(), "logits": logits_of(model).detach(), **seen}, tmp_path / "expected.pt"
    )
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
"""  # noqa: E501
    environment = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PATH": "/usr/bin:/bin",
    }
    done = warm.run(program, env=environment)
    assert done.stdout.strip() == "fine", done.stderr
    files = {file.name for file in (tmp_path / "saved").iterdir() if file.suffix != ".py"}
    assert files == {"config.json", "generation_config.json", "model.safetensors"}


@pytest.mark.parametrize(
    "twin",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_is_independent(model, twin):
    """A deep copy computes the same with its own weights: changing the original does not change
    it."""
    expected = logits_of(model)
    copied = twin(model)
    assert copied.num_parameters() == model.num_parameters()  # it shares within itself
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(logits_of(copied), expected)


def test_another_path_over_the_same_parameters(model, sources):
    """with_path gives what the pool gives for that path, over the same storage, and leaves the
    model as it was."""
    before = logits_of(model)
    path = ["0:0", "1:2*0.5 + 1:1*0.5", "0:2", "0:2"]
    other = model.with_path(path, [1, 0.5, 2, 1], scale_target="mlp_delta")
    pooled = path_model(sources, path, [1, 0.5, 2, 1], "mlp_delta")
    assert torch.equal(logits_of(other), logits_of(pooled))
    assert {p.data_ptr() for p in other.parameters()} <= {p.data_ptr() for p in model.parameters()}
    assert torch.equal(logits_of(model), before)
    again = other.with_path(LayerPath.parse("0:0, 0:2"))
    assert torch.equal(logits_of(again), logits_of(model.with_path("0:0, 0:2")))


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
    assert torch.allclose(out.logits, logits_of(model), atol=1e-4)


def test_arguments_are_the_source_class_s_own(model):
    """Labels, the last logits only and tuples work as for the source architecture."""
    ids = token_ids()
    logits = model(ids).logits
    assert torch.allclose(model(ids, logits_to_keep=1).logits, logits[:, -1:], atol=1e-5)
    loss = functional.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
    assert torch.allclose(model(ids, labels=ids).loss, loss)
    assert torch.equal(model(ids, return_dict=False)[0], logits)


def test_generation_takes_what_the_source_class_takes():
    """generate takes the arguments of the source class, and refuses those that it does not know or
    would drop silently."""
    ids = token_ids()
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    source = tiny_model("gpt2")
    model = path_model([source], "0:0-2")
    kinds = torch.ones_like(ids)
    written = [each.generate(ids, token_type_ids=kinds, **options) for each in (model, source)]
    assert torch.equal(*written)
    other = path_model([tiny_model("openai-gpt")], "0:0-2")
    embeddings = other.get_input_embeddings()(ids)
    for each, given, message in (
        (model, {"inputs": ids, "typ_ids": kinds}, r"not used by the model: \['typ_ids'\]"),
        (other, {"inputs_embeds": embeddings}, "^inputs_embeds: OpenAIGPTLMHeadModel cannot gener"),
    ):
        with pytest.raises(ValueError, match=message):
            each.generate(**given, **options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scales", [1.0], "scales: 1 numbers for a path of 6 hops"),
        ("path", ["0:0"] * 6, "text_config.num_hidden_layers: 7, but the path needs 6 cache slots"),
    ],
)
def test_fields_that_are_changed_later_are_checked_too(model, name, value, message, tmp_path):
    """Whether given to from_pretrained or set on a configuration, a wrong field is refused before a
    module is made."""
    model.save_pretrained(tmp_path)
    config = copy.deepcopy(model.config)
    setattr(config, name, value)
    for load in (
        lambda: AutoModelForCausalLM.from_config(config),
        lambda: AutoModelForCausalLM.from_pretrained(tmp_path, **{name: value}),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            load()


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "mixtral", "gpt2"])
def test_a_larger_vocabulary_can_be_trained(architecture, tmp_path):
    """With resized embeddings the loss is that of the logits, whichever size the source class
    computes it with; they are saved and loaded."""
    ids = token_ids()
    twin = copy.deepcopy(path_model([tiny_model(architecture)], "0:0, 0:1, 0:0"))
    twin.resize_token_embeddings(VOCAB + 6)
    twin.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits_of(again), logits_of(twin))
    for each in (twin, twin.with_path("0:0, 0:1")):
        out = each(ids, labels=ids)
        loss = functional.cross_entropy(
            out.logits[:, :-1].reshape(-1, VOCAB + 6).float(), ids[:, 1:].reshape(-1)
        )
        assert torch.allclose(out.loss, loss, atol=1e-5)


def test_a_fresh_model_can_be_made_from_a_configuration(model, tmp_path):
    """AutoModelForCausalLM.from_config gives random weights with the same sharing, which save and
    load."""
    fresh = AutoModelForCausalLM.from_config(copy.deepcopy(model.config)).eval()
    assert fresh.num_parameters() == model.num_parameters()
    fresh.save_pretrained(tmp_path)
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path)), logits_of(fresh))


def test_mlp_delta_is_refused_where_it_has_no_meaning():
    """Blocks that are not a residual plus an MLP refuse mlp_delta in one line, but run with scales
    of 1."""
    pool = LayerPool([tiny_model("mamba")])
    message = (
        r"^scale_target: 'mlp_delta' is not defined for the layers of 'mamba', which add no "
        r"branch after another; use"
    )
    with pytest.raises(Exception, match=message):
        pool.model(LayerPath.parse("0:0, 0:1", [1, 0.5]), "mlp_delta")
    pool.model(LayerPath.parse("0:0, 0:1"), "mlp_delta")


def assert_shared(model):
    """Hops 0 and 3, and hops 1 and 4, run the same tensors."""
    for first, second in ((0, 3), (1, 4)):
        assert model.layers[first].get_parameter(WEIGHT) is model.layers[second].get_parameter(
            WEIGHT
        )


def test_missing_weights_of_a_shared_layer_are_reported(model, tmp_path):
    """A checkpoint without a tensor of a repeated layer says so, and the model gets an initialised,
    shared one."""
    model.save_pretrained(tmp_path)
    with edited(tmp_path) as tensors:
        del tensors[f"model.model.layers.0.{WEIGHT}"]
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert f"model.model.layers.0.{WEIGHT}" in info["missing_keys"]
    assert logits_of(again).isfinite().all()
    assert_shared(again)


@pytest.mark.slow
def test_the_graph_compiles_whole(model):
    """torch.compile captures the forward in one graph without a warning, scales and sums included,
    and computes the same."""
    expected = model(token_ids(), use_cache=False).logits
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(compiled(token_ids(), use_cache=False).logits, expected, atol=1e-6)


def test_the_graph_exports(model):
    """torch.export gives a program that computes the same."""
    program = torch.export.export(
        model, (), {"input_ids": token_ids(), "use_cache": False}, strict=False
    )
    logits = program.module()(input_ids=token_ids(), use_cache=False).logits
    assert torch.allclose(logits, logits_of(model), atol=1e-6)


@pytest.mark.parametrize("scale_target", ["stream", "mlp_delta"])
@pytest.mark.parametrize(
    "memory", slow_beyond([30_000], [90_000, 30_000]), ids=["half on disk", "layers on disk"]
)
def test_layers_may_be_offloaded(model, scale_target, memory, tmp_path):
    """With part of the layers on disk the bits are the same, and hops of one layer are in one
    place."""
    pytest.importorskip("accelerate")
    model = model.with_path(PATH, SCALES, scale_target=scale_target)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved",
        device_map="auto",
        max_memory={"cpu": memory},
        offload_folder=tmp_path / "offloaded",
    )
    places = again.hf_device_map
    assert "disk" in places.values()
    if memory == 90_000:
        places = {slot: places[f"model.model.layers.{slot}"] for slot in range(7)}
        assert set(places.values()) == {"cpu", "disk"}
        assert (places[0], places[1]) == (places[3], places[4])
    assert torch.equal(logits_of(again), logits_of(model))
    written = [
        other.generate(token_ids(), max_new_tokens=5, do_sample=False) for other in (again, model)
    ]
    assert torch.equal(*written)
    again.save_pretrained(tmp_path / "resaved")
    resaved = AutoModelForCausalLM.from_pretrained(tmp_path / "resaved")
    assert torch.equal(logits_of(resaved), logits_of(model))
    with pytest.raises(
        ValueError, match="its forward is replaced; load the source without device_map"
    ):
        again.with_path("0:0, 0:1")


def adapted(model, **options):
    """The model with LoRA adapters trained for a few steps."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    tuned = get_peft_model(model, config)
    optimizer = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(6):
        loss = tuned(token_ids(), labels=token_ids()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    return tuned.eval()


def test_lora_trains_saves_and_loads(model, tmp_path):
    """PEFT's adapters, one per hop even where hops share a layer, lower the loss, and load on the
    untouched model."""
    untouched = copy.deepcopy(model)
    tuned = adapted(model)
    tuned.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(untouched, tmp_path)
    assert torch.equal(logits_of(again), logits_of(tuned))
    with again.disable_adapter():
        plain = logits_of(again)
    assert not torch.allclose(plain, logits_of(again), atol=1e-3)


@pytest.mark.parametrize("first", [True, False], ids=["before training", "before merging"])
def test_lora_merges_into_layers_that_were_separated(model, first, tmp_path):
    """unshare gives hops of one layer tensors of their own, and nothing else; adapters then merge,
    and the result saves."""
    before = logits_of(model)
    slots = len(model.layers)
    if first:
        model.unshare()
        assert torch.equal(logits_of(model), before)
    tuned = adapted(model)
    expected = logits_of(tuned)
    if not first:
        tuned.get_base_model().unshare()
        assert torch.equal(logits_of(tuned), expected)
    merged = tuned.merge_and_unload()
    assert torch.allclose(logits_of(merged), expected, atol=1e-4)
    assert merged.config.path == ["0:0", "0:1", "0:2*0.5 + 0:6*0.25", "0:3", "0:4", "0:5*1.5"]
    assert len({id(layer.get_parameter(WEIGHT)) for layer in merged.layers}) == slots
    merged.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(logits_of(again), logits_of(merged))
    shorter = again.with_path("0:0, 0:4")
    assert shorter.layers[1].get_parameter(WEIGHT) is again.layers[4].get_parameter(WEIGHT)
