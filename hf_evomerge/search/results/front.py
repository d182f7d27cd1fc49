"""The models of a search that no other beats in every objective: which they are, which one is the
winner, and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from ... import record
from ...errors import SearchError
from ...fitness.scores import Scores
from ...record import Figures
from ..file.config import SearchConfig
from ..file.objectives import FITNESS, known_values, values, vector
from ..optimizers.nsga import non_dominated, spread
from ..study.study import Study, Trial
from .table import Row, other_text, render


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


def front(
    config: SearchConfig, study: Study, stages: Sequence[str] | None = None
) -> list[FrontPoint]:
    """The front of the trials of some stages, by their scores on the search split; the best fitness
    comes first.

    Args:
        config: The search.
        study: Its study.
        stages: Stages to look at; those of its spaces where None.
    """
    names = config.objective_names
    candidates = (trial for stage in stages or config.spaces for trial in study.trials(stage))
    trials = [
        trial for trial in candidates if trial.fitness is not None and trial.duplicate_of is None
    ]
    vectors = [vector(trial.scores, names) for trial in trials]
    best = sorted((tuple(-vectors[i]), i) for i in non_dominated(vectors))
    return [FrontPoint(number, trials[i]) for number, (_, i) in enumerate(best)]


def finalists(config: SearchConfig, study: Study, stages: Sequence[str] | None = None) -> list[str]:
    """Recipe keys of as many points of a front as the search has finalists: its ends, its knee, an
    even choice of the rest."""
    points = front(config, study, stages)
    vectors = [vector(point.trial.scores, config.objective_names) for point in points]
    return [points[i].key for i in spread(vectors, config.compare.finalists)] if points else []


def judged(
    points: Sequence[FrontPoint], scores: Mapping[str, Scores], winner: str | None
) -> list[FrontPoint]:
    """The points with what they scored where the results are measured, and the winner marked where
    there is one."""
    return [
        replace(point, scores=scores.get(point.key), winner=point.key == winner) for point in points
    ]


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


def published_point(point: FrontPoint, names: Sequence[str]) -> record.Point:
    """A point as it is published: what it scored on the search split, and where the results are
    measured."""
    judged = {} if point.scores is None else known_values(point.scores, names)
    searched = known_values(point.trial.scores, names)
    return record.Point(
        point.number,
        point.trial.stage,
        point.trial.number,
        searched,
        judged,
        point.winner,
        point.key,
    )


def front_table(points: Sequence[FrontPoint], names: Sequence[str], split: str) -> str:
    """The front as text: a line per point, its objectives on the search split and where the results
    are measured."""
    caption = "the front; * is its knee" if any(point.winner for point in points) else "the front"
    table = Table(
        box=None, header_style="bold", pad_edge=False, caption=caption, caption_justify="left"
    )
    table.add_column("point", justify="right")
    headings = [f"{name}, search" for name in names] + (
        [f"{name}, {split}" for name in names] if split != "search" else []
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        cells = [objective_text(point.trial.scores, name) for name in names]
        if split != "search":
            cells += [
                "" if point.scores is None else objective_text(point.scores, name) for name in names
            ]
        table.add_row(f"{point.number}{' *' if point.winner else ''}", *cells)
    return render(table)


def objective_text(scores: Scores, name: str) -> str:
    """Format one objective of a model, with its standard error where there is one."""
    return (
        Figures.of(scores).fitness_text if name == FITNESS else other_text(scores.others.get(name))
    )


# A point of the front dominates a parent when it is at least as good in every objective and better
# in one (Deb et al. 2002), both on the examples of the results.
def front_verdict(
    points: Sequence[FrontPoint], rows: Sequence[Row], names: Sequence[str], split: str
) -> list[str]:
    """Describe a front in sentences: how far it reaches, and which parents its points dominate."""
    ends = []
    for name in names:
        along = [values(point.trial.scores, [name])[name] for point in points]
        known = [value for value in along if value is not None]
        ends.append(f"{name} from {min(known):.4g} to {max(known):.4g}")
    sentences = [f"The front has {len(points)} points on the search examples: {', '.join(ends)}"]
    scored = [point for point in points if point.scores is not None and point.scores.error is None]
    for row in rows:
        if row.stage not in ("base", "source", "average") or row.scores.error is not None:
            continue
        theirs = vector(row.scores, names)
        better = []
        for point in scored:
            ours = vector(point.scores, names) if point.scores is not None else theirs
            if (ours >= theirs).all() and (ours > theirs).any():
                better.append(str(point.number))
        what = f"better than {row.model} in one objective and worse in none"
        said = "No point is"
        if better:
            many = len(better) > 1
            said = f"Point{'s' * many} {', '.join(better)} {'are' if many else 'is'}"
        sentences.append(
            f"{said} {what}, on the {split} examples, of the {len(scored)} that were scored there"
        )
    return sentences
