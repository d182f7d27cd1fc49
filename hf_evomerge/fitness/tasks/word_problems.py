"""MGSM and GSM8K by name: `generation` with the prompts, the stops and the data that these problems
have.

``compat: paper`` is the protocol of arXiv:2403.13187: the prompt ja-alpaca-cot, its stops, and its
scorer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import model_validator

from ...recipes.strict_yaml import Count
from ..registry import register_task
from .generation import AnswerSpec, GenerationTask

SOURCES = ("jsonl", "dataset", "data_files", "lm_eval", "function")
PAPER_STOPS = ["Instruction:", "Instruction", "Response:", "Response"]


class Words(NamedTuple):
    """Words of a prompt in one language: what to do, and the headings of the problem and of its
    solution."""

    instruction: str
    problem: str
    solution: str

    @property
    def template(self) -> str:
        """The prompt for a model without a chat template."""
        return f"{self.instruction}\n\n### {self.problem}:\n{{question}}\n\n### {self.solution}:"


WORDS = {
    "de": Words(
        "Löse die Aufgabe Schritt für Schritt und ende mit der Zahl, die die Antwort ist.",
        "Aufgabe",
        "Lösung",
    ),
    "en": Words(
        "Solve the problem step by step, and end with the number that is the answer.",
        "Problem",
        "Solution",
    ),
    "es": Words(
        "Resuelve el problema paso a paso y termina con el número que es la respuesta.",
        "Problema",
        "Solución",
    ),
    "fr": Words(
        "Résous le problème étape par étape et termine par le nombre qui est la réponse.",
        "Problème",
        "Solution",
    ),
    # The paper's prompt, ja-alpaca-cot.
    "ja": Words(
        "以下に、あるタスクを説明する指示があります。リクエストを適切に完了するための回答を日本語で記述してください。"
        "一歩一歩考えましょう。",
        "指示",
        "応答",
    ),
    "ru": Words(
        "Реши задачу шаг за шагом и закончи числом, которое является ответом.", "Задача", "Решение"
    ),
    "zh": Words("请一步一步地解答下面的问题，最后写出作为答案的数字。", "问题", "解答"),
}


class WordProblemSpec(AnswerSpec):
    """Settings of MGSM and GSM8K: the keys of `generation`, with other defaults."""

    max_new_tokens: Count = 1024

    @model_validator(mode="before")
    @classmethod
    def _add_stops(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "stop" in data:
            return data
        words = WORDS.get(_code(data.get("language")))
        own = [f"### {words.problem}", f"### {words.solution}"] if words is not None else []
        return {**data, "stop": PAPER_STOPS if data.get("compat") == "paper" else own}

    @model_validator(mode="after")
    def _check_compat(self) -> WordProblemSpec:
        if self.compat == "paper" and _code(self.language) != "ja":
            raise ValueError(
                f"compat: the paper measured ja alone (found {_code(self.language)}); leave "
                "out compat"
            )
        return self

    def completed(
        self, data: Mapping[str, Any], hub: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> dict[str, Any]:
        """A section of ``data`` with this task's prompt and fields, and its data on the Hub where
        no other is named."""
        given = {key: value for key, value in data.items() if value is not None}
        words = WORDS.get(_code(self.language))
        usual = {**({} if any(name in given for name in SOURCES) else hub), **fields}
        if words is not None and not {"template", "prompt_field"} & given.keys():
            usual["template"] = (
                "{question}\n\n" + words.instruction if given.get("chat") else words.template
            )
        return {**usual, **given}


class MgsmSpec(WordProblemSpec):
    """Score a model by MGSM (Shi et al. 2022, arXiv:2210.03057): grade-school problems in eleven
    languages.

    The problems are in the `language` that answers must be in.
    """

    task: Literal["mgsm"] = "mgsm"

    @model_validator(mode="after")
    def _check_language(self) -> MgsmSpec:
        if self.language is None:
            raise ValueError(
                f"language: which? There are prompts for {', '.join(WORDS)}; others need a "
                "template under data"
            )
        return self

    def complete(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in by `completed`."""
        files = data.get("data_files") or []
        files = [files] if isinstance(files, str) else files
        is_table = bool(files) and all(
            str(file).endswith(".tsv") for file in files
        )  # as published: without a heading
        fields = {
            "answer_field": "answer_number",
            **({"columns": ["question", "answer_number"]} if is_table else {}),
        }
        return self.completed(
            data,
            {"dataset": "juletxara/mgsm", "config": _code(self.language), "split": "test"},
            fields,
        )


class Gsm8kSpec(WordProblemSpec):
    """Score a model by GSM8K (Cobbe et al. 2021, arXiv:2110.14168): grade-school problems in
    English."""

    task: Literal["gsm8k"] = "gsm8k"

    def complete(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in by `completed`."""
        return self.completed(
            data,
            {"dataset": "openai/gsm8k", "config": "main", "split": "test"},
            {"answer_after": "####"},
        )


@register_task("mgsm")
class MgsmTask(GenerationTask):
    """Share of MGSM's problems that are solved, in their language."""

    spec_type = MgsmSpec


@register_task("gsm8k")
class Gsm8kTask(GenerationTask):
    """Share of GSM8K's problems that are solved."""

    spec_type = Gsm8kSpec


def _code(language: Any) -> str:
    """The code of a language in any form that a file may have; English where there is none."""
    if isinstance(language, Mapping):
        language = language.get("code")
    return str(getattr(language, "code", language) or "en")
