"""Fitness as the log-probability of the right answer: smooth where accuracy is flat, and one
forward pass instead of many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ...errors import FitnessError
from ...recipes.strict_yaml import Count
from ..example import Example
from ..prepared import GradientTask, PreparedTask
from ..registry import TaskSpec, register_task
from ..scores import Scores
from ..text.encoding import encode_pair
from ..text.pairs import Pair, Pairs


class TextSpec(TaskSpec):
    """Settings of tasks that score given texts by their log-probability."""

    normalize: Literal["sum", "token", "byte"] = "sum"
    """``sum`` scores a text's log-probability (nats), ``token`` its mean over the text's tokens,
    ``byte`` its mean over the text's bytes in UTF-8."""
    batch_size: Count = 16
    """Texts in a forward pass. It changes memory and time, and scores in 8 bits alone: small
    batches stay in a CPU's caches, a GPU is faster with larger ones."""

    @property
    def unit(self) -> str:
        """Nats: a difference of 1 makes an answer e times as probable."""
        return f"nats per {'answer' if self.normalize == 'sum' else self.normalize}"


# With prompt x and answer a of tokens a_1 .. a_n, and logits z_t of the model after x, a_1 ..
# a_(t-1):
#   log p(a | x) = sum_t ( z_t[a_t] - logsumexp z_t )
# All positions come from one forward pass (teacher forcing). An example may be several pairs, such
# as the windows of a long text; their sums are added before the division by tokens or bytes.
#
# Pairs are sorted by length and cut into micro-batches, so little is computed on padding. The order
# within a batch and its size do not change a score beyond what a kernel's rounding does.
class TextTask(PreparedTask):
    """Log-probability of the answers, by teacher forcing."""

    spec: TextSpec
    _pairs: Pairs

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Tokenise the examples into length-sorted micro-batches; raises `FitnessError` where one
        has no tokens."""
        super().prepare(examples, tokenizer)
        pairs = [self._encode(example, tokenizer) for example in examples]
        self._owners = [
            number for number, own in enumerate(pairs) for _ in own
        ]  # the example of each pair
        owners = [examples[number] for number in self._owners]
        every = [pair for own in pairs for pair in own]
        self._pairs = Pairs(every, owners, self.spec.batch_size, tokenizer)

        def units(example: Example, own: list[Pair]) -> int:
            tokens = sum(len(answer) for _, answer in own)
            letters = example.answer.encode("utf-8", "surrogatepass")
            return {"sum": 1, "token": tokens, "byte": len(letters)}[self.spec.normalize]

        self._units = [units(example, own) for example, own in zip(examples, pairs, strict=True)]

    @property
    def longest(self) -> int:
        """Tokens that the longest example takes of a model's positions."""
        return self._pairs.longest

    def _encode(self, example: Example, tokenizer: Any) -> list[Pair]:
        """The pairs whose log-probabilities together are the example's."""
        raise NotImplementedError

    def _run(self, model: Any, *, gradient: bool) -> Scores:
        units = (
            [self._units[owner] / self._examples[owner].weight for owner in self._owners]
            if gradient
            else []
        )
        mean_of = (units, len(self._units)) if gradient else None
        found, exact = self._pairs.score(model, mean_of)
        sums = [0.0] * len(self._units)
        for owner, value in zip(self._owners, found, strict=True):
            sums[owner] += value
        return self._scores(
            [value / count for value, count in zip(sums, self._units, strict=True)], exact
        )

    def _scores(self, values: list[float], exact: list[bool]) -> Scores:
        """The scores of examples, from their values and whether greedy decoding would write each
        pair's answer."""
        return Scores(values)


class LikelihoodSpec(TextSpec):
    """Score a model by the log-probability that it gives to the right answer."""

    takes_shots: ClassVar[bool] = True
    task: Literal["likelihood"] = "likelihood"
    separator: str = ""
    """Text between prompt and answer. It is scored as part of the answer."""
    append_eos: bool = True
    """Whether the model must also end the answer: the end-of-text token is scored as its last
    token."""


@register_task("likelihood")
class LikelihoodTask(TextTask, GradientTask):
    """Log-probability of the right answers.

    ``correct`` says whether every answer token is the most probable one after the right tokens
    before it, which is the same as greedy decoding giving exactly this answer.
    """

    spec_type = LikelihoodSpec
    spec: LikelihoodSpec

    def _encode(self, example: Example, tokenizer: Any) -> list[Pair]:
        prompt, answer = encode_pair(example, self.spec.separator, tokenizer)
        if self.spec.append_eos:
            if tokenizer.eos_token_id is None:
                raise FitnessError(
                    "append_eos: the tokenizer has no end-of-text token; set 'append_eos: false'"
                )
            answer.append(tokenizer.eos_token_id)
        return [(prompt, answer)]

    def judge(self, output: str, example: Example) -> bool:
        """Tell whether a greedy response is the answer, as ``correct`` tells from its tokens; space
        between words may differ.

        More may follow the answer where the model need not end it.
        """
        written, wanted = (" ".join(text.split()) for text in (output, example.answer))
        return written == wanted or (not self.spec.append_eos and written.startswith(wanted))

    def _scores(self, values: list[float], exact: list[bool]) -> Scores:
        return Scores(values, correct=exact)
