"""The trackers of ``report_to``: a search as a run of trackio, wandb or TensorBoard, by accelerate.

Numbers per generation, and the results at the end. A search that is resumed goes on in the same
run, where what was logged is not logged again.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...errors import SearchError, one_line, optional
from ..callbacks import Generation, SearchCallback
from ..file.config import SearchConfig
from ..study.study import Study

if TYPE_CHECKING:
    from ..results.result import Result

logger = logging.getLogger(__name__)

LOGS = "runs"  # of TensorBoard, in the study's folder


# A resumed search replays all generations, and callbacks hear of them again. The number of the last
# one that was logged is kept in the study, and only later ones are sent. Should a process end
# between the log and the note, one generation is logged twice; TensorBoard takes such steps back.
class Tracker(SearchCallback):
    """Run of a tracker. One that fails is told no more, and the search goes on.

    Args:
        name: ``trackio``, ``wandb`` or ``tensorboard``.

    Raises:
        SearchError: accelerate, or the tracker, is not installed.
    """

    def __init__(self, name: str) -> None:
        library = optional("accelerate", "track", "report_to", SearchError)
        try:
            import_module(name)
        except ImportError as cause:
            raise SearchError(
                f"report_to: {name} is not installed: pip install {name}, or leave it out"
            ) from cause
        self.name = name
        self._kind = library.tracking.LOGGER_TYPE_TO_CLASS[name]
        library.PartialState()  # accelerate logs nothing before
        self._tracker: Any = None
        self._failed = False
        self._steps = 0  # generations of all stages so far
        self._spent: dict[str, float] = {}

    def on_begin(self, study: Study, config: SearchConfig) -> None:
        """Open the run; it has the folder's name, and belongs to this study alone."""
        try:
            self._tracker = self._open(study, config)
            self._tracker.start()
        except (
            Exception,
            SystemExit,
        ) as cause:  # of any kind, such as one of a key that is not there
            raise SearchError(
                f"report_to: {self.name}: {one_line(cause)}; mend that, or leave it out"
            ) from cause

    def _open(self, study: Study, config: SearchConfig) -> Any:
        if self.name == "tensorboard":  # what a process logged and did not note is taken back
            step = (study.meta("reported", self.name) or 0) + 1
            return self._kind(LOGS, study.folder, purge_step=step)
        project = os.environ.get(f"{self.name.upper()}_PROJECT", "hf-evomerge")
        settings = config.model_dump(mode="json", exclude_none=True)
        name = run_name(study)
        options = {"id": name, "dir": str(study.folder)} if self.name == "wandb" else {}
        return self._kind(project, name=name, config=settings, resume="allow", **options)

    def on_generation(self, study: Study, generation: Generation) -> None:
        """Log a generation that was not logged before."""
        self._steps += 1
        self._spent[generation.stage] = generation.evaluations
        if self._steps <= (study.meta("reported", self.name) or 0):
            return
        alive = [trial.fitness for trial in generation.trials if trial.fitness is not None]
        figures = {
            "best": generation.best,
            "mean": generation.mean,
            "best of generation": max(alive, default=None),
            "sigma": generation.sigma,
            "failed": len(generation.trials) - len(alive),
            "seconds": sum(trial.scores.seconds for trial in generation.trials),
        }
        values = {
            f"{generation.stage}/{key}": float(value)
            for key, value in figures.items()
            if value is not None
        }
        values["evaluations"] = sum(self._spent.values())
        if self._tell(lambda: self._tracker.log(values, step=self._steps)):
            study.set_meta("reported", self._steps, self.name)

    def on_end(self, study: Study, result: Result) -> None:
        """Log the fitness of each row of the results once, and close the run."""
        if not study.meta("ended", self.name):
            scores = {
                f"results/{row.model}": row.scores.mean
                for row in result.rows
                if row.scores.mean is not None
            }
            if self._tell(lambda: self._tracker.log(scores, step=self._steps + 1)):
                study.set_meta("ended", True, self.name)
        self._tell(lambda: self._tracker.finish())

    def _tell(self, call: Callable[[], object]) -> bool:
        try:
            if not self._failed:
                call()
        except (Exception, SystemExit) as error:  # of any kind: a network, a disk, a server
            self._failed = True
            logger.warning(
                f"report_to: {self.name} has failed, and is told no more before a resume: "
                f"{one_line(error)}"
            )
        return not self._failed


def run_name(study: Study) -> str:
    """The name of a study's run: the folder's, and what tells it from another study in a folder of
    that name."""
    settings = repr((study.meta("settings"), study.meta("examples"))).encode(
        "utf-8", "backslashreplace"
    )
    return f"{study.folder.resolve().name}-{hashlib.sha256(settings).hexdigest()[:6]}"
