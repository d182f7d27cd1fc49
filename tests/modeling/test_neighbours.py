import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from slowly import slow_beyond
from tiny_models import VOCAB, tiny_model, token_ids
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, pipeline

from hf_evomerge.modeling import EvoMergedForCausalLM
from hf_evomerge.recipes.layer_path import LayerPath as LayerPath
from hf_evomerge.routing.pool import LayerPool

PATH = ["0:0", "1:1", "0:1*0.5 + 1:2*0.25", "0:0", "1:1", "0:2*1.5"]
SCALES = [1.1, 0.9, 1.0, -0.7, 1.2, 0.8]
WEIGHT = "mlp.up_proj.weight"


@pytest.fixture(scope="module")
def sources() -> list[PreTrainedModel]:
    """A Llama of three layers and one of four."""
    return [tiny_model("llama", 3), tiny_model("llama", 4, seed=1)]


@pytest.fixture
def model(sources: list[PreTrainedModel]) -> EvoMergedForCausalLM:
    """Repeats, scales and weighted sums in one path, with weights of its own."""
    return copy.deepcopy(LayerPool(sources).model(LayerPath.parse(PATH, SCALES)))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One word per token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{number:02}": number for number in range(VOCAB)}, unk_token="w03"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w00", bos_token="w01", eos_token="w02", unk_token="w03")


def assert_shared(model: EvoMergedForCausalLM) -> None:
    """Hops 0 and 3, and hops 1 and 4, run the same tensors."""
    for first, second in ((0, 3), (1, 4)):
        assert model.layers[first].get_parameter(WEIGHT) is model.layers[second].get_parameter(WEIGHT)


def test_a_pipeline_writes_what_generate_writes(model, tokenizer):
    """The text-generation pipeline gives the text of the model's own greedy tokens, for padded batches as well."""
    prompts = ["w05 w09 w33", "w07 w08 w21 w04 w60"]
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    written = writer(prompts, max_new_tokens=6, do_sample=False, batch_size=2, return_full_text=False)
    for prompt, (result,) in zip(prompts, written, strict=True):
        given = tokenizer(prompt, return_tensors="pt")
        tokens = model.generate(**given, max_new_tokens=6, do_sample=False)[0, given["input_ids"].shape[1] :]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert text
        assert result["generated_text"].strip() == text


def test_a_deep_copy_shares_within_itself(model):
    """Hops of one layer share its tensors in a deep copy too, and none of them with the original."""
    twin = copy.deepcopy(model)
    assert_shared(twin)
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_the_state_goes_through_torch_save(model, sources, tmp_path):
    """A state dict that torch.save wrote loads with weights_only=True, strictly, into a model that still shares its layers."""
    torch.save(model.state_dict(), tmp_path / "state.pt")
    assert (tmp_path / "state.pt").stat().st_size < sum(p.numel() * 4 for p in model.parameters()) + 60_000
    fresh = EvoMergedForCausalLM(copy.deepcopy(model.config)).eval()
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(fresh(token_ids()).logits, model(token_ids()).logits)
    assert_shared(fresh)


