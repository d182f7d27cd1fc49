"""The time that is left is that of all phases that are still to come."""

import pytest
from watch import Watch

from hf_evomerge import run_search
from hf_evomerge.search.callbacks import Progress
from hf_evomerge.search.phases.forecast import Forecast, PhasePlan
from hf_evomerge.search.phases.phase import SearchRun

TITLES = {
    "parents": "parents",
    "ps": "parameter space",
    "finalists": "best",
    "average": "average",
    "lora": "LoRA",
    "test": "test",
}


WORK = {"parents": 60, "ps": 600, "finalists": 80, "lora": 1200, "test": 300}


def test_what_is_to_come_has_the_quickest_pace():
    """Work that is to come takes as long as the quickest that was seen; the first phase, which
    loads models, says nothing."""
    forecast = Forecast(TITLES, [PhasePlan(name, "", work) for name, work in WORK.items()])
    forecast.enter("parents")
    assert forecast.left("parents", 20, 20.0, rest=40) is None
    assert forecast.to_come == ("parameter space", "best", "LoRA", "test")
    for phase, name, done, seconds, rest, more, left in (
        ("ps", "ps", 0, 0.5, 600, 0, None),
        ("ps", "ps", 100, 20.0, 500, 0, 0.2 * (500 + 80 + 1200 + 300)),
        # counted in the stage, and not again
        ("ps", "finalists", 20, 1.0, 60, 0, 0.05 * (60 + 1200 + 300)),
        ("lora", "finalists", 10, 5.0, 10, 900, 0.5 * 10 + 0.05 * (900 + 300)),
        ("test", "test", 300, 30.0, 0, 0, 0),
    ):
        forecast.enter(phase)
        said = forecast.left(name, done, seconds, rest=rest, more=more)
        assert said == (left and pytest.approx(left))
    assert forecast.to_come == ()


@pytest.mark.parametrize(("fresh", "seconds", "left"), [(1, 60, 110), (0.1, 60, 110), (0, 0, None)])
def test_a_search_that_goes_on_keeps_its_pace(fresh, seconds, left, search_config):
    """After a resume the loading of models does not count as the time of one trial: the processes
    before tell the pace. What is only read again tells nothing."""
    reports = []
    run = SearchRun(search_config("ps"), None, None, None, callbacks=[Watch(reports.append)])
    run.forecast = Forecast({"parents": "", "ps": ""}, [PhasePlan("ps", "", 48)])
    run.forecast.enter("ps")
    progress = Progress("ps", 40, 50, seconds=seconds, seconds_before=380, fresh=fresh)
    run.report(progress, size=1)
    assert reports[0].left == (left if left is None else pytest.approx(left))


@pytest.mark.parametrize("by", ["gradient", "cma"])
def test_a_search_says_what_is_to_come(by, tmp_path, search_config, tiny):
    """From the first whole evaluation of a stage on, every report has the time until the table is
    there and the phases that are to come; the last has none. Retained examples are part of the
    test."""
    config = search_config(
        optimize=[{"by": by, "evaluations": 8}],
        compare={"contributions": True, "retain": {"old": {"jsonl": str(tiny / "test.jsonl")}}},
    )
    reports = []
    run_search(config, tmp_path, build=False, callbacks=[Watch(reports.append)])
    first, second, *others = reports
    assert (first.phase, first.done, first.left) == ("parents", 0, None)
    titles = ("parameter space", "best, validated", "contributions")
    assert second.to_come == (*titles, "held-out test")
    unknown = [each for each in others if each.left is None]
    assert all(each.phase == "parents" or each.fresh < 1 for each in unknown)
    assert all(each.left for each in others if each.phase == "test"), "retained examples follow"
    assert (others[-1].left, others[-1].to_come) == (0, ())
    again = []
    run_search(config, tmp_path, build=False, callbacks=[Watch(again.append)])
    assert not any(each.fresh for each in again)
