import json
from pathlib import Path

import pytest
import torch
from slowly import slow_beyond
from tiny_models import ARCHITECTURES, FAMILIES, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from wrong_configs import REFUSALS, VALID, table

from hf_evomerge.modeling import EvoMergedConfig, check_alike
from hf_evomerge.modeling.origins import check_rearrangeable

LLAMA = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "vocab_size": 64}


def llama(layers=3, **fields):
    """A small Llama's configuration."""
    return LlamaConfig(**{**LLAMA, "num_hidden_layers": layers, **fields})


def merged(path, **fields):
    """A path through sources of three and four layers."""
    sources = [{"layers": 3}, {"layers": 4}]
    slots = sum(len(hop.split("+")) for hop in path)
    return EvoMergedConfig(
        **{"text_config": llama(slots), "path": path, "sources": sources, **fields}
    )


def test_defaults():
    """Without scales those of all hops are 1; without any argument, as transformers makes it, a
    configuration is valid."""
    assert merged(["0:0", "1:3"]).scales == [1.0, 1.0]
    assert len(EvoMergedConfig().path) == EvoMergedConfig().text_config.num_hidden_layers


def test_first_terms_take_the_first_slots():
    """The slots of the hops come first, those of further terms after them, and a layer is stored
    under its first slot."""
    config = merged(["0:0 + 1:0*0.5", "1:1", "0:0*2 + 1:1 + 1:3*-1e-3"])
    assert config.slots == [(0, 0), (1, 1), (0, 0), (1, 0), (1, 1), (1, 3)]
    assert config.hop_slots == [[0, 3], [1], [2, 4, 5]]
    assert config.owners == [0, 1, 0, 3, 1, 5]
    assert config.hops[2] == [(0, 0, 2.0), (1, 1, 1.0), (1, 3, -1e-3)]


@pytest.mark.parametrize("what", REFUSALS)
def test_a_wrong_config_json_is_refused_in_one_line(what, tmp_path, monkeypatch):
    """A wrong config.json is refused with one line that begins with the field's name, before a
    module is made."""
    fields, message = REFUSALS[what]
    (tmp_path / "config.json").write_text(json.dumps({**VALID, **json.loads(fields)}))
    monkeypatch.setattr(torch.nn.Module, "__init__", None)
    for load in (AutoConfig.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match=r"^[\w.]+(\[\d+\])?(\.\w+)?: ") as caught:
            load(tmp_path)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


def test_the_refusals_are_documented():
    """The page of the model's tests has the table that `python tests/modeling/wrong_configs.py`
    prints."""
    assert table() in (
        Path(__file__).parents[2] / "benchmarks" / "pages" / "model-tests.md"
    ).read_text(encoding="utf-8")


def test_the_configuration_that_the_refusals_spoil_is_valid(tmp_path):
    """Without what makes it wrong, the config.json of the test above is read, and written back as
    it was."""
    (tmp_path / "config.json").write_text(json.dumps(VALID))
    read = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {name: read[name] for name in VALID if name != "text_config"} == {
        name: value for name, value in VALID.items() if name != "text_config"
    }


def test_the_terms_of_a_hop_are_of_one_layer_type():
    """A hop cannot sum a layer of full attention and one of sliding attention."""
    config = tiny_model("gemma2").config
    with pytest.raises(
        ValueError, match=r"^path\[1\]: the terms of a hop must be of one layer type"
    ):
        EvoMergedConfig.from_sources([config], ["0:0", "0:0*0.5 + 0:1*0.5"])


def test_a_changed_configuration_is_checked_when_saved(tmp_path):
    """A configuration that was changed into nonsense cannot be saved, and says so in one line."""
    config = merged(["0:0", "1:3"])
    config.scales = [1.0, float("nan")]
    with pytest.raises(ValueError, match=r"^scales\[1\]: nan is not a finite number$"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_lists_follow_the_path():
    """Lists with one entry per layer are re-indexed along the path, from the source that each layer
    is of."""
    a, b = (tiny_model("smollm3", layers).config for layers in (3, 4))
    config = EvoMergedConfig.from_sources([a, b], ["0:2", "1:1 + 0:0", "1:3"]).text_config
    assert config.num_hidden_layers == 4
    assert config.no_rope_layers == [
        a.no_rope_layers[2],
        b.no_rope_layers[1],
        b.no_rope_layers[3],
        a.no_rope_layers[0],
    ]
    assert (a.num_hidden_layers, b.num_hidden_layers) == (3, 4)


def test_lists_of_layer_numbers_follow_the_path():
    """A list that holds the numbers of some layers becomes the list of the slots that run them."""
    config = tiny_model("qwen3_moe", 4, decoder_sparse_step=2, mlp_only_layers=[3]).config
    text = EvoMergedConfig.from_sources([config], ["0:1", "0:3", "0:0", "0:1", "0:2"]).text_config
    assert (text.decoder_sparse_step, text.mlp_only_layers) == (1, [1, 2, 4])


def test_a_list_of_tokens_does_not_follow_the_path():
    """A list that is as long as the model is deep by coincidence stays as it is."""
    config = llama(3, eos_token_id=[5, 6, 7])
    assert EvoMergedConfig.from_sources(
        [config], ["0:2", "0:1", "0:0"]
    ).text_config.eos_token_id == [5, 6, 7]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"intermediate_size": 48}, "intermediate_size is 48, but 40 in source 0"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_parameters"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
    ],
)
def test_sources_that_compute_differently_are_refused(other, message):
    """Sources whose settings differ in what their layers compute are refused, with the setting."""
    with pytest.raises(ValueError, match=rf"^sources\[1\]: {message}"):
        EvoMergedConfig.from_sources([llama(), llama(**other)], ["0:0", "1:0"])


def test_fine_tunes_may_differ_in_what_does_not_matter():
    """Another vocabulary, other special tokens and another depth are no obstacle."""
    check_alike([llama(), llama(5, vocab_size=70, eos_token_id=[2, 9], tie_word_embeddings=True)])


@pytest.mark.parametrize("architecture", slow_beyond(FAMILIES, ARCHITECTURES))
def test_known_architectures_can_be_rearranged(architecture):
    """In these architectures a layer is the same wherever it stands."""
    check_rearrangeable([tiny_model(architecture, 4).config])


def test_layers_that_depend_on_their_number_are_refused():
    """An architecture that computes a setting from the layer's number is refused, with the
    setting."""
    for architecture, fields, setting in (
        ("diffllama", {}, "self_attn.lambda_init"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "attn.scaling"),
    ):
        with pytest.raises(ValueError, match=f"'{architecture}' has {setting}"):
            check_rearrangeable([tiny_model(architecture, **fields).config])
