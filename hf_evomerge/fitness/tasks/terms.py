"""Fitness as a weighted sum of tasks, some of them on examples of their own.

A term's own examples are dealt to the search's, like cards; where there are fewer, several times.
So every batch has some of every term. A score is the weighted sum of the example's own scores and
of the other terms' means, moved by how far the examples that it was dealt are from these. The mean
of the scores is then the weighted sum of the means, and its standard error, also that of a
difference between two models, is the sum's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator, model_serializer, model_validator

from ...errors import EvoMergeError, FitnessError, told
from ...recipes.strict_yaml import Positive, StrictModel
from ..data.loading import load_examples
from ..data.spec import DataSpec
from ..example import Beside, Example
from ..prepared import GradientTask, PreparedTask
from ..registry import AnyTaskSpec, TaskSpec, make_task, parse_task, register_task
from ..scores import Scores


class Term(StrictModel):
    """A task with its weight: in a file its keys stand beside the ones of the task."""

    weight: Positive = 1.0
    """What its mean score is multiplied by."""
    fitness: AnyTaskSpec
    """The task."""
    data: dict[Literal["search", "validation", "test"], DataSpec] = Field(default_factory=dict)
    """Its examples, for the splits that the search has; the search's own examples where absent."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, section: Any) -> Any:
        if not isinstance(section, Mapping) or "fitness" in section:
            return section
        own = {key: section[key] for key in ("weight", "data") if key in section}
        with told(ValueError, EvoMergeError):
            spec = parse_task({key: value for key, value in section.items() if key not in own})
        if isinstance(data := own.get("data"), Mapping):
            own["data"] = {
                split: spec.complete(each) if isinstance(each, Mapping) else each
                for split, each in data.items()
            }
        return {**own, "fitness": spec}

    @model_serializer(mode="wrap")
    def _write(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        found = handler(self)
        return {**found.pop("fitness"), **found}


class TermsSpec(TaskSpec):
    """Score a model by a weighted sum of tasks."""

    task: Literal["terms"] = "terms"
    terms: tuple[Term, ...]
    """Tasks, each with a ``weight`` (1 by default) and, where it has examples of its own,
    ``data``."""

    @field_validator("terms")
    @classmethod
    def _check_terms(cls, terms: tuple[Term, ...]) -> tuple[Term, ...]:
        if not terms:
            raise ValueError("is empty; write a task and its weight for each term")
        if all(term.data for term in terms):
            raise ValueError("none scores the search's own examples; leave the data of one out")
        if any(term.fitness.task == "terms" for term in terms):
            raise ValueError("terms is no term; write one task in each")
        return terms

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of models that the first term scores."""
        return self.terms[0].fitness.kinds

    @property
    def parts(self) -> tuple[TaskSpec, ...]:
        """The tasks of the terms."""
        return tuple(term.fitness for term in self.terms)

    @property
    def names(self) -> list[str]:
        """Names of the terms in tables: their tasks, numbered where one comes again."""
        tasks = [part.task for part in self.parts]
        before = [tasks[:number].count(name) for number, name in enumerate(tasks)]
        return [
            f"{name} {count + 1}" if count else name
            for name, count in zip(tasks, before, strict=True)
        ]

    def complete(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Complete data as the first task that scores such examples does."""
        return next(term.fitness for term in self.terms if not term.data).complete(data)

    # Dealing. R search examples (rows) and D examples of a term are given. Card i goes to row i mod
    # R; if D < R, it also goes to rows i + D, i + 2 D, and so on, so that no row is empty. A card
    # in m rows has the share R / (D m) in each. Kept invariant: the shares of every card add up to
    # R / D, and all shares to R. So each of the term's examples counts the same over all rows, and
    # a batch of rows holds cards of every term in proportion.
    def deal(self, examples: Sequence[Example], split: str) -> list[Example]:
        """The search's examples of a split with the examples of the terms beside them, evenly.

        Raises:
            FitnessError: A term with data has none for the split, or it cannot be read.
        """
        hands: list[list[Beside]] = [[] for _ in examples]
        for number, term in enumerate(self.terms):
            if not term.data:
                continue
            spec = next((spec for name, spec in term.data.items() if name == split), None)
            if spec is None:
                raise FitnessError(
                    f"fitness.terms: {self.names[number]} has data, and none for {split}; "
                    "give it examples of it"
                )
            dealt = load_examples(spec)
            for i, example in enumerate(dealt):
                rows = (
                    range(i, len(hands), len(dealt))
                    if len(dealt) < len(hands)
                    else [i % len(hands)]
                )
                for row in rows:
                    hands[row].append(Beside(number, len(hands) / len(dealt) / len(rows), example))
        return [
            replace(example, beside=tuple(hand))
            for example, hand in zip(examples, hands, strict=True)
        ]


class _Hand(NamedTuple):
    """The examples of one term in a batch, each once: the place of the score that it moves, and
    what it counts there."""

    examples: list[Example]
    rows: list[int]
    shares: list[float]


def _hand(examples: Sequence[Example], number: int, *, own: bool) -> _Hand:
    """The examples of a term: the search's own, or the ones beside them."""
    if own:
        return _Hand(list(examples), list(range(len(examples))), [1.0] * len(examples))
    rows = dict[Example, int]()
    shares = dict[Example, float]()
    for row, example in enumerate(examples):
        for other in (other for other in example.beside if other.term == number):
            rows.setdefault(other.example, row)
            shares[other.example] = shares.get(other.example, 0.0) + other.share
    return _Hand(list(rows), list(rows.values()), list(shares.values()))


@register_task("terms")
class TermsTask(PreparedTask):
    """Score a model by several tasks.

    ``correct`` and ``outputs`` come from the first term that has them on the search's own examples.
    The scores of each term are in ``others``, by its name. It has a gradient where every term has
    one.
    """

    spec_type = TermsSpec
    spec: TermsSpec

    def __init__(self, spec: TermsSpec) -> None:
        super().__init__(spec)
        self.tasks: list[Any] = [make_task(part) for part in spec.parts]
        self._hands: list[_Hand] = []
        if all(isinstance(task, GradientTask) for task in self.tasks):
            self.backward: Callable[[Any], Scores] = partial(self._run, gradient=True)
        if judges := [task for task in self._own if hasattr(task, "judge")]:
            self.judge: Callable[[str, Example], bool] = judges[0].judge

    @property
    def _own(self) -> list[Any]:
        return [
            task for task, term in zip(self.tasks, self.spec.terms, strict=True) if not term.data
        ]

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Prepare every term on its examples; raises `FitnessError` as the tasks do, and names the
        term."""
        super().prepare(examples, tokenizer)
        self._hands = [
            _hand(examples, number, own=not term.data)
            for number, term in enumerate(self.spec.terms)
        ]
        for task, term, hand in zip(self.tasks, self.spec.terms, self._hands, strict=True):
            if not hand.examples:
                continue  # retained examples have none beside them
            # A task averages its gradient over its own examples. This factor turns that average
            # into the term's part of the average over the rows.
            scale = term.weight * len(hand.examples) / len(examples)
            task.shares = [scale * share for share in hand.shares]
            task.prepare(hand.examples, tokenizer)

    def read_references(self, examples: Sequence[Example]) -> None:
        """Run the sources that terms compare models with; see `AgreementTask`."""
        for number, (task, term) in enumerate(zip(self.tasks, self.spec.terms, strict=True)):
            if hasattr(task, "read_references"):
                task.read_references(_hand(examples, number, own=not term.data).examples)

    def _weighted(self, scores: Scores) -> Scores:
        return scores  # the terms have weighted their own

    def _run(self, model: Any, *, gradient: bool) -> Scores:
        values = np.zeros(len(self._examples))
        others = dict[str, Scores]()
        own = list[Scores]()
        for task, term, hand, name in zip(
            self.tasks, self.spec.terms, self._hands, self.spec.names, strict=True
        ):
            if not hand.examples:
                continue
            scores: Scores = task.backward(model) if gradient else task.evaluate(model)
            # With weight w, scores s_e and shares a_e of the cards in this batch of n rows, m = sum
            # a_e s_e / sum a_e is the term's mean. Row r gets
            #   v_r = w m (sum a_e) / n  +  w sum_{e first in r} a_e (s_e - m)
            # The second parts add up to 0, so the mean of v is the weighted mean of the term. They
            # carry its spread: the standard error of v, and of differences of v, is that of the
            # whole sum. An own term scores every row once; m = 0 makes the same lines add w s_r.
            shares = np.array(hand.shares)
            mean = float((shares * scores.values).sum() / shares.sum()) if term.data else 0.0
            values += term.weight * mean * shares.sum() / len(values)
            np.add.at(values, hand.rows, term.weight * shares * (scores.values - mean))
            others[name] = Scores(scores.values, correct=scores.correct)
            own += [] if term.data else [scores]
        right = next((scores.correct for scores in own if scores.correct is not None), None)
        written = next((scores for scores in own if scores.outputs is not None), own[0])
        return Scores(
            values,
            correct=right,
            outputs=written.outputs,
            truncated=written.truncated,
            others=others,
        )
