"""A Ray cluster gives the study that this process gives, and what goes wrong on a machine is one
line that names it."""

import sys
from functools import partial
from types import SimpleNamespace
from unittest.mock import MagicMock

import killing
import pytest
from killing import EXAMPLES, KillingTask, harmless_jobs
from refusals import refused
from searches import facts
from watch import killed

from hf_evomerge import EvoMergeError, open_source, run_search
from hf_evomerge.checkpoints.digests import digest_source
from hf_evomerge.errors import SearchError
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.evaluation.gradients import WeightSlopes
from hf_evomerge.search.evaluation.provenance import versions
from hf_evomerge.search.runners import cluster as cluster_module
from hf_evomerge.search.runners.cluster import ClusterEvaluator, RayRunner, RayWorker, _join
from hf_evomerge.search.runners.job import Job
from hf_evomerge.search.runners.limits import Limit, Limits
from hf_evomerge.search.runners.runner import LocalRunner
from hf_evomerge.search.study.study import Study


@pytest.fixture(scope="module")
def cluster():
    """A cluster on this machine, whose processes find this module; the runners join it."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    names = ("RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness", "RAY_ENABLE_UV_RUN_RUNTIME_ENV")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, "0")
        ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        ray.cloudpickle.register_pickle_by_value(killing)
        yield ray
        ray.shutdown()


make = partial(Evaluator, task_factory=KillingTask, examples={"search": EXAMPLES})


def _runner(config, workers=None, **more):
    files = {label: digest_source(open_source(ref), {}) for label, ref in config.parents.items()}
    given = {"memory": 1, "files": files, "admit": lambda kind, where: None, **more}
    return RayRunner(config, workers, make=make, **given)


@pytest.mark.slow
def test_actors_give_the_scores_of_this_process(cluster, search_config):
    """Two actors give the bits of this process, gradients too; one that dies or hangs is replaced,
    and its job alone fails."""
    config = search_config()
    slopes = WeightSlopes((("weight", 0, None), ("weight", 1, None)), (1.0, 2.0))
    jobs = harmless_jobs(config)
    target = jobs[1].target
    jobs.append(Job(target, batch=(0, 1), slopes=slopes))
    expected = dict(LocalRunner(make(config)).run(jobs))
    assert all(scores.error is None for scores in expected.values())
    seen = []

    class Short(Limits):
        def of(self, job):
            return Limit(3.0) if job.batch == (4,) else Limit()

    sizes = {"search": len(EXAMPLES)}
    limits = Short(config.compute.limits, examples=sizes, layers=2, parents=lambda: [])
    runner = _runner(config, limits=limits, admit=lambda *kind: seen.append(kind))
    try:
        deadly, sleeping = (Job(target, batch=(number,)) for number in (2, 4))
        scores = {}
        with refused(SearchError, "its process died twice"):
            scores.update(runner.run([*jobs, deadly, sleeping]))
        assert {index: scores[index] for index in expected} == expected
        assert scores[9].error == "took longer than 3 s (compute.limits.seconds)"
        assert len(runner.workers) == 2
        assert len(set(seen)) == 1
        assert seen[0][1].startswith("node ")
    finally:
        runner.close()
    assert cluster.is_initialized()  # it was there before the runner


@pytest.mark.slow
def test_a_study_is_the_same_and_goes_on(cluster, search_config, tmp_path):
    """A search that a cluster began and this process ends has the trials of one process; another
    kind of device is noted."""
    steps = "[{by: gradient, evaluations: 10}, {evaluations: 8, population: 4}]"
    config = search_config(optimize=steps)
    here = run_search(config, tmp_path / "here", build=False)
    killed(
        lambda seen: seen.phase == "ps" and seen.done == 5,
        run_search,
        config,
        tmp_path / "there",
        ray=True,
    )
    study = Study.open(tmp_path / "there")
    kinds = study.meta("devices")
    assert len(kinds) == 1
    study.set_meta("devices", ["another GPU"])
    study.close()
    there = run_search(config, tmp_path / "there", build=False)
    assert there.winner == here.winner
    trials = Study.open(tmp_path / "here").trials()
    assert any(trial.scores.gradient is not None for trial in trials)
    assert facts(tmp_path / "there") == facts(tmp_path / "here")
    assert Study.open(tmp_path / "there").meta("devices") == ["another GPU", *kinds]


@pytest.mark.slow
def test_what_is_wrong_on_a_machine_names_it(cluster, search_config):
    """A source that a machine has not, or another file of it, and a device that no machine has."""
    config = search_config()
    other = {"base": {}, "source:0": {"config.json": ["0" * 64]}, "source:1": {}}
    runner = _runner(config, 1, files=other)
    with refused(
        SearchError, r"^node [0-9.]+ \(.*\): .*config.json is not what the search stands on"
    ):
        list(runner.run([Job(config.sources[0])]))
    runner.close()
    with refused(SearchError, r"no machine of the cluster has a GPU; there are node "):
        _runner(search_config(compute="{device: 'cuda:0'}"))
    with refused(SearchError, r"no machine of the cluster has 1 CPUs \(threads\) and 1e\+06 GB"):
        _runner(config, memory=10**15)


def test_what_a_machine_must_have():
    """Other versions are one line, said before anything is unpickled."""
    with refused(EvoMergeError, r"has torch \S+, and the search runs with 1.0; install the same"):
        ClusterEvaluator().start({**versions(), "torch": "1.0"}, b"no pickle")


@pytest.mark.parametrize("answer", [None, "scores", {"values": [1.0]}, [0.5]])
def test_a_worker_that_answers_nonsense(monkeypatch, answer):
    """What is no scores is never stored; the line names the machine."""
    worker = object.__new__(RayWorker)
    worker.node = SimpleNamespace(name="machine-1")
    worker.ref = None
    worker.index = 3
    monkeypatch.setattr(cluster_module, "_is_there", lambda ref: True)
    monkeypatch.setattr(RayWorker, "_answer", lambda self: answer)
    with refused(
        SearchError, r"machine-1: a worker answers .* in place of scores; install the same version"
    ):
        worker.look()


def test_without_ray(search_config, tmp_path, monkeypatch):
    """Where Ray is not installed, one line says how it is."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with refused(SearchError, r"--ray: .* needs ray: pip install 'hf-evomerge\[scale\]'"):
        run_search(search_config(), tmp_path / "out", ray=True)
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_cannot_be_joined_is_one_line(tmp_path, monkeypatch):
    """An address where nobody is, at once, and a Ray that does not start; in place of one that is
    gone another is started."""
    ray = MagicMock()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with refused(SearchError, r"the cluster at 127\.0\.0\.1:1 cannot be joined: .*refused"):
        _join(ray)
    ray.init.assert_not_called()
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    _join(ray)
    assert ray.init.call_args.args == (None,)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1\n")
    _join(ray)
    assert ray.init.call_args.args == ("local",)
    ray.init.side_effect = Exception("timed out during startup")
    with refused(
        SearchError, "the cluster at this machine cannot be joined: timed out during startup"
    ):
        _join(ray)
