"""vLLM as an engine: one model of the candidates' shape stays on the GPU, and each candidate's weights are written into it.

By vLLM's public weight transfer (0.29 and later): what is sent are a model's tensors under the names of its checkpoint.
"""

from __future__ import annotations

import copy
import gc
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..errors import FitnessError
from .engine import Written, written_as

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig


@lru_cache(maxsize=1)
def vllm_engine(share: float) -> VllmEngine:
    """The engine of this process: starting one takes a minute, and the GPU has room for no second."""
    return VllmEngine(share)


class VllmEngine:
    """A vLLM engine beside a live model on the same GPU; see `Engine`.

    Args:
        share: Of the GPU's memory, for the engine's own copy of the weights and its cache.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._llm: Any = None
        self._sender: Any = None
        self._kind: tuple[Any, ...] = ()
        self._length = 0
        self._model: Any = None
        self._tokenizer: Any = None

    def load(self, model: Any, tokenizer: Any, length: int) -> None:
        """See `Engine`. What is there already is used again where it fits."""
        self._model, self._tokenizer = model, tokenizer
        settings = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
        kind = (type(model), str(settings), model.dtype, model.device)
        if kind != self._kind or length > self._length:
            self._start(model, tokenizer, length)
            self._kind, self._length = kind, length
        self._sender.send_weights()

    def _start(self, model: Any, tokenizer: Any, length: int) -> None:
        """Start vLLM with a model of this shape, in the place of the one before."""
        _check(model)
        self._llm = self._sender = None
        self._kind = ()
        gc.collect()
        os.environ.setdefault(
            "VLLM_ALLOW_INSECURE_SERIALIZATION", "1"
        )  # handles of tensors, between this process and its child
        try:
            from vllm import LLM
            from vllm.config import WeightTransferConfig
            from vllm.distributed.weight_transfer import ParamMeta, WeightSource, WeightTransferTrainerFactory
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        except ImportError as cause:
            raise FitnessError(
                f'fitness.engine: this vLLM has no weight transfer ({cause}); pip install "hf-evomerge[vllm]"'
            ) from cause
        with TemporaryDirectory() as folder:
            config = copy.deepcopy(model.config)
            config.architectures = [type(model).__name__]
            config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            self._llm = LLM(
                model=folder,
                dtype=str(model.dtype).removeprefix("torch."),
                max_model_len=length,
                gpu_memory_utilization=self._share,
                seed=0,
                load_format="dummy",
                generation_config="vllm",
                trust_remote_code=False,
                enable_prefix_caching=False,  # what it remembers is of the candidate before
                weight_transfer_config=WeightTransferConfig(backend="ipc"),
            )
        engine = self

        class Weights(WeightSource):
            """The tensors of the model that is scored."""

            def metadata(self) -> list[Any]:
                """Their names, dtypes and shapes."""
                return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self]

            def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
                return iter(checkpoint_tensors(engine._model).items())

        self._sender = WeightTransferTrainerFactory.trainer_init(
            init_info=IPCTrainerInitInfo(rank=0, packed=True), client=_Client(self._llm), source=Weights()
        )

    def respond(
        self, prompts: Sequence[list[int]], config: GenerationConfig, stops: Sequence[str], seen: Mapping[str, torch.Tensor]
    ) -> list[Written]:
        """See `Engine`."""
        from vllm import SamplingParams

        how = SamplingParams(
            temperature=0.0,
            max_tokens=config.max_new_tokens,
            stop=list(stops) or None,
            include_stop_str_in_output=True,
            stop_token_ids=list(config.eos_token_id or []),
            logprobs=0,
        )
        found = self._llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], how, use_tqdm=False)
        ends = set(config.eos_token_id or [])
        responses = [response for each in found for response in each.outputs]
        if not all(math.isfinite(response.cumulative_logprob) for response in responses):
            raise FitnessError("the model's logits are not finite")
        return [
            written_as(self._tokenizer, response.token_ids, ends, response.finish_reason == "stop") for response in responses
        ]


class _Client:
    """Takes what the sender says to an engine of the same process, in the four calls of vLLM's protocol."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Once."""
        self._llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        """Before each candidate."""
        self._llm.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Some of its tensors."""
        self._llm.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """After them."""
        self._llm.finish_weight_update()


def checkpoint_tensors(model: Any) -> dict[str, torch.Tensor]:
    """A model's tensors under the names that they have in its checkpoint; those that are tied once."""
    from transformers.core_model_loading import revert_weight_conversion

    own, there = {}, set[tuple[int, tuple[int, ...]]]()
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if key not in there:
            there.add(key)
            own[name] = tensor.detach()
    found: dict[str, torch.Tensor] = revert_weight_conversion(model, own)
    return found


def _check(model: Any) -> None:
    """Raise `FitnessError` where vLLM cannot run a model, or cannot be given its weights."""
    import torch
    from vllm.platforms import current_platform

    if model.config.model_type == "evo_merged":
        raise FitnessError(
            "fitness.engine: vllm runs plain models, and this one is a path; fold it (`hf-evomerge fold`), or leave engine out"
        )
    if not current_platform.is_cuda():
        raise FitnessError(f"fitness.engine: vllm takes over weights on a GPU alone (device: {model.device}); leave engine out")
    if model.device.index not in (None, 0):
        raise FitnessError(f"fitness.engine: vllm takes the first GPU, and the model is on {model.device}; use --ray")
    if model.device.type == "cuda":
        torch.cuda.set_device(model.device)
