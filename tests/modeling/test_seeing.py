"""Paths through the language layers of vision-language models."""

from functools import cache

import pytest
import torch
from slowly import slow_beyond
from tiny_models import path_model
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, CLIPConfig
from vlms import CLASSES, inputs, random_model, text_config, vlm_config

from hf_evomerge.modeling import EvoMergedConfig, EvoMergedForImageTextToText
from hf_evomerge.modeling.sources_evo_merged import check_alike

PATH = ["0:0", "1:1", "0:0", "0:1*0.5 + 1:1*0.25", "0:1"]
SCALES = [1.1, 0.9, -0.7, 1.2, 0.8]


@cache
def sources(name):
    """Two models of a class."""
    return [random_model(vlm_config(name), seed, CLASSES[name]) for seed in (0, 1)]


def evolved(name, path=PATH, scales=SCALES):
    """A merged model over them."""
    return path_model(sources(name), path, scales)


@pytest.mark.parametrize("name", slow_beyond(["llava", "gemma3"], CLASSES))
def test_it_computes_what_the_path_says(name):
    """The identity path is the source to the bit, and the picture counts on any path."""
    given = inputs(name, 2)
    with torch.no_grad():
        same = evolved(name, ["0:0", "0:1"], None)(**given).logits
        assert torch.equal(same, sources(name)[0](**given).logits)
        logits = evolved(name)(**given).logits
        blind = evolved(name)(**{**given, "pixel_values": -given["pixel_values"]}).logits
    assert not torch.allclose(blind, logits)


@pytest.mark.parametrize("name", slow_beyond(["llava", "gemma3"], CLASSES))
def test_it_generates_with_any_cache(name):
    """Greedy tokens after pictures, in batches, are those without a cache, with a static one, and
    of beams of one."""
    model = evolved(name)
    given = inputs(name, 2)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    wanted = model.generate(**given, **options, use_cache=False)
    assert torch.equal(model.generate(**given, **options), wanted)
    assert torch.equal(model.generate(**given, **options, cache_implementation="static"), wanted)
    assert model.generate(**given, **options, num_beams=2).shape == wanted.shape


@pytest.mark.parametrize("name", slow_beyond(["llava", "gemma3"], CLASSES))
def test_it_is_saved_and_loaded(name, tmp_path):
    """Every layer is stored once; what is loaded computes the same, shares the same, and may take
    another path."""
    model = evolved(name)
    given = inputs(name)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert type(loaded) is EvoMergedForImageTextToText
    assert loaded.num_parameters() == model.num_parameters()
    with torch.no_grad():
        assert torch.equal(loaded(**given).logits, model(**given).logits)
        other = loaded.with_path(["0:0", "0:1"])
        assert torch.equal(other(**given).logits, sources(name)[0](**given).logits)
        for body in (AutoModel.from_pretrained(tmp_path), loaded.base_model):  # which trainers call
            state = body(**given).last_hidden_state
            assert (
                torch.equal(loaded.get_output_embeddings()(state), loaded(**given).logits)
                or name == "gemma3"
            )
    assert loaded.config.get_text_config().num_hidden_layers == 6
    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    with pytest.raises(
        ValueError,
        match=(
            f"'{model.config.text_config.model_type}' sees; load it with "
            "AutoModelForImageTextToText"
        ),
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_it_answers_as_its_class_does():
    """What only vision-language models have is there: features of pictures, the tower, the token of
    a picture."""
    model = evolved("llava")
    (first, _) = sources("llava")
    pictures = inputs("llava")["pixel_values"]
    mine, its = (each.get_image_features(pictures).pooler_output for each in (model, first))
    assert torch.equal(torch.cat(list(mine)), torch.cat(list(its)))
    assert model.get_encoder(modality="image") is model.inner.model.vision_tower
    assert model.config.image_token_id == first.config.image_token_id
    with pytest.raises(AttributeError):
        model.get_nothing_features  # noqa: B018


def test_gradients_of_repeated_layers_add_up():
    """A loss on an answer after a picture reaches shared layers, the projector and the tower."""
    model = evolved("llava").train()
    given = inputs("llava")
    model(**given, labels=given["input_ids"]).loss.backward()
    assert all(
        parameter.grad is not None
        for parameter in model.inner.model.multi_modal_projector.parameters()
    )
    assert model.layers[0].self_attn.q_proj.weight is model.layers[2].self_attn.q_proj.weight
    assert model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_what_does_not_fit_is_refused():
    """Other widths or rotary embeddings; a plain model that gives the embeddings; models that see
    without a language model."""
    sight = vlm_config("qwen2_5_vl")
    plain = text_config("qwen2_5_vl")
    EvoMergedConfig.from_sources([sight, plain], ["0:0", "1:1"])
    rope = {"rope_type": "default", "rope_theta": 5e5}
    wide, turned = (
        text_config("qwen2_5_vl", **wrong)
        for wrong in ({"hidden_size": 64}, {"rope_parameters": rope})
    )
    apart = "is .*their layers cannot run in one model"
    for configs, message in (
        ([sight, wide], rf"sources\[1\]: hidden_size {apart}"),
        ([sight, turned], rf"sources\[1\]: rope_parameters {apart}"),
        (
            [plain, sight],
            "'qwen2_5_vl', but source 0 is 'qwen2'; take the embeddings of source 1, which is more",
        ),
        ([CLIPConfig()], "'clip' is not an architecture of causal language models"),
    ):
        with pytest.raises(ValueError, match=message):
            check_alike(configs)
