"""Says in words what a search found: does the winner beat what is simpler, does it need its
sources, and what is to be done next?

And before it begins: have the sources anything to give each other, and could the test split show a
difference?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...fitness.comparison import (
    Comparison,
    Measure,
    column,
    compare,
    compare_all,
    main_measure,
    measures,
    needed_examples,
)
from ...fitness.scores import Scores
from ..file.stages import STAGES
from .table import Against, Row

SIMPLER = ("base", "source", "average", "prompt", "alone", "noise", "lora")
"""Kinds of rows that are simpler than a merge that was searched for, the simplest first."""
MOST_CUT = 0.02  # share of answers that may be cut without a word
RULE = (
    "Better, or WORSE, means that p is below .05 and the interval excludes 0; with hardly, only "
    "one of these holds"
)
FEW = 30  # test examples; that fewer do not tell two models apart is no news
LITTLE = 0.1  # of accuracy: who is the best of models that solve less is no advice
DIFFERENCE = 0.05  # of accuracy; what a reader would call better
FORM = "do separator, chat template and end of the answer suit the models?"


def verdict(rows: Sequence[Row], split: str, unit: str = "", looks: int = 1) -> list[str]:
    """Sentences about the winner of a comparison, the most important first; none where nothing won
    or it failed.

    Where something simpler does as well, the first sentence says it; see `instead`.

    Args:
        rows: Every model, on the same examples; one is the winner.
        split: What they were measured on.
        unit: What the fitness is measured in; empty where it has no unit.
        looks: How often the test split was scored.
    """
    winner = _winner(rows)
    if winner is None:
        return []
    by = measures(*(row.scores for row in rows))
    sentences = _nothing_right(rows, winner, by)
    others = _others(rows, winner, by)
    if sentences:  # to be closer to right than another model that is wrong says nothing
        parents = ("base", "source")
        others = [
            row for row in others if row.stage in parents or (row.scores.accuracy or 0.0) >= LITTLE
        ]
    simpler = _simplest(rows, others, winner, by)
    if simpler is not None and simpler.stage == "noise":
        others = [row for row in others if row.stage != "alone"]  # no source is needed
    for row in sorted(others, key=lambda row: row is not simpler):
        said = _against(row, rows, winner=winner, by=by, unit=unit)
        if simpler not in (None, row):  # one piece of advice is enough
            said = [_without_advice(sentence) for sentence in said]
        sentences += said
    sentences += _forgotten(winner, _parents(rows), unit) + _cut(rows)
    if split == "test":
        often = (
            f"{looks} times, for evaluations or rows were added after results: they are optimistic"
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


def no_better_than_chance(models: Sequence[Scores], chance: float = 0.0) -> str | None:
    """Say that no model answers better than chance, beyond two standard errors; None where one
    does, or answers are neither right nor wrong.

    Args:
        models: Scores of each on the same examples.
        chance: Accuracy of a guess.
    """
    shares = [scores.accuracy for scores in models if scores.accuracy is not None]
    if not shares:
        return None
    error = (chance * (1 - chance) / models[0].values.size) ** 0.5
    if max(shares) > chance + 2 * error:
        return None
    right = f"more right than chance ({chance:.0%})" if chance else "one right"
    look = "`hf-evomerge eval MODEL --search FILE --show 3`"
    count = models[0].values.size
    none = f"of {count} search examples no model answers {right}"
    normal = "which is as it should be where a task needs the skills of several"
    return f"{none}, {normal}; if one alone should, look at {look}: {FORM}"


def instead(rows: Sequence[Row]) -> Row | None:
    """The simplest model that does as well as the winner, with what to do about it in
    ``row.against.keep``; None where the winner is better than all that is simpler, or no model
    solves anything."""
    winner = _winner(rows)
    by = measures(*(row.scores for row in rows))
    if winner is None:
        return None
    if not _any_right(rows, by) or _hardly_any_right(rows, by):
        return None
    return _simplest(rows, _others(rows, winner, by), winner, by)


def solves_nothing(rows: Sequence[Row]) -> bool:
    """Tell whether the winner gave no right answer, or hardly any model a right one, so that there
    is nothing to publish."""
    winner = _winner(rows)
    if winner is None:
        return True
    return bool(_nothing_right(rows, winner, measures(*(row.scores for row in rows))))


def _winner(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.winner and row.scores.error is None), None)


def _nothing_right(rows: Sequence[Row], winner: Row, by: Sequence[Measure]) -> list[str]:
    """Say that no answer of the winner is right, and whether any model's is; or that hardly any
    answer of any model is."""
    if _hardly_any_right(rows, by):
        best = max(rows, key=lambda row: row.scores.accuracy or 0.0)
        share = f"{best.scores.accuracy:.3f}"
        return [f"HARDLY ANYTHING here solves this task: the best, {best.model}, has {share} right"]
    if column(winner.scores, by[0]).any() or (by[0] == "fitness" and winner.scores.values.any()):
        return []
    count = winner.scores.values.size
    more = ", and of all others too: nothing here solves this task"
    if _any_right(rows, by):
        more = ""
    return [f"EVERY ANSWER of {winner.model} IS WRONG ({count} of {count}){more}"]


def _hardly_any_right(rows: Sequence[Row], by: Sequence[Measure]) -> bool:
    """Tell whether the best model solves something, and less than a tenth."""
    return by[0] == "accuracy" and 0 < max(row.scores.accuracy or 0.0 for row in rows) < LITTLE


def _any_right(rows: Sequence[Row], by: Sequence[Measure]) -> bool:
    return any(column(row.scores, by[0]).any() for row in rows if row.scores.error is None)


def _parents(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.stage in ("base", "source") and row.scores.error is None]


def _others(rows: Sequence[Row], winner: Row, by: Sequence[Measure]) -> list[Row]:
    """The rows that the winner is compared with: its best parent, and all that have sentences."""
    others = []
    parents = _parents(rows)
    if parents:
        best = max(parents, key=lambda row: _means(row.scores, by))
        name = f"its best parent, {best.model}"
        who = "a parent"
        kept = best.model
        if best.stage == "base":
            name = who = kept = f"the {best.model}"
        against = Against(
            name,
            "use that one instead",
            level=f"{who} does as well: keep {kept} as it is",
            keep=f"keep {kept} as it is",
        )
        others.append(replace(best, against=against))
    for row in rows:
        is_same = row.stage in STAGES and row.stage != "random" and row.scores == winner.scores
        if row.against is not None and not is_same:
            others.append(row)
    return others


# A row does as well where the winner is not better than it, by interval and p value; a row that is
# level and has lost more of what was to be retained does not. Of those that do, the simplest is
# named that no other of them beats: a LoRA that is better than the winner comes before a parent
# that is level with it. A model that was cut from its only parent is no worse for being level.
def _simplest(
    rows: Sequence[Row], others: Sequence[Row], winner: Row, by: Sequence[Measure]
) -> Row | None:
    lone = len(_parents(rows)) == 1
    simpler = [
        row for row in others if row.stage in SIMPLER and not (lone and row.stage == "source")
    ]
    level = [row for row in simpler if _does_as_well(row, winner, by)]
    level.sort(key=lambda row: SIMPLER.index(row.stage))
    for row in level:
        if not any(_beats(other, row, by) for other in level):
            return row
    return None


def _does_as_well(row: Row, winner: Row, by: Sequence[Measure]) -> bool:
    compared = _compared(winner, row, by)
    if not compared or compared[0].is_better:
        return False
    first = compared[0]
    if first.is_close and first.difference > 0:  # undecided, and not level
        return False
    if first.examples < FEW and not first.is_worse:  # so few tell nothing apart
        return False
    return first.is_worse or not _forgets(row, winner)


def _beats(row: Row, other: Row, by: Sequence[Measure]) -> bool:
    compared = _compared(row, other, by)
    return bool(compared) and compared[0].is_better


# A log-likelihood tells models apart that give the same answers. Against a simpler model that is
# no reason to keep the merge: where the accuracies are level, and closer than `DIFFERENCE`, they
# come first, unless the simpler model has no right answer. LoRA is trained, and not simpler in
# this sense: one that is as right, and far less sure of it, has learned its examples by heart.
def _compared(row: Row, other: Row, by: Sequence[Measure]) -> list[Comparison]:
    """Comparisons of two rows, the one that decides first."""
    compared = compare_all(row.scores, other.scores, by)
    if (
        other.stage not in SIMPLER
        or other.stage == "lora"
        or len(compared) < 2
        or compared[0].measure == "accuracy"
    ):
        return compared
    fitness, accuracy = compared
    level = not accuracy.is_better and not accuracy.is_close and accuracy.difference < DIFFERENCE
    if fitness.is_better and level and column(other.scores, "accuracy").any():
        return [accuracy, fitness]
    return compared


def _forgets(row: Row, winner: Row) -> str:
    """Say of which retained examples a row has lost more than the winner; empty where of none."""
    for name, kept in winner.retained.items():
        lost = row.retained.get(name)
        if lost is None:
            continue
        compared = compare(kept, lost)
        if compared is not None and compared.is_better:
            had = column(kept, compared.measure).mean()
            has = column(lost, compared.measure).mean()
            return f"forgets more ({has:.2f} against {had:.2f} of {name})"
    return ""


def _means(scores: Scores, by: Sequence[Measure]) -> tuple[float, ...]:
    """Accuracy, and fitness, which decides between models of one accuracy."""
    return tuple(float(column(scores, measure).mean()) for measure in by)


def _against(
    other: Row, rows: Sequence[Row], *, winner: Row, by: Sequence[Measure], unit: str
) -> list[str]:
    """Write one sentence about the winner and another model, by what tells them apart; none where
    they cannot be compared."""
    compared = _compared(winner, other, by)
    against = other.against
    if not compared or against is None:
        return []
    first = compared[0]
    beside = _beside(compared, unit)
    size = f"{first.examples} examples"
    by_how_much = f"by {abs(first.difference):.3f} {_of(first, unit)}"
    forgets = _forgets(other, winner) if other.stage in SIMPLER else ""
    if first.is_better:
        better = against.better or f"{winner.model} is better than {against.name},"
        if other.stage == "alone":
            better = _needs(rows, first)
        return [f"{better} {by_how_much} ({first.interval}){beside}"]
    if first.is_worse:
        more = f", but it {forgets}" if forgets else ""
        return [
            (
                f"{winner.model} is WORSE than {against.name}, {by_how_much} ({-first.high:.3f} to "
                f"{-first.low:.3f}){beside}: {against.worse}{more}"
            )
        ]
    figures = _figures(compared, unit)
    is_level = first.examples >= FEW and (first.difference <= 0 or not first.is_close)
    if other.stage in SIMPLER and is_level:
        level = against.level or f"{against.name} does as well"
        if forgets:
            level = f"{level.partition(':')[0]}, and {forgets}"
        if not _any_right(rows, by):
            return []  # to be level with nothing is no advice
        hardly = "hardly tell" if first.is_close else "do not tell"
        of_other, of_winner = (column(row.scores, by[0]).mean() for row in (other, winner))
        has = f"it has {of_other:.3f} and {winner.model} {of_winner:.3f}"
        return [f"{level}; {has}, which {size} {hardly} apart: {figures}"]
    if against.undecided is not None:
        nothing = "hardly anything" if first.is_close else "nothing"
        return [f"the search added {nothing} {against.undecided} that {size} could show: {figures}"]
    return [
        f"{winner.model} is {_not(first)} distinguishable from {against.name}, on {size}: {figures}"
    ]


def _without_advice(sentence: str) -> str:
    """Leave out what a sentence about an equal says to do, between its colon and its figures."""
    said, level, figures = sentence.partition("; it has ")
    return f"{said.partition(':')[0]}{level}{figures}" if level else sentence


def _needs(rows: Sequence[Row], comparison: Comparison) -> str:
    """Say that one source is not enough, with what the best of them have alone."""
    lone = [row for row in rows if row.stage == "alone" and row.scores.error is None]
    lone.sort(key=lambda row: -float(column(row.scores, comparison.measure).mean()))
    each = [
        f"{row.model} has {column(row.scores, comparison.measure).mean():.3f}" for row in lone[:3]
    ]
    what = "both sources" if len(lone) == 2 else "more than one source"
    return f"needs {what}: {', '.join(each)}; it beats the best alone"


def _figures(compared: Sequence[Comparison], unit: str) -> str:
    """Figures of all measures, the one that decides first."""
    of = f" {_of(compared[0], unit)}" if len(compared) > 1 else ""
    return f"{compared[0]}{of}{_beside(compared, unit)}"


def _not(comparison: Comparison) -> str:
    return "hardly" if comparison.is_close else "not"


def _of(comparison: Comparison, unit: str) -> str:
    return unit if unit and comparison.measure == "fitness" else f"of {comparison.measure}"


def _beside(compared: Sequence[Comparison], unit: str) -> str:
    """The other measures' comparisons, after a sentence about the first; loud where they say the
    contrary."""
    first, *others = compared
    said = ""
    for other in others:
        word = "but WORSE " if other.is_worse and not first.is_worse else ""
        word = "but better " if other.is_better and not first.is_better else word
        measured_in = f" ({unit})" if unit and other.measure == "fitness" else ""
        said += f"; {word}in {other.measure}{measured_in}: {other}"
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
        there = f"the best there, {best}"
        if not (compared := compare_all(scores, others[best], by)):
            continue  # of one example
        first = compared[0]
        if first.is_worse:
            said = "worse than"
        elif first.is_better:
            said = "better than"
        else:
            said = f"{_not(first)} distinguishable from"
        sentences.append(f"on {name} it is {said} {there}: {_figures(compared, unit)}")
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
