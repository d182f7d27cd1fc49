"""Says what a study holds, and what a search has found so far, in plain text or for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ...recipes.recipe import RECIPE_FILE, Recipe, labels_of
from ...record import Figures
from ..file.config import SearchConfig
from ..file.stages import Stage
from ..front.results import front
from ..study.files import REPORT, RESULTS_FILE
from ..study.paths import settings_of
from ..study.study import Study, Trial
from .export import numbers, trial_row
from .table import render


def describe_result(folder: str | Path) -> str:
    """Describe the result of a search: table, verdict, winner and cost; while there is none, where
    it stands. Raises `SearchError` where the folder has no study."""
    with Study.open(folder) as study:
        settings = settings_of(study)
        parts = [_title(study, settings), ""]
        if (report := study.meta(REPORT)) is not None:
            winner = Recipe.load(study.folder / RECIPE_FILE)
            parts += [report, "", f"winner: {describe_recipe(winner)}"]
        for stage in settings.stages:
            if not (trials := study.trials(stage.name)):
                continue
            count = stage_facts(stage, trials)
            spent = f"{count['evaluations']:.0f} of {stage.evaluations} evaluations"
            more = f"{count['trials']} trials, {count['failed']} failed"
            line = f"{stage.title}: {spent} in {count['seconds']:.0f} s, {more}"
            if report is None and (best := study.best(stage.name, 1)):
                line += f"; best {Figures.of(best[0].scores).fitness_text}"
            parts.append(line)
        if report is None:
            parts.append(f"the search has not ended; `hf-evomerge search {folder}` goes on with it")
    return "\n".join(parts)


def _title(study: Study, settings: SearchConfig) -> str:
    """Name what is searched."""
    bits = f" of {settings.compute.quantization[0]} bits" if settings.compute.quantization else ""
    unmerged = f", which run on their base{bits} unmerged" if study.meta("unmerged") else ""
    return f"{settings.space} search over {', '.join(settings.source_names)}{unmerged}"


def describe_study(folder: str | Path, best: int = 5) -> str:
    """Describe the trials of a search; raises `SearchError` where the folder has no study."""
    with Study.open(folder) as study:
        settings = settings_of(study)
        file = study.folder / RECIPE_FILE
        winner = Recipe.load(file).key if file.exists() else None
        parts = [_title(study, settings)]
        for stage in settings.stages:
            if not (trials := study.trials(stage.name)):
                continue
            failed = [trial for trial in trials if trial.state == "FAILED"]
            count = stage_facts(stage, trials)
            said = (
                f"{count['trials']} trials, {count['failed']} failed, {count['duplicates']} with "
                "a recipe seen before"
            )
            parts.append(f"\n{stage} ({stage.title}): {said}")
            budgets = study.meta("budgets", stage.name) or []
            parts += [f"was given more after {spent} evaluations" for spent in budgets]
            table = Table(box=None, header_style="bold", pad_edge=False)
            unit = (stage.fitness or settings.fitness).unit
            for heading in ("trial", "gen", "fitness", "accuracy"):
                table.add_column(heading, justify="right", no_wrap=True)
            table.add_column("recipe", overflow="fold")
            listed = study.best(stage.name, best)
            compared = [
                trial
                for trial in listed
                if trial.scores.values.size == listed[0].scores.values.size
            ]
            for trial in compared:
                figures = Figures.of(trial.scores)
                place = (str(trial.number), str(trial.generation))
                recipe = describe_recipe(study.recipe(trial.recipe_key or ""))
                table.add_row(*place, figures.fitness_text, figures.accuracy_text, recipe)
            parts.append(render(table, 80))
            parts += [f"fitness: {unit}"] if unit else []
            if len(compared) < len(listed):
                parts.append(
                    "others were scored on fewer examples, a batch: they are not compared here"
                )
            if points := front(settings, study, [stage.name]):
                parts.append(points.judged({}, winner).table("search"))
            if failed:
                parts.append(
                    f"the first failure, trial {failed[0].number}: {failed[0].scores.error}"
                )
    return "\n".join(parts)


def study_facts(folder: str | Path, best: int = 5) -> dict[str, Any]:
    """A study for other programs.

    Args:
        folder: Its folder.
        best: How many of the best trials of each stage are listed.

    Returns:
        ``space``, ``sources``, ``unit`` of the fitness; ``stages``, as `stage_facts` has them, with
        the ``best`` trials of each as `trial_rows` has them; and ``results``, what ``results.json``
        holds, None where the search has not ended.

    Raises:
        SearchError: The folder has no study.
    """
    with Study.open(folder) as study:
        settings = settings_of(study)
        file = study.folder / RESULTS_FILE
        stages = []
        for stage in settings.stages:
            rows = [trial_row(trial, settings.metrics) for trial in study.best(stage.name, best)]
            stages.append({**stage_facts(stage, study.trials(stage.name)), "best": rows})
        results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        about = {
            "space": settings.space,
            "sources": settings.source_names,
            "unit": settings.fitness.unit,
        }
        return {**about, "stages": stages, "results": results}


def stage_facts(stage: Stage, trials: Sequence[Trial]) -> dict[str, Any]:
    """A stage's name and algorithm, how many trials it has and of which kinds, and what they
    took."""
    return {
        "stage": stage.name,
        "algorithm": stage.algorithm,
        "trials": len(trials),
        "failed": sum(trial.state == "FAILED" for trial in trials),
        "duplicates": sum(trial.duplicate_of is not None for trial in trials),
        "generations": max((trial.generation + 1 for trial in trials), default=0),
        "evaluations": round(math.fsum(trial.cost for trial in trials), 2),
        "seconds": round(sum(trial.scores.seconds for trial in trials), 1),
    }


def describe_recipe(recipe: Recipe) -> str:
    """A recipe in one line: what it merges by how much, and its path with the scales that are not
    1."""
    parts = []
    if (merge := recipe.merge) is not None:
        said = [f"{name} {_span(value)}" for name, value in (merge.options or {}).items()]
        labels = labels_of(recipe.sources)
        for number, values in zip(recipe.merge_sources, merge.parameters, strict=False):
            label = labels[number]
            said += [f"{label} {name} {_span(value)}" for name, value in values.items()]
        parts.append(f"{merge.method}: {', '.join(said)}" if said else merge.method)
    if recipe.flow is not None:
        hops = recipe.flow.to_path().hops
        parts.append(
            ", ".join(
                f"{hop} (scale {hop.scale:.3g})" if hop.scale != 1 else str(hop) for hop in hops
            )
        )
    return "; path ".join(parts)


def _span(value: object) -> str:
    """A parameter as a number, or from the least to the greatest of its groups or layers."""
    values = [number for _, number in numbers("", value)]
    if not values:
        return str(value)
    return (
        f"{values[0]:.3g}" if len(set(values)) == 1 else f"{min(values):.3g} to {max(values):.3g}"
    )
