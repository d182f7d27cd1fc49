"""Answers and scores of the models of a search, example by example: read from its study, and
written to a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ...errors import SearchError
from ...fitness import Example, load_examples
from ...recipes.whole_file import write_whole
from ...record import Results
from ..file.config import SearchConfig
from ..spaces.space import uniform_average
from ..study.files import RESULTS_FILE
from ..study.paths import settings_of
from ..study.study import Study
from .table import base_name


@dataclass(frozen=True)
class Answer:
    """Answer of one model to one example, and its score.

    Attributes:
        model: What the model is called in the table of results; of what has no row there, the trial
            that it was.
        split: The split of the example.
        prompt, expected: The example.
        answer: What the model wrote; None where the task has it write nothing.
        score: Its score, such as the log-likelihood of the right answer.
        right: Whether it was right; None where the task cannot tell.
        truncated: Whether it was cut at the limit of its length.
    """

    model: str
    split: str
    prompt: str
    expected: str
    answer: str | None
    score: float
    right: bool | None
    truncated: bool


def study_answers(folder: str | Path, *, trust_remote_code: bool = False) -> Iterator[Answer]:
    """Yield every answer and score of the parents, the finalists and the winners of a study, model
    by model, split by split.

    Answers of single trials are in the study too; see `Study.answers`.

    Args:
        folder: The study's folder.
        trust_remote_code: Whether task files of lm_eval, which may be code, are loaded.

    Raises:
        SearchError: There is no study, or its examples came from Python and are not to be had.
    """
    with Study.open(folder) as study:
        config = settings_of(study)
        examples: dict[str, list[Example]] = {}
        names = _names(study, config)
        for label, split in study.evaluated():
            scores = study.evaluation(label, split)
            if scores is None or scores.error is not None:
                continue
            if split not in examples:
                if split not in config.splits:
                    raise SearchError(
                        f"{folder}: the {split} examples came from Python; read "
                        "Study.answers beside them"
                    )
                examples[split] = load_examples(
                    config.splits[split], trust_remote_code=trust_remote_code
                )
            outputs: Sequence[str | None] = scores.outputs or [None] * scores.values.size
            for i, (example, output) in enumerate(zip(examples[split], outputs, strict=True)):
                right = None if scores.correct is None else bool(scores.correct[i])
                cut = scores.truncated is not None and bool(scores.truncated[i])
                text = (example.prompt, example.answer, output)
                yield Answer(
                    names.get(label, label), split, *text, float(scores.values[i]), right, cut
                )


def _names(study: Study, config: SearchConfig) -> dict[str, str]:
    names = config.parent_names
    for trial in study.trials():
        if trial.recipe_key is not None:
            names.setdefault(trial.recipe_key, f"{trial.stage} trial {trial.number}")
    names[uniform_average(config).key] = "uniform average"
    if "base" in names:
        names["base"] = base_name(names["base"])
    if (file := study.folder / RESULTS_FILE).is_file():
        rows = Results.load(file, SearchError).rows
        rows.sort(key=lambda row: row.winner)  # of several rows of one label the winner's counts
        names |= {row.label: row.model for row in rows if row.label}
    return names


def export_answers(folder: str | Path, file: str | Path) -> int:
    """Write every answer as a line of JSON with the fields of `Answer`; returns how many there
    are."""
    lines = [json.dumps(asdict(answer), ensure_ascii=False) for answer in study_answers(folder)]
    write_whole(file, "".join(f"{line}\n" for line in lines))
    return len(lines)
