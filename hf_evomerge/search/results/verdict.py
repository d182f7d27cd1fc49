"""Says in words what a search found: does the winner beat what is simpler, does it need its
sources, and what is to be done next?

And before it begins: have the sources anything to give each other, and could the test split show a
difference?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...fitness.comparison import (
    Comparison,
    Measure,
    column,
    compare,
    compare_all,
    main_measure,
    measures,
)
from ...fitness.scores import Scores
from ..file.stages import STAGES
from .constant import FEW, LITTLE
from .kept import HALF, Kept
from .table import Against, Row, kept_by

PARENTS = ("base", "source")
SIMPLER = ("base", "source", "average", "prompt", "alone", "noise", "lora")
"""Kinds of rows that are simpler than a merge that was searched for, the simplest first."""
MOST_CUT = 0.02  # share of answers that may be cut without a word
RULE = (
    "Better, or WORSE, means that p is below .05 and the interval excludes 0; hardly, that only "
    "one of these holds"
)
DIFFERENCE = 0.05  # of accuracy; what a reader would call better
LEAST = 0.005  # of fitness; what is printed as 0.00
FORM = (
    "do separator, chat template and end of the answer suit the models, and have the sources what "
    "the task needs?"
)


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
    judged = _judged(rows, unit)
    if judged is None:
        return []
    sentences = judged.nothing_right()
    others = judged.others
    if sentences:  # to be closer to right than another model that is wrong says nothing
        others = [
            row for row in others if row.stage in PARENTS or (row.scores.accuracy or 0.0) >= LITTLE
        ]
    simpler = judged.simplest(others)
    if simpler is not None:  # which needs no source, or not both
        needless = "alone" if simpler.stage == "noise" else "noise"
        others = [row for row in others if row.stage != needless]
    advised = judged.beside(others, simpler) or simpler
    constant = judged.winner.constant
    if constant is not None:
        has = f"{judged.winner.model} in {constant.solved:.3f}"
        if constant.rest is not None:
            has += f" ({constant.rest:.3f} of the problems with another answer)"
        sentences.insert(0, f"{constant}, and {has}: look at the examples first")
        others = [row for row in others if row.stage not in ("alone", "noise")]
        advised = None
    compared = list[str]()
    for row in sorted(others, key=lambda row: (row is not advised, row is not simpler)):
        # one piece of advice is enough
        free = advised is simpler is None and row.stage != "together"
        if sentence := judged.against(row, advise=row is advised or free):
            compared.append(sentence)
    if advised is not None and advised.stage == "together":
        sentences = [*compared[:1], *sentences, *compared[1:]]
    else:
        sentences += compared
    sentences += judged.too_few() + judged.forgotten() + _cut(rows)
    if split == "test":
        often = (
            f"{looks} times, for evaluations or rows were added after results: they are optimistic"
        )
        once = "once, after the winner was chosen" if looks == 1 else often
        if favoured := [row.model.partition(" (")[0] for row in rows if row.favoured]:
            once += f"; it also chose the best training for {' and for '.join(favoured)}"
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
    why = "the task needs the skills of several, is too hard, or has another form than they answer"
    return f"{none}: {why}; look at {look}: {FORM}"


def instead(rows: Sequence[Row]) -> Row | None:
    """The model to take in place of the winner, with what to do about it in ``row.against.keep``.

    It is the simplest that does as well, or the LoRA beside the merge, where that solves
    more. None where neither is, or no model solves anything, or one answer does as well.
    """
    judged = _judged(rows)
    if judged is None or judged.winner.constant is not None:
        return None
    if not judged.any_right or judged.hardly_any_right:
        return None
    simpler = judged.simplest(judged.others)
    return judged.beside(judged.others, simpler) or simpler


def solves_nothing(rows: Sequence[Row]) -> bool:
    """Tell whether the winner gave no right answer, or hardly any model a right one, so that there
    is nothing to publish."""
    judged = _judged(rows)
    return judged is None or bool(judged.nothing_right())


def lost_skills(rows: Sequence[Row], row: Row) -> list[Kept]:
    """Skills that a search was for, and of which a model keeps less than half."""
    judged = _judged(rows)
    if judged is None or not judged.is_for_skills:
        return []
    return [each for each in kept_by(row, rows) if each.share < HALF]


class _Judged:
    """Rows of a comparison beside their winner.

    Attributes:
        rows: Every model, on the same examples.
        winner: One of them.
        unit: What the fitness is measured in.
        by: Measures that tell the models apart, the main one first.
        parents: Base and sources that could be scored.
        is_for_skills: Whether the examples are shared out among skills, all of which count.
        others: Rows that the winner is compared with: its best parent, and all that have sentences.
        any_right: Whether any model solves anything.
        hardly_any_right: Whether the best model solves something, and less than a tenth.
    """

    def __init__(self, rows: Sequence[Row], winner: Row, unit: str) -> None:
        self.rows = rows
        self.winner = winner
        self.unit = unit.replace(", negative", "")  # of a difference
        self.by = measures(*(row.scores for row in rows))
        alive = [row for row in rows if row.scores.error is None]
        self.parents = [row for row in alive if row.stage in PARENTS]
        of_skills = [scores.values for scores in winner.retained.values()]
        self.is_for_skills = len(of_skills) > 1 and np.array_equal(
            np.sort(np.concatenate(of_skills)), np.sort(winner.scores.values)
        )
        self.others = self._others()
        self.any_right = any(self._column(row).any() for row in alive)
        best = max(row.scores.accuracy or 0.0 for row in alive)
        self.hardly_any_right = self.by[0] == "accuracy" and 0 < best < LITTLE

    def _column(self, row: Row) -> NDArray[np.float64]:
        """Scores by the main measure."""
        return column(row.scores, self.by[0])

    def nothing_right(self) -> list[str]:
        """Say that no answer of the winner is right, and whether any model's is; or that hardly any
        answer of any model is."""
        if self.hardly_any_right:
            best = max(self.rows, key=lambda row: row.scores.accuracy or 0.0)
            has = f"{best.model}, has {best.scores.accuracy:.3f} right"
            return [f"HARDLY ANYTHING here solves this task: the best, {has}"]
        values = self.winner.scores.values
        if self._column(self.winner).any() or (self.by[0] == "fitness" and values.any()):
            return []
        why = "nothing here solves this task, or the form of the answers does not suit the models"
        more = "" if self.any_right else f", and of all others too: {why}"
        count = f"{values.size} of {values.size}"
        return [f"EVERY ANSWER of {self.winner.model} IS WRONG ({count}){more}"]

    def too_few(self) -> list[str]:
        """Say which model is right most often, where so few examples cannot show it."""
        best = max(self.rows, key=lambda row: row.scores.accuracy or 0.0)
        has = best.scores.accuracy
        won = self.winner.scores.accuracy
        count = self.winner.scores.values.size
        if count >= FEW or not has or won is None or has <= won:
            return []
        lead = compare(best.scores, self.winner.scores, "accuracy")
        if lead is None or lead.is_better:
            return []
        there = f"{best.model} has {has:.3f} right, and {self.winner.model} {won:.3f}"
        return [f"{there}: {count} examples are too few to tell which is right more often"]

    def _others(self) -> list[Row]:
        others = []
        if self.parents:
            parent = max(self.parents, key=lambda row: _means(row.scores, self.by))
            name = f"its best parent, {parent.model}"
            if self.winner.stage == "together":  # which may have nothing of that parent
                name = f"the best source, {parent.model}"
            kept = parent.model
            if parent.stage == "base":
                name = kept = f"the {parent.model}"
            keep = f"keep {kept} as it is"
            level = f"{kept} does as well: {keep}"
            against = Against(name, f"use {kept} instead", level=level, keep=keep)
            others.append(replace(parent, against=against))
        lone = [row for row in self.rows if row.stage == "alone" and row.scores.error is None]
        best = max(lone, key=lambda row: _means(row.scores, self.by), default=None)
        for row in self.rows:
            if row in lone and row is not best:  # the best alone on these examples counts
                continue
            is_same = row.stage in STAGES and row.scores == self.winner.scores
            if row.against is not None and row is not self.winner and not is_same:
                others.append(row)
        return others

    # A row does as well where the winner is not better than it, by interval and p value; a row that
    # is level and has lost more of what was to be retained does not. Of those that do, the simplest
    # is named that no other of them beats: a LoRA that is better than the winner comes before a
    # parent that is level with it. A model that was cut from its only parent is no worse for being
    # level.
    def simplest(self, others: Sequence[Row]) -> Row | None:
        """The simplest of some rows that does as well as the winner, and that no other such row
        beats."""
        level = [row for row in others if row.stage in SIMPLER and self._does_as_well(row)]
        if len(self.parents) == 1:
            level = [row for row in level if row.stage != "source"]
        level.sort(key=lambda row: SIMPLER.index(row.stage))
        for row in level:
            if not any(self._beats(other, row) for other in level):
                return row
        return None

    # It takes several searches, so that it is surer of the same answers is no reason for it. A
    # better score counts where more answers are right too, if so few examples do not show that.
    def beside(self, others: Sequence[Row], simpler: Row | None) -> Row | None:
        """The LoRA beside the merge, where it solves more than what is simpler and as good
        as the winner, or else than the winner; where nothing is right or wrong, where its score is
        better."""
        beaten = simpler or self.winner
        for row in others:
            if row.stage == "together" and self._solves_more(row, beaten):
                return row
        return None

    def _solves_more(self, row: Row, other: Row) -> bool:
        compared = compare_all(row.scores, other.scores, self.by)
        by_accuracy = [each for each in compared if each.measure == "accuracy"]
        if any(each.difference < DIFFERENCE for each in by_accuracy):
            return any(each.is_better for each in by_accuracy)
        return any(each.is_better for each in compared)

    def _does_as_well(self, row: Row) -> bool:
        compared = self._compared(self.winner, row)
        if not compared or compared[0].is_better or self._solves_little(row):
            return False
        first = compared[0]
        if first.is_close and first.difference > 0:  # undecided, and not level
            return False
        if first.examples < FEW and not first.is_worse:  # so few tell nothing apart
            return False
        return not self._forgets(row)

    def _solves_little(self, row: Row) -> bool:
        """Tell whether neither the winner nor a row solves enough to be level in it."""
        solved = [each.scores.accuracy for each in (self.winner, row)]
        return all(accuracy is not None and accuracy < LITTLE for accuracy in solved)

    def _beats(self, row: Row, other: Row) -> bool:
        compared = self._compared(row, other)
        return bool(compared) and compared[0].is_better

    # A log-likelihood tells models apart that give the same answers. Against a simpler model that
    # is no reason to keep the merge: where the accuracies are level, and closer than `DIFFERENCE`,
    # they come first, unless the simpler model has no right answer. LoRA is trained, and not
    # simpler in this sense: one that is as right, and far less sure of it, has learned its examples
    # by heart.
    #
    # Of equally many right answers a difference that is 0.00 tells nothing, however sure it is.
    def _compared(self, row: Row, other: Row) -> list[Comparison]:
        """Comparisons of two rows, the one that decides first."""
        compared = compare_all(row.scores, other.scores, self.by)
        if len(compared) == 2 and not compared[1].difference and is_nothing(compared[0]):
            return compared[::-1]
        if (
            other.stage not in SIMPLER
            or other.stage == "lora"
            or len(compared) < 2
            or compared[0].measure == "accuracy"
        ):
            return compared
        fitness, accuracy = compared
        is_ahead = accuracy.is_better or (accuracy.is_close and accuracy.difference > 0)
        level = not is_ahead and accuracy.difference < DIFFERENCE
        if fitness.is_better and level and column(other.scores, "accuracy").any():
            return [accuracy, fitness]
        return compared

    def _forgets(self, row: Row) -> str:
        """Say of which retained examples a row has lost more than the winner, or which of the
        skills that the search is for it has lost whole; empty where of none."""
        for name, kept in self.winner.retained.items():
            lost = row.retained.get(name)
            if self.is_for_skills and lost is not None and lost.accuracy == 0 != kept.accuracy:
                return f"has nothing of {name}"
            compared = None if lost is None else compare(kept, lost)
            if lost is not None and compared is not None and compared.is_better:
                had, has = (column(each, compared.measure).mean() for each in (kept, lost))
                return f"forgets more ({has:.2f} against {had:.2f} of {name})"
        return ""

    def against(self, other: Row, *, advise: bool) -> str:
        """Write one sentence about the winner and another model, by what tells them apart, with
        what to do about a simpler one where asked; empty where they cannot be compared."""
        compared = self._compared(self.winner, other)
        against = other.against
        if not compared or against is None:
            return ""
        first = compared[0]
        winner = self.winner.model
        beside = self._beside(compared)
        size = f"{first.examples} examples"
        by_how_much = f"by {abs(first.difference):.3f} {self._of(first)}"
        is_simpler = other.stage in SIMPLER
        forgets = self._forgets(other) if is_simpler else ""
        if first.is_better:
            if self.nothing_right():
                return ""  # which reads as success
            better = f"{winner} is better than {against.name},"
            trained = self.winner.stage == "together"  # which tells nothing of the sources
            if against.better and not (trained and other.stage == "noise"):
                better = f"{winner} {against.better}"
            if other.stage == "alone" and not trained and not self._solves_little(other):
                simpler = self.simplest(self.others)
                if simpler is not None and simpler.stage in PARENTS:
                    return ""  # one source is enough, as it is
                better = self._needs(other)
            return f"{better} {by_how_much} ({first.interval}){beside}"
        if first.is_worse:
            more = ""
            if forgets:
                more = f", but the latter {forgets}"
            elif advise or not (is_simpler or other.stage == "together"):
                more = f": {against.worse}"
            if first.measure == "accuracy" and compared[-1].difference > 0:
                more = f"; the fitness rose and the accuracy fell{more}"
            has = f"which has {column(other.scores, first.measure).mean():.3f}"
            return (
                f"{winner} is WORSE than {against.name}, {has}, {by_how_much} ({-first.high:.3f} "
                f"to {-first.low:.3f}){beside}{more}"
            )
        figures = self._figures(compared)
        if is_simpler and first.examples >= FEW and (first.difference <= 0 or not first.is_close):
            level = against.level or f"{against.name} does as well"
            if forgets or not advise:
                level = level.partition(":")[0]
            if forgets and self.is_for_skills:
                level = f"{other.model} is right as often in all"
            if forgets:
                level += f", and {forgets}"
            if not self.any_right or self._solves_little(other):
                return ""  # to be level with nothing is no advice
            hardly = "hardly tell" if first.is_close else "do not tell"
            of_other, of_winner = (self._column(row).mean() for row in (other, self.winner))
            has = f"it has {of_other:.3f} and {winner} {of_winner:.3f}"
            return f"{level}; {has}, which {size} {hardly} apart: {figures}"
        more = ""
        simpler = self.simplest(self.others) if advise and other.stage == "together" else None
        if simpler is not None and simpler.against is not None:
            lead = self._compared(other, simpler)[0]
            by = f"{lead.difference:.3f} {self._of(lead)} ({lead.interval})"
            more = f"; the latter is better than {simpler.against.name} by {by}"
        return (
            f"{winner} is {_not(first)} distinguishable from {against.name}, on {size}: "
            f"{figures}{more}"
        )

    def _needs(self, beaten: Row) -> str:
        """Say that one source is not enough, with what the best of them have alone."""
        lone = [
            (float(self._column(row).mean()), row.model)
            for row in self.rows
            if row.stage == "alone" and row.scores.error is None
        ]
        lone.sort(key=lambda each: -each[0])
        has = ", ".join(f"{model} has {mean:.3f}" for mean, model in lone[:3])
        what = "both sources" if len(lone) == 2 else "more than one source"
        best = "the best alone" if lone[0][1] == beaten.model else beaten.model
        return f"{self.winner.model} needs {what}: {has}; it beats {best}"

    def _figures(self, compared: Sequence[Comparison]) -> str:
        """Figures of all measures, the one that decides first."""
        of = f" {self._of(compared[0])}" if len(compared) > 1 else ""
        return f"{compared[0].text(of)}{self._beside(compared)}"

    def _of(self, comparison: Comparison) -> str:
        named = self.unit if comparison.measure == "fitness" else ""
        return named or f"of {comparison.measure}"

    def _beside(self, compared: Sequence[Comparison]) -> str:
        """The other measures' comparisons, after a sentence about the first; loud where they say
        the contrary."""
        first, *others = compared
        said = ""
        for other in others:
            if is_nothing(other):
                continue
            word = "but WORSE " if other.is_worse and not first.is_worse else ""
            word = "but better " if other.is_better and not first.is_better else word
            measured_in = f" ({self.unit})" if self.unit and other.measure == "fitness" else ""
            said += f"; {word}in {other.measure}{measured_in}: {other}"
        return said

    def forgotten(self) -> list[str]:
        """Say what the winner lost, or gained, on examples that the search did not look at."""
        sentences = []
        for name, scores in self.winner.retained.items():
            kept = {row.model: row.retained[name] for row in self.parents if name in row.retained}
            others = {model: each for model, each in kept.items() if each.error is None}
            by = measures(scores, *others.values())
            if scores.error is not None or not others:
                why = scores.error or "no parent could be"
                sentences.append(f"on {name} it could not be scored: {why}")
                continue
            best = max(others, key=lambda model: _means(others[model], by))
            compared = compare_all(scores, others[best], by)
            if not compared:
                continue  # of one example
            first = compared[0]
            if first.is_worse:
                said = "worse than"
            elif first.is_better:
                said = "better than"
            else:
                said = f"{_not(first)} distinguishable from"
            there = f"the best there, {best}"
            sentences.append(f"on {name} it is {said} {there}: {self._figures(compared)}")
        return sentences


def _judged(rows: Sequence[Row], unit: str = "") -> _Judged | None:
    """Put rows beside their winner; None where nothing won or it failed."""
    won = [row for row in rows if row.winner and row.scores.error is None]
    return _Judged(rows, won[0], unit) if won else None


def _means(scores: Scores, by: Sequence[Measure]) -> tuple[float, ...]:
    """Accuracy, and fitness, which decides between models of one accuracy."""
    return tuple(float(column(scores, measure).mean()) for measure in by)


def is_nothing(comparison: Comparison) -> bool:
    """Tell whether a difference of fitness is too small to speak of."""
    return comparison.measure == "fitness" and abs(comparison.difference) < LEAST


def _not(comparison: Comparison) -> str:
    return "hardly" if comparison.is_close else "not"


def _cut(rows: Sequence[Row]) -> list[str]:
    """A warning where many answers ended at the limit of their length, not at their end."""
    cut = {row.model: row.scores.truncated_share or 0.0 for row in rows}
    for row in rows:
        for name, kept in row.retained.items():
            cut[f"{row.model} on {name}"] = kept.truncated_share or 0.0
    listed = [f"{model} {share:.0%}" for model, share in cut.items() if share > MOST_CUT]
    if not listed:
        return []
    what = "ANSWERS WERE CUT at max_new_tokens, and what was cut may have been right; raise it"
    return [f"{what}: {', '.join(listed)}"]


def about_parents(
    parents: Mapping[str, Scores], examples: int, split: str
) -> tuple[list[str], str | None]:
    """Say what the sources' scores show before anything is searched.

    Args:
        parents: Scores of each source on the search split, by name.
        examples: Size of the split that the winner will be measured on.
        split: Its name.

    Returns:
        Notes, and a warning where no source can give another anything.
    """
    # A merge by examples solved: with a table of (source, example), what one source alone solves is
    # what a merge could gain.
    whole = {name: scores for name, scores in parents.items() if scores.error is None}
    if len(whole) < 2:
        return [], None
    measure = main_measure(*whole.values())
    solved = np.array([column(scores, measure) > 0 for scores in whole.values()])
    by_one = solved.sum(0) == 1
    alone = [
        f"{name} only {float((row & by_one).mean()):.0%}"
        for name, row in zip(whole, solved, strict=True)
    ]
    none = float((~solved.any(0)).mean())
    everyone = float(solved.all(0).mean())
    error = 0.98 / max(1, examples) ** 0.5  # 95 %, at most
    notes = [
        f"search examples solved by {', by '.join(alone)}, by every source {everyone:.0%}, by "
        f"no source {none:.0%}",
        f"{examples} {split} examples tell an accuracy to ± {error:.2f}",
    ]
    warning = None
    best = max(whole, key=lambda name: (whole[name].accuracy or 0.0, whole[name].mean or 0.0))
    values = np.array([scores.values for scores in whole.values()])
    most = whole[best].values
    is_binary = set(most) <= {0.0, 1.0}
    if (values == most).all():
        why = "this fitness sees nothing to combine; try likelihood"
        if not is_binary:
            why = "they may be one model, and there is nothing to combine"
        warning = f"every source scores the same on every search example: {why}"
    elif not (values > most).any() and measure == "fitness" and is_binary:
        warning = (
            f"no other source solves a search example that {best} does not: a merge is "
            "better only where it solves what none "
            "of them does, and right or wrong shows no way there; try likelihood"
        )
    return notes, warning
