"""Fitness as ROUGE-L (Lin 2004): how much of the reference's words a response has, in their order. English and Japanese."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from ..errors import FitnessError, optional
from .example import Example
from .registry import TaskSpec, register_task
from .scores import Scores
from .writing import WritingSpec, WritingTask


class RougeLSpec(WritingSpec):
    """Score a model by the ROUGE-L F-measure of its greedily decoded responses against the answers.

    With ``language: {code: ja}`` words are those that MeCab finds with UniDic, and a response that is not Japanese counts as
    blank; ``{code: en}`` does the same with English words, which are taken where no language is required.
    """

    task: Literal["rouge_l"] = "rouge_l"

    @model_validator(mode="after")
    def _check_language(self) -> RougeLSpec:
        if self.language is not None and self.language.code not in ("en", "ja"):
            raise ValueError(f"language: words of {self.language.code!r} cannot be told apart here; there are en and ja")
        return self


@register_task("rouge_l")
class RougeLTask(WritingTask):
    """ROUGE-L F-measure of responses, from 0 to 1."""

    spec_type: ClassVar[type[TaskSpec]] = RougeLSpec
    spec: RougeLSpec

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Tokenise the prompts; raises `FitnessError` where what finds words is not installed, or an answer has none."""
        self._scorer = _scorer(self.spec)
        for example in examples:
            if self._score(example.answer, example.answer) == 0:
                raise FitnessError(f"{example.id}: the answer {example.answer!r:.80} has no words to compare with")
        super().prepare(examples, tokenizer)

    def evaluate(self, model: Any) -> Scores:
        """Score one model; raises `FitnessError` where its logits are not finite."""
        outputs, truncated = self.write(model)
        language = self.spec.language
        counted = [output if language is None or language.holds(output) else "" for output in outputs]
        values = [self._score(example.answer, output) for example, output in zip(self._examples, counted, strict=True)]
        return Scores(values, outputs=outputs, truncated=truncated)

    def _score(self, reference: str, response: str) -> float:
        return float(self._scorer.score(reference, response)["rougeL"].fmeasure)


def _scorer(spec: RougeLSpec) -> Any:
    library = optional("rouge_score.rouge_scorer", "eval", "fitness.task: rouge_l", FitnessError)
    is_japanese = spec.language is not None and spec.language.code == "ja"
    return library.RougeScorer(["rougeL"], tokenizer=_JapaneseWords() if is_japanese else None)


class _JapaneseWords:
    def __init__(self) -> None:
        fugashi, unidic_lite = (
            optional(name, "eval", "fitness.language: ja", FitnessError) for name in ("fugashi", "unidic_lite")
        )
        self._tagger = fugashi.Tagger(f'-d "{unidic_lite.DICDIR}"')

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, as they stand in it."""
        return [str(word) for word in self._tagger(text)]
