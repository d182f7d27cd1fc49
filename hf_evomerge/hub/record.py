"""Writes the record of a search beside the weights of its winner: ``study.json``, every trial, and
the pictures.

Made from a study. Holds no local path and, unless asked, no example.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.hashes import file_sha256
from ..checkpoints.inside import check_inside
from ..errors import EvoMergeError, HubError, SearchError
from ..recipes.names import named_folder
from ..recipes.recipe import SourceRef
from ..recipes.strict_yaml import validate
from ..record import EVOLVED, STUDY_JSON, Record, Results
from ..search.file.config import SearchConfig
from ..search.file.splits import SPLITS
from ..search.file.stages import STAGES
from ..search.folder import about_of
from ..search.front.results import record_parts
from ..search.results.export import trial_row, write_parquet
from ..search.results.plots import parent_levels, parent_scores
from ..search.results.show import stage_facts
from ..search.study.files import PLOTS_FOLDER, RESULTS_FILE, WRITTEN
from ..search.study.paths import renamed, settings_of
from ..search.study.study import Study, Trial

if TYPE_CHECKING:
    from ..fitness.example import Example

TRIALS_FILE = "trials.parquet"
IMAGES_FOLDER = "images"

# An absolute path: between quotes, where it may hold spaces, or by itself; not the end of a URL.
_FOLDER = re.compile(
    r"(?<=['\"])(?P<quoted>~?/[^'\"]+)(?=['\"])|(?<![\w:/.~])(?P<bare>~?/[^\s'\"()\[\]{},;:]+)"
)

Publish = Callable[[SourceRef], SourceRef]


def write_record(
    search: str | Path,
    out: str | Path,
    *,
    stage: str | None = None,
    examples: int = 0,
    publish: Publish = SourceRef.hidden,
    licenses: Mapping[str, str] | None = None,
    about: str | None = None,
    trust_remote_code: bool = False,
) -> Record:
    """Write ``study.json``, ``trials.parquet`` and ``images/`` of a search into a folder.

    Args:
        search: The study's folder. An unfinished one has no results yet.
        out: The folder to write to; it may exist.
        stage: Stage of the row whose model is published, where that is not the winner.
        examples: How many problems of the test split to publish, the first ones. They are the
            user's data, so none by default.
        publish: Says how a source is named in the record.
        licenses: The parents' licenses, by the names that are published.
        about: The sentence on what the model is for; the search file's where absent.
        trust_remote_code: Whether task files of lm_eval, which may be code, are loaded for the
            examples.

    Raises:
        SearchError: There is no search in the folder, or its results were changed since.
        HubError: It exceeds a limit of published records.
        FitnessError: Examples are asked for and cannot be read.
    """
    search = Path(search)
    out = Path(out)
    with Study.open(search) as study:
        config = settings_of(study)
        trials = {stage: study.trials(stage) for stage in STAGES}
        results = (
            Results.load(file, SearchError) if (file := search / RESULTS_FILE).is_file() else None
        )
        if results is not None and file_sha256(file) != (study.meta(WRITTEN) or {}).get(
            RESULTS_FILE
        ):
            raise SearchError(
                f"{file}: is not what the search ended with; `hf-evomerge search {search}` "
                "writes it again"
            )
        if results is not None and stage is not None:
            results = results.publishing(stage)
        if results is not None:
            warnings = [_without_folders(each) for each in results.warnings]
            results = results.model_copy(update={"warnings": warnings})
        label = results.winner.label if results is not None and results.winner else None
        parts = {
            "format": 1,
            "space": config.space,
            "seed": config.compute.seed,
            "versions": study.meta("versions") or {},
            "settings": _public_settings(
                config.model_copy(update={"about": about or about_of(search, config)}), publish
            ),
            "splits": _split_sizes(study),
            "stages": [
                stage_facts(stage, trials[stage.name])
                for stage in config.stages
                if trials.get(stage.name)
            ],
            "unit": config.fitness.unit,
            "names": config.parent_names,
            "licenses": dict(licenses or {}),
            "levels": parent_levels(config, study),
            **(record_parts(config, parent_scores(config, study)) if config.has_front else {}),
            "results": results,
            "trial": _winning_trial(study, results),
            **_examples(study, config, label, examples, out / IMAGES_FOLDER, trust_remote_code),
        }
        record = validate(Record, parts, HubError)
        out.mkdir(parents=True, exist_ok=True)
        every = [trial for each in trials.values() for trial in each]
        _write_trials(study, every, config.metrics, out / TRIALS_FILE, publish)
    record.save(out / STUDY_JSON)
    pictures = "*.png" if stage is None else "fitness.png"  # others are of the winner
    for picture in sorted((search / PLOTS_FOLDER).glob(pictures)):
        check_inside(search, picture)
        (out / IMAGES_FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(picture, out / IMAGES_FOLDER / picture.name)
    return record


# A record goes to strangers. Sources get their published names; every other string that names a
# file or folder of this machine keeps its last part.
def _public_settings(config: SearchConfig, publish: Publish) -> dict[str, Any]:
    """The settings of a search, with published names of its sources, and files and folders by their
    last name only."""

    def shown(key: str, name: str) -> str:
        return Path(name).name if key == "jsonl" or os.path.exists(named_folder(name)) else name

    refs = {
        "sources": [publish(ref) for ref in config.sources],
        "base": config.base and publish(config.base),
    }
    return renamed(config, shown).model_copy(update=refs).model_dump(mode="json", exclude_none=True)


def _split_sizes(study: Study) -> dict[str, int]:
    """Examples per split, from the first scores that the study holds for a parent or a finalist."""
    sizes = dict[str, int]()
    for label, split in study.evaluated():
        scores = None if split in sizes else study.evaluation(label, split)
        if scores is not None and scores.error is None:
            sizes[split] = scores.values.size
    return {split: sizes[split] for split in SPLITS if split in sizes}


def _winning_trial(study: Study, results: Results | None) -> int | None:
    """The number of the trial, in the stage of the winner's row, that found the winner; of several
    that on most examples."""
    if results is None or results.winner is None:
        return None
    row = results.winner
    trials = [trial for trial in study.trials(row.stage) if trial.recipe_key == row.label]
    return max(trials, key=lambda trial: trial.scores.values.size).number if trials else None


def _examples(
    study: Study,
    config: SearchConfig,
    published: str | None,
    count: int,
    images: Path,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """The first problems of the test split with their answers, which models got them right, and
    what these wrote; the published model by the label of its scores.

    How many of all problems only the winner solves is counted too. Pictures are written as PNG,
    pixel for pixel, without what else their files say, such as a place.
    """
    if count == 0:
        return {}
    from ..fitness.data.loading import load_examples

    split = next((split for split in reversed(SPLITS) if split in config.data), None)
    if split is None:
        raise SearchError(
            "examples: this search got its examples from Python, so none can be published; "
            "ask for 0"
        )
    labels = {label: label for label in config.parent_names}
    if published is not None:
        labels[EVOLVED] = published
    scored = {}
    for name, label in labels.items():
        scores = study.evaluation(label, split)
        if scores is not None:
            scored[name] = scores
    correct = {
        name: scores.correct.tolist()
        for name, scores in scored.items()
        if scores.correct is not None
    }
    # Examples that the evolved model solves and none of its parents does.
    others = [right for name, right in correct.items() if name != EVOLVED]
    each = zip(correct.get(EVOLVED, ()), *others, strict=False)
    alone = sum(own and not any(rest) for own, *rest in each)
    written = {name: scores.outputs for name, scores in scored.items() if scores.outputs}
    chosen = load_examples(config.data[split], trust_remote_code=trust_remote_code)[:count]
    problems = []
    for i, example in enumerate(chosen):
        problem: dict[str, Any] = {"prompt": example.prompt, "answer": example.answer}
        if example.pictures:
            problem["pictures"] = _written(example, i, images)
        if example.gloss:
            problem["gloss"] = example.gloss
        if correct:
            of_models = correct.items()
            problem["right"] = {name: right[i] for name, right in of_models if i < len(right)}
        if written:
            problem["answers"] = {name: texts[i] for name, texts in written.items()}
        problems.append(problem)
    return {"examples": problems, **({"alone": alone} if EVOLVED in correct and others else {})}


def _written(example: Example, number: int, images: Path) -> list[str]:
    """Write an example's pictures, and return their names in the repository."""
    images.mkdir(parents=True, exist_ok=True)
    names = [f"example-{number}-{place}.png" for place in range(len(example.pictures))]
    for name, picture in zip(names, example.pictures, strict=True):
        picture.load().save(images / name)
    return [f"{images.name}/{name}" for name in names]


