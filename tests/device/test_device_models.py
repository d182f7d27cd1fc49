"""Models with a path on another device: made of resident layers, saved, loaded and changed."""

import pytest
import torch
from refused import refused
from tiny_models import FAMILIES, logits_of, tiny_model, token_ids
from transformers import AutoModelForCausalLM

from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.routing.gates import gate_gradient
from hf_evomerge.routing.pool import LayerPool

PATH = LayerPath.parse(
    ["0:0", "1:1*0.6 + 0:1*0.5", "1:0", "1:1*0.6 + 0:1*0.5", "0:2"], [1.0, 0.8, 1.2, 0.7, 1.0]
)


def pool_on(architecture, place):
    """Two models of a family, resident on a device."""
    models = (tiny_model(architecture, seed=n, attn_implementation="eager") for n in range(2))
    return LayerPool([model.to(place) for model in models])


@pytest.mark.parametrize("scale_target", ["stream", "mlp_delta"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_path_there(architecture, scale_target, device, tmp_path):
    """Hops of one term and of two give the processor's logits and tokens: pooled, loaded,
    changed."""
    wanted = pool_on(architecture, "cpu").model(PATH, scale_target)
    model = pool_on(architecture, device).model(PATH, scale_target)
    given = token_ids().to(device)
    assert torch.equal(model(given).logits.cpu(), logits_of(wanted))
    how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    answer = wanted.generate(token_ids(), **how)
    assert torch.equal(model.generate(given, **how).cpu(), answer)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").to(device)
    here, there = ({p.data_ptr() for p in each.parameters()} for each in (wanted, loaded))
    assert len(here) == len(there)
    assert torch.equal(loaded.generate(given, **how).cpu(), answer)
    path = ["0:0", "1:1", "0:2"], [1.0, 0.5, 1.0]
    other = loaded.with_path(*path).eval()
    assert torch.equal(other(given).logits.cpu(), logits_of(wanted.with_path(*path)))


def test_gradients_of_gates_there(device):
    """Gates of hops of one slot and of two have the processor's slopes."""
    slots = [(0, 0), (1, 0), (0, 1), (1, 2)]
    gates = [1.0, 0.5, 0.0, 0.8]
    hops = [0, 0, 1, 2]
    slopes = []
    for place in ("cpu", device):
        tokens = token_ids().to(place)
        pool = pool_on("llama", place)
        slopes.append(
            gate_gradient(
                pool,
                slots,
                gates,
                lambda model: model(tokens, labels=tokens).loss.backward(),  # noqa: B023
                hops=hops,
            )
        )
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-4)
    assert all(slopes[0])


def test_sources_of_two_devices_are_refused():
    """Layers of one model lie on one device."""
    with refused(r"on standin:1, but source 0 is .* on standin:0; load all sources alike"):
        LayerPool([tiny_model("llama").to(f"standin:{number}") for number in range(2)])
