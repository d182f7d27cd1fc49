"""A push when the Hub has a bad day: whatever goes wrong with whichever call, it succeeds or says
in one line what is there."""

import itertools
import random
import time

import pytest
from faulty_hub import Fault
from push_faults import FAULTS

SAMPLE = 2  # calls per fault that are tried one by one


def _sample(calls, seed):
    return random.Random(seed).sample(sorted(set(calls)), SAMPLE)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_that_passes_is_survived(bench, kind):
    """Where every call goes wrong once, or one of them, the push succeeds, and everything is there
    once."""
    calls = bench.calls()
    every = dict.fromkeys(calls)
    for chosen in (every, *([call] for call in _sample(calls, kind))):
        outcome = bench.push([Fault(call, **FAULTS[kind]) for call in chosen])
        assert (outcome.error, outcome.complaint) == (None, None), chosen
        assert outcome.hits == len(chosen)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_that_stays_is_one_line(bench, kind):
    """Where a call goes wrong for ever, the push ends with one line that is true."""
    calls = bench.calls()
    commit = next(call for call in calls if "/commit/" in call)
    for call in (commit, *_sample(calls, f"{kind} for ever")):
        outcome = bench.push([Fault(call, **FAULTS[kind], times=None)])
        assert outcome.complaint is None, call
        assert outcome.hits > 0


def test_a_clock_that_jumps(bench, monkeypatch):
    """The time of day is another one at every look, a day off: a push in which each call fails once
    succeeds all the same."""
    faults = [Fault(call, **FAULTS["500"]) for call in dict.fromkeys(bench.calls())]
    now = time.time
    jumps = itertools.cycle((0, 86_400, -86_400))
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    outcome = bench.push(faults)
    assert (outcome.error, outcome.complaint) == (None, None)
    assert outcome.hits == len(faults)
