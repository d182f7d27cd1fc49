"""Fitness as the share of right answers: decode greedily, cut, extract, compare, and check the language.

What counts as right is in ``answers.py``; this file runs the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ..errors import FitnessError
from .answers import Extract, LanguageCheck, cut_at_stops, extract_text, language_probability, paper_last_number
from .data import Example
from .encoding import check_examples, check_length, device_of, encode_prompt, length_batches, scoring
from .numbers import COMMA_LANGUAGES, Decimal, last_number, last_number_text, parse_number
from .registry import TaskSpec, register_task
from .scores import Scores

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig


class GenerationSpec(TaskSpec):
    """Score a model by how many of its greedily decoded answers are right.

    Attributes:
        max_new_tokens: Tokens after which a response is cut.
        stop: Strings that end a response; neither they nor what follows is looked at.
        extract: Which part of the response is the answer: ``all``, ``last_number``, or ``{regex: ...}``.
        decimal: How responses write numbers: ``point`` (1,000.5) or ``comma`` (1.000,5). As the language that is required
            writes them by default, and with a point where none is.
        compat: ``paper`` scores as the scorer of arXiv:2403.13187 does: ``1,000`` is 0 and ``-5`` is 5, and fastText is asked
            about the shortest response.
        compare: As ``number`` within the tolerance, or as ``text`` without the space around it. The default is ``number`` for
            ``last_number`` and ``text`` otherwise.
        tolerance: Largest difference of two numbers that are the same.
        language: Require that the whole response is in this language as well.
        score: What the values are: ``accuracy`` is 1 for a right answer (in the right language), else 0.
        batch_size: Prompts that are decoded together. It changes the memory and the time, not the scores.
    """

    task: Literal["generation"] = "generation"
    max_new_tokens: int = Field(default=256, ge=1)
    stop: list[str] = Field(default_factory=list)
    extract: Extract = "last_number"
    decimal: Decimal | None = None
    compat: Literal["paper"] | None = None
    compare: Literal["number", "text"] | None = None
    tolerance: float = Field(default=1e-6, ge=0)
    language: LanguageCheck | None = None
    score: Literal["accuracy"] = "accuracy"
    batch_size: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _check_options(self) -> GenerationSpec:
        if self.compat == "paper" and (self.extract != "last_number" or self.compare == "text"):
            raise ValueError("compat: the paper's scorer compares last numbers; leave out compat, extract and compare")
        if self.compat == "paper" and self.decimal is not None:
            raise ValueError("decimal: the paper's scorer reads none; leave out decimal or compat")
        if not all(self.stop):
            raise ValueError("stop: an empty string would end every response at its beginning")
        return self

    @property
    def decimal_mark(self) -> Decimal:
        """How numbers are read, where the file does not say it too."""
        writes_comma = self.language is not None and self.language.code in COMMA_LANGUAGES
        return self.decimal or ("comma" if writes_comma else "point")

    @property
    def compares_numbers(self) -> bool:
        """Whether answers are compared as numbers."""
        return (self.compare or ("number" if self.extract == "last_number" else "text")) == "number"


@register_task("generation")
class GenerationTask:
    """Share of right answers among greedily decoded responses.

    ``correct`` says whether the answer is right in any language (the paper's ``acc``); ``values`` are 1 where the language is
    right as well (its ``acc_ja``).
    """

    spec_type: ClassVar[type[TaskSpec]] = GenerationSpec

    def __init__(self, spec: GenerationSpec) -> None:
        self.spec = spec
        self._examples: list[Example] = []
        self._prompts: list[list[int]] = []
        self._batches: list[list[int]] = []
        self._tokenizer: Any = None

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Tokenise the prompts into length-sorted batches.

        Raises:
            FitnessError: A right answer is not a number though numbers are compared, or the language cannot be checked.
        """
        check_examples(examples)
        if self.spec.compares_numbers:
            for example in examples:
                if parse_number(example.answer) is None:
                    raise FitnessError(f"{example.id}: the answer {example.answer!r:.80} is not a number; use 'compare: text'")
        if self.spec.language is not None:
            language_probability("", self.spec.language.code)  # now, rather than after the first model has answered
        self._examples, self._tokenizer = list(examples), tokenizer
        self._prompts = [encode_prompt(example, tokenizer) for example in examples]
        self._batches = length_batches([len(prompt) for prompt in self._prompts], self.spec.batch_size)

    def evaluate(self, model: Any) -> Scores:
        """Score one model; raises `FitnessError` where its logits are not finite."""
        check_examples(self._examples)
        tokens = max(map(len, self._prompts)) + self.spec.max_new_tokens
        check_length(model, tokens, "the longest prompt with max_new_tokens")
        outputs = [""] * len(self._examples)
        truncated = [False] * len(self._examples)
        config = _greedy(model, self._tokenizer, self.spec)
        with scoring(model):
            for batch in self._batches:
                written = _generate(model, [self._prompts[i] for i in batch], self._tokenizer, config, self.spec.stop)
                for example, (text, ended) in zip(batch, written, strict=True):
                    outputs[example] = cut_at_stops(text, self.spec.stop)
                    truncated[example] = not ended and not any(stop in text for stop in self.spec.stop)
        pairs = list(zip(outputs, self._examples, strict=True))
        correct = [is_right(output, example.answer, self.spec) for output, example in pairs]
        language = self.spec.language
        values = [
            float(right and (language is None or language.holds(output, as_paper=self.spec.compat == "paper")))
            for right, (output, _) in zip(correct, pairs, strict=True)
        ]
        return Scores(values, outputs=outputs, correct=correct, truncated=truncated)


def is_right(output: str, answer: str, spec: GenerationSpec) -> bool:
    """Whether the answer in a response is the right one; the language is not looked at."""
    if spec.extract != "last_number":
        found = extract_text(output, spec.extract)
        if found is None or not spec.compares_numbers:
            return found == answer.strip()
        number = parse_number(found, spec.decimal_mark)
    elif spec.compares_numbers:
        number = paper_last_number(output) if spec.compat == "paper" else last_number(output, spec.decimal_mark)
    else:
        return last_number_text(output, spec.decimal_mark) == answer.strip()
    right = parse_number(answer)
    return number is not None and right is not None and abs(number - right) <= spec.tolerance


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


def _greedy(model: Any, tokenizer: Any, spec: GenerationSpec) -> GenerationConfig:
    """Plain greedy decoding, whatever the model's own generation config would like."""
    from transformers import GenerationConfig

    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    padding = [token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None]
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=spec.max_new_tokens,
        min_new_tokens=0,
        eos_token_id=sorted(ends) or None,
        pad_token_id=padding[0],
        return_dict_in_generate=False,
    )


def _generate(
    model: Any, prompts: list[list[int]], tokenizer: Any, config: GenerationConfig, stops: Sequence[str]
) -> list[tuple[str, bool]]:
    """Decode a batch of prompts, each into its response and whether the model ended it.

    Padding stands on the left, so that every response follows its prompt directly.
    """
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    longest = max(map(len, prompts))
    gaps = [longest - len(prompt) for prompt in prompts]
    device = device_of(model)
    written = model.generate(
        input_ids=torch.tensor(
            [[config.pad_token_id] * gap + prompt for gap, prompt in zip(gaps, prompts, strict=True)], device=device
        ),
        attention_mask=torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps], device=device),
        generation_config=config,
        logits_processor=LogitsProcessorList([_RefuseNonFinite()]),
        stopping_criteria=StoppingCriteriaList([_StopAtText(stops, tokenizer, longest)] if stops else []),
    )
    ends = set(config.eos_token_id or [])
    responses = [(_until(row, ends), not ends.isdisjoint(row)) for row in written[:, longest:].tolist()]
    return [(str(tokenizer.decode(response, skip_special_tokens=True)), ended) for response, ended in responses]


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens before the first end-of-text token; what follows is padding."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]
