"""Writing of a model after prompts: greedy, in padded batches, cut at stop strings. Knows nothing
of right and wrong.

An encoder-decoder is given the prompt in its encoder, and its decoder writes from its own start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, field_validator

from ...recipes.strict_yaml import Count
from ..example import Example
from ..pictures import placed, seen_inputs
from ..prepared import PreparedTask
from ..registry import LANGUAGE_MODELS, TaskSpec
from ..text.answers import LanguageCheck, language_probability
from ..text.encoding import check_length, encode_prompt, encode_source, encodes, scoring
from ..text.prefix import SharedPrefix, prefix_batches
from ..text.respond import Written, respond

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig


def _as_check(value: Any) -> Any:
    return {"code": value} if isinstance(value, str) else value


class WritingSpec(TaskSpec):
    """Settings of tasks that look at what a model writes."""

    max_new_tokens: Count = 256
    """Tokens after which a response is cut."""
    stop: list[str] = Field(default_factory=list)
    """Strings that end a response; neither they nor what follows is looked at."""
    language: Annotated[
        LanguageCheck | None,
        BeforeValidator(_as_check, json_schema_input_type=LanguageCheck | str | None),
    ] = None
    """Require that the whole response is in this language: its code, or the code with a
    threshold."""
    batch_size: Count = 16
    """Prompts that are decoded together. It changes memory and time, and scores in 8 bits alone."""

    kinds: ClassVar[tuple[str, ...]] = (*LANGUAGE_MODELS, "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING")

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: list[str]) -> list[str]:
        if not all(stop):
            raise ValueError("stop: an empty string would end every response at its beginning")
        return stop


class WritingTask(PreparedTask):
    """Task in which a model writes a response to every prompt; its subclasses say what each is
    worth."""

    spec: WritingSpec

    def __init__(self, spec: WritingSpec) -> None:
        super().__init__(spec)
        self._prompts: list[list[int]] = []
        self._batches: list[tuple[list[int], int]] = []
        self._seen: list[dict[str, torch.Tensor]] = []

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Tokenise the prompts into length-sorted batches.

        Raises:
            FitnessError: The language cannot be checked.
        """
        super().prepare(examples, tokenizer)
        if self.spec.language is not None:
            language_probability(
                "", self.spec.language.code
            )  # now, rather than after the first model has answered
        self._prompts = [encode_prompt(example, tokenizer) for example in examples]
        lengths = [len(prompt) for prompt in self._prompts]
        self._batches = list(prefix_batches(self._prompts, lengths, examples, self.spec.batch_size))
        self._seen = []
        for batch, _ in self._batches:
            own = [lengths[i] for i in batch]
            asked = [examples[i] for i in batch]
            self._seen.append(seen_inputs(tokenizer, asked, own, max(own), left=True))

    @property
    def longest(self) -> int:
        """Tokens that the longest prompt and a response take of a model's positions."""
        return max(map(len, self._prompts)) + self.spec.max_new_tokens

    def write(self, model: Any) -> tuple[list[str], list[bool]]:
        """Return what a model writes for every example, and whether that was cut at the limit of
        its length; see `respond`."""
        written = self.respond(model)
        return [each.text for each in written], [not each.ended for each in written]

    def respond(self, model: Any) -> list[Written]:
        """A model's response to every example, cut at stop strings.

        Raises:
            FitnessError: The model's logits are not finite, or it has too few positions.
        """
        everyone = self._prompts
        tokens = self.longest
        if encodes(model):
            everyone = [encode_source(example, self._tokenizer) for example in self._examples]
            tokens = max(*map(len, everyone), 1 + self.spec.max_new_tokens)
        where = max(zip(map(len, everyone), self._examples, strict=True), key=lambda pair: pair[0])[
            1
        ].id
        most = f"fitness.max_new_tokens, {self.spec.max_new_tokens}"
        check_length(model, tokens, f"{where}: the longest prompt with {most} (or lower that),")
        found: dict[int, Written] = {}
        config = greedy(model, self._tokenizer, self.spec.max_new_tokens)
        prefix = SharedPrefix(model)
        with scoring(model):
            for (batch, shared), seen in zip(self._batches, self._seen, strict=True):
                prompts = [everyone[i] for i in batch]
                there = placed(seen, model)
                stops = self.spec.stop
                written = respond(
                    model, self._tokenizer, prompts, config, stops, there, prefix, shared
                )
                found |= zip(batch, written, strict=True)
        return [found[i] for i in range(len(self._examples))]


def greedy(model: Any, tokenizer: Any, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding up to the end of text, the tokenizer's or the model's; `scoring` keeps out
    what else a model asks for."""
    from transformers import GenerationConfig

    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    padding = [
        token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None
    ]
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=padding[0],
    )
