"""The folder of a study: its files, how a search starts or goes on in it, and the results that are
written to it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ..building.build import build_model
from ..checkpoints.hashes import file_sha256
from ..checkpoints.model_folder import check_place
from ..errors import EvoMergeError, SearchError, one_line
from ..recipes.names import named_folder
from ..recipes.recipe import RECIPE_FILE, Recipe
from ..recipes.whole_file import write_whole
from .evaluation.provenance import Pins, pin, versions
from .file.config import SearchConfig
from .file.stages import Stage
from .front.results import picked
from .results.result import Result
from .study.database import STUDY_FILE
from .study.files import (
    INSTEAD_FILE,
    MODEL_FOLDER,
    PLOTS_FOLDER,
    REPORT,
    RESULTS_FILE,
    SEARCH_FILE,
    WRITTEN,
)
from .study.paths import NOTE, followed, rooted, settings_of
from .study.study import Study

logger = logging.getLogger(__name__)

_ROWS = ("baselines", "contributions")  # keys of `compare` that ask for rows: no trial knows them


def built_model(name: str) -> str:
    """The model that a name means: of a study's folder the winner that was built there, otherwise
    the name itself.

    Raises:
        SearchError: The search has not built its winner.
    """
    folder = named_folder(name)
    if not os.path.isfile(folder / STUDY_FILE):
        return name
    if not (folder / MODEL_FOLDER).is_dir():
        raise SearchError(
            f"{name}: the search has not built its winner yet; go on with `hf-evomerge "
            f"search {name}`"
        )
    return str(folder / MODEL_FOLDER)


def about_of(folder: Path, config: SearchConfig) -> str | None:
    """Read what the result of a search is for: what the search file in its folder says by now, for
    no trial depends on it.

    Args:
        folder: The folder.
        config: The study's settings, which count where there is no such file.

    Raises:
        SearchError: The file cannot be read.
    """
    file = folder / SEARCH_FILE
    return SearchConfig.load(file).about if file.exists() else config.about


def pinned(config: SearchConfig, out: Path) -> tuple[SearchConfig, Callable[[], Study]]:
    """Fix what a search reads: names become absolute, and branches of the Hub the commits that its
    study, if there is one, was begun with.

    Args:
        config: The search as the user wrote it.
        out: The study's folder.

    Returns:
        The search; and what opens its study, see `open_study`.

    Raises:
        EvoMergeError: A repository cannot be had, or the study is damaged.
    """
    written = rooted(config)
    pins = known_pins(out)
    config = pin(written, pins)
    return config, partial(open_study, config, out, pins, written)


def open_study(config: SearchConfig, out: Path, pins: Pins, written: SearchConfig) -> Study:
    """The folder's study, or a new one.

    Args:
        config: The search, its repositories pinned.
        out: The folder.
        pins: What they were pinned to.
        written: The search as the user wrote it, which is kept beside the study.

    Raises:
        SearchError: The folder holds the study of another search, or what this one would overwrite.
    """
    begins = not (out / STUDY_FILE).exists()
    if begins:
        _check_unused(written, out)
        study = Study.create(out, config.model_dump(mode="json"))
    else:
        study = Study.open(out)
        try:
            begins = _differs(study, out, config)
            if begins:
                _forget_settings(study, config)
        except SearchError:
            study.close()
            raise
    if begins:
        study.set_meta("pins", pins)
        study.set_meta(NOTE, os.path.abspath(out))
        study.set_meta("versions", versions())
    else:
        _give_more(study, config)
    kept: SearchConfig | None = None
    if (out / SEARCH_FILE).exists():  # not where the process that began the study ended in between
        kept = written
        with suppress(
            EvoMergeError
        ):  # a file that cannot be read does not count, and the user was told
            kept = SearchConfig.load(out / SEARCH_FILE)
    is_another = begins and kept is not None and rooted(kept) != written
    if (
        kept is None
        or is_another
        or written.about not in (None, kept.about)
        or _asked(kept) != _asked(written)
        or _raised(kept, written)
    ):
        written.save(out / SEARCH_FILE)
    return study


def check_out(config: SearchConfig, out: Path) -> None:
    """Raise an `EvoMergeError` where this search could neither begin nor go on in a folder. Nothing
    is written.

    Args:
        config: The search as the user wrote it.
        out: The folder; one that is not there can be made.
    """
    check_place(out)
    if not (out / STUDY_FILE).exists():
        return _check_unused(config, out)
    with Study.open(out) as study:
        _differs(study, out, pin(rooted(config), study.meta("pins") or {}))


def known_pins(out: Path) -> Pins:
    """Read what the repositories of the folder's study were pinned to when it began.

    Nothing is pinned where there is no study, or one without scores.

    Raises:
        DamagedStudyError: The study is damaged, so that no search goes on with it.
    """
    if not (out / STUDY_FILE).exists():
        return {}
    with Study.open(out) as study:
        study.trials()  # every row can be read
        return (study.has_scores and study.meta("pins")) or {}


def is_begun(out: Path) -> bool:
    """Tell whether a folder has a study with scores."""
    if not (out / STUDY_FILE).exists():
        return False
    with Study.open(out) as study:
        return study.has_scores


def resumed(folder: str | Path) -> SearchConfig:
    """Return the search of a folder; warn of what its search file says and does not count.

    Raises:
        SearchError: There is no search in the folder.
    """
    with Study.open(folder) as study:
        config, line = edited(study)
    if line is not None:
        logger.warning(line)
    return config


def edited(study: Study) -> tuple[SearchConfig, str | None]:
    """The search that a study goes on with.

    Returns:
        The study's settings, with the purpose, the rows of the table and the greater budgets of the
        search file beside it; and a line that says how else that file differs, None where it does
        not.
    """
    file = study.folder / SEARCH_FILE
    config = settings_of(study)
    if not file.exists():
        return config, None
    try:
        written = followed(rooted(SearchConfig.load(file)), study)
        written = pin(written, study.meta("pins") or {})
    except EvoMergeError as error:
        return config, f"{error}; the study's own settings count"
    changed = _changes(config.model_dump(mode="json"), written.model_dump(mode="json"))
    if changed and study.has_scores:
        config = config.model_copy(update={"about": written.about})
        return (
            config,
            (
                f"{file}: is not what this study was begun with: {', '.join(changed)}; the "
                "study's own settings count"
            ),
        )
    return written, None


def save_results(config: SearchConfig, study: Study, result: Result) -> None:
    """Write the winner's recipe and the comparison, and note in the study what they are."""
    folder = study.folder
    result.winner.save(folder / RECIPE_FILE)
    (folder / INSTEAD_FILE).unlink(missing_ok=True)
    simpler = result.instead
    if simpler is not None and simpler.stage in ("average", "alone"):
        study.recipe(simpler.label).save(folder / INSTEAD_FILE)
    report = {"space": config.space, "seed": config.compute.seed, **result.to_json()}
    write_whole(folder / RESULTS_FILE, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    study.set_meta(REPORT, str(result))
    study.set_meta(
        WRITTEN, {name: file_sha256(folder / name) for name in (RECIPE_FILE, RESULTS_FILE)}
    )


def build_winner(
    folder: Path,
    winner: Recipe,
    name: str = MODEL_FOLDER,
    *,
    whole: bool | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Build the winner as `build_model` does, unless it is there already; only what a search has
    built is replaced."""
    built = folder / name / RECIPE_FILE
    if built.parent.exists() and not built.exists():
        raise SearchError(f"{built.parent}: was not made by this search; move it away and resume")
    if not built.exists() or built.read_text(encoding="utf-8") != winner.to_yaml():
        build_model(
            winner, built.parent, overwrite=True, whole=whole, trust_remote_code=trust_remote_code
        )


def found_recipe(folder: str | Path, pick: int | None) -> tuple[Recipe, Path]:
    """The recipe of a study's winner, or of one point of its front; and the folder in which its
    model belongs.

    Args:
        folder: The study's folder.
        pick: The point's number in the table of the front; None for the winner.

    Raises:
        SearchError: The search has not ended, or has no such point.
    """
    with Study.open(folder) as study:
        if pick is not None:
            return study.recipe(
                picked(settings_of(study), study, pick)
            ), study.folder / f"{MODEL_FOLDER}-{pick}"
        if not (file := study.folder / RECIPE_FILE).exists():
            raise SearchError(
                f"{folder}: the search has not ended; go on with `hf-evomerge search {folder}`"
            )
        return study.recipe(Recipe.load(file).key), study.folder / MODEL_FOLDER


def _check_unused(config: SearchConfig, out: Path) -> None:
    """Refuse a folder that holds what a search would overwrite; this search's own file may lie
    there already."""
    for name in (RECIPE_FILE, RESULTS_FILE, MODEL_FOLDER, PLOTS_FOLDER):
        if (out / name).exists():
            raise SearchError(
                f"{out}: holds a {name} but no study, and the search would overwrite it; "
                "choose another folder"
            )
    if (out / "config.json").exists():
        raise SearchError(
            f"{out}: holds a model; choose another folder, which the search will make"
        )
    if (out / SEARCH_FILE).exists() and rooted(SearchConfig.load(out / SEARCH_FILE)) != rooted(
        config
    ):
        raise SearchError(
            f"{out}: holds the {SEARCH_FILE} of another search; choose another folder"
        )


def _differs(study: Study, out: Path, now: SearchConfig) -> bool:
    """Tell whether the settings differ from the study's, which they may while it has no scores.

    Afterwards there may only be other rows in the table, and more evaluations of what no later
    stage was begun at; raises `SearchError` for anything else.
    """
    before = settings_of(study)
    changed = _changes(before.model_dump(mode="json"), now.model_dump(mode="json"))
    if changed and not study.has_scores:
        return True
    if changed:
        listed = ", ".join(
            [*changed[:3], *([f"{len(changed) - 3} more"] if len(changed) > 3 else [])]
        )
        raise SearchError(
            f"{out}: holds the study of another search: {listed}; choose another folder"
        )
    # More evaluations continue a stage only if its trials so far stay what they are. CMA-ES and
    # random search qualify. A gradient's rate depends on the whole budget. A stage at whose winner
    # another one began would get another winner.
    for stage in _raised(before, now):
        if stage.algorithm == "gradient":
            raise SearchError(
                f"{out}: {stage} goes by gradient, whose rate falls over its {stage.evaluations} "
                "evaluations, so it is given no more; begin another search at its winner: "
                f"{out / MODEL_FOLDER} as a source, merge.starts: [sources]"
            )
        later = before.stages[before.stages.index(stage) + 1 :]
        after = next((each for each in later if study.trials(each.name)), None)
        if not stage.control and after is not None and not after.control:
            raise SearchError(
                f"{out}: {after} was begun at what {stage} had found, so only {after} can be "
                "given more evaluations; leave "
                f"those of {stage} at {stage.evaluations}, or choose another folder"
            )
    return False


def _forget_settings(study: Study, config: SearchConfig) -> None:
    """Give a study without scores other settings; raises `SearchError` where a process runs it."""
    with study.exclusive():
        study.forget()
        study.set_meta("settings", config.model_dump(mode="json"))


def _raised(before: SearchConfig, now: SearchConfig) -> list[Stage]:
    """The stages, as they were, that have more evaluations now."""
    budgets = {stage.name: stage.evaluations for stage in now.stages}
    return [stage for stage in before.stages if budgets.get(stage.name, 0) > stage.evaluations]


def _asked(config: SearchConfig) -> dict[str, Any]:
    """Settings of the table that no trial depends on, by key."""
    return {key: getattr(config.compare, key) for key in _ROWS}


# Rows that are asked for afterwards are phases that have not run yet. All others find their scores
# in the study, so the search goes through them and decides what it decided before: the winner
# stays. The test split is looked at again where a row is new, which whoever asked may have
# wanted because of what the table said; the verdict counts it.
def _give_more(study: Study, config: SearchConfig) -> None:
    """Note what each stage had been given where it is given more, and that the test split was
    looked at before; raises `SearchError` where a process runs the study."""
    before = settings_of(study)
    raised = _raised(before, config)
    new = set(config.compare.baselines) - set(before.compare.baselines)
    if not raised and _asked(before) == _asked(config):
        return
    with study.exclusive():
        for stage in raised:
            budgets = study.meta("budgets", stage.name) or []
            if (
                study.trials(stage.name) and stage.evaluations not in budgets
            ):  # where a process ended before it noted all
                study.set_meta("budgets", [*budgets, stage.evaluations], stage.name)
        if raised or new:
            again = any(split == "test" for _, split in study.evaluated())
            study.set_meta("looks", (study.meta("looks") or 1) + again)
        study.set_meta("settings", config.model_dump(mode="json"))
        study.set_meta(NOTE, os.path.abspath(study.folder))  # the settings have the names of today
    if before.compare.baselines != config.compare.baselines:
        was, is_now = (", ".join(each.compare.baselines) or "none" for each in (before, config))
        logger.info(f"baselines of the table were {was} and are {is_now}")


# A difference of two settings as paths of keys. Keys that trials do not depend on, and a greater
# budget, are none: with those the replay of the study is the same up to its end.
def _changes(before: Any, now: Any, where: str = "") -> list[str]:
    """Keys that differ between two settings, with both values; no key that trials do not depend on,
    and no greater budget."""
    if where in ("about", *(f"compare.{key}" for key in _ROWS)):
        return []
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        before = dict(enumerate(before))
        now = dict(enumerate(now))
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        inside = [
            _changes(before.get(key), now.get(key), f"{where}.{key}" if where else str(key))
            for key in keys
        ]
        return [change for changes in inside for change in changes]
    if before == now or (where.endswith(".evaluations") and now > before):
        return []
    was, is_now = (one_line(json.dumps(value, ensure_ascii=False), 80) for value in (before, now))
    return [f"{where} was {was} and is {is_now}"]
