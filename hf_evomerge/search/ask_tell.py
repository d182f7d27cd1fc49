"""A search whose trials the caller scores, by ask and tell: in a notebook, by a person, by another
program."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FitnessError, SearchError
from ..fitness.scores import Scores
from .evaluation.sources import SearchSources
from .file.config import SearchConfig
from .file.stages import Stage
from .folder import pinned
from .phases.stage_run import Candidate, StageRun
from .study.study import Study, Trial

if TYPE_CHECKING:
    from ..recipes.recipe import Recipe


class Search:
    """Search whose trials you score yourself. A context manager that holds the study.

    Every score is stored as soon as it is told. Opened again in the same folder, the search replays
    what it was told and goes on with the same candidates, also after ``kill -9``.

    Attributes:
        config: The search.
        study: Its study, to read.

    Example:
        >>> def score(recipe):  # yours: build the model, run it, look at what it does
        ...     return -float(len(recipe.to_yaml()))
        >>> with Search.open(SearchConfig.load("search.yaml"), "scored-by-hand") as search:
        ...     while candidates := search.ask():
        ...         for candidate in candidates:
        ...             trial = search.tell(candidate, score(candidate.recipe))
        ...     winner = search.winner
    """

    def __init__(self, config: SearchConfig, study: Study, sources: SearchSources) -> None:
        self.config = config
        self.study = study
        self._sources = sources
        self._stages = [stage for stage in config.stages if not stage.control]
        self._current: StageRun | None = None
        self._held = ExitStack()

    @classmethod
    def open(
        cls, config: SearchConfig, out: str | Path, *, trust_remote_code: bool = False
    ) -> Search:
        """Begin a search in a folder, or go on with the one that is there.

        Args:
            config: The search: sources, what is searched, and optimizers that need no gradient. Its
                ``fitness`` must be there, and is not looked at, nor is its ``data``.
            out: The study's folder.
            trust_remote_code: Whether Python files that come with the sources may be run.

        Raises:
            EvoMergeError: A source cannot be read, the folder holds another search, or the search
                cannot be scored by hand.
        """
        config, open_study = pinned(config, Path(out))
        for stage in config.stages:
            if stage.algorithm == "gradient":
                raise SearchError(
                    "optimize: by: gradient needs gradients, and tell takes scores; write by: cma"
                )
        if config.has_front:
            raise SearchError("objectives: tell takes one score of a candidate; leave them out")
        sources = SearchSources(config, trust_remote_code=trust_remote_code)
        study = open_study()
        search = cls(config, study, sources)
        search._held.callback(study.close)
        search._held.enter_context(study.exclusive())
        return search

    # The stages of a search, one `StageRun` after the other, without a runner: whoever calls
    # scores. What the study holds is replayed by `StageRun`, so open, ask and tell may be spread
    # over processes.
    def ask(self) -> list[Candidate]:
        """Candidates of the current generation that have no score yet.

        Returns:
            Candidates, each with a ``number`` and the ``recipe`` of its model (`build_model` builds
            it). Empty when every budget is spent.

        Raises:
            SearchError: Every candidate of a first generation failed.
        """
        while self._stages:
            if self._current is None:
                self._current = self._begin(self._stages[0])
            if candidates := self._current.ask():
                return candidates
            self._current = None
            del self._stages[0]
        return []

    def tell(
        self, candidate: Candidate, score: float | Sequence[float] | None, error: str = "failed"
    ) -> Trial:
        """Store the score of a candidate.

        Args:
            candidate: A candidate of the last `ask`.
            score: Its score, or one for each of your examples; more is better. None where the
                candidate could not be scored.
            error: Why it could not.

        Returns:
            The trial, as it is stored.

        Raises:
            SearchError: The candidate was not asked for, or has been told.
            FitnessError: A score is not finite.
        """
        if self._current is None:
            raise SearchError(f"candidate {candidate.number}: was not asked for; call ask first")
        if score is None:
            return self._current.tell(candidate, Scores.failed(error))
        values = score if isinstance(score, Sequence) else [score]
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError, OverflowError) as cause:
            raise FitnessError(f"score: {score!r:.80} is no number, nor a list of them") from cause
        return self._current.tell(candidate, Scores(numbers))

    @property
    def winner(self) -> Recipe:
        """Recipe with the best score so far, of the last space; raises `SearchError` where there is
        none."""
        for space in reversed(self.config.spaces):
            if best := self.study.best(space):
                return self.study.recipe(str(best[0].recipe_key))
        raise SearchError(f"{self.study.folder}: no candidate has a score yet")

    def close(self) -> None:
        """Let go of the study, so that others may go on with it."""
        self._held.close()

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self, stage: Stage) -> StageRun:
        merged = self.study.best("ps")
        key = merged[0].recipe_key if merged else None
        return StageRun(self.config, self.study, self._sources.summary, stage, merged=key)
