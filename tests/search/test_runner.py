"""Runners: worker processes give the scores of this process, and a worker that dies takes only its
own job with it."""

import errno
import math
import multiprocessing
import re
import time
from collections import Counter
from functools import partial
from threading import Timer
from types import SimpleNamespace

import pytest
from killing import EXAMPLES, DeadlyTask, FailingTask, KillingTask, harmless_jobs
from searches import facts
from slowly import slow_beyond

from hf_evomerge.errors import FitnessError, MachineError, SearchError, is_of_machine
from hf_evomerge.fitness import Scores
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.evaluation.gradients import GateSlopes, WeightSlopes
from hf_evomerge.search.run import run_search
from hf_evomerge.search.runners.job import Job
from hf_evomerge.search.runners.limits import Limit, Limits
from hf_evomerge.search.runners.runner import MOVES, LocalRunner, PoolRunner, ProcessRunner
from hf_evomerge.search.runners.workers import TICK, MachineLostError
from hf_evomerge.search.study.study import Study


def _run(runner, jobs):
    scores = dict(runner.run(jobs))
    assert sorted(scores) == list(range(len(jobs)))
    return [scores[index] for index in range(len(jobs))]


@pytest.fixture(scope="module")
def process_runner(search_config):
    """Two workers with the killing task; starting one takes seconds, so the tests share them.
    Closing ends them."""
    make = partial(Evaluator, task_factory=KillingTask, examples={"search": EXAMPLES})
    runner = ProcessRunner(search_config(), 2, make=make)
    yield runner
    runner.close()
    assert not multiprocessing.active_children()


def test_workers_and_their_deaths(process_runner, search_config):
    """Two workers give what this process gives; one that kills its worker twice ends the search
    after the others."""
    config = search_config()
    local = LocalRunner(Evaluator(config, task_factory=KillingTask, examples={"search": EXAMPLES}))
    jobs = harmless_jobs(config)
    expected = _run(local, jobs)
    assert len({str(fact) for fact in expected}) == len(jobs)
    assert _run(process_runner, jobs) == expected

    deadly, ill, leaving = (Job(config.sources[0], "search", (index,)) for index in (2, 3, 7))
    scores = {}
    with pytest.raises(
        SearchError,
        match=rf"^{re.escape(str(config.sources[0]))}: its process died twice, see what",
    ):
        scores.update(process_runner.run([jobs[0], deadly, ill, *jobs[4:6], leaving]))
    assert sorted(scores) == [0, 2, 3, 4, 5]
    assert [scores[0], scores[3], scores[4]] == [expected[0], *expected[4:6]]
    assert scores[2].error == "RuntimeError: not today"
    assert scores[5].error == _run(local, [leaving])[0].error == "SystemExit: 0"
    assert _run(process_runner, jobs[-1:]) == expected[-1:]
    assert multiprocessing.active_children()


def test_what_exceeds_a_limit_fails_alone(process_runner, search_config, monkeypatch):
    """A job that sleeps or is stopped fails in one line, its worker is replaced, the others
    score."""
    config = search_config()

    def limits(seconds):
        strict = search_config(compute={"limits": {"seconds": seconds}}).compute.limits
        return Limits(strict, examples={"search": len(EXAMPLES)}, layers=2, parents=lambda: [])

    idle = limits(2)
    others = limits(3600)  # the others wait for a busy machine as long as it likes
    both = SimpleNamespace(
        size=others.size, of=lambda job: (idle if job.batch in [(4,), (5,)] else others).of(job)
    )
    monkeypatch.setattr(process_runner, "limits", both)
    jobs = harmless_jobs(config)
    expected = _run(process_runner, jobs)
    sleeping, stopped = (Job(jobs[0].target, "search", (index,)) for index in (4, 5))
    scores = _run(process_runner, [jobs[0], sleeping, stopped, *jobs[4:6]])
    assert [scores[0], *scores[3:]] == [expected[0], *expected[4:6]]
    assert [scores[1].error, scores[2].error] == [
        "took longer than 2 s (compute.limits.seconds)"
    ] * 2
    assert 2 <= scores[1].seconds <= 2 + 4 * TICK  # no look at it counts for more


