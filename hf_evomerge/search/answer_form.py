"""Measures in which form models know the answers: behind a space, a new line or nothing, in or
outside a template.

The form is part of the text that is scored: with one space too many, a model that is always right
may score no answer right. The models of a search score the right answers to a few of its examples
in every form, and the likeliest form is taken.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import EvoMergeError, SearchError
from ..fitness import Example, Scores, TaskSpec
from ..fitness.example import by_source
from ..fitness.tasks.likelihood import LikelihoodSpec
from ..fitness.tasks.multiple_choice import MultipleChoiceSpec
from .evaluation.devices import device_memory
from .evaluation.evaluator import Evaluator
from .evaluation.memory import largest_model
from .file.config import SearchConfig
from .file.scaffold import AnswerForm
from .results.verdict import no_better_than_chance

EXAMPLES = 16  # of each skill
LEAST_GAP = 0.1  # nats; what is less is noise
_LARGE = 2e9  # bytes of a model that takes more than a few seconds to read
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelScores:
    """Log-probabilities of the right answers by one model in one form.

    Attributes:
        label: Label of the parent.
        name: Its name.
        scores: Log-probability of each example's answer, in nats.
    """

    label: str
    name: str
    scores: Scores

    @property
    def mean(self) -> float:
        """Mean over examples."""
        return float(self.scores.values.mean())

    def __str__(self) -> str:
        return f"{self.mean:.1f} nats by {self.name}"


FormScores = Mapping[AnswerForm, ModelScores]
"""The best model in each form; the form that the search has comes first."""


def measure_form(config: SearchConfig) -> tuple[AnswerForm, dict[str, float], list[str]]:
    """Find the form in which the models of a drafted search know the answers, and how much of each
    skill there is to gain.

    Args:
        config: The draft, whose task scores given answers.

    Returns:
        The likeliest form, or the draft's own where no model can be scored; by skill, in nats, what
        the best source has more than the base (or the worst source, where there is none); and lines
        for people: the figures where forms differ much, or why the form is a guess.
    """
    spec = _likelihood(config)
    assert spec is not None  # the caller has looked
    own = AnswerForm(spec.separator, config.data["search"].chat)
    try:
        evaluator = Evaluator(config)
        _check_size(evaluator)
        every = score_forms(evaluator, spec)
    except EvoMergeError as error:
        guess = f"{_in_words(own, [own])} is a guess ({error})"
        return own, {}, [f"warning: {guess}; the dry run measures it, where models can be scored"]
    scores = _best_models(every)
    best = _likeliest(every)
    gaps, said = _gaps(every[best], [example.source for example in _first(evaluator)])
    worse = [form for form in scores if _is_better(scores[best], scores[form])]
    if not worse:
        return best, gaps, said
    figures = ", ".join(f"{scores[form]} with {_in_words(form, scores)}" for form in worse)
    likeliest = f"over all models right answers are likeliest with {_in_words(best, scores)}"
    return best, gaps, [f"{likeliest}: {scores[best]}; {figures}", *said]


# One nat of an easy skill must not outweigh one of a hard skill. For skill k with mean scores s_m
# of the models m, the gap is g_k = max_m s_m - s_base, and a score of the skill counts 1 / g_k:
# base and best source are then 1 apart in every skill.
def _gaps(
    models: Sequence[ModelScores], skills: Sequence[str]
) -> tuple[dict[str, float], list[str]]:
    """Gap of each skill in nats, and a warning where no source knows more of it than the base."""
    gaps = dict[str, float]()
    said = list[str]()
    for skill in dict.fromkeys(filter(None, skills)):
        own = [place for place, name in enumerate(skills) if name == skill]
        means = {each.label: float(each.scores.values[own].mean()) for each in models}
        gap = max(means.values()) - means.get("base", min(means.values()))
        if gap < LEAST_GAP:
            said.append(f"warning: no model knows more of {skill} than the base; its weight is 1")
        else:
            gaps[skill] = gap
    return gaps, said


def _first(evaluator: Evaluator) -> list[Example]:
    """The first search examples of each skill."""
    skills = by_source(evaluator.tasks.examples("search")).values()
    return [replace(example, weight=1.0) for own in skills for example in own[:EXAMPLES]]


def doubts_of_form(evaluator: Evaluator) -> list[str]:
    """Warn where the answers are much likelier in another form than in the search's own, and where
    no model has a right one."""
    if (spec := _likelihood(evaluator.config)) is None:
        return []
    every = score_forms(evaluator, spec)
    scores = _best_models(every)
    own = next(iter(scores))  # the dry run has scored a model in it
    best = _likeliest(every)
    if _is_better(scores[best], scores[own]):
        better = _in_words(best, scores)
        figures = f"{scores[best]}, against {scores[own]} with {_in_words(own, scores)}"
        return [f"right answers are likelier with {better}: {figures}; write {better}"]
    is_choice = isinstance(evaluator.config.fitness, MultipleChoiceSpec)
    none = None if is_choice else no_better_than_chance([model.scores for model in every[own]])
    return [] if none is None else [none]


# The same answers under a changed prompt: with or without the chat template, with or without a
# space before the answer. Log-probabilities of whole answers are comparable across forms, since the
# text that is scored is the same but for the space.
def score_forms(evaluator: Evaluator, spec: LikelihoodSpec) -> dict[AnswerForm, list[ModelScores]]:
    """Score the right answers to a few search examples by base and sources, in every form.

    The form that the search has comes first. A chat template is compared where every model has one,
    and a space and a new line where the answers begin with none. A form in which no model can be
    scored is left out.

    Args:
        evaluator: The search's evaluator.
        spec: How a likelihood is scored; its separator is the search's own.

    Raises:
        SearchError: No model can be scored in any form.
    """
    tasks = evaluator.tasks
    parents = evaluator.config.parents
    examples = _first(evaluator)
    own = AnswerForm(spec.separator, examples[0].chat)
    with_space = sum(example.answer[:1].isspace() for example in examples)
    separators = [""] if 2 * with_space > len(examples) else ["", " ", "\n"]
    tokenizers = [tasks.tokenizer(ref) for ref in parents.values()]
    has_template = all(getattr(each, "chat_template", None) for each in tokenizers)
    chats = [False, True] if has_template else [own.chat]
    for chat in chats:
        tasks.add(_split(chat), [replace(example, chat=chat) for example in examples])
    scores: dict[AnswerForm, list[ModelScores]] = {own: []}
    scores |= {AnswerForm(separator, chat): [] for chat in chats for separator in separators}
    errors = list[str | None]()
    for label, ref in parents.items():
        name = evaluator.config.parent_names[label]
        for form, models in scores.items():
            task = spec.model_copy(update={"separator": form.separator})
            result = evaluator.evaluate(ref, _split(form.chat), fitness=task)
            if result.error is None:
                models.append(ModelScores(label, name, result))
            elif form == own:
                errors.append(f"{name}: {result.error}")
    if not any(scores.values()):
        raise SearchError(f"no model can be evaluated: {errors[0]}")
    return {form: models for form, models in scores.items() if models}


def _best_models(scores: Mapping[AnswerForm, Sequence[ModelScores]]) -> FormScores:
    """Choose the parent that speaks for each form: the answers are likeliest by it."""
    return {form: max(models, key=lambda each: each.mean) for form, models in scores.items()}


def _likelihood(config: SearchConfig) -> LikelihoodSpec | None:
    """Spec that scores given answers; None where the task has nothing between prompt and answer."""
    specs: list[TaskSpec | None] = [config.fitness, *(stage.fitness for stage in config.stages)]
    for spec in specs:
        if isinstance(spec, LikelihoodSpec):
            return spec.model_copy(update={"normalize": "sum"})
        if isinstance(spec, MultipleChoiceSpec):
            return LikelihoodSpec(separator=spec.separator, append_eos=False)
    return None


def _in_words(form: AnswerForm, forms: Collection[AnswerForm]) -> str:
    """A form as a search file has it, without what is the same in all forms."""
    chat = f", chat: {json.dumps(form.chat)}" if len({each.chat for each in forms}) > 1 else ""
    return f"separator: {json.dumps(form.separator)}{chat}"


def _split(chat: bool) -> str:
    return f"answer form, chat: {chat}"


# Where a task needs several skills no model knows the answers, and the best one's score says little
# of their form; where one model knows them, the others say little. So forms are compared by the
# geometric mean of their nats over the models,
#
#   (n_1 n_2 ... n_M)^(1/M)   with n_m = max(-mean score of model m, LEAST_GAP),
#
# in which a model that finds the answers twice as unlikely in one form weighs the same at 1 nat and
# at 100.
def _likeliest(scores: Mapping[AnswerForm, Sequence[ModelScores]]) -> AnswerForm:
    """Choose the form in which the answers are likeliest."""

    def surprise(form: AnswerForm) -> float:
        nats = [max(-model.mean, LEAST_GAP) for model in scores[form]]
        return math.fsum(map(math.log, nats)) / len(nats)

    return min(scores, key=surprise)


def _is_better(best: ModelScores, other: ModelScores) -> bool:
    """Tell whether answers are e times as probable, and by more than two standard errors.

    The errors are those of the paired difference over examples.
    """
    gain = best.scores.values - other.scores.values
    error = gain.std(ddof=1) / math.sqrt(gain.size) if gain.size > 1 else math.inf
    return bool(gain.mean() > max(1.0, 2 * error))


def _check_size(evaluator: Evaluator) -> None:
    """Announce large models; raises `SearchError` where one does not fit into memory."""
    needed = largest_model(evaluator)
    memory = device_memory(evaluator.models.device)
    size = f"the largest model takes {needed / 1e9:.3g} GB"
    if needed > memory and evaluator.config.compute.device_map is None:
        raise SearchError(f"{size}, and there are {memory / 1e9:.3g} GB")
    if needed > _LARGE:
        what = f"every model scores {EXAMPLES} examples, and {size}"
        logger.info(f"{what}; `--no-measure` guesses what stands between prompt and answer")
