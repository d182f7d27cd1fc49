"""A push when the Hub has a bad day: whatever goes wrong with whichever call, it succeeds, or ends
in one line and is finished by pushing again."""

import random

import pytest
from faulty_hub import Fault
from push_faults import FAULTS

SAMPLE = 2  # calls per fault that are tried one by one


@pytest.mark.parametrize("times", [1, None])
@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_survived(bench, kind, times):
    """Where a call goes wrong once, or for ever until the push ends, everything is there once in
    the end."""
    calls = sorted(set(bench.calls()))
    commit = next(call for call in calls if "/commit/" in call)
    for call in (commit, *random.Random(f"{kind} {times}").sample(calls, SAMPLE)):
        fault = Fault(call, **FAULTS[kind], times=times)
        assert bench.push(fault) is None, call
        assert fault.hits > 0
