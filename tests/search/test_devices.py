"""Several devices: workers take them in turn, a study keeps their kinds, and what they have not room for is said before."""

import pytest
from searches import facts

from hf_evomerge.errors import SearchError
from hf_evomerge.recipes.recipe import FlowPart, MergePart
from hf_evomerge.routing.spread import _Follow
from hf_evomerge.search import plan
from hf_evomerge.search.checks import check_search
from hf_evomerge.search.evaluation.devices import admit, device_kind, device_memory, devices_of
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.evaluation.gradients import WeightSlopes
from hf_evomerge.search.plan import _of_devices, plan_search
from hf_evomerge.search.run import run_search
from hf_evomerge.search.runners.runner import ProcessRunner
from hf_evomerge.search.study.study import Study


def test_devices_of_a_search(search_config, monkeypatch):
    """One, several, or all GPUs that there are; workers take them in turn."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    auto = search_config(compute={"device": "auto"})
    assert devices_of(auto) == ["cuda:0", "cuda:1"]
    assert [worker._start[0].compute.device for worker in ProcessRunner(auto, 3).workers] == ["cuda:0", "cuda:1", "cuda:0"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert devices_of(auto) == ["cpu"]
    assert devices_of(search_config(compute={"device": ["cpu", "cpu:0"]})) == ["cpu", "cpu:0"]
    assert devices_of(search_config()) == ["cpu"]
    with pytest.raises(SearchError, match="device"):
        search_config(compute={"device": []})


@pytest.mark.slow
def test_a_search_on_two_devices(search_config, tmp_path):
    """Two names of the processor are two devices with a worker each, and the trials are those of one."""
    one, two = (search_config(compute={"device": device}) for device in ("cpu", ["cpu", "cpu:0"]))
    run_search(one, tmp_path / "one", build=False)
    run_search(two, tmp_path / "two", build=False)
    assert facts(tmp_path / "one") == facts(tmp_path / "two")
    assert Study.open(tmp_path / "two").meta("devices") == [device_kind("cpu")]
    with pytest.raises(SearchError, match=r"device: 'toaster' cannot be used here"):
        run_search(search_config(compute={"device": ["cpu", "toaster"]}), tmp_path / "three")


def test_kinds_of_device_do_not_mix(tmp_path):
    """A second kind is refused by name unless it is allowed, and then it is kept too."""
    study = Study.create(tmp_path / "study", {})
    admit(study, "H100")
    admit(study, "H100", "node 10.0.0.1")
    with pytest.raises(SearchError, match=r"^node 10.0.0.2: A100 is not what the study's scores are from \(H100\)"):
        admit(study, "A100", "node 10.0.0.2")
    admit(study, "A100", "node 10.0.0.2", mixed=True)
    admit(study, "H100")
    assert study.meta("devices") == ["H100", "A100"]
    assert device_kind("cpu").startswith("CPU ")


def test_a_device_that_is_too_small(search_config, monkeypatch):
    """The dry run says which device has not the memory for the models."""
    assert device_memory("cpu") > 10**9
    monkeypatch.setattr("hf_evomerge.search.plan.default_workers", lambda config, memory: 2)
    monkeypatch.setattr(plan, "device_memory", lambda device: 1e3 if device == "cpu:0" else 1e12)
    warnings = plan_search(search_config(compute={"device": ["cpu", "cpu:0"]})).warnings
    assert sum("device: cpu:0 has 1e-06 GB, and the models of this search take " in line for line in warnings) == 1
    assert not any("device: cpu has" in line for line in warnings)


def test_models_spread_over_devices(search_config):
    """A worker takes as many devices as its models lie on; the bits are those of one, and each holds its part."""
    four = search_config(compute={"device": ["cpu", "cpu:0", "cpu:1", "cpu:2"], "devices_per_model": 2})
    places = [worker._start[0].compute.device for worker in ProcessRunner(four, 3).workers]
    assert places == [("cpu", "cpu:0"), ("cpu:1", "cpu:2"), ("cpu", "cpu:0")]
    one, two = (search_config("dfs", compute={"devices_per_model": n, "device": ["cpu", "cpu:0"][:n]}) for n in (1, 2))
    path = one.recipe(flow=FlowPart(path=["0:0", "1:0-1"]))
    merge = one.recipe(merge=MergePart(method="task_arithmetic", parameters=[{"weight": 0.7}, {"weight": 0.2}]))
    slopes = WeightSlopes((("weight", 0, None), ("weight", 1, None)), (1.0, 1.0))
    jobs = [(one.sources[1], None), (path, None), (merge, None), (merge, slopes)]
    whole, spread = (Evaluator(config) for config in (one, two))
    found = [spread.evaluate(target, slopes=slope) for target, slope in jobs]
    assert found == [whole.evaluate(target, slopes=slope) for target, slope in jobs]
    assert [scores.error for scores in found] == [None] * 4
    model = spread.models.model(path)
    assert all(any(isinstance(hook, _Follow) for hook in layer._forward_pre_hooks.values()) for layer in model.layers)
    assert [line for line in _of_devices(two, {"dfs": 10**18}) if "take 5e+08 GB there" in line]
    with pytest.raises(SearchError, match=r"devices_per_model: 2, and there are 3 .*; name a multiple of 2"):
        check_search(search_config(compute={"device": ["cpu", "cpu:0", "cpu:1"], "devices_per_model": 2}), whole)
