"""A stand-in for vLLM: what its pages say of weight transfer, in one process, which looks at all that it is sent.

It has the names that `hf_evomerge/fitness/vllm_engine.py` uses and no others, and writes by transformers, a prompt at a time.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

STARTED: list[FakeLLM] = []


@dataclass
class SamplingParams:
    """How to write; what is not greedy is not here."""

    temperature: float
    max_tokens: int
    stop: list[str] | None
    include_stop_str_in_output: bool
    stop_token_ids: list[int]
    logprobs: int


@dataclass
class WeightTransferConfig:
    """The backend alone, as in vLLM."""

    backend: str


@dataclass(frozen=True)
class ParamMeta:
    """What is sent, without sending it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(kw_only=True)
class IPCTrainerInitInfo:
    """The sender's side."""

    rank: int
    packed: bool = False


class WeightSource:
    """The base class."""


class FakeLLM:
    """An engine that begins with other weights than anybody's, and checks the protocol and every tensor."""

    def __init__(self, model: str, **options: Any) -> None:
        assert os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"
        assert options["load_format"] == "dummy"
        assert options["weight_transfer_config"] == WeightTransferConfig("ipc")
        assert options["enable_prefix_caching"] is False
        assert options["generation_config"] == "vllm"
        self.options = options
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        config = AutoConfig.from_pretrained(model)
        assert config.architectures
        torch.manual_seed(99)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options["dtype"])).eval()
        tied = self.model.all_tied_weights_keys
        self.parameters = {name: tensor for name, tensor in self.model.state_dict().items() if name not in tied}
        self.calls: list[str] = []
        self.missing: set[str] = set()
        STARTED.append(self)

    def init_weight_transfer_engine(self, request: dict[str, Any]) -> None:
        """Before the first update."""
        assert request == {"init_info": {"packed": True}}
        self.calls.append("init")

    def start_weight_update(self) -> None:
        """An update begins."""
        assert self.calls[-1] in ("init", "finish")
        self.calls.append("start")
        self.missing = set(self.parameters)

    def update_weights(self, request: dict[str, Any]) -> None:
        """Some tensors."""
        assert self.calls[-1] in ("start", "update")
        self.calls.append("update")
        info = request["update_info"]
        for name, dtype, shape, tensor in zip(
            info["names"], info["dtype_names"], info["shapes"], info["ipc_handles"], strict=True
        ):
            mine = self.parameters[name]
            self.missing.remove(name)  # each once
            assert (str(mine.dtype), list(mine.shape)) == (f"torch.{dtype}", shape) == (str(tensor.dtype), list(tensor.shape))
            mine.copy_(tensor)

    def finish_weight_update(self) -> None:
        """The update ends, and nothing is left of the model before."""
        assert self.calls[-1] == "update"
        assert not self.missing
        self.calls.append("finish")

    def generate(self, prompts: list[dict[str, Any]], how: SamplingParams, use_tqdm: bool) -> list[Any]:
        """Write greedily."""
        assert self.calls[-1] == "finish"
        assert how.temperature == 0
        return [SimpleNamespace(outputs=[self._respond(prompt["prompt_token_ids"], how)]) for prompt in prompts]

    @torch.no_grad()
    def _respond(self, tokens: list[int], how: SamplingParams) -> Any:
        assert len(tokens) + how.max_tokens <= self.options["max_model_len"]
        tokens, written, total = list(tokens), [], 0.0
        while len(written) < how.max_tokens:
            found = self.model(input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
            token = int(found.argmax())
            total += float(found[token])
            tokens.append(token)
            written.append(token)
            text = self.tokenizer.decode(written, skip_special_tokens=True)
            if token in how.stop_token_ids or any(stop in text for stop in how.stop or []):
                break
        else:
            return SimpleNamespace(token_ids=written, finish_reason="length", cumulative_logprob=total)
        return SimpleNamespace(token_ids=written, finish_reason="stop", cumulative_logprob=total)


class _Sender:
    """The trainer's engine: the two channels of a source must agree, and the client is told in order."""

    def __init__(self, client: Any, source: WeightSource) -> None:
        self.client, self.source = client, source

    def send_weights(self) -> None:
        """One round, in chunks of three tensors."""
        assert isinstance(self.source, WeightSource)
        metadata, tensors = self.source.metadata(), list(self.source)
        assert metadata == [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors]
        self.client.start_weight_update()
        for begin in range(0, len(tensors), 3):
            chunk = tensors[begin : begin + 3]
            info = {
                "names": [name for name, _ in chunk],
                "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in chunk],
                "shapes": [list(tensor.shape) for _, tensor in chunk],
                "ipc_handles": [tensor for _, tensor in chunk],
            }
            self.client.update_weights(info)
        self.client.finish_weight_update()


class _Factory:
    @staticmethod
    def trainer_init(*, init_info: IPCTrainerInitInfo, client: Any, source: WeightSource) -> _Sender:
        """Shake hands."""
        assert init_info.rank == 0
        client.init_weight_transfer_engine({"packed": init_info.packed})
        return _Sender(client, source)


def install(patch: pytest.MonkeyPatch, *, cuda: bool = True) -> list[FakeLLM]:
    """Let `import vllm` find this; the engines that are started, in their order."""
    from hf_evomerge.fitness.vllm_engine import vllm_engine

    contents: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": FakeLLM, "SamplingParams": SamplingParams},
        "vllm.config": {"WeightTransferConfig": WeightTransferConfig},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cuda=lambda: cuda)},
        "vllm.distributed": {},
        "vllm.distributed.weight_transfer": {
            "ParamMeta": ParamMeta,
            "WeightSource": WeightSource,
            "WeightTransferTrainerFactory": _Factory,
        },
        "vllm.distributed.weight_transfer.ipc_engine": {"IPCTrainerInitInfo": IPCTrainerInitInfo},
    }
    for name, names in contents.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(names)
        patch.setitem(sys.modules, name, module)
    patch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "")
    patch.delenv("VLLM_ALLOW_INSECURE_SERIALIZATION")
    vllm_engine.cache_clear()
    STARTED.clear()
    return STARTED
