"""Fitness of classifiers: the log-probability of the right label, of texts or of pictures, through
one head or several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ...errors import FitnessError
from ...recipes.strict_yaml import Count
from ..example import Example
from ..pictures import SeeingTokenizer, placed
from ..prepared import GradientTask
from ..registry import TaskSpec, register_task
from ..scores import Scores
from ..text.encoding import device_of, length_batches, scoring

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


class ClassificationSpec(TaskSpec):
    """Score a classifier by the label that it gives to a text or a picture.

    The answer is the label's name in the model's config, or its number. Labels of one name are one
    class: their probabilities are summed. A model with one label, such as a re-ranker, gives the
    odds of 1 against 0; an answer between is the share of 1.
    """

    task: Literal["classification"] = "classification"
    score: Literal["log_probability", "accuracy"] = "log_probability"
    """What the values are: ``log_probability``, that of the right label, which has a gradient, or
    ``accuracy``, 1 where it is the most probable one, else 0."""
    heads: list[str] = Field(default_factory=list)
    """A name for the head of each source, in their order; each example says which it is for
    (``head_field``), and a model is scored through the heads of the sources. Through its own where
    empty."""
    pair_separator: str = ""
    """Text between the two texts of a prompt that a cross-encoder is given as a pair; a prompt is
    one text where empty."""
    batch_size: Count = 16
    """Examples in a forward pass. It changes memory and time, and scores in 8 bits alone."""

    kinds: ClassVar[tuple[str, ...]] = (
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    )


@dataclass(frozen=True)
class Head:
    """A classifier whose head is used on the bodies of others.

    Attributes:
        config: Its config, which has the labels.
        load: Gives the classifier, the same each time; of its own body, `own_pooler` alone is used,
            where another has none.
    """

    config: PretrainedConfig
    load: Callable[[], PreTrainedModel]

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The classifier with the body of `model`, not a copy of it."""
        classifier: Any = self.load()
        body: Any = model.base_model
        lends = getattr(body, "pooler", False) is None  # of a class with another head
        if lends:
            body.pooler = classifier.own_pooler
        setattr(classifier, classifier.base_model_prefix, body)
        try:
            yield classifier
        finally:
            setattr(classifier, classifier.base_model_prefix, None)
            if lends:
                body.pooler = None


