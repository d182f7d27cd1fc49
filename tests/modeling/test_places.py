"""Layers that depend on their place: what is built, made in memory and loaded again computes the
same, or is refused."""

import pytest
import torch
from classes import edit_json
from every_type import tiny_source
from tiny_models import logits_of, path_model, tiny_model, token_ids
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from hf_evomerge.errors import PathError
from hf_evomerge.modeling import EvoMergedConfig, EvoMergedForCausalLM
from hf_evomerge.modeling.layers_evo_merged import _COUNTS_FROM_THE_END

# Architecture: a path that puts a layer where it would compute something else, one that does not,
# and what differs.
PLACES = {
    "deepseek_v3": (["0:1", "0:0"], ["0:0", "0:1 + 0:2*0.5", "0:1"], "mlp.class"),
    "glm4_moe": (["0:1", "0:0"], ["0:0", "0:2", "0:2"], "mlp.class"),
    "minicpm3": (["0:0", "0:1"], ["0:0", "0:2", "0:2"], "residual_scale"),
    "diffllama": (["0:1", "0:0"], None, "self_attn.lambda_init"),
    "beam": (["0:1", "0:0"], None, "attn_residual_add_idx"),
}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("architecture", PLACES)
def test_a_layer_that_would_compute_something_else_is_refused_everywhere(architecture):
    """The configuration, the model made from it, with_path and the pool refuse the same path, in
    one line with the setting."""
    source = tiny_source(architecture, 3)
    wrong, _, what = PLACES[architecture]
    message = (
        rf"^text_config\.model_type: layer \d of '{architecture}' has {what} = \S.* but \S.*; it "
        r"cannot run there$"
    )
    config = EvoMergedConfig.from_sources([source.config], wrong, checked=True)
    whole = path_model([source], "0:0-2")
    for refuse in (
        lambda: EvoMergedConfig.from_sources([source.config], wrong),
        lambda: EvoMergedForCausalLM(config),
        lambda: whole.with_path(wrong),
        lambda: path_model([source], wrong),
    ):
        with pytest.raises((ValueError, PathError), match=message):
            refuse()


@pytest.mark.parametrize("architecture", [name for name, (_, right, _) in PLACES.items() if right])
def test_layers_that_stay_where_they_belong_are_allowed(architecture, tmp_path):
    """A path that keeps such layers in their places runs; what is saved, loaded and taken by
    with_path gives the same bits."""
    model = path_model([tiny_source(architecture, 3)], PLACES[architecture][1])
    for again in (_reloaded(model, tmp_path), model.with_path(model.config.path)):
        assert torch.equal(logits_of(again), logits_of(model))


def test_a_checkpoint_whose_layers_cannot_stand_there_is_refused_when_loaded(tmp_path):
    """A config.json that was written by hand is refused before weights are read."""
    path_model([tiny_source("deepseek_v3", 3)], "0:0, 0:1").save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", path=["0:1", "0:0"])
    with pytest.raises(
        ValueError, match=r"^text_config\.model_type: layer 1 of 'deepseek_v3' has mlp.class = "
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("path", [["0:0", "0:1", "0:2"], ["0:0", "0:1*0.5 + 0:2*0.5", "0:0"]])
def test_what_the_source_class_fills_in_is_filled_in(path, tmp_path):
    """Buffers that Falcon-H1 computes for its layers, and does not store, are right after loading:
    in sums as well."""
    source = tiny_source("falcon_h1", 3)
    model = path_model([source], path)
    again = _reloaded(model, tmp_path)
    vectors = [layer.mamba.mup_vector for layer in again.layers]
    assert all(torch.equal(vector, source.model.layers[0].mamba.mup_vector) for vector in vectors)
    assert torch.equal(logits_of(again), logits_of(model))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [("blt", "more than a language model"), ("bart", "an encoder and a decoder")],
)
def test_more_than_a_language_model_is_refused(architecture, message):
    """A text_config of a model that is more than a decoder of text is refused, from a mapping and
    from a configuration."""
    said = f"^text_config.model_type: '{architecture}' is {message}; give the language model alone$"
    mapping = {"model_type": architecture, "num_hidden_layers": 2}
    for given in (mapping, CONFIG_MAPPING[architecture]()):
        for path in (["0:0", "0:1"], None):
            with pytest.raises(ValueError, match=said):
                EvoMergedConfig(text_config=given, path=path)


@pytest.mark.skipif(not _COUNTS_FROM_THE_END, reason="this transformers numbers them otherwise")
@pytest.mark.parametrize("selected", [-1, [-1], [0, -2], [-4, 2], [1, 9, -9]])
def test_hidden_states_are_selected_by_hop(selected):
    """Hidden states selected by number, negative ones from the end, are those of the hops, whatever
    the number of terms."""
    model = path_model([tiny_model("llama")], ["0:0", "0:0*0.5 + 0:1*0.5 + 0:2*0.1", "0:2"])
    every = model(token_ids(), output_hidden_states=True).hidden_states
    some = model(token_ids(), output_hidden_states=selected).hidden_states
    plain = tiny_model("llama")(
        token_ids(), output_hidden_states=selected
    ).hidden_states  # also of three layers
    assert [state is None for state in some] == [state is None for state in plain]
    assert len(every) == 4
    for state, wanted in zip(reversed(some), reversed(every), strict=False):
        assert state is None or torch.equal(state, wanted)


def _reloaded(model, folder):
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)
