"""Where in a search the published model was found."""

from __future__ import annotations

import re

from published import Published

from hf_evomerge.pictures.trials import Generation, Trial, generations, of_stage
from hf_evomerge.record import Results


def grown(published: Published, stage: str) -> list[Generation]:
    """The generations of a stage."""
    return generations(of_stage(published.trials, stage))


def winner(published: Published) -> Trial | None:
    """The trial that found the published model; None where the record does not tell it."""
    results = published.record.results or Results()
    point = next((point for point in results.front if point.winner), None)
    stage = point.stage if point is not None else results.winner.stage if results.winner is not None else ""
    there = of_stage(published.trials, stage)
    if point is not None:
        return next((trial for trial in there if trial.number == point.trial), None)
    made = (published.path, published.scales if published.path else (), "" if published.path else _merge(published.recipe_text))
    found = [trial for trial in there if (trial.path, trial.scales, _merge(trial.recipe)) == made and any(made)]
    return max(found, key=lambda trial: trial.examples, default=None)


def _merge(recipe: str) -> str:
    """What of a recipe's text says how the weights are made: not what the sources are called."""
    found = re.search(r"^merge:((?:\n[ -].*)*)", recipe, re.MULTILINE)
    return found[1] if found else ""


def opening(published: Published, stage: str) -> int:
    """The place of a stage's generation that is shown first: the published model's, or the last."""
    there = grown(published, stage)
    chosen = winner(published)
    places = (at for at, one in enumerate(there) if chosen and chosen.stage == stage and chosen.generation == one.number)
    return next(places, len(there) - 1)