# The score is sum_c y_c log p_c with p the softmax over classes; y is 1 at the right class, or (1 -
# a, a) where the answer is a share a of class 1. A head with one logit z is given a second one that
# is 0: softmax(0, z) = (1 - sigmoid(z), sigmoid(z)), which is what such a head is trained by.
# Labels of one name are one class: logsumexp of their logits adds their probabilities.
#
# Merging heads of different labels makes no sense. With `heads`, bodies are merged, and each
# example goes through the merged body and the head of the source that knows its labels.
@register_task("classification")
class ClassificationTask(GradientTask):
    """Classification by a model's classification head; ``outputs`` are the labels' names."""

    spec_type = ClassificationSpec
    spec: ClassificationSpec

    def __init__(self, spec: ClassificationSpec) -> None:
        super().__init__(spec)
        self.heads: dict[str, Head] = {}
        """The heads by their names; who has the sources sets them."""
        self._batches: list[tuple[str, list[int], dict[str, torch.Tensor]]] = []

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Make the model's inputs.

        Raises:
            FitnessError: Some examples have pictures and some have not; or there are heads and one
                is for none, or none of the labels of its head.
        """
        super().prepare(examples, tokenizer)
        for example in examples:
            if example.head not in (self.heads or [""]):
                known = ", ".join(self.heads) or "none: write heads in the fitness"
                raise FitnessError(
                    f"{example.id}: is for the head {example.head!r:.80}; there are {known}"
                )
            if self.heads:
                label_shares(example, label_names(self.heads[example.head].config))
        seen = any(example.pictures for example in examples)
        self._batches = []
        for head in dict.fromkeys(example.head for example in examples):
            own = [i for i, example in enumerate(examples) if example.head == head]
            lengths = [1 if seen else len(tokenizer(examples[i].prompt)["input_ids"]) for i in own]
            for batch in length_batches(lengths, self.spec.batch_size):
                rows = [own[i] for i in batch]
                self._batches.append(
                    (head, rows, self._inputs([examples[i] for i in rows], tokenizer))
                )

    def _inputs(self, examples: Sequence[Example], tokenizer: Any) -> dict[str, torch.Tensor]:
        if any(example.pictures for example in examples):
            if not isinstance(tokenizer, SeeingTokenizer):
                raise FitnessError(
                    f"{examples[0].id}: has pictures, which a tokenizer alone cannot read; "
                    "name one that sees"
                )
            return tokenizer.pictures_of(examples)
        between = self.spec.pair_separator
        texts = [
            example.prompt.split(between, 1) if between else [example.prompt]
            for example in examples
        ]
        if between and (
            alone := [own.id for own, parts in zip(examples, texts, strict=True) if len(parts) < 2]
        ):
            raise FitnessError(
                f"{alone[0]}: no {between!r} in the prompt, which parts it by "
                "fitness.pair_separator"
            )
        return dict(
            tokenizer(*map(list, zip(*texts, strict=True)), padding=True, return_tensors="pt")
        )

    def _run(self, model: Any, *, gradient: bool) -> Scores:
        import torch

        count = len(self._examples)
        values = [0.0] * count
        correct = [False] * count
        outputs = [""] * count
        for head, batch, inputs in self._batches:
            with (
                self.heads[head].on(model) if head else nullcontext(model) as classifier,
                scoring(model, gradient=gradient),
            ):
                names = label_names(classifier.config)
                logits = _logits(classifier, inputs, len(names))
                classes = _classes(names)
                if len(classes) < len(names):
                    logits = torch.stack(
                        [logits[:, numbers].logsumexp(1) for numbers in classes.values()], 1
                    )
                shares = logits.new_tensor(
                    [label_shares(self._examples[i], names) for i in batch]
                )  # (B, classes)
                chosen = (logits.log_softmax(1) * shares).sum(1)
                labels = shares.argmax(1).tolist()
                if not chosen.isfinite().all():
                    raise FitnessError("the model's logits are not finite")
                if gradient:
                    weights = chosen.new_tensor([self._examples[i].weight for i in batch])
                    (chosen * weights).sum().div(count).backward()
                for i, value, label, taken in zip(
                    batch, chosen.tolist(), labels, logits.argmax(1).tolist(), strict=True
                ):
                    values[i] = value
                    correct[i] = taken == label
                    outputs[i] = list(classes)[taken]
        return Scores(
            correct if self.spec.score == "accuracy" else values, correct=correct, outputs=outputs
        )


def label_names(config: Any) -> dict[int, str]:
    """The names of a classifier's labels by their numbers; 0 and 1 where its head has one row, a
    logit of 1 against 0."""
    return config.id2label if len(config.id2label) > 1 else {0: "0", 1: "1"}


def label_shares(example: Example, names: Mapping[int, str]) -> list[float]:
    """Read the right class from an answer, which has its name or its number: 1 at its place, 0
    elsewhere.

    Of the classes 0 and 1 it may be a number between them, the share of 1. Raises `FitnessError`
    where there is no such label.
    """
    answer = example.answer.strip()
    classes = list(_classes(names))
    if answer not in classes and answer.isdecimal() and int(answer) in names:
        answer = str(names[int(answer)])
    if classes == ["0", "1"]:
        with suppress(ValueError):
            if 0 <= (share := float(answer)) <= 1:
                return [1 - share, share]
    if answer in classes:
        return [float(name == answer) for name in classes]
    known = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
    raise FitnessError(f"{example.id}: the model has no label {answer!r:.80}; it has {known}")


def _classes(names: Mapping[int, str]) -> dict[str, list[int]]:
    """The numbers of the labels of each class: labels of one name are one."""
    found: dict[str, list[int]] = {}
    for number in sorted(names):
        found.setdefault(str(names[number]), []).append(number)
    return found


def _logits(model: Any, inputs: Mapping[str, torch.Tensor], labels: int) -> torch.Tensor:
    """The logits of a batch in float32, one for each label."""
    found: Any = getattr(model(**placed(inputs, model)), "logits", None)
    if found is not None and tuple(found.shape[1:]) == (1,):
        found = found * found.new_tensor([0.0, 1.0])
    if found is None or tuple(found.shape[1:]) != (labels,):
        raise FitnessError(
            f"a {type(model).__name__} gives no logits of {labels} labels; name a model with "
            "a head for them"
        )
    logits: torch.Tensor = found.float().to(device_of(model))
    return logits
