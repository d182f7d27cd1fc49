"""Runners: worker processes give the scores of this process, and a worker that dies takes only its
own job with it."""

import errno
import math
import multiprocessing
import re
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from threading import Timer
from types import SimpleNamespace

import pytest
from killing import EXAMPLES, DeadlyTask, FailingTask, KillingTask, harmless_jobs
from refusals import refused
from searches import facts
from slowly import slow_beyond

from hf_evomerge import Scores, run_search
from hf_evomerge.errors import FitnessError, MachineError, SearchError, is_of_machine
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.evaluation.gradients import GateSlopes, WeightSlopes
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
def config(search_config):
    """A small search, whose jobs are run."""
    return search_config()


@pytest.fixture(scope="module")
def jobs(config):
    """Harmless jobs of every kind."""
    return harmless_jobs(config)


@pytest.fixture(scope="module")
def process_runner(config):
    """Two workers with the killing task; starting one takes seconds, so the tests share them.
    Closing ends them."""
    make = partial(Evaluator, task_factory=KillingTask, examples={"search": EXAMPLES})
    runner = ProcessRunner(config, 2, make=make)
    yield runner
    runner.close()
    assert not multiprocessing.active_children()


def _limits(config, parents=(), seconds=None, **examples):
    given = config.compute.limits.model_copy(update={"seconds": seconds} if seconds else {})
    return Limits(given, examples=examples, layers=2, parents=lambda: list(parents))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_the_first_worker_never_sees_an_interrupt(config, tmp_path):
    """Ctrl-C goes to all processes of a terminal. A worker that begins to start has it blocked,
    also where it is the first process that this one starts."""
    config.save(tmp_path / "search.yaml")
    script = tmp_path / "first.py"
    script.write_text(
        r"""
import multiprocessing, pathlib, re, signal
from hf_evomerge import SearchConfig
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.runners.job import Job
from hf_evomerge.search.runners.limits import Limit
from hf_evomerge.search.runners.workers import Worker

if __name__ == "__main__":
    config = SearchConfig.load("search.yaml")
    worker = Worker(config, Evaluator)
    worker.begin(0, Job(config.sources[0], "search", (0,)), Limit())
    (child,) = multiprocessing.active_children()
    status = pathlib.Path(f"/proc/{child.pid}/status").read_text()
    print(int(re.search(r"SigBlk:\s+(\w+)", status)[1], 16) >> (signal.SIGINT - 1) & 1)
    worker.end()
"""
    )
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_workers_and_their_deaths(process_runner, config, jobs):
    """Two workers give what this process gives; one that kills its worker twice ends the search
    after the others."""
    local = LocalRunner(Evaluator(config, task_factory=KillingTask, examples={"search": EXAMPLES}))
    expected = _run(local, jobs)
    assert len({str(fact) for fact in expected}) == len(jobs)
    assert _run(process_runner, jobs) == expected

    deadly, ill, leaving = (Job(config.sources[0], "search", (index,)) for index in (2, 3, 7))
    scores = {}
    told = rf"^{re.escape(str(config.sources[0]))}: its process died twice, see what"
    with refused(SearchError, told):
        scores.update(process_runner.run([jobs[0], deadly, ill, *jobs[4:6], leaving]))
    assert sorted(scores) == [0, 2, 3, 4, 5]
    assert [scores[0], scores[3], scores[4]] == [expected[0], *expected[4:6]]
    assert scores[2].error == "RuntimeError: not today"
    assert scores[5].error == _run(local, [leaving])[0].error == "SystemExit: 0"
    assert _run(process_runner, jobs[-1:]) == expected[-1:]
    assert multiprocessing.active_children()


