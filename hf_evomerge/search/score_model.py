"""Scores one model, source or merge, on the task and the data of a search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import SearchError, nearest
from ..fitness import Example, Scores
from ..recipes.recipe import SourceRef
from ..record import Figures
from .evaluation.evaluator import Evaluator
from .evaluation.tasks import parents_of
from .file.config import SearchConfig
from .file.splits import SPLITS, Sizes
from .results.table import other_text


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a split. As text: fitness, accuracy, and the answers that were asked
    for.

    Attributes:
        scores: Its scores.
        examples: The examples of the split, in the order of the scores; those that were asked for
            have an answer, which the source has written where the data has none.
        answers: Answers of the model to some of them, by their positions; what was scored, where
            the task scores answers.
        unit: What the fitness is measured in; empty where it has no unit.
    """

    scores: Scores
    examples: tuple[Example, ...]
    answers: Mapping[int, str] = field(default_factory=dict)
    unit: str = ""

    def to_json(self) -> dict[str, Any]:
        """The figures, and the answers that were asked for, as plain data."""
        marks = self.scores.correct
        answers = []
        for number, answer in self.answers.items():
            example = self.examples[number]
            right = None if marks is None else bool(marks[number])
            said = {"prompt": example.prompt, "expected": example.answer, "answered": answer}
            answers.append({**said, "right": right})
        own = Figures.of(self.scores).model_dump()
        return {**own, "unit": self.unit, "examples": len(self.examples), "answers": answers}

    def __str__(self) -> str:
        own = Figures.of(self.scores)
        unit = f" ({self.unit})" if self.unit else ""
        figures = f"fitness {own.fitness_text}{unit}" + (
            f", accuracy {own.accuracy_text}" if own.accuracy_text else ""
        )
        figures += "".join(
            f", {name} {other_text(other)}" for name, other in self.scores.others.items()
        )
        if cut := self.scores.truncated_share:
            figures += f", {cut:.1%} of the answers cut at max_new_tokens"
        lines = [f"{figures} on {len(self.examples)} examples"]
        for number, answer in self.answers.items():
            example = self.examples[number]
            marks = self.scores.correct
            lines += [
                "",
                example.prompt,
                *([f"  {example.gloss}"] if example.gloss else []),
                f"  expected: {example.answer}",
            ]
            mark = ""
            if marks is not None:
                mark = " (right)" if marks[number] else " (wrong)"
            lines.append(f"  answered: {answer}{mark}")
        return "\n".join(lines)


def evaluate_model(
    model: str,
    config: SearchConfig,
    *,
    split: str | None = None,
    show: int = 0,
    adapter: str | None = None,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Score one model on a split of a search.

    Args:
        model: A folder, or a repository on the Hub.
        config: The search whose task and data are used.
        split: ``search``, ``validation`` or ``test``; by default the last of them that the search
            has.
        show: Number of examples to which the model's answers are kept: the first, of each skill in
            turn, and where it is right in all of them, or wrong, one of the other kind in place of
            the last.
        adapter: A LoRA adapter of the model: a folder, or a repository on the Hub.
        trust_remote_code: Whether Python files that come with the model may be run; merged models
            need none where this package is installed.

    Raises:
        EvoMergeError: The model or the data cannot be read, or the model cannot be scored.

    Example:
        >>> evaluation = evaluate_model("my-search/model", SearchConfig.load("search.yaml"))
        >>> print(evaluation)  # doctest: +ELLIPSIS
        fitness -... ± ..., accuracy ... on 6 examples
    """
    if split is not None and split not in (known := {*SPLITS, *config.splits}):
        raise SearchError(f"split: {split!r} is unknown; {nearest(split, known)}")
    target = SourceRef(model=model, adapter=adapter)
    merge = config.merge.model_copy(update={"sources": None, "core_space": None})
    path = config.path.model_copy(update={"order": None})
    # the search's sources are not needed, nor the numbers by which it names them
    alone = config.model_copy(
        update={"sources": [target], "base": None, "merge": merge, "path": path}
    )
    evaluator = Evaluator(alone, trust_remote_code=trust_remote_code)
    evaluator.tasks.parents = parents_of(config)
    evaluator.tasks.headed = config.sources
    split = split or Sizes(dict.fromkeys(evaluator.tasks.splits, 0)).judged_on
    examples = [*evaluator.tasks.examples(split)]
    scores = evaluator.evaluate(target, split)
    if scores.error is not None:
        raise SearchError(f"{model}: cannot be evaluated: {scores.error}")
    shown = _in_turn(examples)[:show]
    right = scores.correct
    if right is not None and show > 1 and (right[shown] == right[shown[0]]).all():
        others = (right != right[shown[0]]).nonzero()[0]
        shown[-1] = int(others[0]) if others.size else shown[-1]
    answers = {
        i: scores.outputs[i] if scores.outputs else evaluator.answer(target, examples[i])
        for i in shown
    }
    named = getattr(config.fitness, "source", None)  # of an agreement, for all examples
    for i in shown:
        source = evaluator.tasks.parents.get(examples[i].source or named or "")
        if source is not None and not examples[i].answer:
            examples[i] = replace(examples[i], answer=evaluator.answer(source, examples[i]))
    return Evaluation(scores, tuple(examples), answers, evaluator.tasks.unit)


def _in_turn(examples: Sequence[Example]) -> list[int]:
    """Positions of examples, of each source in turn."""
    seen = Counter[str | None]()
    rounds = []
    for example in examples:
        rounds.append(seen[example.source])
        seen[example.source] += 1
    return sorted(range(len(examples)), key=rounds.__getitem__)