def test_a_default_limit_grows_with_the_work(search_config):
    """Without limits.seconds a candidate may take ten times a parent's time, for each example, also
    in a prompt, hop and pass."""
    parents = [None, Scores([1.0], seconds=30.0), Scores([1.0], seconds=20.0)]
    config = search_config()
    merge, path = (
        next(job for job in harmless_jobs(config) if part(job.target))
        for part in (lambda t: t.merge, lambda t: t.flow)
    )
    limits = Limits(
        config.compute.limits,
        examples={"search": 10, "test": 40},
        layers=2,
        parents=lambda: parents,
    )
    long = path.target.model_copy(
        update={
            "flow": path.target.flow.model_copy(update={"path": ["0:0-1", "1:0-1"], "scales": None})
        }
    )

    def seconds(target, split="search", batch=None, slopes=None):
        return limits.of(Job(target, split, batch, slopes)).seconds

    assert seconds(merge.target) == 300
    assert seconds(merge.target, "test") == 1200
    assert seconds(merge.target, "search", tuple(range(5))) == 150
    assert seconds(merge.target, "search", (0,)) == 60
    assert seconds(long) == 600
    assert limits.of(Job(merge.target, shots=3)).seconds == 1200
    assert seconds(merge.target, slopes=WeightSlopes((), ())) == 900
    gates = GateSlopes((), (), (True,) * 8, ())
    assert seconds(long, slopes=gates) == 3600
    assert seconds(config.sources[0]) == math.inf
    before = Limits(
        config.compute.limits, examples={"search": 10}, layers=2, parents=lambda: [None]
    )
    assert before.of(merge).seconds == math.inf


def test_time_in_which_everything_stood_still_does_not_count(
    process_runner, search_config, monkeypatch
):
    """Where this process is stopped as well, as by Ctrl-Z, a job is not given up for it."""
    worker = process_runner.workers[0]
    worker.begin(0, harmless_jobs(search_config())[0], Limit(seconds=600.0))
    late = time.monotonic
    while (scores := worker.look()) is None:
        monkeypatch.setattr(time, "monotonic", lambda late=late: late() + 10_000.0)
        assert worker.index == 0
        time.sleep(0.1)
        late = time.monotonic
    assert scores.error is None


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_starts_is_replaced(process_runner, search_config):
    """A worker that the kernel kills before it is ready is replaced, and its job is run again."""
    process_runner.workers[0].end()
    scores = process_runner.run(harmless_jobs(search_config())[:1])
    Timer(
        0.1,
        lambda: [
            each._process.kill()
            for each in process_runner.workers
            if each._process and not each._ready
        ],
    ).start()
    assert [found.error for _, found in scores] == [None]


def test_a_worker_that_does_not_start_ends_the_search(search_config):
    """A task that cannot be sent to a worker, and a source that is gone, are one line and no failed
    evaluation."""
    config = search_config()
    with pytest.raises(SearchError, match=r"cannot be sent to a worker process .*workers=0"):
        list(ProcessRunner(config, 1, make=lambda _: None).run(harmless_jobs(config)))
    gone = config.model_copy(
        update={
            "sources": [*config.sources, config.sources[0].model_copy(update={"model": "/gone"})]
        }
    )
    with pytest.raises(SearchError, match=r"a worker process does not start: .*gone"):
        list(ProcessRunner(gone, 1).run(harmless_jobs(config)))


@pytest.mark.parametrize("workers", slow_beyond([0], [0, 1]))
def test_what_the_machine_does_is_no_failure_of_a_candidate(
    search_config, tmp_path, monkeypatch, workers
):
    """On a full disk a candidate is tried again; if it stays full the search ends, nothing is
    stored, and a resume has all."""
    monkeypatch.setattr("hf_evomerge.search.runners.runner.PAUSE", 0.01)
    monkeypatch.setenv("FAILURES", str(tmp_path / "failures"))
    given = {"task_factory": FailingTask, "examples": {"search": EXAMPLES[:2]}, "build": False}

    def run(name, failures, workers=workers):
        (tmp_path / "failures").write_text(str(failures), encoding="ascii")
        run_search(search_config(), tmp_path / name, workers=workers, **given)
        return facts(tmp_path / name)

    whole = run("whole", 0, workers=0)
    assert run("once", 1) == whole
    with pytest.raises(
        MachineError,
        match="the machine has failed, not the model: OSError: No space left on device",
    ):
        run("stays", 99)
    assert facts(tmp_path / "stays")["trials"] == facts(tmp_path / "stays")["evaluations"] == []
    assert run("stays", 0) == whole


def test_failures_of_the_machine_are_known():
    """Threads, memory, files and room that the machine has not, also behind an error of ours; not a
    GPU's memory."""
    behind = FitnessError("cannot be read")
    behind.__cause__ = OSError(errno.EMFILE, "Too many open files")
    words = (
        "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 9 bytes"
    )
    for error in (
        RuntimeError("can't start new thread"),
        MemoryError(),
        behind,
        RuntimeError(words),
        BlockingIOError(11, "x"),
    ):
        assert is_of_machine(error)
    for error in (
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        FitnessError(words),
        OSError(2, "no file"),
    ):
        assert not is_of_machine(error)