def _write_trials(
    study: Study, trials: Sequence[Trial], metrics: Iterable[str], file: Path, publish: Publish
) -> None:
    """Write one row per trial; the whole table appears under its name at once."""
    keys = dict.fromkeys(trial.recipe_key for trial in trials)
    texts = {key: study.renamed_text(key, publish) for key in keys if key is not None}
    flows = ((key, study.recipe(key).flow) for key, text in texts.items() if "\nflow:" in text)
    paths = {key: flow.to_path() for key, flow in flows if flow is not None}

    rows = []
    for trial in trials:
        key = trial.recipe_key or ""
        path = paths.get(key)
        row = {
            **trial_row(trial, metrics),
            "recipe": texts.get(key),
            "error": trial.scores.error and _without_folders(trial.scores.error),
            "genome": trial.genome.tolist(),
            "path": path.as_text() if path is not None else None,
            "scales": path.scales if path is not None else None,
        }
        rows.append(row)
    try:
        write_parquet(rows, file)
    except OSError as cause:
        raise EvoMergeError(f"{file}: cannot be written: {cause}") from cause


def _without_folders(text: str) -> str:
    """An error or a warning without what it says of this machine's folders."""
    return _FOLDER.sub(lambda found: Path(found["quoted"] or found["bare"]).name, text)
