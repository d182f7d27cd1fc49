"""Tasks that kill or stop the process that scores them, and jobs of every kind; for tests of
runners.

Worker processes import it, and actors of a cluster get it with the task.
"""

import errno
import os
import signal
import time
from pathlib import Path

from hf_evomerge import Example, Recipe
from hf_evomerge.fitness import make_task
from hf_evomerge.fitness.tasks.likelihood import LikelihoodSpec
from hf_evomerge.search.runners.job import Job

EXAMPLES = [
    Example("w1 w2 w3", "4", "one"),
    Example("w5 w5", "7", "two"),
    Example("w9", "1", "deadly"),
    Example("w4", "0", "ill"),
    Example("w3", "2", "sleeping"),
    Example("w6", "3", "stopped"),
    Example("w7", "3", "plain"),
    Example("w8 w8", "3", "leaving"),
]


class KillingTask:
    """The likelihood task, but the example called deadly kills the process, as a lack of memory
    would."""

    def __init__(self):
        self.task = make_task(LikelihoodSpec(separator=" "))
        self.names = set()

    def prepare(self, examples, tokenizer):
        self.names = {example.id for example in examples}
        self.task.prepare(examples, tokenizer)

    def evaluate(self, model):
        if "deadly" in self.names:
            os.kill(os.getpid(), signal.SIGKILL)
        if "ill" in self.names:
            raise RuntimeError("not today")
        if "sleeping" in self.names:
            time.sleep(3600)
        if "stopped" in self.names:
            os.kill(os.getpid(), signal.SIGSTOP)
        if "leaving" in self.names:
            raise SystemExit(0)
        return self.task.evaluate(model)

    def backward(self, model):
        return self.task.backward(model)


class FailingTask(KillingTask):
    """The likelihood task on a machine that fails as often as the file says that ``FAILURES``
    names."""

    def evaluate(self, model):
        file = Path(os.environ["FAILURES"])
        left = int(file.read_text(encoding="ascii"))
        if left:
            file.write_text(str(left - 1), encoding="ascii")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.task.evaluate(model)


class DeadlyTask(KillingTask):
    """The likelihood task, but the candidate whose score ``DEADLY`` names kills its process."""

    def evaluate(self, model):
        scores = self.task.evaluate(model)
        if os.environ["DEADLY"] == f"{scores.mean:.12f}":
            os.kill(os.getpid(), signal.SIGKILL)
        return scores


def harmless_jobs(config):
    """Merges, paths and a parent, on the two harmless examples."""
    fields = {"sources": config.sources, "base": config.base}
    merges = [
        {"method": "task_arithmetic", "parameters": [{"weight": i / 4}, {"weight": 1 - i / 4}]}
        for i in range(4)
    ]
    paths = [["0:0", "1:1"], ["0:0-1", "1:0-1"]]
    recipes = [{"merge": merge} for merge in merges] + [{"flow": {"path": path}} for path in paths]
    targets = [
        *(Recipe.model_validate({**fields, **parts}) for parts in recipes),
        config.sources[0],
    ]
    return [Job(target, "search", (0, 1)) for target in targets]
