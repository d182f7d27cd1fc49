"""Where in a search the published model was found."""

from __future__ import annotations

from published import Published

from hf_evomerge.pictures.trials import Generation, Trial, generations, of_stage


def grown(published: Published, stage: str) -> list[Generation]:
    """The generations of a stage."""
    return generations(of_stage(published.trials, stage))


def winner(published: Published) -> Trial | None:
    """The trial that found the published model; None where the record does not tell it."""
    row = published.record.winner
    there = of_stage(published.trials, row.stage) if row is not None else []
    return next((trial for trial in there if trial.number == published.record.trial), None)


def opening(published: Published, stage: str) -> int:
    """The place of a stage's generation that is shown first: the published model's, or the last."""
    there = grown(published, stage)
    chosen = winner(published)
    places = (at for at, one in enumerate(there) if chosen and chosen.stage == stage and chosen.generation == one.number)
    return next(places, len(there) - 1)
