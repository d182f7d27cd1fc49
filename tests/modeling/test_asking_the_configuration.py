"""What clients ask a configuration: the source architecture's own fields, read, set, stored once,
and kept."""

import copy
import pickle

import pytest
import torch
from classes import read_json
from every_type import tiny_config
from tiny_models import path_model, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from hf_evomerge.modeling import EvoMergedConfig

ASKED = (
    *("hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "use_cache"),
    *("max_position_embeddings", "tie_word_embeddings", "initializer_range"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "keys_to_ignore_at_inference"),
)


def merged(architecture="llama", **fields):
    """A path of three hops, one of them of two terms."""
    source = tiny_model(architecture, **fields).config
    return EvoMergedConfig.from_sources([source], ["0:0", "0:0 + 0:2", "0:2"], [1.0, 0.5, 1.0])


@pytest.mark.parametrize(
    "architecture",
    ["llama", "gpt2", "opt", "gemma3_text", "falcon", "lfm2", "gpt_neo", "qwen3_5_text"],
)
def test_the_configuration_answers_from_text_config(architecture, tmp_path):
    """Whatever clients ask is answered as the source architecture's configuration answers, before
    and after saving."""
    config = merged(architecture)
    config.save_pretrained(tmp_path)
    twins = [
        config,
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
        AutoConfig.from_pretrained(tmp_path),
        EvoMergedConfig.from_dict(config.to_dict()),
        EvoMergedConfig.from_dict(config.to_diff_dict()),
    ]
    for twin in twins:
        for name in (*ASKED, *vars(config.text_config), *config.text_config.attribute_map):
            if not name.startswith("_") and not hasattr(EvoMergedConfig, name):
                assert getattr(twin, name, None) == getattr(config.text_config, name, None), name
    assert [twin.to_dict() for twin in twins[:3]] == [config.to_dict()] * 3
    assert [twin.to_diff_dict() for twin in twins] == [config.to_diff_dict()] * len(twins)


def test_the_file_says_everything_once(tmp_path):
    """config.json holds the source architecture's fields in text_config only, also after they were
    asked for and set."""
    config = merged("qwen3", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    config.max_position_embeddings = 48
    config.update({"hidden_act": "gelu", "sliding_window": 6})
    config.save_pretrained(tmp_path)
    written = read_json(tmp_path / "config.json")
    allowed = {
        "model_type",
        "path",
        "scales",
        "scale_target",
        "embedding_source",
        "sources",
        "auto_map",
        "text_config",
    }
    assert written.keys() == allowed | {"transformers_version"}
    text = {"max_position_embeddings": 48, "hidden_act": "gelu", "sliding_window": 6}
    assert {name: written["text_config"][name] for name in text} == text
    assert written["text_config"]["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e5}


def test_a_field_that_is_set_or_given_reaches_the_source_architecture(tmp_path):
    """Arguments of from_pretrained and of the class, and attributes, change text_config; the model
    computes with them."""
    model = path_model([tiny_model("llama")], "0:0, 0:2")
    model.save_pretrained(tmp_path)
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, max_position_embeddings=32, rope_parameters=rope, use_cache=False
    )
    assert again.inner.config.max_position_embeddings == 32
    assert again.inner.model.rotary_emb.rope_type == "linear"
    assert not again.config.use_cache
    out = again(torch.tensor([[3, 4]]))
    assert out.get("cache", out.get("past_key_values")) is None
    text = {"model_type": "llama", "num_hidden_layers": 1}
    fields = {"use_cache": False, "vocab_size": 99, "eos_token_id": [3, 4]}
    given = EvoMergedConfig(text_config=text, path=["0:0"], **fields)
    assert given.text_config.to_dict().items() >= fields.items()
    assert EvoMergedConfig.from_dict(given.to_dict(), hidden_size=64).text_config.hidden_size == 64
    given.pad_token_id = 7
    assert given.text_config.pad_token_id == 7
    assert not vars(given).keys() & {"pad_token_id", *fields}


@pytest.mark.parametrize("architecture", ["deepseek_v4", "gemma3_text", "gpt2", "beam"])
def test_the_rotary_embeddings_of_text_config_are_left_alone(architecture):
    """Making and saving the merged configuration changes nothing in that of the source
    architecture."""
    text = tiny_config(architecture, 4)
    before = copy.deepcopy(text.to_dict())
    EvoMergedConfig(text_config=text).to_dict()
    assert text.to_dict() == before


def test_what_nobody_has_is_an_attribute_error():
    """A name that neither configuration has raises AttributeError, and setting it makes it the
    merged model's own."""
    config = merged()
    with pytest.raises(AttributeError, match="no_such_field"):
        _ = config.no_such_field
    config.no_such_field = 3
    assert vars(config)["no_such_field"] == 3
    assert not hasattr(config.text_config, "no_such_field")


def test_generation_begins_with_the_token_ids_of_the_source():
    """A GenerationConfig made from the configuration has the special tokens that the source
    architecture's has."""
    tokens = {"bos_token_id": 1, "eos_token_id": [2, 9], "pad_token_id": 5}
    generation = GenerationConfig.from_model_config(merged(**tokens))
    assert generation.to_dict().items() >= tokens.items()


def test_what_is_chosen_for_the_attention_reaches_the_source_architecture():
    """attn_implementation, given or set, is text_config's as well."""
    config = EvoMergedConfig(
        text_config={"model_type": "llama", "num_hidden_layers": 1},
        path=["0:0"],
        attn_implementation="sdpa",
    )
    assert config.text_config._attn_implementation == "sdpa"
    config._attn_implementation = "eager"
    assert config.text_config._attn_implementation == "eager"
    config.output_attentions = True
    assert config.output_attentions
