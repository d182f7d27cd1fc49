"""The trackers of ``report_to``: a search as a run of trackio, of wandb, or of TensorBoard.

Scalars per generation; the pictures and the table of results at the end. A search that is resumed goes on in the same run,
where what was logged is not logged again.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import SearchError, one_line
from .callbacks import Generation, SearchCallback
from .file.config import SearchConfig
from .study.files import PLOTS_FOLDER
from .study.study import Study

if TYPE_CHECKING:
    from .results.result import Result

logger = logging.getLogger(__name__)

LOGS = "runs"  # of TensorBoard, in the study's folder


class Tracker(SearchCallback):
    """A run of a tracker, by the calls that trackio and wandb share. One that fails is told no more, and the search goes on."""

    name = ""

    def __init__(self) -> None:
        self.module = _module(self.name)
        self.failed = False
        self.steps = 0  # generations of all stages so far
        self.spent: dict[str, float] = {}

    def on_begin(self, study: Study, config: SearchConfig) -> None:
        """Open the run; it has the folder's name, and belongs to this study alone."""
        name = run_name(study)
        options = {"id": name, "dir": str(study.folder)} if self.name == "wandb" else {}
        settings = config.model_dump(mode="json", exclude_none=True)
        try:
            project = os.environ.get(f"{self.name.upper()}_PROJECT", "hf-evomerge")
            self.module.init(project=project, name=name, config=settings, resume="allow", **options)
        except (Exception, SystemExit) as cause:  # of any kind, such as one of a key that is not there
            raise SearchError(f"report_to: {self.name}: {one_line(cause)}; mend that, or leave it out") from cause

    def on_generation(self, study: Study, generation: Generation) -> None:
        """Log a generation that was not logged before."""
        self.steps += 1
        self.spent[generation.stage] = generation.evaluations
        if self.steps <= (study.meta("reported", self.name) or 0):
            return
        alive = [trial.fitness for trial in generation.trials if trial.fitness is not None]
        found = {
            "best": generation.best,
            "mean": generation.mean,
            "best of generation": max(alive, default=None),
            "sigma": generation.sigma,
            "failed": len(generation.trials) - len(alive),
            "seconds": sum(trial.scores.seconds for trial in generation.trials),
        }
        values = {f"{generation.stage}/{key}": float(value) for key, value in found.items() if value is not None}
        if self._tell(lambda: self.log({**values, "evaluations": sum(self.spent.values())}, self.steps)):
            study.set_meta("reported", self.steps, self.name)

    def on_end(self, study: Study, result: Result) -> None:
        """Log the pictures and the table once, and close the run."""
        if not study.meta("ended", self.name):
            columns = ["model", "fitness", "accuracy", "evaluations", "winner"]
            rows = [
                [row.model, row.scores.mean, row.scores.accuracy, row.evaluations, "*" if row.winner else ""]
                for row in result.rows
            ]
            pictures = sorted((study.folder / PLOTS_FOLDER).glob("*.png"))
            if self._tell(lambda: self.summarise(pictures, columns, rows, self.steps + 1)):
                study.set_meta("ended", True, self.name)
        self._tell(self.close)

    def _tell(self, call: Callable[[], object]) -> bool:
        try:
            if not self.failed:
                call()
        except (Exception, SystemExit) as error:  # of any kind: a network, a disk, a server
            self.failed = True
            logger.warning(f"report_to: {self.name} has failed, and is told no more before a resume: {one_line(error)}")
        return not self.failed

    def log(self, values: dict[str, float], step: int) -> None:
        """Log numbers."""
        self.module.log(values, step=step)

    def summarise(self, pictures: list[Path], columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Log the pictures and the table of results."""
        images = {f"pictures/{file.stem}": self.module.Image(str(file)) for file in pictures}
        self.module.log({**images, "results": self._table(columns, rows)}, step=step)

    def close(self) -> None:
        """Close the run."""
        self.module.finish()

    def _table(self, columns: list[str], rows: list[list[Any]]) -> Any:
        return self.module.Table(columns=columns, data=rows)


class Trackio(Tracker):
    """A local dashboard: ``trackio show``."""

    name = "trackio"

    def _table(self, columns: list[str], rows: list[list[Any]]) -> Any:
        import pandas  # trackio brings it, and names columns only of its frames

        return self.module.Table(dataframe=pandas.DataFrame(rows, columns=columns))


class Wandb(Tracker):
    """Weights & Biases."""

    name = "wandb"


class TensorBoard(Tracker):
    """Event files in ``runs/`` of the study's folder: ``tensorboard --logdir DIR/runs``."""

    name = "tensorboard"

    def __init__(self) -> None:
        super().__init__()
        self.writer: Any = None

    def on_begin(self, study: Study, config: SearchConfig) -> None:
        """Open a file of events; what a process logged and did not store is taken back."""
        from torch.utils.tensorboard import SummaryWriter

        step = (study.meta("reported", self.name) or 0) + 1
        self.writer = SummaryWriter(str(study.folder / LOGS), purge_step=step)

    def log(self, values: dict[str, float], step: int) -> None:
        """Log numbers."""
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def summarise(self, pictures: list[Path], columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Log the pictures, and the table as text."""
        from matplotlib.image import imread

        for file in pictures:
            self.writer.add_image(f"pictures/{file.stem}", imread(file)[:, :, :3], step, dataformats="HWC")
        lines = [columns, ["---"] * len(columns), *rows]
        self.writer.add_text("results", "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines), step)

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


TRACKERS: dict[str, type[Tracker]] = {kind.name: kind for kind in (Trackio, Wandb, TensorBoard)}


def run_name(study: Study) -> str:
    """The name of a study's run: the folder's, and what tells it from another study in a folder of that name."""
    settings = repr((study.meta("settings"), study.meta("examples"))).encode("utf-8", "backslashreplace")
    return f"{study.folder.resolve().name}-{hashlib.sha256(settings).hexdigest()[:6]}"


def _module(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as cause:
        raise SearchError(f"report_to: {name} is not installed: pip install {name}, or leave it out") from cause
