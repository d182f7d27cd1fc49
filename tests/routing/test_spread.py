"""Models over several devices: each tensor meets those of its own device alone, as two pretended GPUs say."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_models import OLD_CACHE_NAMES, tiny_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BertConfig, BertModel

from hf_evomerge.errors import SourceError
from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.routing import spread as spreading
from hf_evomerge.routing.gates import gate_gradient
from hf_evomerge.routing.pool import LayerPool
from hf_evomerge.routing.spread import layer_places, spread

GPUS = ("lazy:0", "lazy:1")  # the one kind of device besides the processor that torch knows everywhere


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors that have a device, a shape and no numbers; such a one cannot be moved in place."""

    def move(modules: Any, device: str) -> None:
        for module in modules:
            for name, tensor in module._parameters.items():
                module._parameters[name] = tensor if tensor is None else nn.Parameter(tensor.to(device), tensor.requires_grad)
            for name, tensor in module._buffers.items():
                module._buffers[name] = tensor if tensor is None else tensor.to(device)

    monkeypatch.setattr(spreading, "_move", move)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def test_layers_are_shared_out_by_their_size():
    """Every device gets about as many bytes, what is outside the layers being on the first."""
    assert layer_places([10] * 4, 0, 2) == [0, 0, 1, 1]
    assert layer_places([10] * 4, 40, 2) == [1, 1, 1, 1]
    assert layer_places([10] * 4, 20, 3) == [1, 1, 2, 2]
    assert layer_places([1, 1, 100], 0, 2) == [0, 0, 1]


def test_a_model_runs_on_two_gpus(pretended, monkeypatch):
    """A whole model, and paths to and fro between the GPUs, with a cache; without the hooks torch refuses."""
    with torch.no_grad():
        models = [tiny_model("llama", layers=2) for _ in range(2)]
        for model in models:
            spread(model, GPUS)
            assert {str(parameter.device) for parameter in model.parameters()} == set(GPUS)
            assert str(model.device) == GPUS[0]
        ids = torch.zeros(2, 5, dtype=torch.long, device=GPUS[0])
        path = LayerPool(models, spread=True).model(LayerPath.parse("0:0, 1:1, 1:0, 0:1"))
        for model in (models[0], path):
            first = model(input_ids=ids, use_cache=True)
            cache = {"past_key_values" if OLD_CACHE_NAMES else "cache": first.past_key_values}
            then = model(input_ids=ids[:, :1], **cache)
            assert str(first.logits.device) == str(then.logits.device) == GPUS[0]
        monkeypatch.setattr(spreading._Follow, "_there", lambda self, value: value)
        with pytest.raises(RuntimeError, match="lazy:1"):
            path(input_ids=ids)


def test_gates_on_two_gpus(pretended):
    """The numbers of gates lie where they can be multiplied with tensors of any GPU."""
    models = [tiny_model("llama", layers=2)] * 2
    spread(models[0], GPUS)

    def forward(model: Any) -> None:  # a pretended backward pass ends the process
        assert model(input_ids=torch.zeros(1, 3, dtype=torch.long, device=GPUS[0])).logits.requires_grad
        raise InterruptedError

    with pytest.raises(InterruptedError):
        gate_gradient(LayerPool(models, spread=True), [(0, 0), (1, 1), (0, 1)], [1.0, 0.0, 0.5], forward)


def test_a_model_without_layers_in_a_list_is_refused():
    """One line says it."""
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 10}
    model = BertModel(BertConfig(**config))
    model.config.num_hidden_layers = 5
    with pytest.raises(SourceError, match="devices_per_model: BertModel has no one list of layers"):
        spread(model, GPUS)
