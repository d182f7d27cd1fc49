import gc
from functools import partial

import pytest
import torch
from refusals import refused
from tiny_models import tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

from hf_evomerge.errors import PathError, SourceError
from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.routing.pool import LayerPool

IDS = torch.arange(3, 15).view(2, 6)
llama = partial(tiny_model, "llama")


@pytest.fixture
def pool():
    """A Llama of three layers and one of four."""
    return LayerPool([llama(3), llama(4, seed=1)])


def test_nothing_is_copied(pool):
    """Every parameter of a merged model is a source's own, at the same address."""
    model = pool.model(
        LayerPath.parse(["0:0", "1:3", "0:1*0.5 + 1:1*0.5", "1:3", "0:2"], [1, 0.5, 1, 2, 1])
    )
    resident = {parameter.data_ptr() for source in pool.models for parameter in source.parameters()}
    assert {tensor.data_ptr() for tensor in model.state_dict().values()} <= resident
    assert model.layers[1].mlp.up_proj.weight is pool.models[1].model.layers[3].mlp.up_proj.weight
    assert model.get_output_embeddings().weight is pool.models[0].lm_head.weight
    assert not model.training


def test_models_do_not_disturb_each_other_or_the_sources(pool):
    """Making and running a model changes neither the sources nor models made before, hooks and
    numbers included."""
    before = [source(IDS).logits for source in pool.models]
    first = pool.model(LayerPath.parse("0:0, 1:1, 0:2", [1, 0.5, 2]))
    expected = first(IDS).logits
    second = pool.model(LayerPath.parse("0:2, 1:1, 1:0, 0:0, 0:0"), "mlp_delta")
    second(IDS, output_hidden_states=True)
    second.generate(IDS, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert torch.equal(first(IDS).logits, expected)
    for source, logits in zip(pool.models, before, strict=True):
        assert torch.equal(source(IDS).logits, logits)
        for number, layer in enumerate(source.model.layers):
            assert layer.self_attn.layer_idx == number
            assert not layer._forward_hooks
            assert not layer._forward_pre_hooks


def test_a_used_source_lends_no_hooks(pool):
    """Hooks on a source, such as those that record hidden states, are not those of a merged
    model."""
    pool.models[0](IDS, output_hidden_states=True)
    states = pool.model(LayerPath.parse("0:0, 0:0, 0:2"))(
        IDS, output_hidden_states=True
    ).hidden_states
    assert len(states) == 4


def test_embeddings_come_from_the_embedding_source():
    """Embeddings, final norm, head and their settings are those of the source asked for."""
    first = llama(3)
    second = llama(4, seed=1, vocab_size=70, eos_token_id=9)
    second.generation_config.repetition_penalty = 1.3
    model = LayerPool([first, second], embedding_source=1).model(LayerPath.parse("0:0-2"))
    assert model.get_input_embeddings().weight is second.model.embed_tokens.weight
    assert model.config.embedding_source == 1
    assert model.config.text_config.vocab_size == 70
    assert (model.generation_config.eos_token_id, model.generation_config.repetition_penalty) == (
        9,
        1.3,
    )


def test_models_are_freed(pool):
    """A thousand candidates leave no module behind."""

    def modules():
        gc.collect()
        return sum(issubclass(type(thing), torch.nn.Module) for thing in gc.get_objects())

    pool.model(LayerPath.parse("0:0-2"))
    before = modules()
    for _ in range(20):
        pool.model(LayerPath.parse("0:0, 1:1*0.5 + 0:1*0.5, 0:2", [1, 0.5, 1]))
    assert modules() == before


def test_a_path_beyond_the_sources_is_refused(pool):
    """A layer or source that is not there is an error of the path."""
    with refused(PathError, r"path\[1\]: layer 3 of source 0, which has 3 layers"):
        pool.model(LayerPath.parse("0:0, 0:3"))
    with refused(PathError, r"path\[0\]: source 2"):
        pool.model(LayerPath.parse("2:0"))


def test_sources_of_other_kinds_are_refused(pool):
    """Other architectures, dtypes, base models and merged models are no sources, and the complaint
    says which."""
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4))
    for message, embedding_source, *models in (
        (r"sources\[1\]: architecture 'gpt2', but source 0 is 'llama'", 0, llama(), gpt2),
        ("source 1: LlamaForCausalLM in torch.bfloat16", 0, llama(), llama().bfloat16()),
        ("source 1: LlamaModel in", 0, llama(), llama().model),
        ("0: EvoMergedForCausalLM is not a plain", 0, pool.model(LayerPath.parse("0:0-2"))),
        ("embedding_source: 1, but there are 1 sources", 1, llama()),
    ):
        with refused(SourceError, message):
            LayerPool(models, embedding_source)


def test_a_patched_source_is_refused():
    """A source whose forward is replaced, as device_map does, cannot lend its layers."""
    source = llama()
    source.model.layers[1].forward = source.model.layers[1].forward
    with refused(PathError, "its forward is replaced; load the source without"):
        LayerPool([source]).model(LayerPath.parse("0:0-1"))
