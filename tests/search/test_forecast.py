"""The time that is left is that of all phases that are still to come."""

from dataclasses import replace

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


def test_what_is_to_come_has_its_pace():
    """Work that is to come takes as long as work of its kind, or else as the quickest that was
    seen; the first report of each tells nothing, nor does the first phase alone, whose time is
    mostly loading."""
    plans = [PhasePlan(name, "", work) for name, work in WORK.items()]
    plans[3] = replace(plans[3], like="ps")
    forecast = Forecast(TITLES, plans)
    forecast.enter("parents")
    assert forecast.left("parents", 20, 20.0, rest=40) is None
    assert forecast.left("parents", 40, 70.0, rest=20) is None
    assert forecast.to_come == ("parameter space", "best", "LoRA", "test")
    for phase, name, done, seconds, rest, more, left in (
        ("ps", "ps", 0, 0.5, 600, 0, None),
        ("ps", "ps", 10, 90.0, 590, 0, None),
        ("ps", "ps", 110, 110.0, 490, 0, 0.2 * (490 + 80 + 1200 + 300)),
        # counted in the stage, and not again
        ("ps", "finalists", 10, 5.0, 70, 0, 0.2 * (70 + 1200 + 300)),
        ("ps", "finalists", 20, 5.5, 60, 0, 0.05 * (60 + 300) + 0.2 * 1200),
        ("lora", "finalists", 10, 5.0, 10, 900, 0.05 * (10 + 300) + 0.2 * 900),
        ("lora", "lora", 10, 50.0, 1190, 0, 0.2 * 1190 + 0.05 * 300),
        ("lora", "lora", 20, 55.0, 1180, 0, 0.5 * 1180 + 0.05 * 300),
        ("test", "test", 300, 30.0, 0, 0, 0),
    ):
        forecast.enter(phase)
        said = forecast.left(name, done, seconds, rest=rest, more=more)
        assert said == (left and pytest.approx(left))
    assert forecast.to_come == ()


@pytest.mark.parametrize("fresh", [1, 0])
def test_a_search_that_goes_on_finds_its_pace(fresh, search_config):
    """After a resume the loading of models does not count as the time of one trial, and what is
    only read again tells nothing."""
    reports = []
    run = SearchRun(search_config("ps"), None, None, None, callbacks=[Watch(reports.append)])
    run.forecast = Forecast({"parents": "", "ps": ""}, [PhasePlan("ps", "", 48)])
    run.forecast.enter("ps")
    for done, seconds in ((39, 60), (40, 71)):
        counted = (done - 38) * fresh
        run.report(Progress("ps", done, 50, seconds=seconds, fresh=counted), size=1)
    assert [each.left for each in reports] == [None, 10 * 11 if fresh else None]


@pytest.mark.parametrize("by", ["gradient", "cma"])
def test_a_search_says_what_is_to_come(by, tmp_path, search_config, tiny):
    """From the second report of the first stage on, every report has the time until the table is
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
    searched = [each for each in others if each.phase != "parents"]
    assert all(each.left is not None for each in searched[2:])
    assert all(each.left for each in others if each.phase == "test"), "retained examples follow"
    assert (others[-1].left, others[-1].to_come) == (0, ())
    again = []
    run_search(config, tmp_path, build=False, callbacks=[Watch(again.append)])
    assert not any(each.fresh for each in again)
