"""Fitness without labels: how near a model's probabilities are to the ones of a source, on the
source's own prompts.

Expert Merging (arXiv:2509.25712): L = T^2 KL(softmax(z_k / T) || softmax(z / T)), the mean over the
positions of the answer, where z_k are the logits of source k and z the logits of the model; the
score is -L. A source is run once: kept are its most probable tokens, and the probability of all
others together. Letters in shapes: N answer tokens, K kept tokens, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from ...errors import FitnessError, told
from ...recipes.strict_yaml import Count, Index, Positive
from ..comparison import compare
from ..example import Example, by_source
from ..prepared import GradientTask
from ..registry import TaskSpec, register_task
from ..scores import Scores
from ..text.encoding import encode_pair, encode_prompt, room
from ..text.pairs import MicroBatch, Pair, Pairs
from .writing import WritingSpec, WritingTask

if TYPE_CHECKING:
    import torch

# Of a source's distribution over V tokens, the 64 largest probabilities and the sum of the rest are
# kept: 65 numbers a position, and a sum of KL terms over 65 classes. Merging classes can only lower
# a KL divergence, so this is a lower bound; it is 0 for equal distributions as before. The tail of
# a vocabulary holds little mass, and keeping all of it would take as much memory as the logits.
_KEPT = 64  # tokens of a position
_ASKED = 8  # prompts of a source, that others are asked too
_MOST_SOURCES = 4  # that are asked each other's prompts: their number counts by its square


class AgreementSpec(TaskSpec):
    """Score a model by its divergence from the source of each example; no labels are needed."""

    task: Literal["agreement"] = "agreement"
    source: str | None = None
    """The source of all examples, where the data does not say it; ``base`` is the base."""
    temperature: Positive = 3.0
    """Divisor of the logits before they are compared."""
    max_new_tokens: Count = 64
    """Tokens of the answer that a source writes itself, where the data has none; fewer where the
    model has no positions for so many after the prompt."""
    vary: Annotated[Index, Field(le=10_000)] = 0
    """Prompts that are made beside each source's search prompts, of these, by exchanging words that
    stand in the same place; where that gives too few, by exchanging words with less in common, or
    by joining them. Fewer where the words allow no more."""
    separator: str = ""
    """Text between prompt and answer, where the data has answers."""
    batch_size: Count = 8
    """Examples in a forward pass. It changes memory and time, and scores in 8 bits alone."""

    unit: ClassVar[str] = "nats of divergence per token, negative"

    def complete(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Sources write the answers, unless the section says where they are."""
        if isinstance(sources := data.get("sources"), Mapping):
            return {
                **data,
                "sources": {
                    k: self.complete(v) if isinstance(v, Mapping) else v for k, v in sources.items()
                },
            }
        return {
            **(
                {}
                if {"text_field", "answer_after", "choices"} & data.keys()
                else {"answer_field": None}
            ),
            **data,
        }


class Reading(NamedTuple):
    """A source's answer to an example and its probabilities there.

    Attributes:
        answer: The tokens of the answer.
        kept: (N, K) most probable tokens, at each place of the answer and after it.
        log_probabilities: (N, K + 1) of these tokens, and of all others together.
    """

    answer: list[int]
    kept: torch.Tensor
    log_probabilities: torch.Tensor


