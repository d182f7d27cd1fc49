"""The default engine: `generate` of the model itself, on one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import FitnessError
from .encoding import device_of, encodes
from .engine import Written, written_as

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig


class TransformersEngine:
    """`generate` of the model itself, on one batch."""

    def load(self, model: Any, tokenizer: Any, length: int) -> None:
        """See `Engine`."""
        self._model, self._tokenizer = model, tokenizer

    def respond(
        self, prompts: Sequence[list[int]], config: GenerationConfig, stops: Sequence[str], seen: Mapping[str, torch.Tensor]
    ) -> list[Written]:
        """See `Engine`.

        Padding stands on the left, so that every response follows its prompt directly; on the right for an encoder.
        """
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        longest = max(map(len, prompts))
        right = encodes(self._model)
        start = 1 if right else longest  # after the decoder's own first token, or the prompt

        def padded(row: list[int], filler: int) -> list[int]:
            gap = [filler] * (longest - len(row))
            return row + gap if right else gap + row

        device, filler = device_of(self._model), int(config.pad_token_id)
        written = self._model.generate(
            input_ids=torch.tensor([padded(prompt, filler) for prompt in prompts], device=device),
            attention_mask=torch.tensor([padded([1] * len(prompt), 0) for prompt in prompts], device=device),
            **seen,
            generation_config=config,
            logits_processor=LogitsProcessorList([_RefuseNonFinite()]),
            stopping_criteria=StoppingCriteriaList([_StopAtText(stops, self._tokenizer, start)] if stops else []),
            trust_remote_code=False,
        )
        ends = set(config.eos_token_id or [])
        forced = self._model.generation_config.forced_eos_token_id is not None  # at the limit, whatever the model says
        own = config.max_new_tokens - forced
        rows = written[:, start:].tolist()
        return [written_as(self._tokenizer, row, ends, not ends.isdisjoint(row[:own])) for row in rows]


class _StopAtText:
    """A stopping criterion that ends a row once a stop string is in what was written last.

    It only saves time: responses are cut at stop strings afterwards. (The ``stop_strings`` of transformers compile the
    vocabulary, which fails for word-level tokenizers.)
    """

    def __init__(self, stops: Sequence[str], tokenizer: Any, start: int) -> None:
        self.stops, self.tokenizer, self.start = stops, tokenizer, start
        self.window = max(len(stop.encode()) for stop in stops) + 4  # a token is at least a byte long; 4 make a character

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        tails = input_ids[:, max(self.start, input_ids.shape[1] - self.window) :].tolist()
        texts = [self.tokenizer.decode(tail, skip_special_tokens=True) for tail in tails]
        return torch.tensor([any(stop in text for stop in self.stops) for text in texts], device=input_ids.device)


class _RefuseNonFinite:
    """A logits processor that ends generation when a model's logits are not numbers: greedy decoding would not notice."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not scores.amax(1).isfinite().all():
            raise FitnessError("the model's logits are not finite")
        return scores
