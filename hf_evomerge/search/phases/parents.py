"""Phase that scores base and sources, and says whether they have anything to give each other."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Mapping, Sequence

from ...fitness.scores import Scores
from ...fitness.tasks.classification import ClassificationSpec, label_names
from ...fitness.tasks.multiple_choice import MultipleChoiceSpec
from ..evaluation.evaluator import Evaluator
from ..file.config import SearchConfig
from ..front.results import blind
from ..results.constant import Constant
from ..results.table import Row, base_name
from ..results.verdict import about_parents, no_better_than_chance
from .phase import Findings, Phase, PhasePlan, Planner, SearchRun, parents_once

logger = logging.getLogger(__name__)

_END = 3  # characters; a brace and a quote end many
_EASY = 0.9  # of the search examples, that every model has right
_ASK = "does the task ask for more?"
_FREQUENT = 0.5  # of the search examples, that have one answer


class Parents(Phase):
    """Scores of base and sources on the search examples."""

    name = "parents"
    title = "parents"

    def check(self, config: SearchConfig, evaluator: Evaluator, findings: Findings) -> None:
        """Warn where a tokenizer loses letters or digits, or cannot tell answers apart."""
        if config.fitness.task in ("likelihood", "generation", "multiple_choice"):
            findings.warnings += _doubts_of_tokenizers(config, evaluator)

    def plan(self, planner: Planner) -> PhasePlan:
        """Price a score of each parent on all search examples."""
        count = len(parents_once(planner.config))
        planner.rows += count
        seconds = count * planner.second * planner.sizes["search"]
        return PhasePlan(self.name, f"{count} models on all search examples", seconds)

    def run(self, run: SearchRun) -> None:
        """Score the parents, and give each a row."""
        parents = parents_once(run.config)
        scores = run.evaluate(parents, "search", self.name, required=True)
        if not any(run.study.trials(stage.name) for stage in run.config.stages):
            _tell(run, scores)
        names = run.config.parent_names
        for label, ref in parents.items():
            if label == "base":
                row = Row("base", base_name(names[label]), label=label, target=ref)
            else:
                row = Row("source", names[label], label=label, target=ref)
            run.rows.append(row)


def _doubts_of_tokenizers(config: SearchConfig, evaluator: Evaluator) -> list[str]:
    """Warn of the first tokenizer that does not give back the letters and digits of a prompt, or
    that makes two answers one: a wrong answer would count as right."""
    examples = evaluator.tasks.examples("search")
    answers = dict.fromkeys(each.answer for each in examples)
    for name, ref in zip(config.source_names, config.sources, strict=True):
        if (tokenizer := evaluator.tasks.tokenizer(ref)) is None:  # of models that draw
            continue
        for example in examples:
            back = tokenizer.decode(
                tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
            )
            if lost := sorted(_characters(example.prompt) - _characters(back)):
                return [
                    f"the tokenizer of {name} loses {', '.join(lost[:5])} of the prompt "
                    f"{example.prompt!r:.40} and gives back {back!r:.40}: the model reads no more"
                ]
        first: dict[tuple[int, ...], str] = {}
        for answer in answers:
            tokens = tuple(tokenizer(answer, add_special_tokens=False)["input_ids"])
            if first.setdefault(tokens, answer) != answer:
                return [
                    f"the answers {first[tokens]!r:.40} and {answer!r:.40} are the same tokens to "
                    f"{name}, which cannot tell them apart; mend its tokenizer"
                ]
    return []


def _characters(text: str) -> set[str]:
    """Letters and digits of a text, without their case, accents and width."""
    return {each for each in unicodedata.normalize("NFKD", text).casefold() if each.isalnum()}


def _tell(run: SearchRun, scores: Mapping[str, Scores]) -> None:
    """Say whether the sources have anything to give each other, and which scores see nothing."""
    config = run.config
    refs = parents_once(config)
    sources = {
        config.parent_names[label]: scores[label] for label in refs if refs[label] != config.base
    }
    judged_on = run.sizes.judged_on
    notes, warning = about_parents(sources, run.sizes[judged_on], judged_on)
    for note in notes:
        logger.info(note)
    chance = 0.0
    frequent = end = None
    if run.evaluator is not None:
        chance = _chance(run.evaluator)
        examples = run.evaluator.tasks.examples("search")
        constant = Constant.of(examples, examples)
        if constant is not None and constant.accuracy >= _FREQUENT:
            frequent = f"{constant} of them: {_ASK}"
        end = _common_end([each.answer for each in examples])
    least = min(each.accuracy or 0.0 for each in scores.values())
    if least >= _EASY:
        frequent = f"every model has {least:.0%} right, so that there is little to gain: {_ASK}"
    none = no_better_than_chance(list(scores.values()), chance)
    doubts = [warning, frequent, end if none else None, *blind(config, sources.values())]
    lasting = [line for line in doubts if line is not None]
    told = [*(run.study.meta("warnings") or []), *lasting]
    run.study.set_meta("warnings", list(dict.fromkeys(told)))  # a killed search tells them again
    for line in [*([none] if none else []), *lasting]:  # the merge may solve what none of them does
        logger.warning(line)


def _common_end(answers: Sequence[str]) -> str | None:
    """Say in what all answers end, which no model may know; None where they end in nothing, or are
    one answer."""
    turned = [each[::-1] for each in answers]
    end = os.path.commonprefix(turned)[::-1]  # noqa: RUF071 - of characters
    if len(end) < _END or len(set(answers)) < 2:
        return None
    return f"all {len(answers)} answers end with {end!r:.40}: a model that leaves it out is wrong"


def _chance(evaluator: Evaluator) -> float:
    """Share of the search examples that a guess answers right."""
    spec = evaluator.config.fitness
    if isinstance(spec, MultipleChoiceSpec):
        choices = [len(set(example.choices)) for example in evaluator.tasks.examples("search")]
        return sum(1 / count for count in choices) / len(choices)
    if isinstance(spec, ClassificationSpec) and not spec.heads:
        labels = len(label_names(evaluator.sources.all[0].config))
        return 1 / labels if labels > 1 else 0.5
    return 0.0
