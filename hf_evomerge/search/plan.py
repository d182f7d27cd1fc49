"""The dry run of a search: checks it, times one evaluation, and says how long the whole will take."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..errors import SearchError
from .checks import check_search
from .config import SearchConfig
from .evaluator import Evaluator


@dataclass(frozen=True)
class Plan:
    """What a search would do; nothing has been evaluated but one source.

    Attributes:
        dimensions: Numbers to evolve, per stage. That of a hybrid search's second stage counts the merged model's layers.
        evaluations: Budget of each stage, in scores of all search examples.
        examples: Examples, per split.
        seconds_per_evaluation: Measured on the first source.
        notes: What the user should know of the spaces, one line each, such as numbers that are not evolved.
    """

    dimensions: dict[str, int]
    evaluations: dict[str, int]
    examples: dict[str, int]
    seconds_per_evaluation: float
    notes: tuple[str, ...] = ()

    @property
    def minutes(self) -> float:
        """Expected time of all trials with one worker."""
        return sum(self.evaluations.values()) * self.seconds_per_evaluation / 60

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, workers: int = 1) -> str:
        """The plan in lines for people, with the time that so many workers take."""
        lines = []
        for stage, count in self.evaluations.items():
            size = f", {self.dimensions[stage]} numbers to evolve" if stage in self.dimensions else ""
            lines.append(f"{stage}: {count} evaluations{size}")
        lines += [f"note: {note}" for note in self.notes]
        lines.append(f"examples: {json.dumps(self.examples)}")
        whole = _duration(self.minutes / workers)
        lines.append(f"one evaluation takes {self.seconds_per_evaluation:.3g} s: about {whole} in all, with workers={workers}")
        return "\n".join(lines)


def plan_search(config: SearchConfig) -> Plan:
    """Check everything that can be checked without searching, and time one evaluation.

    Args:
        config: The search.

    Raises:
        EvoMergeError: A source, the data or a setting is wrong.

    Example:
        >>> plan_search(SearchConfig.load("search.yaml")).evaluations
        {'ps': 8, 'dfs': 8}
    """
    evaluator = Evaluator(config)
    dimensions, notes = check_search(config, evaluator)
    evaluator.evaluate(config.sources[0])  # loads the model
    scores = evaluator.evaluate(config.sources[0])
    if scores.error is not None:
        raise SearchError(f"{config.sources[0].model}: cannot be evaluated: {scores.error}")
    evaluations: dict[str, int] = {stage: config.budget(stage)[0] for stage in config.stages}
    examples = {split: len(evaluator.examples(split)) for split in evaluator.splits}
    return Plan(dimensions, evaluations, examples, scores.seconds, tuple(notes))


def _duration(minutes: float) -> str:
    if minutes < 2:
        return f"{minutes * 60:.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