def test_what_exceeds_a_limit_fails_alone(process_runner, config, jobs, monkeypatch):
    """A job that sleeps or is stopped fails in one line, its worker is replaced, the others
    score."""
    # the others wait for a busy machine as long as it likes
    idle, others = (_limits(config, seconds=seconds, search=len(EXAMPLES)) for seconds in (2, 3600))
    both = SimpleNamespace(
        size=others.size, of=lambda job: (idle if job.batch in [(4,), (5,)] else others).of(job)
    )
    monkeypatch.setattr(process_runner, "limits", both)
    expected = _run(process_runner, jobs)
    late = [Job(jobs[0].target, "search", (index,)) for index in (4, 5)]
    first, sleeping, stopped, *rest = _run(process_runner, [jobs[0], *late, *jobs[4:6]])
    assert [first, *rest] == [expected[0], *expected[4:6]]
    told = "took longer than 2 s (compute.limits.seconds)"
    assert sleeping.error == stopped.error == told
    assert 2 <= sleeping.seconds <= 2 + 4 * TICK  # no look at it counts for more


def test_a_default_limit_grows_with_the_work(config, jobs):
    """Without limits.seconds a candidate may take ten times a parent's time, for each example, also
    in a prompt, hop and pass."""
    merge, path = (
        next(job.target for job in jobs if getattr(job.target, part)) for part in ("merge", "flow")
    )
    flow = path.flow.model_copy(update={"path": ["0:0-1", "1:0-1"], "scales": None})
    long = path.model_copy(update={"flow": flow})
    gates = GateSlopes((), (), (True,) * 8, ())
    parents = [None, Scores([1.0], seconds=30.0), Scores([1.0], seconds=20.0)]
    limits = _limits(config, parents, search=10, test=40)
    for job, seconds in (
        (Job(merge), 300),
        (Job(merge, "test"), 1200),
        (Job(merge, "search", tuple(range(5))), 150),
        (Job(merge, "search", (0,)), 60),
        (Job(long), 600),
        (Job(merge, shots=3), 1200),
        (Job(merge, slopes=WeightSlopes((), ())), 900),
        (Job(long, slopes=gates), 3600),
        (Job(config.sources[0]), math.inf),
    ):
        assert limits.of(job).seconds == seconds
    assert _limits(config, [None], search=10).of(Job(merge)).seconds == math.inf


def test_time_in_which_everything_stood_still_does_not_count(process_runner, jobs, monkeypatch):
    """Where this process is stopped as well, as by Ctrl-Z, a job is not given up for it."""
    worker = process_runner.workers[0]
    worker.begin(0, jobs[0], Limit(seconds=600.0))
    late = time.monotonic
    while (scores := worker.look()) is None:
        monkeypatch.setattr(time, "monotonic", lambda late=late: late() + 10_000.0)
        assert worker.index == 0
        time.sleep(0.1)
        late = time.monotonic
    assert scores.error is None


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_starts_is_replaced(process_runner, jobs):
    """A worker that the kernel kills before it is ready is replaced, and its job is run again."""
    process_runner.workers[0].end()

    def kill():
        for each in process_runner.workers:
            if each._process and not each._ready:
                each._process.kill()

    scores = process_runner.run(jobs[:1])
    Timer(0.1, kill).start()
    assert [found.error for _, found in scores] == [None]


def test_a_worker_that_does_not_start_ends_the_search(config, jobs):
    """A task that cannot be sent to a worker, and a source that is gone, are one line and no failed
    evaluation."""
    with refused(SearchError, r"cannot be sent to a worker process .*workers=0"):
        list(ProcessRunner(config, 1, make=lambda _: None).run(jobs))
    missing = config.sources[0].model_copy(update={"model": "/gone"})
    gone = config.model_copy(update={"sources": [*config.sources, missing]})
    with refused(SearchError, r"a worker process does not start: .*gone"):
        list(ProcessRunner(gone, 1).run(jobs))


@pytest.mark.parametrize("workers", slow_beyond([0], [0, 1]))
def test_what_the_machine_does_is_no_failure_of_a_candidate(config, tmp_path, monkeypatch, workers):
    """On a full disk a candidate is tried again; if it stays full the search ends, nothing is
    stored, and a resume has all."""
    monkeypatch.setattr("hf_evomerge.search.runners.runner.PAUSE", 0.01)
    monkeypatch.setenv("FAILURES", str(tmp_path / "failures"))
    given = {"task_factory": FailingTask, "examples": {"search": EXAMPLES[:2]}, "build": False}

    def run(name, failures, workers=workers):
        (tmp_path / "failures").write_text(str(failures), encoding="ascii")
        run_search(config, tmp_path / name, workers=workers, **given)
        return facts(tmp_path / name)

    whole = run("whole", 0, workers=0)
    assert run("once", 1) == whole
    told = "the machine has failed, not the model: OSError: No space left on device"
    with refused(MachineError, told):
        run("stays", 99)
    assert facts(tmp_path / "stays")["trials"] == facts(tmp_path / "stays")["evaluations"] == []
    assert run("stays", 0) == whole


