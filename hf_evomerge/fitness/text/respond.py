"""Responses of a model to one batch of prompts, by its own `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import FitnessError
from .answers import cut_at_stops
from .encoding import device_of, encodes
from .prefix import SharedPrefix

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig


class Written(NamedTuple):
    """A response up to its first stop string, whether it was ended, and all its tokens."""

    text: str
    ended: bool
    tokens: Sequence[int] = ()


def respond(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    config: GenerationConfig,
    stops: Sequence[str],
    seen: Mapping[str, torch.Tensor],
    prefix: SharedPrefix,
    shared: int = 0,
) -> list[Written]:
    """Respond to a batch of prompts.

    Padding stands on the left, so that every response follows its prompt directly; after what the
    prompts share, where that is run once; on the right for an encoder.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompts: Their token ids.
        config: Greedy decoding, up to a length.
        stops: Strings at which a response may end, to save time.
        seen: The model's inputs for their pictures; empty where there are none.
        prefix: What runs the shared tokens.
        shared: Number of tokens that all prompts begin with.

    Raises:
        FitnessError: The model's logits are not finite.
    """
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    longest = max(map(len, prompts))
    right = encodes(model)
    start = 1 if right else longest  # after the decoder's own first token, or the prompt

    repeated = None if right else prefix.repeated(prompts[0][:shared], len(prompts))
    before = 0 if repeated is None else shared

    def padded(row: list[int], filler: int) -> list[int]:
        gap = [filler] * (longest - len(row))
        return row + gap if right else row[:before] + gap + row[before:]

    device = device_of(model)
    filler = int(config.pad_token_id)
    written = model.generate(
        input_ids=torch.tensor([padded(prompt, filler) for prompt in prompts], device=device),
        attention_mask=torch.tensor(
            [padded([1] * len(prompt), 0) for prompt in prompts], device=device
        ),
        **seen,
        **(repeated or {}),
        generation_config=config,
        logits_processor=LogitsProcessorList([_RefuseNonFinite()]),
        stopping_criteria=StoppingCriteriaList(
            [_StopAtText(stops, tokenizer, start)] if stops else []
        ),
        trust_remote_code=False,
    )
    ends = set(config.eos_token_id or [])
    # at the limit, whatever the model says
    forced = model.generation_config.forced_eos_token_id is not None
    own = config.max_new_tokens - forced
    found = []
    for row in written[:, start:].tolist():
        # what follows the first end-of-text token is padding
        tokens = list(takewhile(lambda token: token not in ends, row))
        whole = str(tokenizer.decode(tokens, skip_special_tokens=True))
        text = cut_at_stops(whole, stops)
        found.append(Written(text, text != whole or not ends.isdisjoint(row[:own]), tokens))
    return found


class _StopAtText:
    """A stopping criterion that ends a row once a stop string is in what was written last.

    It only saves time: responses are cut at stop strings afterwards. (The ``stop_strings`` of
    transformers compile the vocabulary, which fails for word-level tokenizers.)
    """

    def __init__(self, stops: Sequence[str], tokenizer: Any, start: int) -> None:
        self.stops = stops
        self.tokenizer = tokenizer
        self.start = start
        # a token is at least a byte long; 4 make a character
        self.window = max(len(stop.encode()) for stop in stops) + 4

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        # Only the last tokens are decoded at each step: a stop string of b bytes ends within the
        # last b + 4 tokens if it was completed just now. Whole texts would make the cost quadratic
        # in their length.
        tails = input_ids[:, max(self.start, input_ids.shape[1] - self.window) :].tolist()
        texts = [self.tokenizer.decode(tail, skip_special_tokens=True) for tail in tails]
        ended = [cut_at_stops(text, self.stops) != text for text in texts]
        return torch.tensor(ended, device=input_ids.device)


class _RefuseNonFinite:
    """A logits processor that ends generation when a model's logits are not numbers: greedy
    decoding would not notice."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not scores.amax(1).isfinite().all():
            raise FitnessError("the model's logits are not finite")
        return scores
