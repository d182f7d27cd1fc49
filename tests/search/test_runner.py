"""Runners: worker processes give the scores of this process, and a worker that dies takes only its own job with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from hf_evomerge.errors import SearchError
from hf_evomerge.fitness import Example, Scores, make_task
from hf_evomerge.fitness.likelihood import LikelihoodSpec
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.search.config import SearchConfig
from hf_evomerge.search.evaluator import Evaluator
from hf_evomerge.search.runner import Job, LocalRunner, ProcessRunner, Runner

EXAMPLES = [
    Example("w1 w2 w3", "4", "one"),
    Example("w5 w5", "7", "two"),
    Example("w9", "1", "deadly"),
    Example("w4", "0", "ill"),
]


class KillingTask:
    """The likelihood task, but the example called deadly kills the process, as a lack of memory would."""

    def __init__(self) -> None:
        self.task = make_task(LikelihoodSpec(separator=" "))
        self.names: set[str] = set()

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Tokenise."""
        self.names = {example.id for example in examples}
        self.task.prepare(examples, tokenizer)

    def evaluate(self, model: Any) -> Scores:
        """Score, or die, or raise."""
        if "deadly" in self.names:
            os.kill(os.getpid(), signal.SIGKILL)
        if "ill" in self.names:
            raise RuntimeError("not today")
        return self.task.evaluate(model)


def _jobs(config: SearchConfig) -> list[Job]:
    """Merges, paths and a parent, on the two harmless examples."""
    fields = {"sources": config.sources, "base": config.base}
    merges = [{"method": "task_arithmetic", "parameters": [{"weight": i / 4}, {"weight": 1 - i / 4}]} for i in range(4)]
    paths = [["0:0", "1:1"], ["0:0-1", "1:0-1"]]
    recipes = [{"merge": merge} for merge in merges] + [{"flow": {"path": path}} for path in paths]
    targets = [*(Recipe.model_validate({**fields, **parts}) for parts in recipes), config.sources[0]]
    return [Job(target, "search", (0, 1)) for target in targets]


def _run(runner: Runner, jobs: list[Job]) -> list[Scores]:
    scores = dict(runner.run(jobs))
    assert sorted(scores) == list(range(len(jobs)))
    return [scores[index] for index in range(len(jobs))]


@pytest.fixture
def process_runner(search_config: Callable[..., SearchConfig]) -> Iterator[ProcessRunner]:
    """Two workers with the killing task."""
    runner = ProcessRunner(search_config(), 2, task_factory=KillingTask, examples={"search": EXAMPLES})
    yield runner
    runner.close()


def test_workers_and_their_deaths(process_runner: ProcessRunner, search_config: Callable[..., SearchConfig]) -> None:
    """Two workers give what this process gives; a job that kills its worker fails alone, and closing ends the workers."""
    config = search_config()
    local = LocalRunner(Evaluator(config, task_factory=KillingTask, examples={"search": EXAMPLES}))
    jobs = _jobs(config)
    expected = _run(local, jobs)
    assert len({str(fact) for fact in expected}) == len(jobs)
    assert _run(process_runner, jobs) == expected

    deadly, ill = (Job(config.sources[0], "search", (index,)) for index in (2, 3))
    scores = _run(process_runner, [jobs[0], deadly, ill, *jobs[4:6]])
    assert [scores[0], *scores[3:]] == [expected[0], *expected[4:6]]
    assert scores[1].mean is None
    assert scores[1].error == "the worker process died: out of memory, or see what it wrote above"
    assert scores[2].error == "RuntimeError: not today"
    assert _run(process_runner, jobs[-1:]) == expected[-1:]
    assert multiprocessing.active_children()
    process_runner.close()
    assert not multiprocessing.active_children()


def test_a_local_runner_keeps_the_order(search_config: Callable[..., SearchConfig]) -> None:
    """In this process jobs are evaluated one after the other, each only when its scores are asked for."""

    class Recording:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def evaluate(self, target: Any, split: str, batch: Any, slopes: Any, fitness: Any) -> Scores:
            self.seen.append((split, batch))
            return Scores(np.ones(2))

    evaluator = Recording()
    scores = LocalRunner(evaluator).run([Job(search_config().sources[0], "test", (number,)) for number in range(3)])  # type: ignore[arg-type]
    assert next(scores)[0] == 0
    assert evaluator.seen == [("test", (0,))]
    assert [index for index, _ in scores] == [1, 2]
    assert evaluator.seen == [("test", (number,)) for number in range(3)]


def test_a_script_without_a_main_guard_is_told_so(
    search_config: Callable[..., SearchConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that, importing the user's script, would start workers itself says what the script lacks."""
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SearchError, match="__main__"):
        ProcessRunner(search_config(), 2)