def test_missing_weights_of_a_shared_layer_are_reported(model, tmp_path):
    """A checkpoint without a tensor of a repeated layer says so, and the model gets an initialised, shared one."""
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[f"model.model.layers.0.{WEIGHT}"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert f"model.model.layers.0.{WEIGHT}" in info["missing_keys"]
    assert again(token_ids()).logits.isfinite().all()
    assert_shared(again)


def test_the_vocabulary_can_shrink(model):
    """Fewer embeddings leave the logits of the remaining tokens as they were."""
    ids = token_ids().clamp(max=VOCAB - 9)
    before = model(ids).logits
    model.resize_token_embeddings(VOCAB - 8)
    assert model.get_output_embeddings().weight.shape[0] == model.config.get_text_config().vocab_size == VOCAB - 8
    assert torch.allclose(model(ids).logits, before[..., : VOCAB - 8], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_can_be_cast(model, dtype):
    """Half precision keeps the sharing and comes close to the logits of full precision."""
    expected = model(token_ids()).logits
    model.to(dtype)
    assert model.dtype == dtype
    assert_shared(model)
    logits = model(token_ids()).logits
    assert logits.dtype == dtype
    assert (logits.float() - expected).norm() < 0.1 * expected.norm()


@pytest.mark.slow
def test_the_graph_compiles_whole(model):
    """torch.compile captures the forward in one graph without a warning, scales and sums included, and computes the same."""
    expected = model(token_ids(), use_cache=False).logits
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(compiled(token_ids(), use_cache=False).logits, expected, atol=1e-6)


def test_the_graph_exports(model):
    """torch.export gives a program that computes the same."""
    program = torch.export.export(model, (), {"input_ids": token_ids(), "use_cache": False}, strict=False)
    logits = program.module()(input_ids=token_ids(), use_cache=False).logits
    assert torch.allclose(logits, model(token_ids()).logits, atol=1e-6)


@pytest.mark.parametrize("scale_target", ["stream", "mlp_delta"])
@pytest.mark.parametrize(
    "memory", slow_beyond([30_000], [90_000, 30_000, 0]), ids=["half on disk", "layers on disk", "all on disk"]
)
def test_layers_may_be_offloaded(model, scale_target, memory, tmp_path):
    """With part of the layers or all of them on disk the bits are the same, and hops of one layer are in one place."""
    pytest.importorskip("accelerate")
    model = model.with_path(PATH, SCALES, scale_target=scale_target)
    model.save_pretrained(tmp_path / "saved")
    where: dict[str, object] = {"device_map": "auto", "max_memory": {"cpu": memory}} if memory else {"device_map": {"": "disk"}}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", **where, offload_folder=tmp_path / "offloaded")
    places = again.hf_device_map
    assert "disk" in places.values()
    if memory == 90_000:
        places = {slot: places[f"model.model.layers.{slot}"] for slot in range(7)}
        assert set(places.values()) == {"cpu", "disk"}
        assert (places[0], places[1]) == (places[3], places[4])
    assert torch.equal(again(token_ids()).logits, model(token_ids()).logits)
    written = [other.generate(token_ids(), max_new_tokens=5, do_sample=False) for other in (again, model)]
    assert torch.equal(*written)
    again.save_pretrained(tmp_path / "resaved")
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(tmp_path / "resaved")(token_ids()).logits, model(token_ids()).logits
    )
    with pytest.raises(ValueError, match="its forward is replaced; load the source without device_map"):
        again.with_path("0:0, 0:1")


def test_a_trainer_trains_it(model, tmp_path):
    """A few steps of Trainer lower the loss, leave the layers shared, and save what loads again."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": ids, "labels": ids} for ids in token_ids()] * 4
    settings = {"max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "use_cpu": True}
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
    before = model(token_ids(), labels=token_ids()).loss.item()
    trainer = Trainer(model=model, args=TrainingArguments(output_dir=str(tmp_path), **settings, **quiet), train_dataset=rows)
    trainer.train()
    trainer.save_model(tmp_path / "trained")
    model.eval()
    assert model(token_ids(), labels=token_ids()).loss.item() < 0.7 * before
    assert_shared(model)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    assert torch.equal(again(token_ids()).logits, model(token_ids()).logits)


def adapted(model: EvoMergedForCausalLM, **options: object) -> PreTrainedModel:
    """The model with LoRA adapters trained for a few steps."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **options)
    tuned = peft.get_peft_model(model, config)
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
    """PEFT's adapters, one per hop even where hops share a layer, lower the loss, and load on the untouched model."""
    untouched = copy.deepcopy(model)
    tuned = adapted(model)
    tuned.save_pretrained(tmp_path)
    from peft import PeftModel

    again = PeftModel.from_pretrained(untouched, tmp_path)
    assert torch.equal(again(token_ids()).logits, tuned(token_ids()).logits)
    with again.disable_adapter():
        plain = again(token_ids()).logits
    assert not torch.allclose(plain, again(token_ids()).logits, atol=1e-3)


def test_lora_merges_into_layers_that_run_once(sources):
    """Where no layer repeats, merging the adapters gives a plain merged model that computes what they computed."""
    model = copy.deepcopy(LayerPool(sources).model(LayerPath.parse("0:0, 1:1, 0:2", [1.0, 0.8, 1.2])))
    tuned = adapted(model)
    expected = tuned(token_ids()).logits
    merged = tuned.merge_and_unload()
    assert type(merged) is EvoMergedForCausalLM
    assert torch.allclose(merged(token_ids()).logits, expected, atol=1e-4)


@pytest.mark.parametrize("first", [True, False], ids=["before training", "before merging"])
def test_lora_merges_into_layers_that_were_separated(model, first, tmp_path):
    """unshare gives hops of one layer tensors of their own, and nothing else; adapters then merge, and the result saves."""
    before = model(token_ids()).logits
    slots = len(model.layers)
    if first:
        model.unshare()
        assert torch.equal(model(token_ids()).logits, before)
    tuned = adapted(model)
    expected = tuned(token_ids()).logits
    if not first:
        tuned.get_base_model().unshare()
        assert torch.equal(tuned(token_ids()).logits, expected)
    merged = tuned.merge_and_unload()
    assert torch.allclose(merged(token_ids()).logits, expected, atol=1e-4)
    assert merged.config.path == ["0:0", "0:1", "0:2*0.5 + 0:6*0.25", "0:3", "0:4", "0:5*1.5"]
    assert len({id(layer.get_parameter(WEIGHT)) for layer in merged.layers}) == slots
    merged.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(again(token_ids()).logits, merged(token_ids()).logits)
    shorter = again.with_path("0:0, 0:4")
    assert shorter.layers[1].get_parameter(WEIGHT) is again.layers[4].get_parameter(WEIGHT)
