"""Plans of phases, and the time until the table of results is there: planned work at the pace of
what has been seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PhasePlan:
    """Plan of a phase.

    Attributes:
        name: Name of the phase.
        text: What it does, in words.
        seconds: How long it takes with one worker.
        at_once: How many workers it has work for.
        like: Name of a phase that does the same kind of work; empty where there is none.
    """

    name: str
    text: str
    seconds: float
    at_once: float = math.inf
    like: str = ""

    def minutes(self, workers: int) -> float:
        """Return its minutes with so many workers."""
        return self.seconds / 60 / max(1, min(self.at_once, workers))


# Work is counted in scores of one example. A plan without a clock says how much of it each phase
# takes; a gradient step counts as its price, three scores of its batch. With
#   w_p  the work of phase p that is still to come,
#   r_p  the seconds of a score in phase p, or in the phase that it is like; the least of all paces
#        where neither has begun,
# the time that is left is  rest of the current phase * its pace + sum_p r_p w_p.
#
# A pace is that between the first report of a phase and its last, for models are loaded before the
# first, and nothing is compiled yet. Nothing is said while the first phase's is the only pace: with
# few examples nearly all of its time is loading. What the study holds already is not seen. A phase
# of which it holds a part is counted whole until it begins, and then by what is missing.
class Forecast:
    """Forecast of the time that is left for a search.

    Args:
        titles: Titles of the phases of the search by their names, in order.
        plans: Their plans, with work in place of seconds.
    """

    def __init__(self, titles: Mapping[str, str], plans: Sequence[PhasePlan]) -> None:
        self._titles = titles
        self._plans = {plan.name: plan for plan in plans}
        self._waiting = list(titles)
        self._first = self._waiting[0]
        self._begun: dict[str, tuple[float, float]] = {}
        self._done: dict[str, float] = {}
        self._paces: dict[str, float] = {}

    def enter(self, name: str) -> None:
        """Note that a phase begins, and that those before it have ended."""
        del self._waiting[: self._waiting.index(name)]

    @property
    def to_come(self) -> tuple[str, ...]:
        """Titles of the planned phases after the current one."""
        return tuple(self._titles[name] for name in self._waiting[1:] if name in self._plans)

    def left(
        self, name: str, done: float, seconds: float, *, rest: float, more: float = 0.0
    ) -> float | None:
        """Return the seconds until the table is there; None where nothing has been seen yet.

        Args:
            name: Name that the work is reported under, the current phase's as a rule.
            done: Work that was done under this name in this process, in scores of an example.
            seconds: Wall time that it took.
            rest: Work that is left of it.
            more: Work of the current phase that follows.
        """
        if done:
            self._done[name] = done
            begun, before = self._begun.setdefault(name, (done, seconds))
            if done > begun:
                self._paces[name] = (seconds - before) / (done - begun)
        if not self._paces.keys() - {self._first}:
            return None
        left = rest * self._pace(name) + more * self._pace(self._waiting[0])
        for each in self._waiting[1:]:
            if each in self._plans and each != name:
                to_come = max(0.0, self._plans[each].seconds - self._done.get(each, 0.0))
                left += to_come * self._pace(each)
        return left

    def _pace(self, name: str) -> float:
        """Seconds of a score in a phase."""
        like = self._plans[name].like if name in self._plans else ""
        return self._paces.get(name) or self._paces.get(like) or min(self._paces.values())
