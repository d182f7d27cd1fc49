"""Engines that have models write: load a kind of model, take over weights, respond to prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from ..errors import FitnessError

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

EngineName = Literal["transformers", "vllm"]


class Written(NamedTuple):
    """A response, whether the model or a stop string ended it, and its tokens."""

    text: str
    ended: bool
    tokens: Sequence[int] = ()


class Engine(Protocol):
    """Something that has models write, one after the other."""

    def load(self, model: Any, tokenizer: Any, length: int) -> None:
        """Take over a model's weights, and make ready for so many tokens of a prompt with its response.

        Raises:
            FitnessError: The engine cannot run such a model.
        """

    def respond(
        self, prompts: Sequence[list[int]], config: GenerationConfig, stops: Sequence[str], seen: Mapping[str, torch.Tensor]
    ) -> list[Written]:
        """Respond to prompts.

        Args:
            prompts: Their token ids.
            config: How, and up to which length.
            stops: Strings at which a response may end, to save time.
            seen: What the model is given of their pictures; empty where there are none.

        Raises:
            FitnessError: The model's logits are not finite.
        """


def check_engine(name: EngineName) -> None:
    """Raise `FitnessError` where an engine is not installed."""
    if name == "vllm" and find_spec("vllm") is None:
        raise FitnessError('fitness.engine: vLLM is not installed; pip install "hf-evomerge[vllm]", or leave engine out')


def written_as(tokenizer: Any, tokens: Sequence[int], ends: set[int], ended: bool) -> Written:
    """The response that tokens are, up to the first end-of-text token; what follows is padding."""
    response = tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]
    return Written(str(tokenizer.decode(response, skip_special_tokens=True)), ended, response)
