"""The study: every trial of a search, with its recipe, its scores and what its model wrote. Stores
and reads; decides nothing.

Trials are written as they finish. Nothing is pickled: genomes and scores are arrays of float64 in
little-endian order, recipes are YAML.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import SearchError
from ...fitness.scores import Scores
from ...recipes.recipe import Recipe, SourceRef
from ...recipes.strict_yaml import read_yaml, to_yaml, validate
from .database import OTHERS, StudyFile
from .paths import followed

State = Literal["COMPLETE", "FAILED"]


@dataclass(frozen=True)
class Trial:
    """Trial: one genome, its recipe and its scores.

    Attributes:
        stage: ``ps`` or ``dfs``, or what ran first: ``ps-first``, ``dfs-first``.
        number: Number from 0, in the order of `ask`.
        generation: The `ask` it came from.
        genome: The vector, shape (n,).
        recipe_key: Key of the recipe in the study; None where the genome has none (its error says
            why).
        scores: What the recipe scored, or why it could not be scored.
        duplicate_of: Number of the earlier trial whose recipe is the same and whose scores this one
            shares.
        cost: What it counts of the budget, in scores of all search examples.
    """

    stage: str
    number: int
    generation: int
    genome: NDArray[np.float64]
    recipe_key: str | None
    scores: Scores
    duplicate_of: int | None = None
    cost: float = 1.0

    @property
    def state(self) -> State:
        """COMPLETE or FAILED."""
        return "COMPLETE" if self.scores.error is None else "FAILED"

    @property
    def fitness(self) -> float | None:
        """The mean score; None where the trial failed."""
        return self.scores.mean


class Study(StudyFile):
    """Study: all trials of one search, in ``DIR/study.db``.

    Example:
        >>> study = Study.open("my-search")
        >>> best = study.best("ps")[0]
        >>> best.state, len(best.scores.values)  # one score per example
        ('COMPLETE', 5)
    """

    def add_trial(self, trial: Trial) -> None:
        """Store a finished trial, durably; what its model wrote, and its other scores, are kept
        under ``stage:number``."""
        if trial.duplicate_of is None:
            self._add_beside(f"{trial.stage}:{trial.number}", "search", trial.scores)
        names = (trial.stage, trial.number, trial.generation, trial.state)
        genome = (_pack(trial.genome), trial.recipe_key, trial.duplicate_of)
        costs = (float(trial.cost), _pack(trial.scores.gradient))
        self.write("trials", (*names, *genome, *_score_columns(trial.scores), *costs))

    def trials(self, stage: str | None = None) -> list[Trial]:
        """Read all trials, or those of one stage, by number."""
        trials = []
        others = self._others("search")
        for row in self._whole(
            "trials", "? IS NULL OR stage = ? ORDER BY stage, number", stage, stage
        ):
            with self._readable("trials", row):
                stage, number, generation, _, genome, key, same = row[:7]
                values, correct, seconds, error, cost, gradient = row[8:]
                owner = f"{stage}:{number if same is None else same}"
                scores = _scores(values, correct, seconds, error, gradient)
                scores = scores.replace(others=others.get(owner, {}))
                trials.append(
                    Trial(stage, number, generation, _unpack(genome), key, scores, same, cost)
                )
        return trials

    def best(self, stage: str | None = None, count: int = 1) -> list[Trial]:
        """The best complete trials with distinct recipes, best first; of equals the earlier.

        Those that were scored on more examples than others come before them: a batch says less.
        """
        complete = [
            trial
            for trial in self.trials(stage)
            if trial.fitness is not None and trial.duplicate_of is None
        ]
        # A lexicographic key: number of examples, fitness, age. A score of a batch, however high,
        # is never above one of all examples.
        complete.sort(
            key=lambda trial: (-trial.scores.values.size, -(trial.fitness or 0.0), trial.number)
        )
        first_of_recipe: dict[str | None, Trial] = {}
        for trial in complete:
            first_of_recipe.setdefault(trial.recipe_key, trial)
        return list(first_of_recipe.values())[:count]

    def add_recipe(self, recipe: Recipe) -> str:
        """Store a recipe, with labels for the search's sources, and return its key; the same recipe
        has the same key."""
        key = recipe.key
        if not self._connection.execute("SELECT 1 FROM recipes WHERE key = ?", (key,)).fetchone():
            labels = {
                ref: SourceRef(model=label, component=ref.component)
                for label, ref in self._parents.items()
            }
            self.write("recipes", (key, recipe.renamed(lambda ref: labels.get(ref, ref)).to_yaml()))
        return key

    def recipe(self, key: str) -> Recipe:
        """The recipe of a key, its sources where they lie today; raises `SearchError` where there
        is none."""
        return Recipe.from_yaml(self._recipe_text(key)).renamed(
            lambda ref: self._parents.get(ref.model, ref)
        )

    def renamed_text(self, key: str, name: Callable[[SourceRef], SourceRef]) -> str:
        """The YAML of a recipe under other names of its sources; its numbers, of which there may be
        many, are not parsed."""

        def named(given: dict[str, Any]) -> dict[str, Any]:
            ref = validate(SourceRef, given, SearchError)
            return name(self._parents.get(ref.model, ref)).model_dump(
                mode="json", exclude_none=True
            )

        text = self._recipe_text(key)
        end = next(re.finditer(r"^(?!sources:|base:)\w", text, re.MULTILINE)).start()
        head = read_yaml(text[:end], SearchError).items()
        return (
            to_yaml(
                {
                    key: [*map(named, refs)] if key == "sources" else named(refs)
                    for key, refs in head
                }
            )
            + text[end:]
        )

    def _recipe_text(self, key: str) -> str:
        for _, text in self._whole("recipes", "key = ?", key):
            return str(text)
        raise SearchError(f"recipe {key!r}: not in this study")

    @cached_property
    def _parents(self) -> dict[str, SourceRef]:
        """The search's base and sources where they lie today, by label."""
        settings = self.meta("settings") or {}
        sources = {
            f"source:{number}": ref for number, ref in enumerate(settings.get("sources", []))
        }
        refs = {"base": settings.get("base"), **sources}
        parents = {
            label: followed(validate(SourceRef, ref, SearchError), self)
            for label, ref in refs.items()
            if ref is not None
        }
        for number in range(len(sources)):  # the noise that one search has in their place
            folder = str(self.noise_folder(number))
            parents[f"noise:{number}"] = SourceRef(model=folder)
            if "base" in parents:
                adapter = parents["base"].model_copy(update={"adapter": folder})
                parents[f"noise adapter:{number}"] = adapter
        return parents

    def noise_folder(self, number: int) -> Path:
        """The folder of the noise in place of a source."""
        return Path(os.path.abspath(self.folder)) / "baselines" / f"noise-{number}"

    def add_evaluation(self, label: str, split: str, scores: Scores) -> None:
        """Store the scores of a recipe key, or of a parent, on a split, with what it wrote."""
        self._add_beside(label, split, scores)
        self.write("evaluations", (label, split, *_score_columns(scores)), replace=True)

    def evaluation(self, label: str, split: str) -> Scores | None:
        """The stored scores of a recipe key, or of a parent, on a split."""
        for row in self._whole("evaluations", "label = ? AND split = ?", label, split):
            with self._readable("evaluations", row):
                outputs, truncated = self.answers(label, split)
                others = self._others(split, label).get(label, {})
                return _scores(*row[3:]).replace(
                    outputs=outputs, truncated=truncated, others=others
                )
        return None

    def evaluated(self) -> list[tuple[str, str]]:
        """The labels and splits that `evaluation` has scores of, in the order they were scored."""
        return [(row[0], row[1]) for row in self._whole("evaluations", "1 ORDER BY rowid")]

    @property
    def has_scores(self) -> bool:
        """True where anything was scored; nothing that a study stands on may change from then
        on."""
        return bool(self.evaluated() or self.trials())

    def answers(
        self, owner: str, split: str = "search"
    ) -> tuple[list[str] | None, NDArray[np.bool_] | None]:
        """Read what a model wrote for the examples that it was scored on, and which of it was cut
        at the limit of its length.

        Args:
            owner: A recipe's key, a parent's label (``base``, ``source:0``), or a trial's
                ``stage:number``.
            split: The split that it was scored on; ``search`` for a trial, which may have seen a
                batch of it.

        Returns:
            One output per example, and whether each was cut; None where the task keeps no outputs.
        """
        for row in self._whole("answers", "owner = ? AND split = ?", owner, split):
            with self._readable("answers", row):
                cut = (
                    None
                    if row[3] is None
                    else np.frombuffer(row[3], dtype=np.uint8).astype(np.bool_)
                )
                return [str(output) for output in json.loads(row[2])], cut
        return None, None

    def _others(self, split: str, owner: str | None = None) -> dict[str, dict[str, Scores]]:
        """Scores by the metrics beside the fitness on a split, by owner and name."""
        others: dict[str, dict[str, Scores]] = {}
        where = "split = ? AND (? IS NULL OR owner = ?) ORDER BY rowid"
        for row in self._whole(OTHERS, where, split, owner, owner):
            with self._readable(OTHERS, row):
                others.setdefault(row[0], {})[row[2]] = _scores(row[4], row[5], 0.0, None)
        return others

    # The row of the scores is written last and stands for all of it. A kill in between leaves
    # answers without scores, which are replaced when the model is scored again.
    def _add_beside(self, owner: str, split: str, scores: Scores) -> None:
        """Store what goes with scores, before them: scores that are there are whole."""
        if scores.outputs is not None:
            self.write(
                "answers",
                (owner, split, json.dumps(scores.outputs), _pack(scores.truncated)),
                replace=True,
            )
        for name, other in scores.others.items():
            row = (owner, split, name, other.mean, _pack(other.values), _pack(other.correct))
            self.write(OTHERS, row, replace=True)


def _score_columns(scores: Scores) -> tuple[Any, ...]:
    values = None if scores.error is not None else _pack(scores.values)
    return scores.mean, values, _pack(scores.correct), float(scores.seconds), scores.error


def _scores(
    values: bytes | None,
    correct: bytes | None,
    seconds: float,
    error: str | None,
    gradient: bytes | None = None,
) -> Scores:
    if error is not None:
        return Scores.failed(error, seconds)
    right = None if correct is None else np.frombuffer(correct, dtype=np.uint8)
    slopes = None if gradient is None else _unpack(gradient)
    return Scores(_unpack(values or b""), correct=right, seconds=seconds, gradient=slopes)


# Little-endian float64 and bytes: the same bits come back on every machine.
def _pack(values: NDArray[Any] | None) -> bytes | None:
    if values is None:
        return None
    return values.astype(np.uint8 if values.dtype == np.bool_ else "<f8").tobytes()


def _unpack(blob: bytes) -> NDArray[np.float64]:
    return np.frombuffer(blob, dtype="<f8").astype(np.float64)
