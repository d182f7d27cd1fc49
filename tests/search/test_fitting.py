"""Batches that fit: halved before the first scores of a kind of job count, and the same for whoever
goes on."""

import pytest
import torch
from searches import facts
from watch import killed

from hf_evomerge.fitness import Scores
from hf_evomerge.fitness.tasks.likelihood import LikelihoodTask
from hf_evomerge.recipes.recipe import FlowPart, MergePart, Recipe
from hf_evomerge.search.evaluation.gradients import WeightSlopes
from hf_evomerge.search.run import resume_search, run_search
from hf_evomerge.search.runners.batch_size import FittedRunner, largest_batch
from hf_evomerge.search.runners.job import Job
from hf_evomerge.search.study.study import Study


class Room:
    """A runner with the memory for so many examples, by the kind of job; it scores their number."""

    def __init__(self, **room):
        self.room = room
        self.asked = list[tuple[str, int | None]]()

    def run(self, jobs):
        for index, job in reversed(list(enumerate(jobs))):
            is_recipe = isinstance(job.target, Recipe)
            kind = (
                "gradient"
                if job.slopes
                else "model"
                if not is_recipe
                else "path"
                if job.target.flow
                else "merge"
            )
            if job.shots:
                kind = "shots" if job.shots < 4 else "many"
            if kind == "path" and len(job.target.flow.path) > 3:
                kind = "long"
            self.asked.append((kind, job.rows))
            fits = job.rows <= self.room[kind]
            yield (
                index,
                Scores([job.rows])
                if fits
                else Scores.failed("OutOfMemoryError: CUDA out of memory"),
            )

    def close(self):
        """Nothing."""


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
    assert dict(runner.run([Job(ref) for ref in config.sources])) == {
        0: Scores([16]),
        1: Scores([16]),
    }
    assert dict(runner.run([Job(merge)] * 3)) == dict.fromkeys(range(3), Scores([4]))
    assert [rows for _, rows in room.asked] == [16, 16, 16, 8, 4, 4, 4]
    assert dict(runner.run([Job(merge, slopes=slopes), Job(merge)])) == {
        0: Scores([1]),
        1: Scores([4]),
    }
    room.room |= {"shots": 16, "many": 3}
    shown = [Job(config.sources[0], "validation", shots=shots) for shots in (1, 4)]
    assert dict(runner.run([*shown, Job(merge)])) == dict(enumerate(map(Scores, ([2], [2], [4]))))
    assert [rows for kind, rows in room.asked if kind == "many"] == [16, 8, 4, 2]
    found = dict(runner.run([Job(short), Job(long), Job(short)]))
    assert (found[0], found[2]) == (Scores([8]), Scores([8]))
    assert found[1].error == "OutOfMemoryError: CUDA out of memory"
    sizes = {"model": 16, "merge": 4, "merge, gradient": 1, "model, shots": 2, "path": 8}
    assert study.meta("rows") == sizes
    again = Room(model=16, merge=16, gradient=16, path=16, long=16)
    other = FittedRunner(again, study, 16)
    jobs = [Job(merge), Job(long), Job(config.sources[0], "test"), Job(merge, "test")]
    assert dict(other.run(jobs)) == dict(
        enumerate([Scores([4]), Scores([8]), Scores([16]), Scores([4])])
    )


@pytest.mark.slow
def test_a_search_with_little_memory(search_config, tmp_path, monkeypatch):
    """A search whose batches do not fit has the trials of one whose file says the smaller size,
    also where it is resumed."""
    evaluate = LikelihoodTask.evaluate
    sizes = list[int]()
    memory = [2]

    def little(task, model):
        if task.spec.batch_size > memory[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        sizes.append(task.spec.batch_size)
        return evaluate(task, model)

    monkeypatch.setattr(LikelihoodTask, "evaluate", little)
    fitness = {"task": "likelihood", "separator": " "}
    small = run_search(
        search_config(fitness={**fitness, "batch_size": 2}), tmp_path / "small", build=False
    )
    config = search_config(fitness={**fitness, "batch_size": 11})
    assert largest_batch(config) == 11
    killed(
        lambda seen: seen.phase == "ps" and seen.done == 5, run_search, config, tmp_path / "little"
    )
    assert Study.open(tmp_path / "little").meta("rows") == {"model": 2, "merge": 2}
    memory[0] = 99
    assert resume_search(tmp_path / "little", build=False).winner == small.winner
    assert set(sizes) == {2}
    assert facts(tmp_path / "little") == facts(tmp_path / "small")