def test_a_candidate_that_kills_its_process_twice_ends_the_search(
    search_config, tmp_path, monkeypatch
):
    """The others of its generation are stored, the line names it, and so does the next run, at
    once."""
    given = {"task_factory": DeadlyTask, "examples": {"search": EXAMPLES[:2]}, "build": False}
    monkeypatch.setenv("DEADLY", "")
    run_search(search_config(), tmp_path / "whole", **given)
    whole = Study.open(tmp_path / "whole").trials("ps")
    monkeypatch.setenv("DEADLY", f"{whole[5].fitness:.12f}")
    for _ in range(2):
        with pytest.raises(
            SearchError,
            match=rf"^recipe {whole[5].recipe_key}: its process died twice, see what it wrote",
        ):
            run_search(search_config(), tmp_path / "out", workers=1, **given)
        trials = Study.open(tmp_path / "out").trials()
        assert [trial.number for trial in trials] == [0, 1, 2, 3, 4, 6, 7]
        assert [trial.scores for trial in trials[:5]] == [trial.scores for trial in whole[:5]]
    monkeypatch.setenv("DEADLY", "")
    run_search(search_config(), tmp_path / "out", **given)
    assert facts(tmp_path / "out") == facts(tmp_path / "whole")


class Pretended:
    """A worker whose job takes so many moments as it has examples, on a machine that may be lost
    with it."""

    def __init__(self, runner):
        self.runner = runner
        self.index = None
        self.size = 0
        self.at = 0

    def begin(self, index, job, limit):
        self.index = index
        self.size = len(job.batch)
        self.at = self.runner.clock + self.size
        self.runner.begun.append(self.size)

    def look(self):
        if self.runner.clock < self.at:
            return None
        self.index = None
        if self.runner.lost[self.size]:
            self.runner.lost[self.size] -= 1
            raise MachineLostError
        return Scores([float(self.size)])

    def end(self):
        self.index = None


class Moments(PoolRunner[Pretended]):
    """Two such workers, and a clock that goes on when one waits."""

    def __init__(self, limits, lost):
        super().__init__(limits)
        self.workers = [Pretended(self) for _ in range(2)]
        self.lost = Counter(lost)
        self.begun = []
        self.clock = 0

    def wait(self, busy):
        self.clock += 1
        return busy


def test_jobs_of_lost_machines_are_run_again(search_config):
    """A job whose machine is lost is the next one that is run; where it is lost again and again,
    the search ends."""
    config = search_config()
    limits = Limits(config.compute.limits, examples={"search": 9}, layers=2, parents=lambda: [])
    jobs = [Job(config.sources[0], batch=tuple(range(size))) for size in (1, 2, 3, 9)]
    expected = {index: Scores([float(size)]) for index, size in enumerate((1, 2, 3, 9))}
    for times, begun in (
        (0, [9, 3, 2, 1]),
        (MOVES, [9, 3, 3, 3, 3, 2, 1]),
        (MOVES + 1, [9, 3, 3, 3, 3, 2, 1, 3]),
    ):
        runner = Moments(limits, {3: times})
        assert dict(runner.run(jobs)) == expected
        assert sorted(runner.begun[:2]) == [3, 9]
        assert runner.begun == begun
    runner = Moments(limits, {3: 99})
    with pytest.raises(SearchError, match="its process died twice"):
        list(runner.run(jobs))
    assert runner.begun.count(3) == 2 * (MOVES + 1)


def test_a_script_without_a_main_guard_is_told_so(search_config, monkeypatch):
    """A worker that, importing the user's script, would start workers itself says what the script
    lacks."""
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SearchError, match="__main__"):
        ProcessRunner(search_config(), 2)


def test_a_worker_that_cannot_be_started_leaves_nothing_to_end(search_config, monkeypatch):
    """Where the system has no room for another process, it is asked once more; its error is seen,
    and closing is quiet."""
    monkeypatch.setattr("hf_evomerge.search.runners.runner.PAUSE", 0.01)

    def full(process):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", full)
    runner = ProcessRunner(search_config(), 1)
    with pytest.raises(
        MachineError, match="a worker process cannot be started: Cannot allocate memory"
    ):
        _run(runner, harmless_jobs(search_config())[:1])
    runner.close()
