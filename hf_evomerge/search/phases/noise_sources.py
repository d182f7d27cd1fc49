"""Noise in place of the sources of a search, built once in the study's folder."""

from __future__ import annotations

from ...building.noise import write_noise
from ...recipes.recipe import SourceRef
from ..file.config import SearchConfig
from .phase import SearchRun


def with_noise(run: SearchRun) -> SearchConfig:
    """The search with noise for its sources.

    Its seed is another one too, for a recipe's key does not say what its sources are: the same
    numbers of noise and of the sources are two recipes.

    Raises:
        SourceError: A source cannot be read.
    """
    config = run.config
    assert run.evaluator is not None  # the search has been checked
    base = run.evaluator.sources.base
    assert base is not None  # as well
    seed = config.compute.seed + 1
    sources = list[SourceRef]()
    for number, source in enumerate(run.evaluator.sources):
        folder = run.study.noise_folder(number)
        folder.parent.mkdir(exist_ok=True)
        sources.append(write_noise(source, base, folder, seed=seed, number=number))
    compute = config.compute.model_copy(update={"seed": seed})
    return config.model_copy(update={"sources": sources, "compute": compute})
