"""The models of a search that no other beats in every objective: which they are, which one is the
winner, as a table, as a picture and in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from ... import record
from ...errors import SearchError
from ...fitness.scores import FITNESS, Scores
from ...pictures.front import front_scene
from ...pictures.scene import Scene
from ...pictures.trials import DrawnTrial as Drawn
from ...pictures.trials import Metric
from ...record import Figures
from ..file.config import SearchConfig
from ..results.table import Row, other_text, render
from ..study.study import Study, Trial
from .file import vector
from .optimizers import non_dominated, spread

_PANEL = 420  # pixels: cards are narrower than the widest pages


@dataclass(frozen=True)
class FrontPoint:
    """Model of the front.

    Attributes:
        number: What it is picked by; from 0, the best fitness first.
        trial: The trial that found it, with its scores on the search split.
        scores: Scores on the split that the table of results is measured on; None where it is one
            of many.
        winner: Whether the search ended with it.
    """

    number: int
    trial: Trial
    scores: Scores | None = None
    winner: bool = False

    @property
    def key(self) -> str:
        """Key of its recipe."""
        return self.trial.recipe_key or ""


class Front(list[FrontPoint]):
    """Points of a front, the best fitness first; empty where the search has no front.

    Attributes:
        names: The objectives, the fitness first.
    """

    def __init__(self, points: Iterable[FrontPoint] = (), names: Iterable[str] = ()) -> None:
        super().__init__(points)
        self.names = list(names)

    def judged(self, scores: Mapping[str, Scores], winner: str | None) -> Front:
        """The points with what they scored where the results are measured, and the winner marked
        where there is one."""
        return Front(
            (
                replace(each, scores=scores.get(each.key), winner=each.key == winner)
                for each in self
            ),
            self.names,
        )

    def published(self) -> list[record.Point]:
        """The points as they are published: what each scored on the search split, and where the
        results are measured."""
        return [
            record.Point(
                point.number,
                point.trial.stage,
                point.trial.number,
                point.trial.scores.metrics(self.names),
                {} if point.scores is None else point.scores.metrics(self.names),
                point.winner,
                point.key,
            )
            for point in self
        ]

    @property
    def facts(self) -> dict[str, Any]:
        """Names of the objectives for ``results.json``."""
        return {"objectives": self.names} if self else {}

    def table(self, split: str) -> str:
        """The front as text: a line per point, its objectives on the search split and where the
        results are measured."""
        caption = "the front; * is its knee" if any(point.winner for point in self) else "the front"
        table = Table(
            box=None, header_style="bold", pad_edge=False, caption=caption, caption_justify="left"
        )
        table.add_column("point", justify="right")
        splits = dict.fromkeys(("search", split))
        for heading in (f"{name}, {each}" for each in splits for name in self.names):
            table.add_column(heading, justify="right", no_wrap=True)
        for point in self:
            scored = (point.trial.scores, point.scores)[: len(splits)]
            cells = (_text(scores, name) for scores in scored for name in self.names)
            table.add_row(f"{point.number}{' *' if point.winner else ''}", *cells)
        return render(table)

    # A point of the front dominates a parent when it is at least as good in every objective and
    # better in one (Deb et al. 2002), both on the examples of the results.
    def verdict(self, rows: Sequence[Row], split: str) -> list[str]:
        """Describe the front in sentences: how far it reaches, and which parents its points
        dominate."""
        ends = []
        points = self.published()
        for name in self.names:
            known = [point.search[name] for point in points]
            ends.append(f"{name} from {min(known):.4g} to {max(known):.4g}")
        sentences = [f"The front has {len(self)} points on the search examples: {', '.join(ends)}"]
        scored = [
            (point.number, vector(point.scores, self.names))
            for point in self
            if point.scores is not None and point.scores.error is None
        ]
        for row in rows:
            if row.stage not in ("base", "source", "average") or row.scores.error is not None:
                continue
            theirs = vector(row.scores, self.names)
            better = [
                str(number)
                for number, ours in scored
                if (ours >= theirs).all() and (ours > theirs).any()
            ]
            what = f"better than {row.model} in one objective and worse in none"
            said = "No point is"
            if better:
                many = len(better) > 1
                said = f"Point{'s' * many} {', '.join(better)} {'are' if many else 'is'}"
            sentences.append(
                f"{said} {what}, on the {split} examples, of the {len(scored)} that were scored "
                "there"
            )
        return sentences


def front(config: SearchConfig, study: Study, stages: Sequence[str] | None = None) -> Front:
    """The front of the trials of some stages, by their scores on the search split; the best fitness
    comes first.

    Args:
        config: The search.
        study: Its study.
        stages: Stages to look at; those of its spaces where None.
    """
    if not config.objectives:
        return Front()
    candidates = (trial for stage in stages or config.spaces for trial in study.trials(stage))
    trials = [
        trial for trial in candidates if trial.fitness is not None and trial.duplicate_of is None
    ]
    vectors = [config.vector(trial.scores) for trial in trials]
    best = sorted((tuple(-vectors[i]), i) for i in non_dominated(vectors))
    points = (FrontPoint(number, trials[i]) for number, (_, i) in enumerate(best))
    return Front(points, config.metrics)


def finalists(config: SearchConfig, study: Study, stages: Sequence[str] | None = None) -> list[str]:
    """Recipe keys of as many points of a front as the search has finalists: its ends, its knee, an
    even choice of the rest."""
    points = front(config, study, stages)
    vectors = [config.vector(point.trial.scores) for point in points]
    return [points[i].key for i in spread(vectors, config.compare.finalists)] if points else []


def picked(config: SearchConfig, study: Study, pick: int) -> str:
    """The recipe key of a point of the front, by its number; raises `SearchError` where there is
    none."""
    if not config.objectives:
        raise SearchError(
            f"--pick: {study.folder} has one objective, and no front to pick from; its "
            "winner is in model/"
        )
    points = front(config, study)
    if pick >= len(points):
        raise SearchError(
            f"--pick: the points of the front are 0 to {len(points) - 1} (found {pick})"
        )
    return points[pick].key


def blind(config: SearchConfig, sources: Collection[Scores]) -> list[str]:
    """Name the objectives that are the same for every source."""
    lines = []
    for name in config.metrics:
        means = [scores.others[name].mean for scores in sources if name in scores.others]
        if len(means) > 1 and len(set(means)) == 1 and name not in ("hops", "parameters"):
            lines.append(
                f"objectives: {name} is {means[0]:.4g} for every source; it may see nothing"
            )
    return lines


def columns(scores: Scores, names: Iterable[str]) -> dict[str, float | None]:
    """Columns of a trial's row for the objectives beside the fitness; None where it has none."""
    known = scores.metrics(names)
    return {f"objective.{name}": known.get(name) for name in names if name != FITNESS}


def record_parts(config: SearchConfig, parents: Mapping[str, Scores]) -> dict[str, Any]:
    """Parts of a record: the objectives, and the parents' values of each on the search examples."""
    return {
        "objectives": [Metric(name, unit) for name, unit in config.metrics.items()],
        "parents": {name: scores.metrics(config.metrics) for name, scores in parents.items()},
    }


def front_scenes(
    config: SearchConfig, points: Front, trials: Iterable[Drawn], parents: Mapping[str, Scores]
) -> list[Scene]:
    """A front on the search split, over each objective beside the fitness."""
    shown = [trial for trial in trials if trial.stage in config.spaces]
    metrics, known = record_parts(config, parents).values()
    drawn = points.published()
    return [front_scene(shown, drawn, (metrics[0], each), known, _PANEL) for each in metrics[1:]]


def _text(scores: Scores | None, name: str) -> str:
    """Format one objective of a model, with its standard error where there is one; empty where it
    was not scored."""
    if scores is None:
        return ""
    return (
        Figures.of(scores).fitness_text if name == FITNESS else other_text(scores.others.get(name))
    )
