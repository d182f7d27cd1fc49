"""Fitness of classifiers: the log-probability of the right label, of texts or of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from ..errors import FitnessError
from .data import Example
from .encoding import check_examples, device_of, length_batches, scoring
from .pictures import SeeingTokenizer, placed
from .registry import TaskSpec, register_task
from .scores import Scores

if TYPE_CHECKING:
    import torch


class ClassificationSpec(TaskSpec):
    """Score a classifier by the label that it gives to a text or a picture.

    The answer is the label's name in the model's config, or its number.

    Attributes:
        score: What the values are: ``log_probability``, that of the right label, which has a gradient, or ``accuracy``, 1 where
            it is the most probable one, else 0.
        batch_size: Examples in a forward pass. It changes the memory and the time, not the scores.
    """

    task: Literal["classification"] = "classification"
    score: Literal["log_probability", "accuracy"] = "log_probability"
    batch_size: int = Field(default=16, ge=1)


@register_task("classification")
class ClassificationTask:
    """Which label a model with a classification head gives; ``outputs`` are the labels' names."""

    spec_type: ClassVar[type[TaskSpec]] = ClassificationSpec

    def __init__(self, spec: ClassificationSpec) -> None:
        self.spec = spec
        self._examples: list[Example] = []
        self._batches: list[tuple[list[int], dict[str, torch.Tensor]]] = []

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Make the model's inputs; raises `FitnessError` where some examples have pictures and some have not."""
        check_examples(examples)
        self._examples = list(examples)
        if any(example.pictures for example in examples):
            batches = length_batches([1] * len(examples), self.spec.batch_size)
        else:
            lengths = [len(tokenizer(example.prompt)["input_ids"]) for example in examples]
            batches = length_batches(lengths, self.spec.batch_size)
        self._batches = [(batch, _inputs([examples[i] for i in batch], tokenizer)) for batch in batches]

    def evaluate(self, model: Any) -> Scores:
        """Score one model; raises `FitnessError` where it has no such labels, or its logits are not finite."""
        return self._run(model, gradient=False)

    def backward(self, model: Any) -> Scores:
        """As `evaluate`, with a backward pass of the mean score for each batch."""
        if self.spec.score != "log_probability":
            raise FitnessError("fitness.score: accuracy has no gradient; write log_probability")
        return self._run(model, gradient=True)

    def _run(self, model: Any, *, gradient: bool) -> Scores:
        check_examples(self._examples)
        labels = [label_number(example, model.config.id2label) for example in self._examples]
        values, taken = [0.0] * len(labels), [0] * len(labels)
        with scoring(model, gradient=gradient):
            for batch, inputs in self._batches:
                logits = _logits(model, inputs, len(model.config.id2label))  # (B, labels)
                right = logits.new_tensor([labels[i] for i in batch]).long()
                chosen = logits.log_softmax(1).gather(1, right[:, None])[:, 0]
                if not chosen.isfinite().all():
                    raise FitnessError("the model's logits are not finite")
                if gradient:
                    chosen.sum().div(len(labels)).backward()
                for i, value, label in zip(batch, chosen.tolist(), logits.argmax(1).tolist(), strict=True):
                    values[i], taken[i] = value, label
        correct = [one == other for one, other in zip(taken, labels, strict=True)]
        outputs = [str(model.config.id2label[label]) for label in taken]
        return Scores(correct if self.spec.score == "accuracy" else values, correct=correct, outputs=outputs)


def label_number(example: Example, names: Mapping[int, str]) -> int:
    """The label that an answer means: by its name, else by its number; raises `FitnessError` where there is none."""
    answer = example.answer.strip()
    for number, name in names.items():
        if str(name) == answer:
            return int(number)
    if answer.isdecimal() and int(answer) in names:
        return int(answer)
    known = ", ".join(map(str, list(names.values())[:8])) + (", ..." if len(names) > 8 else "")
    raise FitnessError(f"{example.id}: the model has no label {answer!r:.80}; it has {known}")


def _inputs(examples: Sequence[Example], tokenizer: Any) -> dict[str, torch.Tensor]:
    """What the model is given of a batch."""
    if any(example.pictures for example in examples):
        if not isinstance(tokenizer, SeeingTokenizer):
            raise FitnessError(f"{examples[0].id}: has pictures, which a tokenizer alone cannot read; name a model that sees")
        return tokenizer.pictures_of(examples)
    return dict(tokenizer([example.prompt for example in examples], padding=True, return_tensors="pt"))


def _logits(model: Any, inputs: Mapping[str, torch.Tensor], labels: int) -> torch.Tensor:
    """The logits of a batch in float32, one for each label."""
    found: Any = getattr(model(**placed(inputs, model)), "logits", None)
    if found is None or tuple(found.shape[1:]) != (labels,):
        raise FitnessError(f"a {type(model).__name__} gives no logits of {labels} labels; name a model with a head for them")
    logits: torch.Tensor = found.float().to(device_of(model))
    return logits
