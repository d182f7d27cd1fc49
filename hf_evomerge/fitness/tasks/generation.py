"""Fitness as the share of right answers: what was written is cut, extracted, compared, and its
language checked.

How a model writes is in ``writing.py``, how answers are read in ``answers.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ...errors import FitnessError
from ...recipes.strict_yaml import Number
from ..example import Example
from ..registry import register_task
from ..scores import Scores
from ..text.answers import Extract, cut_at_stops, extract_text, paper_last_number
from ..text.numbers import COMMA_LANGUAGES, Decimal, last_number, parse_number
from .writing import WritingSpec, WritingTask


class AnswerSpec(WritingSpec):
    """Settings of tasks that score a model by how many of its greedily decoded answers are
    right."""

    extract: Extract = "last_number"
    """Which part of the response is the answer: ``all``, ``last_number``, or ``{regex: ...}``."""
    decimal: Decimal | None = None
    """How responses write numbers: ``point`` (1,000.5) or ``comma`` (1.000,5). As the language that
    is required writes them by default, and with a point where none is."""
    compat: Literal["paper"] | None = None
    """``paper`` scores as the scorer of arXiv:2403.13187 does: ``1,000`` is 0 and ``-5`` is 5, and
    fastText is asked about the shortest response."""
    compare: Literal["number", "text"] | None = None
    """As ``number`` within the tolerance, or as ``text`` without the space around it. Last numbers
    are numbers; the default is ``text`` otherwise."""
    tolerance: Annotated[Number, Field(ge=0)] = 1e-6
    """Largest difference of two numbers that are the same."""
    unit: ClassVar[str] = "share of right answers"
    takes_shots: ClassVar[bool] = True
    append_eos: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check_options(self) -> AnswerSpec:
        if self.extract == "last_number" and self.compare == "text":
            raise ValueError(
                "compare: last numbers are compared as numbers; write another extract, or "
                "leave out compare"
            )
        if self.compat == "paper" and self.extract != "last_number":
            raise ValueError(
                "compat: the paper's scorer compares last numbers; leave out compat or extract"
            )
        if self.compat == "paper" and self.decimal is not None:
            raise ValueError("decimal: the paper's scorer reads none; leave out decimal or compat")
        return self

    @property
    def decimal_mark(self) -> Decimal:
        """Decimal mark of numbers: the file's, or else the language's."""
        writes_comma = self.language is not None and self.language.code in COMMA_LANGUAGES.split()
        return self.decimal or ("comma" if writes_comma else "point")

    @property
    def compares_numbers(self) -> bool:
        """True where answers are compared as numbers."""
        return (self.compare or ("number" if self.extract == "last_number" else "text")) == "number"


class GenerationSpec(AnswerSpec):
    """Score a model by how many of its greedily decoded answers are right; the settings are those
    of `AnswerSpec`."""

    task: Literal["generation"] = "generation"


@register_task("generation")
class GenerationTask(WritingTask):
    """Share of right answers among greedily decoded responses.

    ``correct`` says whether the answer is right in any language (the paper's ``acc``); ``values``
    are 1 where the language is right as well (its ``acc_ja``).
    """

    spec_type: type[AnswerSpec] = GenerationSpec
    spec: AnswerSpec

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Tokenise the prompts into length-sorted batches.

        Raises:
            FitnessError: A right answer is not a number though numbers are looked for, or the
                language cannot be checked.
        """
        if self.spec.compares_numbers:
            advice = "extract: all" if self.spec.extract == "last_number" else "compare: text"
            for example in examples:
                if parse_number(example.answer) is None:
                    raise FitnessError(
                        f"{example.id}: the answer {example.answer!r:.80} is not a number; "
                        f"use '{advice}'"
                    )
        super().prepare(examples, tokenizer)

    def _run(self, model: Any, *, gradient: bool) -> Scores:
        outputs, truncated = self.write(model)
        correct = [
            self.judge(output, example)
            for output, example in zip(outputs, self._examples, strict=True)
        ]
        language = self.spec.language
        values = [
            float(
                right
                and (
                    language is None or language.holds(output, as_paper=self.spec.compat == "paper")
                )
            )
            for right, output in zip(correct, outputs, strict=True)
        ]
        return Scores(values, outputs=outputs, correct=correct, truncated=truncated)

    def judge(self, output: str, example: Example) -> bool:
        """Tell whether a response gives the right answer, in any language."""
        return is_right(cut_at_stops(output, self.spec.stop), example.answer, self.spec)


def is_right(output: str, answer: str, spec: AnswerSpec) -> bool:
    """Tell whether the answer in a response is the right one; the language is not looked at."""
    if spec.extract == "last_number":
        number = (
            paper_last_number(output)
            if spec.compat == "paper"
            else last_number(output, spec.decimal_mark)
        )
    else:
        found = extract_text(output, spec.extract)
        if found is None or not spec.compares_numbers:
            return found == answer.strip()
        number = parse_number(found, spec.decimal_mark)
    right = parse_number(answer)
    return number is not None and right is not None and abs(number - right) <= spec.tolerance
