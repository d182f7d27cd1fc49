"""Quantised while it is loaded: the same numbers as a plain deep model that is quantised alike.
Skips what is not installed."""

import pytest
import torch
from by_definition import deep_model
from tiny_models import logits_of, tiny_model, token_ids
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.routing.pool import LayerPool

PATH = LayerPath.parse("0:0, 1:1, 1:3, 0:1, 0:0, 1:3")
SIZES = {"hidden_size": 64, "intermediate_size": 128}
ONCE = (1, 3)
AGAIN = (0, 2, 4, 5)  # hops of layers that run once, and of layers that run twice


def _torchao(skip):
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skip)


KINDS = {
    "torchao int8": ("torchao", _torchao),
    "bitsandbytes int8": (
        "bitsandbytes",
        lambda skip: BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip),
    ),
    "bitsandbytes nf4": (
        "bitsandbytes",
        lambda skip: BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skip
        ),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A merged model whose path repeats two layers, and the same as a plain deep model."""
    folder = tmp_path_factory.mktemp("models")
    sources = [tiny_model("llama", 3, **SIZES), tiny_model("llama", 4, seed=1, **SIZES)]
    LayerPool(sources).model(PATH).save_pretrained(folder / "merged")
    deep_model("llama", sources, PATH, **SIZES).save_pretrained(folder / "plain")
    return folder


@pytest.fixture(params=KINDS)
def load(request, folders):
    """Loads one of the two models quantised, without the modules whose names begin in one of these
    ways."""
    package, make = KINDS[request.param]
    pytest.importorskip(package)

    def quantised(name, skip):
        return AutoModelForCausalLM.from_pretrained(
            folders / name, quantization_config=make(skip), dtype=torch.float32
        )

    return quantised


def test_all_layers_quantised(load, folders, tmp_path):
    """With a list of what to leave out, every layer is quantised, once, and the logits are the
    plain quantised model's."""
    merged = load("merged", ["model.lm_head"])
    plain = load("plain", ["lm_head"])
    logits = logits_of(merged)
    assert torch.equal(logits, logits_of(plain))
    assert torch.equal(logits_of(merged), logits)
    exact = logits_of(AutoModelForCausalLM.from_pretrained(folders / "merged"))
    assert not torch.allclose(logits, exact, atol=1e-3)
    assert merged.layers[0].mlp.up_proj is merged.layers[4].mlp.up_proj
    shorter = merged.with_path("0:0, 0:0, 1:1")
    assert torch.equal(
        shorter(token_ids(), output_hidden_states=True).hidden_states[1],
        merged(token_ids(), output_hidden_states=True).hidden_states[1],
    )
    for model in (merged, shorter):
        with pytest.raises(
            ValueError, match="quantised layers that run more than once cannot be saved"
        ):
            model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="quantised layers that run more than once cannot be separated"
    ):
        merged.unshare()


def test_by_default_repeated_layers_stay_as_they_are(load):
    """Without a list, transformers leaves shared weights out: only layers that run once are
    quantised."""
    merged = load("merged", None)
    plain = load("plain", ["lm_head", *(f"model.layers.{hop}" for hop in AGAIN)])
    assert torch.equal(logits_of(merged), logits_of(plain))
    weights = [merged.layers[hop].mlp.up_proj for hop in range(len(PATH))]
    assert all(
        type(weights[hop].weight) is torch.nn.Parameter
        and weights[hop].weight.dtype == torch.float32
        for hop in AGAIN
    )
