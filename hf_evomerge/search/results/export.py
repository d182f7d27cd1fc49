"""Trials of a study as rows of a table, as the Hub has them.

A trial's numbers are the values of its merge, by source, parameter and group, or the genome's own
(``x000``) where it has a path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import SearchError
from ...recipes.recipe import Recipe, labels_of
from ...recipes.whole_file import whole_file
from ..file.config import SearchConfig
from ..front.results import columns
from ..study.paths import settings_of
from ..study.study import Study, Trial

Columns = dict[str, Any]


def trial_rows(folder: str | Path) -> list[Columns]:
    """Return every trial of a study as one flat row, stage by stage.

    Args:
        folder: The study's folder.

    Returns:
        Rows with the same keys: what there is of a trial, and ``params.NAME`` for each of its
        numbers; None where it has none.

    Raises:
        SearchError: There is no study, or no trial in it.
    """
    with Study.open(folder) as study:
        config = settings_of(study)
        rows = []
        for stage in config.stages:
            for trial, params in _with_params(study, config, stage.name):
                numbers = {f"params.{name}": value for name, value in params.items()}
                rows.append(trial_row(trial, config.metrics) | numbers)
    if not rows:
        raise SearchError(f"{folder}: no trial is finished yet; there is nothing to export")
    empty = dict.fromkeys(key for row in rows for key in row)
    return [empty | row for row in rows]


def trial_row(trial: Trial, metrics: Iterable[str]) -> Columns:
    """Return a trial as a flat row; the recipe is given by its key."""
    return {
        "stage": trial.stage,
        "number": trial.number,
        "generation": trial.generation,
        "state": trial.state,
        "fitness": trial.fitness,
        **columns(trial.scores, metrics),
        "standard_error": trial.scores.standard_error,
        "accuracy": trial.scores.accuracy,
        "examples": trial.scores.values.size,
        "evaluations": trial.cost,
        "seconds": trial.scores.seconds,
        "recipe": trial.recipe_key,
        "duplicate_of": trial.duplicate_of,
        "error": trial.scores.error,
    }


def write_parquet(rows: list[Columns], file: str | Path) -> None:
    """Write rows with the same keys as a table, which appears under its name at once."""
    import pyarrow
    from pyarrow import parquet

    with whole_file(file) as name:
        parquet.write_table(pyarrow.Table.from_pylist(rows), name, compression="zstd")


def _with_params(
    study: Study, config: SearchConfig, stage: str
) -> Iterator[tuple[Trial, dict[str, float]]]:
    for trial in study.trials(stage):
        recipe = study.recipe(trial.recipe_key) if trial.recipe_key is not None else None
        if recipe is None or recipe.flow is not None:
            width = max(3, len(str(trial.genome.size)))
            yield (
                trial,
                {f"x{number:0{width}}": float(value) for number, value in enumerate(trial.genome)},
            )
        else:
            yield trial, dict(_merge_numbers(recipe))


def _merge_numbers(recipe: Recipe) -> Iterator[tuple[str, float]]:
    merge = recipe.merge
    assert merge is not None  # a recipe has at least one part
    labels = labels_of(recipe.sources)
    for number, given in zip(recipe.merge_sources, merge.parameters, strict=False):
        yield from numbers(labels[number], given)
    yield from numbers("", merge.options or {})


def numbers(name: str, value: object) -> Iterator[tuple[str, float]]:
    """The numbers in a value of a recipe, with their names: its own, and the keys and places that
    lead to each."""
    if isinstance(value, Mapping):
        for key, inside in value.items():
            yield from numbers(f"{name}.{key}" if name else str(key), inside)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, inside in enumerate(value):
            yield from numbers(f"{name}[{number}]", inside)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
