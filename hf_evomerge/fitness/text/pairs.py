"""Pairs of tokens, a prompt's and an answer's, in micro-batches: the log-probability of every
answer after its prompt.

Letters in shapes: B pairs of a micro-batch, P positions that are read, N answer tokens of the
micro-batch, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import FitnessError
from ..example import Example
from ..pictures import placed, seen_inputs
from .encoding import check_length, device_of, scoring
from .prefix import SharedPrefix, prefix_batches

if TYPE_CHECKING:
    import torch

Pair = tuple[list[int], list[int]]
Mean = tuple[Sequence[float], int]


# Layout. Rows of different length are padded to (B, length). Logits are needed only where an answer
# token is predicted: at places len(prompt) - 1 to len(prompt) + len(answer) - 2 of a row. `keep` is
# the union of these places over the rows, so the head, which is the widest layer, computes (B, P,
# V) and not (B, length, V). `rows` and `columns` then pick the N that are wanted from B x P.
@dataclass(frozen=True)
class MicroBatch:
    """Pairs of similar length, and where their answers are read.

    Attributes:
        pairs: Index of each row's pair.
        input_ids: (B, length) token ids, padded on the right.
        keep: (P,) positions whose logits any row needs.
        rows: (N,) row of every answer token, all rows' one after the other.
        columns: (N,) index into ``keep`` of the position that predicts it.
        targets: (N,) the answer tokens.
        shared: Number of tokens that all rows begin with, and that are run once.
        seen: What the model is given of pictures.
    """

    pairs: list[int]
    input_ids: torch.Tensor
    keep: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    shared: int
    seen: dict[str, torch.Tensor]


Measure = Callable[["torch.Tensor", MicroBatch], "tuple[torch.Tensor, torch.Tensor]"]
"""The value of each answer token by the (N, V) logits that predict it, and whether it counts as
hit."""


class Pairs:
    """Token ids of prompts and answers, packed once for all models.

    Args:
        pairs: A prompt and an answer each, neither empty.
        examples: The example of each pair.
        batch_size: Pairs in a forward pass.
        tokenizer: What has encoded them.
        temperature: What logits are divided by.

    Attributes:
        longest: Tokens that the longest pair takes of a model's positions.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        examples: Sequence[Example],
        batch_size: int,
        tokenizer: Any,
        temperature: float = 1.0,
    ) -> None:
        self.temperature = temperature
        self.names = [example.id for example in examples]
        self.counts = [len(answer) for _, answer in pairs]
        lengths = [len(prompt) + len(answer) - 1 for prompt, answer in pairs]
        self.longest, self._where = max(zip(lengths, self.names, strict=True))
        prompts = [prompt for prompt, _ in pairs]
        self._batches = [
            _pack(rows, pairs, examples, tokenizer, shared)
            for rows, shared in prefix_batches(prompts, lengths, examples, batch_size)
        ]

    def score(
        self, model: Any, mean_of: Mean | None = None, measure: Measure | None = None
    ) -> tuple[list[float], list[bool]]:
        """The value of every answer, and whether each of its tokens is a hit.

        Args:
            model: A causal language model.
            mean_of: Divisors of each pair's value, and then of their sum, where a gradient is
                wanted. The gradient of the result is added to ``grad`` of the tensors that want
                one.
            measure: The value of a token, summed over the answer. By default its log-probability
                (nats), and a hit is the most probable token.

        Raises:
            FitnessError: The model's logits are not finite, or a pair is longer than its positions.
        """
        check_length(model, self.longest, f"{self._where}: the longest example")
        values = [0.0] * len(self.counts)
        exact = [False] * len(self.counts)
        prefix = SharedPrefix(model, keep=mean_of is None)
        with scoring(model, gradient=mean_of is not None):
            # Reading a result waits for the device, so every micro-batch is started before the
            # first one is read.
            for batch, (sums, hits) in [
                (each, self._pass(model, each, mean_of, measure, prefix)) for each in self._batches
            ]:
                for pair, value, hit in zip(batch.pairs, sums.tolist(), hits.tolist(), strict=True):
                    values[pair] = value
                    exact[pair] = hit == self.counts[pair]
        for name, value in zip(self.names, values, strict=True):
            if not math.isfinite(value):
                raise FitnessError(
                    f"the model's logits are not finite: {name} has log-probability {value}"
                )
        return values, exact

    def _pass(
        self,
        model: Any,
        batch: MicroBatch,
        mean_of: Mean | None,
        measure: Measure | None,
        prefix: SharedPrefix,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score a micro-batch, and run its backward pass where a gradient is wanted."""
        sums, hits = _score(model, batch, self.temperature, measure or _chosen, prefix)
        if mean_of is not None:
            units, count = mean_of
            (sums / sums.new_tensor([units[pair] for pair in batch.pairs])).sum().div(
                count
            ).backward()
        return sums.detach(), hits


def _pack(
    pairs: list[int],
    tokens: Sequence[Pair],
    examples: Sequence[Example],
    tokenizer: Any,
    shared: int,
) -> MicroBatch:
    """Lay out one micro-batch.

    The last answer token is predicted but never fed. Padding stands on the right, after everything
    that is scored, and a causal model's output at a position does not depend on what comes later:
    so no attention mask is needed, and the fastest attention kernels apply. A row is padded with
    its own last token, so that no model takes the padding for a sign.
    """
    import torch

    inputs = [tokens[i][0] + tokens[i][1][:-1] for i in pairs]
    longest = max(map(len, inputs))
    places = [
        range(len(tokens[i][0]) - 1, len(tokens[i][0]) - 1 + len(tokens[i][1])) for i in pairs
    ]
    keep = sorted({place for row in places for place in row})
    column = {place: k for k, place in enumerate(keep)}
    return MicroBatch(
        pairs=pairs,
        input_ids=torch.tensor([ids + ids[-1:] * (longest - len(ids)) for ids in inputs]),
        keep=torch.tensor(keep),
        rows=torch.tensor([row for row, own in enumerate(places) for _ in own]),
        columns=torch.tensor([column[place] for own in places for place in own]),
        targets=torch.tensor([token for i in pairs for token in tokens[i][1]]),
        shared=shared,
        seen=seen_inputs(
            tokenizer,
            [examples[i] for i in pairs],
            [len(tokens[i][0]) for i in pairs],
            longest,
            left=False,
        ),
    )


def _score(
    model: Any, batch: MicroBatch, temperature: float, measure: Measure, prefix: SharedPrefix
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute each row's summed values, and how many of its answer tokens are hits; with a prefix
    the tokens that all rows share are run once."""
    import torch

    device = device_of(model)
    keep = batch.keep.to(device)
    rows = batch.rows.to(device)
    ids = batch.input_ids.to(device)
    given = {"input_ids": ids, "use_cache": False, **placed(batch.seen, model)}
    shared = batch.input_ids[0, : batch.shared].tolist()
    repeated = prefix.repeated(shared, len(ids))
    if repeated is not None:
        given = {"input_ids": ids[:, batch.shared :], "use_cache": True, **repeated}
        keep = keep - batch.shared
    logits = model(**given, logits_to_keep=keep).logits  # (B, P, V)
    if logits.shape[1] != len(
        batch.keep
    ):  # a model class that does not know logits_to_keep returns all positions
        logits = logits[:, keep]
    logits = logits[rows, batch.columns.to(device)].float()  # (N, V)
    if temperature != 1:
        logits = logits / temperature
    values, hits = measure(logits, batch)
    counts = torch.zeros(len(batch.pairs), dtype=torch.long, device=device)
    return torch.zeros(len(batch.pairs), device=device).index_add(
        0, rows, values
    ), counts.index_add(0, rows, hits.long())


def _chosen(logits: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each answer token, and whether it is the most probable one."""
    targets = batch.targets.to(logits.device)
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1), logits.argmax(
        1
    ) == targets
