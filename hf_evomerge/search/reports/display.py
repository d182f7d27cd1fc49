"""The live table of a running search, in a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ...lines import is_agent
from ..callbacks import Progress, SearchCallback
from ..file.stages import STAGES
from ..phases import PHASES

if TYPE_CHECKING:
    from ..file.config import SearchConfig
    from ..study.study import Study

# a phase of a stage has its title from the stage
_TITLES = {**STAGES, **{kind.name: kind.title for kind in PHASES if hasattr(kind, "name")}}
MOST_LINES = 40  # of a log, for each phase


class LiveTable(SearchCallback):
    """Shows where a search stands: one row per phase, the last one moving. In a log a line per
    generation.

    A line below it says in what the fitness is measured; docs/quickstart.md says what the columns
    are.

    Args:
        console: Where it is shown; standard error by default.
        config: The search, whose tasks say what the fitness is measured in.

    Example:
        >>> config = SearchConfig.load("search.yaml")
        >>> with LiveTable(config=config) as table:
        ...     result = run_search(config, "my-search", callbacks=[table])
    """

    def __init__(self, console: Console | None = None, config: SearchConfig | None = None) -> None:
        plain = False if is_agent() else None
        self.console = console or Console(stderr=True, force_terminal=plain)
        self._config = config
        stages = config.stages if config is not None else []
        self._titles = _TITLES | {stage.name: stage.title for stage in stages}
        self._rows: dict[str, Progress] = {}
        self._told: dict[str, Progress] = {}
        self._newest: Progress | None = None
        self._told_at = 0.0
        self._live = Live(console=self.console, refresh_per_second=4, get_renderable=self._shown)

    def __enter__(self) -> LiveTable:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._newest = None  # nothing is to come
        if self._rows:
            self._live.stop()
            self.console.line()  # ends the last one in a log, and leaves one empty in a terminal

    def on_progress(self, study: Study, progress: Progress) -> None:
        """Take in where the search stands now; the first time begins the table."""
        self._rows[progress.phase] = progress
        self._newest = progress
        self._told_at = time.monotonic()
        self._live.start(refresh=True)
        works = progress.fresh or not progress.done  # what is replayed is no news
        if not self.console.is_terminal and works and self._is_news(progress):
            self._told[progress.phase] = progress
            self.console.print(self._line(progress), highlight=False, soft_wrap=True)

    def _is_news(self, progress: Progress) -> bool:
        """Tell whether a log should have a line: at a new generation, but not for every step of a
        gradient, and at the end."""
        last = self._told.get(progress.phase)
        if last is None or progress.done >= progress.total:
            return True
        in_generations = progress.sigma is not None
        return (
            not in_generations or progress.generation != last.generation
        ) and progress.done - last.done >= progress.total / MOST_LINES

    @property
    def _remarks(self) -> list[str]:
        """Remarks: what a phase is at, and what went otherwise than it should, one line for each
        phase where something did."""
        said = {}
        for phase, row in self._rows.items():
            counts = {"failed": row.failed, "seen before": row.duplicates}
            words = [f"{count} {what}" for what, count in counts.items() if count]
            said[f"candidates of {self._titles.get(phase, phase)}"] = words
        said |= {
            self._titles.get(phase, phase): [row.note]
            for phase, row in self._rows.items()
            if row.note
        }
        return [f"{what}: {', '.join(words)}" for what, words in said.items() if words]

    def _shown(self) -> Group:
        lines = [*self._remarks, *self._to_come(), self._fitness()]
        return Group(self._table(), *(Text(line, style="dim") for line in lines))

    def _table(self) -> Table:
        """Make a table, one row per phase; at most 80 columns wide, where only names of phases are
        broken."""
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
        for heading in ("", "done", "gen", "best", "accuracy", "mean", "per min", "left"):
            table.add_column(
                heading, justify="left" if heading == "" else "right", no_wrap=heading != ""
            )
        for phase, row in self._rows.items():
            table.add_row(
                self._titles.get(phase, phase),
                f"{row.done:.0f}/{row.total}",
                str(row.generation) if row.sigma is not None else "",
                _number(row.best),
                _number(row.accuracy),
                _number(row.mean),
                f"{60 * row.fresh / max(row.seconds, 1e-9):.0f}"
                if row.fresh
                else "stored" * bool(row.done),
                self._left() if row is self._newest else "",
            )
        return table

    def _line(self, row: Progress) -> str:
        """Say where a search stands, for a log."""
        parts = [
            f"{self._titles.get(row.phase, row.phase)}: {row.done:.0f}/{row.total}",
            *([row.note] if row.note else []),
        ]
        if row.sigma is not None:
            parts.append(f"generation {row.generation}")
            figures = (("best", row.best), ("accuracy", row.accuracy), ("mean", row.mean))
            parts += [f"{name} {_number(value)}" for name, value in figures if value is not None]
        if left := self._left():
            parts.append(f"{left} left")
        return ", ".join(parts)

    def _left(self) -> str:
        """The time until the results are there, which falls between two reports too."""
        if self._newest is None or not self._newest.left:
            return ""
        passed = time.monotonic() - self._told_at
        return _duration(max(0.0, self._newest.left - passed))

    def _to_come(self) -> list[str]:
        """Phases after the current one, in a line."""
        phases = self._newest.to_come if self._newest is not None else ()
        return [f"to come: {', '.join(phases)}"] if phases else []

    def _fitness(self) -> str:
        """Say what the shown stages' numbers are measured in."""
        units: dict[str, list[str]] = {}
        if self._config is not None:
            for stage in (stage for stage in self._config.stages if stage.name in self._rows):
                units.setdefault((stage.fitness or self._config.fitness).unit, []).append(
                    stage.title
                )
        said = [
            unit if len(units) == 1 else f"{unit} ({', '.join(stages)})"
            for unit, stages in units.items()
            if unit
        ]
        return "best, mean: fitness, more is better" + (f": {', '.join(said)}" if said else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