@dataclass
class Reference:
    """A source that models are compared with.

    Attributes:
        name: Name of the source.
        tokenizer, model: Give its own tokenizer, and the live model.
        readings: Readings of each example, by the task's settings and the example.
    """

    name: str
    tokenizer: Callable[[], Any]
    model: Callable[[], Any]
    readings: dict[tuple[str, Example], Reading] = field(default_factory=dict)
    _same: dict[int, Any] = field(default_factory=dict)

    def check(self, example: Example, tokenizer: Any) -> None:
        """Raise `FitnessError` unless it has the tokens of the models that are scored, and can be
        given such an example."""
        if id(tokenizer) not in self._same:
            if self.tokenizer().get_vocab() != tokenizer.get_vocab():
                raise FitnessError(
                    f"agreement: {self.name} has other tokens than the models that are "
                    "scored, and probabilities are compared "
                    "token by token; leave it out"
                )
            self._same[id(tokenizer)] = tokenizer  # kept, so that no other gets its number
        with self._named():
            encode_prompt(example, self.tokenizer())

    def read(self, examples: Sequence[Example], spec: AgreementSpec) -> list[Reading]:
        """Readings of examples; run it on those that it has not been run on."""
        key = spec.model_dump_json()
        if new := [each for each in dict.fromkeys(examples) if (key, each) not in self.readings]:
            self._run(new, spec)
        return [self.readings[key, each] for each in examples]

    def _run(self, examples: Sequence[Example], spec: AgreementSpec) -> None:
        tokenizer = self.tokenizer()
        model = self.model()
        tokens = 1 + max(
            tokenizer.get_vocab().values()
        )  # rows beyond these are padding, and other models have others
        answers = {e: encode_pair(e, spec.separator, tokenizer)[1] for e in examples if e.answer}
        pairs = list[Pair]()
        readings = dict[tuple[str, Example], Reading]()

        def keep(logits: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
            kept = logits[:, :tokens].topk(min(_KEPT, tokens - 1)).indices
            lengths = [len(pairs[i][1]) for i in batch.pairs]
            for i, tops, shares in zip(
                batch.pairs, kept.split(lengths), _shares(logits, kept).split(lengths), strict=True
            ):
                readings[spec.model_dump_json(), examples[i]] = Reading(
                    answers[examples[i]], tops, shares
                )
            return logits.sum(1), kept[:, 0]

        with self._named():
            limits = defaultdict[int, list[Example]](list)
            for example in examples:
                if not example.answer:
                    # the end of an answer takes a position too
                    most = room(model, encode_prompt(example, tokenizer)) - 1
                    limits[max(1, min(spec.max_new_tokens, most))].append(example)
            for limit, asked in limits.items():
                task = WritingTask(
                    WritingSpec(task="agreement", max_new_tokens=limit, batch_size=spec.batch_size)
                )
                task.prepare(asked, tokenizer)
                answers |= {
                    e: list(written.tokens)
                    for e, written in zip(asked, task.respond(model), strict=True)
                }
            pairs += [_pair(example, answers[example], tokenizer) for example in examples]
            Pairs(pairs, examples, spec.batch_size, tokenizer, spec.temperature).score(
                model, measure=keep
            )
        self.readings |= readings

    def _named(self) -> AbstractContextManager[None]:
        """Name the source in errors."""
        return told(FitnessError, FitnessError, f"agreement: {self.name}: ")


@register_task("agreement")
class AgreementTask(GradientTask):
    """Divergence of a model's probabilities from a source's, with its sign changed; 0 is the source
    itself.

    ``correct`` says whether the most probable token is the source's at every position: the model
    writes, greedily, what the source writes. Where one source is named for all examples, it is a
    distance to this source, and no answer is right or wrong.
    """

    spec_type = AgreementSpec
    spec: AgreementSpec

    def __init__(self, spec: AgreementSpec) -> None:
        super().__init__(spec)
        self.references: Mapping[str, Reference] = {}
        """The sources by their names; who has the sources sets them."""

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Keep the examples; raises `FitnessError` where one belongs to no source, or to one with
        other tokens."""
        super().prepare(examples, tokenizer)
        for name, own in self._by_source(examples):
            self.references[name].check(
                next((each for each in own if each.chat), own[0]), tokenizer
            )

    def read_references(self, examples: Sequence[Example]) -> None:
        """Run the sources on examples that they have not been run on: before a model is there, for
        memory's sake."""
        for name, own in self._by_source(examples):
            self.references[name].read(own, self.spec)

    # A model is sure of its answers to prompts that are like those it was trained on. With c(i, j)
    # the log-probability of source i's own answers to the prompts of source j, the mean over
    # tokens, i and j have each other's prompts where c(j, i) > c(i, i) and c(i, j) > c(j, j) in the
    # mean, and by the interval over all prompts of both. One of the two is not enough: a source may
    # be surer of everything.
    def swapped(self) -> tuple[str, str] | None:
        """Names of two sources that are each surer of their answers to the other's prompts than the
        other is; None where there are none."""
        asked = self._asked()
        if len(asked) > _MOST_SOURCES or not all(asked.values()):
            return None
        for one, other in combinations(asked, 2):
            given = self._sure({one: asked[one], other: asked[other]})
            crossed = self._sure({other: asked[one], one: asked[other]})
            lead = crossed.values - given.values
            means = (lead[: len(asked[one])].mean(), lead[len(asked[one]) :].mean())
            compared = compare(crossed, given)
            if compared is not None and compared.is_better and min(means) > 0:
                return one, other
        return None

    def unanswered(self) -> dict[str, tuple[list[Example], int]]:
        """Prompts to which a source answers nothing, among the first of its own, by its name; and
        how many were asked."""
        found = {}
        for name, own in self._asked().items():
            tokenizer = self.references[name].tokenizer()
            answers = [each.answer for each in self._read(name, own)]
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            silent = [each for each, text in zip(own, texts, strict=True) if not text.strip()]
            found[name] = (silent, len(own))
        return found

    def _asked(self) -> dict[str, list[Example]]:
        """The first prompts of each source that it has to answer itself."""
        asked = dict[str, list[Example]]()
        for name, own in self._by_source(self._examples):
            without_answer = (each for each in own if not (each.answer or each.made))
            asked[name] = list(islice(without_answer, _ASKED))
        return asked

    def _read(self, name: str, own: Sequence[Example]) -> list[Reading]:
        """Readings of a source at its own temperature."""
        return self.references[name].read(own, self.spec.model_copy(update={"temperature": 1.0}))

    def _sure(self, asked: Mapping[str, Sequence[Example]]) -> Scores:
        """Log-probabilities of sources' own answers to some examples each, means over tokens."""
        found = [self._read(name, own) for name, own in asked.items()]
        # the likeliest token stands first, and is the one that the source wrote
        return Scores(
            [float(each.log_probabilities[:, 0].mean()) for readings in found for each in readings]
        )

    def _by_source(self, examples: Sequence[Example]) -> Iterator[tuple[str, list[Example]]]:
        for source, own in by_source(examples).items():
            name = source or self.spec.source
            if name is None or name not in self.references:
                raise FitnessError(
                    f"{own[0].id}: belongs to "
                    f"{'no source' if name is None else f'the source {name!r:.80}'}; there "
                    "are "
                    f"{', '.join(self.references)}: write sources: {{NAME: ...}} under data, "
                    "or source: NAME beside the task"
                )
            yield name, own

    def _run(self, model: Any, *, gradient: bool) -> Scores:
        import torch

        self.read_references(self._examples)
        key = self.spec.model_dump_json()
        readings = [
            self.references[e.source or self.spec.source or ""].readings[key, e]
            for e in self._examples
        ]
        pairs = [
            _pair(e, each.answer, self._tokenizer)
            for e, each in zip(self._examples, readings, strict=True)
        ]
        lengths = [len(answer) for _, answer in pairs]
        # Divisors: the mean over an answer's tokens, times the example's weight.
        units = [
            length / example.weight for length, example in zip(lengths, self._examples, strict=True)
        ]

        # With p of the source and q of the model, both softened by T, over the kept classes k:
        #   score = -T^2 sum_k p_k (log p_k - log q_k)
        # Logits come here divided by T already (`Pairs.temperature`). A gradient through a softened
        # softmax is smaller by about 1 / T^2; the factor T^2 keeps the scale when T changes
        # (Hinton, Vinyals and Dean, arXiv:1503.02531, section 2).
        def agreement(logits: torch.Tensor, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
            """-T^2 KL at each position."""
            references = [readings[i] for i in batch.pairs]
            kept = torch.cat([each.kept for each in references]).to(logits.device)
            wanted = torch.cat([each.log_probabilities for each in references]).to(logits.device)
            found = _shares(logits, kept)
            divergence = (wanted.exp() * (wanted - found)).sum(1)
            same = logits.argmax(1) == kept[:, 0]
            return -(self.spec.temperature**2) * divergence, same

        scorer = Pairs(
            pairs, self._examples, self.spec.batch_size, self._tokenizer, self.spec.temperature
        )
        sums, exact = scorer.score(model, (units, len(units)) if gradient else None, agreement)
        means = [value / length for value, length in zip(sums, lengths, strict=True)]
        return Scores(means, correct=exact if self.spec.source is None else None)


def _pair(example: Example, answer: list[int], tokenizer: Any) -> Pair:
    """The prompt, and the answer with a place for what follows it, whichever token that is."""
    prompt = encode_prompt(example, tokenizer)
    return prompt, [*answer, prompt[-1]]


def _shares(logits: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """(N, K + 1) log-probabilities of the kept tokens, and of all others together."""
    import torch

    # log sum over the tokens that are not kept: the kept ones are put at -inf first.
    others = logits.scatter(1, kept, float("-inf")).logsumexp(1, keepdim=True)
    return torch.cat([logits.gather(1, kept), others], 1) - logits.logsumexp(1, keepdim=True)
