"""Fitness as the log-probability of whole texts, in windows where they are long: what perplexity is
computed from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ...errors import FitnessError
from ...recipes.strict_yaml import Count
from ..example import Example
from ..prepared import GradientTask
from ..registry import register_task
from ..text.encoding import encode_prompt
from ..text.pairs import Pair
from .likelihood import TextSpec, TextTask


class PerplexitySpec(TextSpec):
    """Score a model by the mean log-probability of a text's tokens (or bytes); ``exp`` of its
    negative is the perplexity."""

    task: Literal["perplexity"] = "perplexity"
    normalize: Literal["token", "byte"] = "token"
    """Per ``token`` or per ``byte``; only the latter compares models with different tokenizers."""
    window: Annotated[Count, Field(ge=2)] = 1024
    """Tokens that the model is given at most."""
    stride: Count | None = None
    """Tokens that a window after the first one scores, with the window's others before them as
    context; half of the window where absent. As many as the window: windows side by side, the
    fastest."""
    batch_size: Count = 8
    """Windows in a forward pass. It changes memory and time, and scores in 8 bits alone."""

    @model_validator(mode="after")
    def _check_stride(self) -> PerplexitySpec:
        if self.stride is not None and self.stride > self.window:
            raise ValueError(
                f"stride: {self.stride} is beyond the window of {self.window}, and tokens "
                "between would be left out"
            )
        return self


@register_task("perplexity")
class PerplexityTask(TextTask, GradientTask):
    """Mean log-probability of texts: the answers, after their prompts, which ``text_field`` leaves
    empty.

    An empty prompt is the token that begins a text, or the one that ends it where the tokenizer has
    no other.
    """

    spec_type = PerplexitySpec
    spec: PerplexitySpec

    def _encode(self, example: Example, tokenizer: Any) -> list[Pair]:
        if example.pictures:
            raise FitnessError(
                f"{example.id}: has pictures, which perplexity does not look at; use likelihood"
            )
        if example.prompt:
            before = encode_prompt(example, tokenizer)
        else:
            first = (
                tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
            )
            if first is None:
                raise FitnessError(
                    f"{example.id}: the tokenizer has no token that begins or ends a text; "
                    "give a prompt"
                )
            before = [first]
        text = list(tokenizer(example.answer, add_special_tokens=False)["input_ids"])
        if not text:
            raise FitnessError(f"{example.id}: the text {example.answer!r:.80} has no tokens")
        return list(
            windows(before, text, self.spec.window, self.spec.stride or (self.spec.window + 1) // 2)
        )


# Strided windows, as in transformers' guide to perplexity: window k feeds at most `window` tokens
# and scores the last `stride` of them; the others are context. Kept invariant: every token of the
# text is scored exactly once, with at least window - stride tokens before it from the second window
# on. The first window has no earlier text and scores all that fits. The last token of a window is
# predicted and not fed, which is why one more fits.
def windows(before: list[int], text: list[int], window: int, stride: int) -> Iterator[Pair]:
    """Cut a text so that every token is scored once, in windows of at most so many tokens that are
    fed.

    Args:
        before: Tokens before the text, at least one; their end is context of the first window.
        text: Tokens that are scored.
        window: Tokens fed at most.
        stride: Tokens scored by a window after the first.

    Example:
        >>> list(windows([0], [1, 2, 3, 4, 5, 6], window=4, stride=2))
        [([0], [1, 2, 3, 4]), ([2, 3, 4], [5, 6])]
    """
    fed = [*before, *text]
    first = max(window - len(before) + 1, stride)
    begin = 0
    end = min(first, len(text))
    while True:
        last = len(before) + end - 1  # tokens before this place are fed
        yield fed[max(0, last - window) : len(before) + begin], text[begin:end]
        if end == len(text):
            return
        begin = end
        end = min(end + stride, len(text))
