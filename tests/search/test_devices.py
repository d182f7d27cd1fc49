"""Several devices: workers take them in turn, a study keeps their kinds, and what they have not
room for is said before."""

import pytest
import torch
from refusals import refused
from searches import facts
from transformers import LlamaForCausalLM

from hf_evomerge import plan_search, run_search
from hf_evomerge.errors import SearchError
from hf_evomerge.search import plan
from hf_evomerge.search.checks import check_search
from hf_evomerge.search.evaluation.devices import device_kind, device_memory, devices_of, note_kind
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.runners.runner import ProcessRunner
from hf_evomerge.search.study.study import Study


def test_devices_of_a_search(search_config, monkeypatch):
    """One, several, or all GPUs that there are; workers take them in turn."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    auto = search_config(compute="{device: auto}")
    assert devices_of(auto) == ["cuda:0", "cuda:1"]
    workers = ProcessRunner(auto, 3).workers
    devices = [worker._start[0].compute.device for worker in workers]
    assert devices == ["cuda:0", "cuda:1", "cuda:0"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert devices_of(auto) == ["cpu"]
    assert devices_of(search_config(compute="{device: [cpu, 'cpu:0']}")) == ["cpu", "cpu:0"]
    assert devices_of(search_config()) == ["cpu"]
    with refused(SearchError, "device"):
        search_config(compute="{device: []}")


@pytest.mark.slow
def test_a_search_on_two_devices(search_config, tmp_path):
    """Two names of the processor are two devices with a worker each, and the trials are those of
    one."""
    one, two = (search_config(compute={"device": device}) for device in ("cpu", ["cpu", "cpu:0"]))
    run_search(one, tmp_path / "one", build=False)
    run_search(two, tmp_path / "two", build=False)
    assert facts(tmp_path / "one") == facts(tmp_path / "two")
    assert Study.open(tmp_path / "two").meta("devices") == [device_kind("cpu")]
    with refused(SearchError, r"device: 'toaster' cannot be used here"):
        run_search(search_config(compute="{device: [cpu, toaster]}"), tmp_path / "three")


def test_another_kind_of_device_is_a_warning(tmp_path, caplog):
    """The study notes each kind that its scores are from, and a second one is named once."""
    study = Study.create(tmp_path / "study", {})
    for kind, where in (("H100", ""), ("H100", "node 10.0.0.1"), ("A100", "node 10.0.0.2")) * 2:
        note_kind(study, kind, where)
    (said,) = caplog.messages
    assert said.startswith("node 10.0.0.2: A100 is not what the study's scores are from (H100)")
    assert study.meta("devices") == ["H100", "A100"]
    assert device_kind("cpu").startswith("CPU ")


def test_a_device_that_is_too_small(search_config, monkeypatch):
    """The dry run says which device has not the memory for the models."""
    assert device_memory("cpu") > 10**9
    monkeypatch.setattr("hf_evomerge.search.plan.default_workers", lambda config, memory: 2)
    monkeypatch.setattr(plan, "device_memory", lambda device: 1e3 if device == "cpu:0" else 1e12)
    warnings = plan_search(search_config(compute="{device: [cpu, 'cpu:0']}")).warnings
    (said,) = (line for line in warnings if "compute.device: " in line)
    assert "cpu:0 has 1e-06 GB, and the workers of this search take " in said


def test_models_over_all_gpus(search_config, tmp_path, monkeypatch):
    """accelerate shares out each model, one worker takes all GPUs, and on one device the bits are
    those of one."""
    pytest.importorskip("accelerate")
    seen = set()
    load = LlamaForCausalLM.from_pretrained

    def noted(*arguments, **how):
        seen.add(how["device_map"])
        return load(*arguments, **how)

    spread = search_config(compute="{device_map: auto, device: auto}")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert devices_of(spread) == ["cuda:0"]
    monkeypatch.undo()
    run_search(search_config(), tmp_path / "one", build=False)
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", noted)
    run_search(spread, tmp_path / "all", build=False)
    assert facts(tmp_path / "all") == facts(tmp_path / "one")
    assert seen == {"auto"}


def test_a_model_that_the_gpus_cannot_hold(search_config, monkeypatch):
    """What accelerate leaves on disk or on the processor cannot be merged into: one line says
    so."""
    config = search_config(compute="{device_map: auto, device: auto}")
    monkeypatch.setattr(
        LlamaForCausalLM, "parameters", lambda self: iter([torch.empty(1, device="meta")])
    )
    scores = Evaluator(config).evaluate(config.sources[0])
    assert (
        "compute.device_map: the GPUs together have not the memory for it; take more of them"
        in scores.error
    )


@pytest.mark.parametrize(
    "changes", [{"space": "dfs"}, {"compute": "{device_map: auto, device: cpu}"}]
)
def test_what_is_not_shared_out(search_config, changes):
    """Paths run through whole layers on one device, and a device that is named is the only one."""
    config = search_config(**{"compute": "{device_map: auto, device: auto}", **changes})
    with refused(SearchError, r"compute\.device_map: goes with space: ps"):
        check_search(config, Evaluator(config))
