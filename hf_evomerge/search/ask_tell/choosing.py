"""A search whose fitness is a person: the candidates of a generation are drawn, one is chosen, and
the next are proposed.

Nothing is kept but the study. Each choice replays it, tells the optimizer what was chosen, and
stops where it asks again: so a page that was closed goes on where it was, and a search of choices
can be resumed and built as any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from ...errors import SearchError
from ...fitness import ChoiceTask, Scores
from ...recipes.recipe import RECIPE_FILE, Recipe
from ..checks import check_search
from ..evaluation.evaluator import Evaluator
from ..evaluation.provenance import check_same_grounds
from ..file.config import SearchConfig
from ..folder import build_winner, pinned
from ..phases.stage_run import StageRun
from ..study.files import MODEL_FOLDER
from ..study.study import Study

CHOSEN_FOLDER = "chosen"
MOST = 16  # pictures of a candidate
_SIDE = 192  # pixels that a small picture is enlarged to


class Chooser:
    """A search of choices in a folder, begun or gone on with.

    Args:
        config: The search: ``space: ps``, with ``fitness: {task: choice}`` and at most 16 search
            examples, all of which are drawn of every candidate.
        out: The study's folder.

    Attributes:
        generation: The generation to choose from, from 0.
        generations: How many the budget does for.
        pictures: A picture of each of its candidates, as PIL has them; empty when the budget is
            spent.
        chosen: The picture of what was chosen in each generation.

    Raises:
        EvoMergeError: The search cannot work.
    """

    def __init__(self, config: SearchConfig, out: str | Path) -> None:
        self.out = Path(out)
        self._lock = Lock()
        self.config, open_study = pinned(config, self.out)
        _check(self.config)
        self.evaluator = Evaluator(self.config)
        self.examples = len(self.evaluator.tasks.examples("search"))
        if self.examples > MOST:
            raise SearchError(
                f"data.search: {self.examples} pictures of each candidate; a person compares "
                f"{MOST} at most"
            )
        check_search(self.config, self.evaluator)
        with open_study() as study:
            check_same_grounds(study, self.evaluator, None)
        self.pictures: list[Any] = []
        self._recipes: list[Recipe] = []
        self._go(None)

    @property
    def chosen(self) -> list[Path]:
        """Pictures; see the class."""
        return sorted((self.out / CHOSEN_FOLDER).glob("*.png"))

    def choose(self, generation: int, number: int) -> bool:
        """Say which candidate is the best of a generation, and draw the next.

        Args:
            generation: Which one was looked at.
            number: The candidate, from 0.

        Returns:
            Whether that was the generation to choose from; else nothing has happened.

        Raises:
            SearchError: There is no such candidate.
        """
        with self._lock:
            if generation != self.generation or not self.pictures:
                return False
            if not isinstance(number, int) or not 0 <= number < len(self.pictures):
                raise SearchError(
                    f"candidate {number!r}: there are {len(self.pictures)}, numbered from 0"
                )
            (self.out / CHOSEN_FOLDER).mkdir(exist_ok=True)
            self.pictures[number].save(self.out / CHOSEN_FOLDER / f"{generation:04}.png")
            self._go(number)
            return True

    def build(self) -> Path:
        """Build what was chosen last; raises `SearchError` where nothing was."""
        with self._lock:
            with Study.open(self.out) as study:
                best = study.best("ps")
                if not best or not best[0].fitness or best[0].recipe_key is None:
                    raise SearchError(f"{self.out}: nothing has been chosen yet")
                winner = study.recipe(best[0].recipe_key)
            winner.save(self.out / RECIPE_FILE)
            build_winner(self.out, winner)
            return self.out / MODEL_FOLDER

    def _go(self, choice: int | None) -> None:
        """Replay the study, tell a choice, and draw what is asked for then."""
        with Study.open(self.out) as study, study.exclusive():
            stage = self.config.stages[0]
            run = StageRun(
                self.config,
                study,
                self.evaluator.sources.summary,
                stage,
                example_count=self.examples,
            )
            candidates = run.ask()
            if choice is not None and candidates:
                # A choice as fitness: the chosen candidate of generation g scores g + 1, the others
                # 0. CMA-ES sees the ranking inside a generation alone. Across generations the
                # latest choice is the best trial.
                for number, candidate in enumerate(candidates):
                    score = run.generation + 1.0 if number == choice else 0.0
                    run.tell(candidate, Scores([score] * self.examples))
                candidates = run.ask()
            self._recipes = [each.recipe for each in candidates if each.recipe is not None]
            self.generation = 1 + max(
                (trial.generation for trial in study.trials("ps")), default=-1
            )
        size = len(self._recipes) or stage.step.population or 1
        self.generations = max(
            self.generation + bool(self._recipes), math.ceil(stage.evaluations / size)
        )
        self.pictures = [self._draw(recipe) for recipe in self._recipes]

    def _draw(self, recipe: Recipe) -> Any:
        task = self.evaluator.tasks.prepared(recipe)
        assert isinstance(task, ChoiceTask)  # it was checked
        return sheet(task.pictures(self.evaluator.models.model(recipe)))


def sheet(pictures: Sequence[Any]) -> Any:
    """Several pictures of PIL of one size as one, row by row; small ones are enlarged."""
    from PIL import Image

    columns = math.ceil(math.sqrt(len(pictures)))
    scale = max(1, _SIDE // max(pictures[0].size))
    width, height = (scale * side for side in pictures[0].size)
    whole = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        whole.paste(
            picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST),
            (column * width, row * height),
        )
    return whole


def _check(config: SearchConfig) -> None:
    """Refuse what a choice says nothing of."""
    if config.fitness.task != "choice":
        raise SearchError(
            f"fitness.task: {config.fitness.task} needs no person; run `hf-evomerge search`, "
            "or write task: choice"
        )
    step, *more = config.steps("ps")
    if (
        config.space != "ps"
        or more
        or config.has_front
        or step.by != "cma"
        or step.batch not in (None, "all")
    ):
        raise SearchError(
            "task choice: one person, one step; write space: ps and one step by: cma, and "
            "leave batch and scores beside the fitness out"
        )
