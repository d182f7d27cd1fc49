"""The folder of a search: its files, the study that is started or resumed in it, and the results that are written to it."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..building.build import build_model
from ..errors import SearchError, one_line
from ..recipes.recipe import RECIPE_FILE, Recipe
from ..recipes.strict_yaml import validate
from .config import SearchConfig
from .evaluator import Evaluator
from .results import Result
from .study import STUDY_FILE, Study

SEARCH_FILE = "search.yaml"
RESULTS_FILE = "results.json"
MODEL_FOLDER = "model"
PLOTS_FOLDER = "plots"


def settings_of(study: Study) -> SearchConfig:
    """The search that a study was begun with; raises `SearchError` where its settings cannot be read."""
    return validate(SearchConfig, study.meta("settings"), SearchError)


def open_study(config: SearchConfig, out: Path) -> Study:
    """The folder's study, or a new one; raises `SearchError` where it is that of another search."""
    settings = config.model_dump(mode="json")
    if not (out / STUDY_FILE).exists():
        _check_unused(config, out)
        study = Study.create(out, settings)
        if not (out / SEARCH_FILE).exists():
            config.save(out / SEARCH_FILE)
        study.set_meta("versions", _versions())
        return study
    study = Study.open(out)
    if (before := study.meta("settings")) != settings:
        study.close()
        changed = ", ".join(_changes(before, settings))
        raise SearchError(f"{out}: holds the study of another search: {changed}; choose another folder")
    if not (out / SEARCH_FILE).exists():  # the process that began the study ended in between
        config.save(out / SEARCH_FILE)
    return study


def check_same_examples(study: Study, evaluator: Evaluator) -> None:
    """Refuse to go on with a study on other examples than it was begun with; the scores would not be comparable."""
    digests = {}
    for split in evaluator.splits:
        texts = [[example.prompt, example.answer] for example in evaluator.examples(split)]
        digests[split] = sha256(json.dumps(texts).encode()).hexdigest()
    before = study.meta("examples") or digests
    if changed := [split for split in digests if before.get(split) != digests[split]]:
        folder = study.folder
        study.close()
        raise SearchError(
            f"{folder}: the {changed[0]} examples have changed since this study began; restore them, or choose another folder"
        )
    study.set_meta("examples", digests)


def save_results(config: SearchConfig, folder: Path, result: Result) -> None:
    """Write the winner's recipe and the comparison."""
    result.winner.save(folder / RECIPE_FILE)
    report = {"space": config.space, "seed": config.seed, **result.to_json()}
    (folder / RESULTS_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def build_winner(folder: Path, winner: Recipe) -> None:
    """Build the winner, unless it is there already; only what a search has built is replaced."""
    built = folder / MODEL_FOLDER / RECIPE_FILE
    if built.parent.exists() and not built.exists():
        raise SearchError(f"{built.parent}: was not made by this search; move it away and resume")
    if not built.exists() or built.read_text(encoding="utf-8") != winner.to_yaml():
        build_model(winner, folder / MODEL_FOLDER, progress=False, overwrite=True)


def _check_unused(config: SearchConfig, out: Path) -> None:
    """Refuse a folder that holds what a search would overwrite; this search's own file may lie there already."""
    for name in (RECIPE_FILE, RESULTS_FILE, MODEL_FOLDER, PLOTS_FOLDER):
        if (out / name).exists():
            raise SearchError(f"{out}: holds a {name} but no study, and the search would overwrite it; choose another folder")
    if (out / SEARCH_FILE).exists() and SearchConfig.load(out / SEARCH_FILE) != config:
        raise SearchError(f"{out}: holds the {SEARCH_FILE} of another search; choose another folder")


def _changes(before: Any, now: Any, where: str = "") -> list[str]:
    """What differs between two settings: the keys, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        inside = [_changes(before.get(key), now.get(key), f"{where}.{key}" if where else str(key)) for key in keys]
        return [change for changes in inside for change in changes]
    return [] if before == now else [f"{where} was {_json(before)} and is {_json(now)}"]


def _json(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), 80)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("hf-evomerge", "cma", "numpy", "torch", "transformers")}