def test_failures_of_the_machine_are_known():
    """Threads, memory, files and room that the machine has not, also behind an error of ours; not a
    GPU's memory."""
    behind = FitnessError("cannot be read")
    behind.__cause__ = OSError(errno.EMFILE, "Too many open files")
    words = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tr"
    thread = RuntimeError("can't start new thread")
    ours = [thread, MemoryError(), behind, RuntimeError(words), BlockingIOError(11, "x")]
    assert all(map(is_of_machine, ours))
    gpu = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    assert not any(map(is_of_machine, [gpu, FitnessError(words), OSError(2, "no file")]))


def test_a_candidate_that_kills_its_process_twice_ends_the_search(config, tmp_path, monkeypatch):
    """The others of its generation are stored, the line names it, and so does the next run, at
    once."""
    out = tmp_path / "out"
    given = {"task_factory": DeadlyTask, "examples": {"search": EXAMPLES[:2]}, "build": False}
    monkeypatch.setenv("DEADLY", "")
    run_search(config, tmp_path / "whole", **given)
    whole = Study.open(tmp_path / "whole").trials("ps")
    monkeypatch.setenv("DEADLY", f"{whole[5].fitness:.12f}")
    told = rf"^recipe {whole[5].recipe_key}: its process died twice, see what it wrote"
    for _ in range(2):
        with refused(SearchError, told):
            run_search(config, out, workers=1, **given)
        trials = Study.open(out).trials()
        assert [trial.number for trial in trials] == [0, 1, 2, 3, 4, 6, 7]
        assert [trial.scores for trial in trials[:5]] == [trial.scores for trial in whole[:5]]
    monkeypatch.setenv("DEADLY", "")
    run_search(config, out, **given)
    assert facts(out) == facts(tmp_path / "whole")


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


@pytest.mark.parametrize(
    ("times", "begun"),
    [
        (0, [9, 3, 2, 1]),
        (MOVES, [9, 3, 3, 3, 3, 2, 1]),
        (MOVES + 1, [9, 3, 3, 3, 3, 2, 1, 3]),
        (99, None),
    ],
)
def test_jobs_of_lost_machines_are_run_again(config, times, begun):
    """A job whose machine is lost is the next one that is run; where it is lost again and again,
    the search ends."""
    sizes = (1, 2, 3, 9)
    jobs = [Job(config.sources[0], batch=tuple(range(size))) for size in sizes]
    runner = Moments(_limits(config, search=9), {3: times})
    if begun is None:
        with refused(SearchError, "its process died twice"):
            list(runner.run(jobs))
        assert runner.begun.count(3) == 2 * (MOVES + 1)
    else:
        expected = {index: Scores([float(size)]) for index, size in enumerate(sizes)}
        assert dict(runner.run(jobs)) == expected
        assert runner.begun == begun


def test_a_script_without_a_main_guard_is_told_so(config, monkeypatch):
    """A worker that, importing the user's script, would start workers itself says what the script
    lacks."""
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with refused(SearchError, "__main__"):
        ProcessRunner(config, 2)


def test_a_worker_that_cannot_be_started_leaves_nothing_to_end(config, jobs, monkeypatch):
    """Where the system has no room for another process, it is asked once more; its error is seen,
    and closing is quiet."""
    monkeypatch.setattr("hf_evomerge.search.runners.runner.PAUSE", 0.01)

    def full(process):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", full)
    runner = ProcessRunner(config, 1)
    told = "a worker process cannot be started: Cannot allocate memory"
    with refused(MachineError, told):
        _run(runner, jobs[:1])
    runner.close()
