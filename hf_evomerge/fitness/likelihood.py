"""Fitness as the log-probability of the right answer: smooth where accuracy is flat, and one forward pass instead of many.

Letters in shapes: B examples of a micro-batch, P positions that are read, N answer tokens of the micro-batch, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ..errors import FitnessError
from .data import Example
from .encoding import check_examples, check_length, device_of, encode_pair, length_batches, scoring
from .registry import TaskSpec, register_task
from .scores import Scores

if TYPE_CHECKING:
    import torch


class LikelihoodSpec(TaskSpec):
    """Score a model by the log-probability that it gives to the right answer.

    Attributes:
        normalize: ``sum`` scores the answer's log-probability (nats), ``token`` its mean over the answer's tokens.
        separator: Text between prompt and answer. It is scored as part of the answer.
        append_eos: Whether the model must also end the answer: the end-of-text token is scored as its last token.
        batch_size: Examples in a forward pass. It changes the memory and the time, not the scores: small batches stay in a
            CPU's caches, a GPU is faster with larger ones.
    """

    task: Literal["likelihood"] = "likelihood"
    normalize: Literal["sum", "token"] = "sum"
    separator: str = ""
    append_eos: bool = True
    batch_size: int = Field(default=16, ge=1)


@dataclass(frozen=True)
class _MicroBatch:
    """Examples of similar length, and where their answers are read.

    Attributes:
        examples: Index of each row's example.
        input_ids: (B, length) token ids, padded on the right.
        keep: (P,) positions whose logits any row needs.
        rows: (N,) row of every answer token, all rows' one after the other.
        columns: (N,) index into ``keep`` of the position that predicts it.
        targets: (N,) the answer tokens.
        counts: Answer tokens of each row.
    """

    examples: list[int]
    input_ids: torch.Tensor
    keep: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    counts: list[int]


@register_task("likelihood")
class LikelihoodTask:
    """Log-probability of the right answers, by teacher forcing.

    ``correct`` says whether every answer token is the most probable one after the right tokens before it, which is the same as
    greedy decoding giving exactly this answer.
    """

    spec_type: ClassVar[type[TaskSpec]] = LikelihoodSpec

    def __init__(self, spec: LikelihoodSpec) -> None:
        self.spec = spec
        self._examples: list[Example] = []
        self._batches: list[_MicroBatch] = []
        self._longest = 0

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Tokenise the examples into length-sorted micro-batches; raises `FitnessError` where one has no tokens."""
        check_examples(examples)
        pairs = [encode_pair(example, self.spec.separator, tokenizer) for example in examples]
        if self.spec.append_eos:
            if tokenizer.eos_token_id is None:
                raise FitnessError("append_eos: the tokenizer has no end-of-text token; set 'append_eos: false'")
            for _, answer in pairs:
                answer.append(tokenizer.eos_token_id)
        lengths = [len(prompt) + len(answer) - 1 for prompt, answer in pairs]
        self._examples = list(examples)
        self._batches = [_pack(rows, pairs) for rows in length_batches(lengths, self.spec.batch_size)]
        self._longest = max(lengths)

    def evaluate(self, model: Any) -> Scores:
        """Score one model; raises `FitnessError` where its logits are not finite."""
        return self._run(model, gradient=False)

    def backward(self, model: Any) -> Scores:
        """As `evaluate`, with a backward pass of the mean score for each micro-batch."""
        return self._run(model, gradient=True)

    def _run(self, model: Any, *, gradient: bool) -> Scores:
        check_examples(self._examples)
        check_length(model, self._longest, "the longest example")
        values = [0.0] * len(self._examples)
        correct = [False] * len(self._examples)
        with scoring(model, gradient=gradient):
            # Reading a result waits for the device, so every micro-batch is started before the first one is read.
            for batch, (scores, hits) in [(batch, self._pass(model, batch, gradient)) for batch in self._batches]:
                for example, value, hit, count in zip(
                    batch.examples, scores.tolist(), hits.tolist(), batch.counts, strict=True
                ):
                    values[example] = value / count if self.spec.normalize == "token" else value
                    correct[example] = hit == count
        for i, value in enumerate(values):
            if not math.isfinite(value):
                raise FitnessError(f"the model's logits are not finite: {self._examples[i].id} has log-probability {value}")
        return Scores(values, correct=correct)

    def _pass(self, model: Any, batch: _MicroBatch, gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """What `_score` gives, after a backward pass where it is wanted."""
        scores, hits = _score(model, batch)
        if gradient:
            counts = [count if self.spec.normalize == "token" else 1 for count in batch.counts]
            (scores / scores.new_tensor(counts)).sum().div(len(self._examples)).backward()
        return scores.detach(), hits


def _pack(examples: list[int], pairs: list[tuple[list[int], list[int]]]) -> _MicroBatch:
    """Lay out one micro-batch.

    The last answer token is predicted but never fed. Padding stands on the right, after everything that is scored, and a causal
    model's output at a position does not depend on what comes later: so no attention mask is needed, and the fastest attention
    kernels apply. A row is padded with its own last token, so that no model takes the padding for a sign.
    """
    import torch

    inputs = [pairs[i][0] + pairs[i][1][:-1] for i in examples]
    longest = max(map(len, inputs))
    places = [range(len(pairs[i][0]) - 1, len(pairs[i][0]) - 1 + len(pairs[i][1])) for i in examples]
    keep = sorted({place for row in places for place in row})
    column = {place: k for k, place in enumerate(keep)}
    return _MicroBatch(
        examples=examples,
        input_ids=torch.tensor([ids + ids[-1:] * (longest - len(ids)) for ids in inputs]),
        keep=torch.tensor(keep),
        rows=torch.tensor([row for row, own in enumerate(places) for _ in own]),
        columns=torch.tensor([column[place] for own in places for place in own]),
        targets=torch.tensor([token for i in examples for token in pairs[i][1]]),
        counts=[len(own) for own in places],
    )


def _score(model: Any, batch: _MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's summed log-probability, and how many of its answer tokens are the most probable ones."""
    import torch

    device = device_of(model)
    keep, rows = batch.keep.to(device), batch.rows.to(device)
    logits = model(input_ids=batch.input_ids.to(device), use_cache=False, logits_to_keep=keep).logits  # (B, P, V)
    if logits.shape[1] != len(batch.keep):  # a model class that does not know logits_to_keep returns all positions
        logits = logits[:, keep]
    logits = logits[rows, batch.columns.to(device)].float()  # (N, V)
    targets = batch.targets.to(device)
    chosen = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)
    sums = torch.zeros(len(batch.examples), device=device).index_add(0, rows, chosen)
    hits = torch.zeros(len(batch.examples), dtype=torch.long, device=device)
    return sums, hits.index_add(0, rows, (logits.argmax(1) == targets).long())
