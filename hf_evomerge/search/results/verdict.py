"""Says in words what a search found: is the winner better than its parents, the plain average, a
random search?

And before it begins: have the sources anything to give each other, and could the test split show a
difference?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from ...fitness.comparison import (
    Comparison,
    Measure,
    column,
    compare_all,
    main_measure,
    measures,
    needed_examples,
)
from ...fitness.scores import Scores
from ..file.stages import STAGES
from .table import Row

MOST_CUT = 0.02  # share of answers that may be cut without a word
RULE = (
    "Better, or WORSE, means that p is below .05 and the interval excludes 0; with hardly, only "
    "one of these holds"
)
DIFFERENCE = 0.05  # of accuracy; what a reader would call better


def verdict(rows: Sequence[Row], split: str, unit: str = "", looks: int = 1) -> list[str]:
    """Sentences about the winner of a comparison, the most important first; none where nothing won
    or it failed.

    Args:
        rows: Every model, on the same examples; one is the winner.
        split: What they were measured on.
        unit: What the fitness is measured in; empty where it has no unit.
        looks: How often the test split was scored.
    """
    winner = next((row for row in rows if row.winner), None)
    if winner is None or winner.scores.error is not None:
        return []
    by = measures(*(row.scores for row in rows))
    measure = by[0]
    against = partial(_against, winner=winner, by=by, unit=unit)
    sentences = []
    if not column(winner.scores, measure).any() and (
        measure == "accuracy" or not winner.scores.values.any()
    ):
        sentences.append(
            f"EVERY ANSWER of {winner.model} IS WRONG ({winner.scores.values.size} of "
            f"{winner.scores.values.size})"
        )
    parents = [row for row in rows if row.stage in ("base", "source") and row.scores.error is None]
    if parents:
        best = max(parents, key=lambda row: _means(row.scores, by))
        name = f"the {best.model}" if best.stage == "base" else f"its best parent, {best.model}"
        sentences += against(best, name, "use that one instead")
    for row in rows:
        is_same = row.stage in STAGES and row.stage != "random" and row.scores == winner.scores
        if row.against is not None and not is_same:
            name = row.against.name
            worse = row.against.worse
            undecided = row.against.undecided
            sentences += against(row, name, worse, undecided)
    sentences += _forgotten(winner, parents, unit) + _cut(rows)
    if split == "test":
        often = (
            f"{looks} times, for the search was given more evaluations after its results: they "
            "are optimistic"
        )
        once = "once, after the winner was chosen" if looks == 1 else often
        sentences.append(
            f"the test split was scored {once}; p values are not corrected for their number"
        )
    else:
        sentences.append(
            f"the {split} examples helped to choose the winner: its own figures are optimistic"
        )
    return [sentence[0].upper() + sentence[1:] for sentence in sentences]


def _means(scores: Scores, by: Sequence[Measure]) -> tuple[float, ...]:
    """Accuracy, and fitness, which decides between models of one accuracy."""
    return tuple(float(column(scores, measure).mean()) for measure in by)


def _against(
    other: Row,
    name: str,
    advice: str,
    added: str | None = None,
    *,
    winner: Row,
    by: Sequence[Measure],
    unit: str,
) -> list[str]:
    """Write one sentence about the winner and another model, by what tells them apart; none where
    they cannot be compared."""
    if not (compared := compare_all(winner.scores, other.scores, by)):
        return []
    found = compared[0]
    beside = _beside(compared, unit)
    said = f"by {abs(found.difference):.3f} {_of(found, unit)}"
    size = f"{found.examples} examples"
    if found.is_better:
        return [f"{winner.model} is better than {name}, {said} ({found.interval}){beside}"]
    if found.is_worse:
        return [
            (
                f"{winner.model} is WORSE than {name}, {said} ({-found.high:.3f} to "
                f"{-found.low:.3f}){beside}: {advice}"
            )
        ]
    told = f"{found}{f' {_of(found, unit)}' if len(compared) > 1 else ''}{beside}"
    if added is not None:
        nothing = "hardly anything" if found.is_close else "nothing"
        return [f"the search added {nothing} {added} that {size} could show: {told}"]
    return [f"{winner.model} is {_not(found)} distinguishable from {name}, on {size}: {told}"]


def _not(found: Comparison) -> str:
    return "hardly" if found.is_close else "not"


def _of(found: Comparison, unit: str) -> str:
    return unit if unit and found.measure == "fitness" else f"of {found.measure}"


def _beside(compared: Sequence[Comparison], unit: str) -> str:
    """The other measures' comparisons, after a sentence about the first; loud where they say the
    contrary."""
    said = ""
    for found in compared[1:]:
        word = "but WORSE " if found.is_worse and not compared[0].is_worse else ""
        word = "but better " if found.is_better and not compared[0].is_better else word
        said += (
            f"; {word}in "
            f"{found.measure}{f' ({unit})' if unit and found.measure == 'fitness' else ''}: "
            f"{found}"
        )
    return said


def _forgotten(winner: Row, parents: Sequence[Row], unit: str) -> list[str]:
    """Say what the winner lost, or gained, on examples that the search did not look at."""
    sentences = []
    for name, scores in winner.retained.items():
        others = {
            row.model: row.retained[name]
            for row in parents
            if row.retained.get(name, scores).error is None
        }
        by = measures(scores, *others.values())
        if scores.error is not None or not others:
            sentences.append(
                f"on {name} it could not be scored: {scores.error or 'no parent could be'}"
            )
            continue
        best = max(others, key=lambda model: _means(others[model], by))
        there = f"the best there, {best.removeprefix('base: ')}"
        if not (compared := compare_all(scores, others[best], by)):
            continue  # of one example
        found = compared[0]
        if found.is_worse:
            said = "worse than"
        elif found.is_better:
            said = "better than"
        else:
            said = f"{_not(found)} distinguishable from"
        told = (
            f"{found}{f' {_of(found, unit)}' if len(compared) > 1 else ''}{_beside(compared, unit)}"
        )
        sentences.append(f"on {name} it is {said} {there}: {told}")
    return sentences


def _cut(rows: Sequence[Row]) -> list[str]:
    """A warning where many answers ended at the limit of their length, not at their end."""
    cut = {row.model: row.scores.truncated_share or 0.0 for row in rows}
    cut |= {
        f"{row.model} on {name}": kept.truncated_share or 0.0
        for row in rows
        for name, kept in row.retained.items()
    }
    if max(cut.values()) <= MOST_CUT:
        return []
    listed = ", ".join(f"{model} {share:.0%}" for model, share in cut.items() if share > MOST_CUT)
    return [
        (
            "ANSWERS WERE CUT at max_new_tokens, and what was cut may have been right; raise "
            f"it: {listed}"
        )
    ]


def about_parents(
    parents: Mapping[str, Scores], test_examples: int
) -> tuple[list[str], str | None]:
    """Say what the sources' scores show before anything is searched.

    Args:
        parents: Scores of each source on the search split, by name.
        test_examples: Size of the split that the winner will be measured on.

    Returns:
        Notes, and a warning where no source can give another anything.
    """
    # A merge by examples solved: with a table of (source, example), what one source alone solves is
    # what a merge could gain. The discordance, the share of examples that tell two sources apart,
    # gives the number of test examples that would show a difference (`needed_examples`).
    whole = {name: scores for name, scores in parents.items() if scores.error is None}
    if len(whole) < 2:
        return [], None
    notes = []
    names = list(whole)
    measure = main_measure(*whole.values())
    best = max(names, key=lambda name: (whole[name].accuracy or 0.0, whole[name].mean or 0.0))
    others = [name for name in names if name != best]
    ahead = np.any([whole[name].values > whole[best].values for name in others], axis=0)
    discordance = 0.1  # two models hardly differ on fewer
    if all(scores.correct is not None for scores in whole.values()) or measure == "fitness":
        table = np.array([column(scores, measure) > 0 for scores in whole.values()])
        alone = [
            f"{name} alone {float((row & (table.sum(0) == 1)).mean()):.0%}"
            for name, row in zip(names, table, strict=True)
        ]
        none = float((~table.any(0)).mean())
        everyone = float(table.all(0).mean())
        notes.append(
            f"search examples solved by {', by '.join(alone)}, by all {everyone:.0%}, by "
            f"none {none:.0%}"
        )
        discordance = max(discordance, max(float((table[0] != row).mean()) for row in table[1:]))
    needed = needed_examples(DIFFERENCE, discordance)
    notes.append(
        f"a difference of {DIFFERENCE} in accuracy needs about {needed} test examples to be "
        f"seen; there are {test_examples}"
    )
    warning = None
    if all((whole[name].values == whole[best].values).all() for name in others):
        warning = (
            "every source scores the same on every search example: this fitness sees nothing to "
            "combine; try likelihood"
        )
    elif not ahead.any() and measure == "fitness" and set(whole[best].values) <= {0.0, 1.0}:
        warning = (
            f"no other source solves a search example that {best} does not: a merge is "
            "better only where it solves what none "
            "of them does, and right or wrong shows no way there; try likelihood"
        )
    return notes, warning
