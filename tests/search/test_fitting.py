"""Batches that fit: halved before the first scores of a kind of job count, and the same for whoever
goes on."""

from dataclasses import replace

import pytest
import torch
from searches import facts
from watch import killed

from hf_evomerge import FlowPart, MergePart, Recipe, Scores, resume_search, run_search
from hf_evomerge.fitness.tasks.likelihood import LikelihoodTask
from hf_evomerge.search.evaluation.gradients import WeightSlopes
from hf_evomerge.search.runners.batch_size import FittedRunner, largest_batch
from hf_evomerge.search.runners.job import Job
from hf_evomerge.search.study.study import Study


class Room:
    """A runner with the memory for so many examples, by the kind of job; it scores their number."""

    def __init__(self, **room):
        self.room = room
        self.asked = []

    def run(self, jobs):
        for index, job in reversed(list(enumerate(jobs))):
            kind = self.kind(job)
            self.asked.append((kind, job.rows))
            scores = Scores.failed("OutOfMemoryError: CUDA out of memory")
            yield index, Scores([job.rows]) if job.rows <= self.room[kind] else scores

    def kind(self, job):
        if job.shots:
            return "shots" if job.shots < 4 else "many"
        if not isinstance(job.target, Recipe):
            return "model"
        if job.target.flow is not None:
            return "path" if len(job.target.flow.path) < 4 else "long"
        return "gradient" if job.slopes else "merge"


def test_batches_are_halved_until_they_fit(search_config, tmp_path):
    """Each kind of job has its own size, also with shots; what fits at no size says nothing of the
    others, and a study goes on with the same."""
    config = search_config()
    merge = config.recipe(
        merge=MergePart(method="linear", parameters=[{"weight": 1}, {"weight": 2}])
    )
    short, long = (config.recipe(flow=FlowPart(path=["0:0", "1:1"] * n)) for n in (1, 2))
    slopes = WeightSlopes((("weight", 0, None),), (1.0,))
    study = Study.create(tmp_path / "study", {})
    room = Room(model=16, merge=5, gradient=1, path=8, long=0)
    runner = FittedRunner(room, study, 16)
    model = Job(config.sources[0])
    merge = Job(merge)

    def sizes(jobs, runner=runner):
        scores = dict(runner.run(jobs))
        return [scores[index].mean for index in range(len(jobs))]

    assert sizes([model, Job(config.sources[1])]) == [16, 16]
    assert sizes([merge] * 3) == [4, 4, 4]
    assert [rows for _, rows in room.asked] == [16, 16, 16, 8, 4, 4, 4]
    assert sizes([replace(merge, slopes=slopes), merge]) == [1, 4]
    room.room |= {"shots": 16, "many": 3}
    assert sizes([replace(model, shots=1), replace(model, shots=4), merge]) == [2, 2, 4]
    assert [rows for kind, rows in room.asked if kind == "many"] == [16, 8, 4, 2]
    # what fits at no size fails
    assert sizes([Job(short), Job(long), Job(short)]) == [8, None, 8]
    known = {"model": 16, "merge": 4, "merge, gradient": 1, "model, shots": 2, "path": 8}
    assert study.meta("rows") == known
    again = FittedRunner(Room(model=16, merge=16, long=16), study, 16)
    jobs = [merge, Job(long), replace(model, split="test"), replace(merge, split="test")]
    assert sizes(jobs, again) == [4, 8, 16, 4]


@pytest.mark.slow
def test_a_search_with_little_memory(search_config, tmp_path, monkeypatch):
    """A search whose batches do not fit has the trials of one whose file says the smaller size,
    also where it is resumed."""
    evaluate = LikelihoodTask.evaluate
    sizes = set()
    memory = [2]

    def little(task, model):
        size = task.spec.batch_size
        if size > memory[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        sizes.add(size)
        return evaluate(task, model)

    def config(size):
        fitness = {"task": "likelihood", "separator": " ", "batch_size": size}
        return search_config(fitness=fitness)

    monkeypatch.setattr(LikelihoodTask, "evaluate", little)
    small = run_search(config(2), tmp_path / "small", build=False)
    assert largest_batch(config(11)) == 11
    out = tmp_path / "little"
    killed(lambda seen: seen.phase == "ps" and seen.done == 5, run_search, config(11), out)
    assert Study.open(out).meta("rows") == {"model": 2, "merge": 2}
    memory[0] = 99
    assert resume_search(out, build=False).winner == small.winner
    assert sizes == {2}
    assert facts(out) == facts(tmp_path / "small")
