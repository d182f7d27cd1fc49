"""Share of the parents' skills that a model keeps: the yardstick of merges of many tasks.

For a skill, a the model's accuracy on examples and b the best parent's on the same ones, the share
kept is r = a / b (AdaMerging, arXiv:2310.02575, section 5, calls its mean the normalised accuracy).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...fitness.comparison import share_interval
from ...fitness.scores import Scores

HALF = 0.5  # of a skill
Skills = Mapping[str, Scores]
"""Scores of one model by the name of the skill."""


@dataclass(frozen=True)
class Kept:
    """Share of one skill that a model keeps.

    Attributes:
        skill: Name of the skill.
        share: Accuracy over the accuracy of the best parent.
        low, high: Interval of 95 %, by the paired examples.
        parent: Name of the best parent.
    """

    skill: str
    share: float
    low: float
    high: float
    parent: str

    def __str__(self) -> str:
        return f"{self.share:.2f} ({self.low:.2f} to {self.high:.2f}) of {self.skill}"


def kept(skills: Skills, parents: Mapping[str, Skills]) -> list[Kept]:
    """Shares of every skill that a model keeps.

    A skill without accuracy, or that no parent has, is left out.

    Args:
        skills: Scores of the model.
        parents: Scores of base and sources on the same examples, by the parent's name.
    """
    shares = []
    for skill, scores in skills.items():
        able = {
            name: own[skill]
            for name, own in parents.items()
            if skill in own and own[skill].accuracy
        }
        if scores.accuracy is None or not able:
            continue
        best = max(able, key=lambda name: able[name].accuracy or 0.0)
        shares.append(Kept(skill, *_ratio(scores, able[best]), best))
    return shares


# A ratio of two means over the same n examples, r = mean(x) / mean(y). By the delta method its
# variance is that of the residuals e_i = x_i - r y_i:
#   r +- 1.96 sqrt(mean(e^2) / n) / mean(y)       (Cochran 1977, Sampling Techniques, section 2.11)
# What makes an example hard for both drops out of e, as in every paired comparison. An accuracy is
# at most 1, so r is at most 1 / mean(y). Where no e differs from 0 this interval is a point; then
# Wilson's is taken, of what the model solves among the m examples that the parent solves.
def _ratio(model: Scores, parent: Scores) -> tuple[float, float, float]:
    assert model.correct is not None  # `kept` has looked
    assert parent.correct is not None
    right = model.correct.astype(float)
    by_parent = parent.correct.astype(float)
    share = float(right.mean() / by_parent.mean())
    error = math.sqrt(float(((right - share * by_parent) ** 2).mean()) / right.size)
    if error == 0:
        solved = int(by_parent.sum())
        return share, *share_interval(round(share * solved), solved)
    half = 1.96 * error / float(by_parent.mean())
    most = 1 / float(by_parent.mean())
    return share, max(0.0, share - half), min(share + half, most)


def mean_kept(shares: Sequence[Kept]) -> str:
    """Mean of shares, as text; empty where there are none."""
    return f"{sum(each.share for each in shares) / len(shares):.2f}" if shares else ""


def what_is_kept(shares: Sequence[Kept], name: str = "") -> list[str]:
    """Sentence about the shares of the winner, or of another model by its name; none where there
    are none."""
    if not shares:
        return []
    text = f"{name} keeps" if name else "Keeps"
    text += f" {', '.join(map(str, shares))}, each of the best parent's accuracy"
    if len(shares) > 1:
        least = min(each.share for each in shares)
        text += f": {mean_kept(shares)} on average, {least:.2f} at least"
    lost = [each.skill for each in shares if each.share < HALF]
    if lost:
        text += f"; MORE THAN HALF IS LOST of {' and '.join(lost)}"
        text += "" if name else ": give more examples of it"
    return [text]
