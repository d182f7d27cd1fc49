"""Fitness by lm-evaluation-harness: any of its tasks, on the live model, with its own prompts,
requests, filters and metrics.

Its documents are examples like all others (``lm_eval`` under ``data``), so splits, batches and
retained data work as usual. Here is what reads them and what scores them. lm_eval is imported where
it is used.
"""

from __future__ import annotations

import copy
import functools
import io
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ...errors import FitnessError, nearest, one_line, told
from ...recipes.strict_yaml import Count, Index
from ..example import Example
from ..prepared import PreparedTask
from ..registry import TaskSpec, register_task
from ..scores import Scores
from ..text.encoding import render_prompt, scoring

_SEEDS = {
    "python": 0,
    "numpy": 1234,
    "torch": 1234,
    "fewshot": 1234,
}  # those of lm_eval's command line
_OF_EXAMPLES = (
    "mean",
    "nanmean",
    "perplexity",
    "weighted_perplexity",
    "bits_per_byte",
)  # what a metric may be aggregated by
_LOG_PROBABILITIES = _OF_EXAMPLES[
    2:
]  # whose parts are log-probabilities: of a text, or with the units to divide it by
_RIGHT = ("acc", "exact_match")  # begin the names of metrics that say what is right


class LmEvalSpec(TaskSpec):
    """Score a model by tasks of lm-evaluation-harness; which, and on which documents, stands under
    ``data`` (``lm_eval``)."""

    task: Literal["lm_eval"] = "lm_eval"
    metric: str | dict[str, str] | None = None
    """What counts, such as ``acc_norm``, or ``exact_match,strict-match`` for that of a filter; for
    each task by its name where they differ. The first of each task by default, after its first
    filter."""
    num_fewshot: Annotated[Index, Field(le=1000)] | None = None
    """Solved examples before each question; the task's own number by default."""
    chat: bool = False
    """Wrap the prompts in the tokenizer's chat template."""
    system: str | None = None
    """The system message of the chat."""
    batch_size: Count = 16
    """Requests that run together. It changes the memory and the time; scores in their last bits."""


@register_task("lm_eval")
class LmEvalTask(PreparedTask):
    """Scores documents of lm_eval's tasks by lm_eval's own metrics, negated where less is better.

    ``correct`` says what is right where the metrics are accuracies or exact matches; ``outputs``
    are the generated responses of tasks that have any. A perplexity counts as the mean
    log-probability of a document's words or bytes, whose mean it is.
    """

    spec_type = LmEvalSpec

    trust_remote_code = False
    """Whether task files, which may hold code, may be loaded."""

    def __init__(self, spec: LmEvalSpec) -> None:
        super().__init__(spec)
        self._places: list[tuple[str, int]] = []  # the task and the document of each example
        self._tasks: dict[str, Any] = {}
        self._metrics: dict[str, tuple[str, str | None]] = {}

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Load the tasks of the examples; raises `FitnessError` where one cannot score examples, or
        these are not lm_eval's."""
        super().prepare(examples, tokenizer)
        found: dict[str, Any] = {}
        self._places = []
        for example in examples:
            name, _, number = example.id.rpartition(":")
            if not name or not number.isdecimal():
                raise FitnessError(
                    f"{example.id}: is no document of lm_eval; write data: {{search: "
                    f"{{lm_eval: TASK}}}}"
                )
            if name not in found:
                (found[name],) = load_tasks(name, trust_remote_code=self.trust_remote_code).values()
            self._places.append((str(found[name].config.task), int(number)))
        self._tasks = {str(task.config.task): task for task in found.values()}
        if len(self._tasks) < len(found):
            raise FitnessError(
                f"data.lm_eval: two tasks have one name; there are {', '.join(found)}"
            )
        self._metrics = {name: self._metric(name) for name in self._tasks}
        self._tokenizer = copy.deepcopy(tokenizer)  # lm_eval gives it a token for padding
        if self.spec.chat and not getattr(tokenizer, "chat_template", None):
            raise FitnessError("fitness.chat: the tokenizer has no chat template; leave out chat")
        if self.spec.chat:
            render_prompt(replace(examples[0], chat=True, system=self.spec.system), tokenizer)

    def _run(self, model: Any, *, gradient: bool) -> Scores:
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        # lm_eval runs documents sorted and once each. The examples are asked for in this form, and
        # scores are put back in the examples' own order by (task, document).
        asked: dict[str, list[int]] = {}
        for name, number in sorted(self._places):
            asked.setdefault(name, []).append(number)
        with (
            scoring(model),
            _surroundings(),
            _few_shot(self._tasks.values(), self.spec.num_fewshot),
        ):
            # simple_evaluate does the same, and asks pip and git for versions each time
            found = lm_eval.evaluate(
                lm=HFLM(
                    pretrained=model,
                    tokenizer=self._tokenizer,
                    backend="causal",
                    batch_size=self.spec.batch_size,
                ),
                task_dict={"tasks": self._tasks},
                samples={name: sorted(set(numbers)) for name, numbers in asked.items()},
                bootstrap_iters=0,
                log_samples=True,
                system_instruction=self.spec.system,
                apply_chat_template=self.spec.chat,
                fewshot_as_multiturn=True,
            )
        return self._scores(
            {name: self._of_task(name, samples) for name, samples in found["samples"].items()}
        )

    def _of_task(self, name: str, samples: list[dict[str, Any]]) -> dict[int, tuple[float, str]]:
        metric, chosen = self._metrics[name]
        filters = list(dict.fromkeys(sample["filter"] for sample in samples))
        chosen = filters[0] if chosen is None else chosen
        if chosen not in filters:
            raise FitnessError(
                f"metric: {name} has no filter {chosen!r}; {nearest(chosen, filters)}"
            )
        found = {}
        for sample in samples:
            if sample["filter"] == chosen:
                if metric not in sample:
                    raise FitnessError(
                        f"metric: {name} has no {metric!r}; {nearest(metric, sample['metrics'])}"
                    )
                wrote = sample["resps"][0][0]
                found[sample["doc_id"]] = (
                    self._value(name, metric, sample[metric]),
                    wrote if isinstance(wrote, str) else "",
                )
        return found

    # lm_eval aggregates in its own ways; a search needs one number per document whose mean is the
    # fitness. A perplexity exp(-sum / count) is no mean, its logarithm is: the log-probability per
    # unit.
    def _value(self, name: str, metric: str, value: Any) -> float:
        """A metric of one document as a number to maximise."""
        task = self._tasks[name]
        if _aggregation(task, metric) in _LOG_PROBABILITIES:
            total, count = value if isinstance(value, tuple) else (value, 1)
            return float(total) / max(1, count)
        sign = 1.0 if task.higher_is_better().get(metric, True) else -1.0
        return sign * float(value)

    def _scores(self, found: dict[str, dict[int, tuple[float, str]]]) -> Scores:
        pairs = [found[name][number] for name, number in self._places]
        values = np.array([value for value, _ in pairs])
        right = all(metric.startswith(_RIGHT) for metric, _ in self._metrics.values()) and bool(
            np.isin(values, (0, 1)).all()
        )
        correct = values.astype(bool) if right else None
        outputs = [text for _, text in pairs]
        return Scores(values, correct=correct, outputs=outputs if any(outputs) else None)

    def _metric(self, name: str) -> tuple[str, str | None]:
        task = self._tasks[name]
        given = self.spec.metric
        metrics = list(task.aggregation())
        if isinstance(given, dict):
            if unknown := set(given) - set(self._tasks):
                raise FitnessError(
                    f"metric: {min(unknown)!r} is no task here; "
                    f"{nearest(min(unknown), self._tasks)}"
                )
            given = given.get(name)
        metric, _, chosen = (given or metrics[0]).partition(",")
        if metric not in metrics:
            raise FitnessError(f"metric: {name} has no {metric!r}; {nearest(metric, metrics)}")
        if (by := _aggregation(task, metric)) not in _OF_EXAMPLES:
            raise FitnessError(
                f"metric: {metric} of {name} is of all documents together ({by}), and none "
                "has a score of its own"
            )
        return metric, chosen or None


@functools.lru_cache(maxsize=64)
def load_tasks(name: str, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Load the lm_eval tasks that a name stands for, by the names that lead to each.

    Args:
        name: A task, group or tag of lm_eval, or a YAML file.
        trust_remote_code: Whether a YAML file may be loaded: it, or what it names, may be code.

    Raises:
        FitnessError: lm_eval is not installed, knows no such task, or cannot read its data; or a
            file is not trusted.
    """
    if find_spec("lm_eval") is None:
        raise FitnessError("lm_eval: is not installed: pip install 'hf-evomerge[eval]'")
    is_file = Path(name).suffix in (".yaml", ".yml")
    if is_file and not trust_remote_code:
        raise FitnessError(
            f"lm_eval: {name}: a task file may run code; read it, and pass --trust-remote-code"
        )
    if not is_file and name not in (known := _manager(True).all_tasks):
        close = nearest(name, known)
        raise FitnessError(
            f"lm_eval: there is no task {name!r}; "
            f"{close if len(close) < 100 else 'run `lm_eval ls tasks`'}"
        )
    with _surroundings():
        try:
            tasks: dict[str, Any] = _manager(not is_file).load([name])["tasks"]
        except Exception as cause:  # anything: reading a task reads a data set, by network or not
            raise FitnessError(
                f"lm_eval: {name}: cannot be loaded: {type(cause).__name__}: "
                f"{one_line(cause)}; without a network only "
                "tasks work whose data is here already"
            ) from cause
    for task in tasks.values():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            runs = getattr(task, "UNSAFE_CODE", False)
            what = "runs what the model writes as a program" if runs else "shows pictures or sounds"
            raise FitnessError(f"lm_eval: {name}: {what}, which is not done here")
    return {name: next(iter(tasks.values()))} if is_file and len(tasks) == 1 else tasks


def read_documents(names: Sequence[str], *, trust_remote_code: bool = False) -> list[Example]:
    """Read all documents of some tasks, in their order, as examples whose ids lead back to them."""
    examples = []
    for given in names:
        for name, task in load_tasks(given, trust_remote_code=trust_remote_code).items():
            with _surroundings():
                for number, doc in enumerate(task.eval_docs):
                    # anything: a template of the task runs
                    with told(FitnessError, Exception, f"lm_eval: {name}: document {number}: "):
                        prompt = str(task.doc_to_text(doc))
                        answer = str(task.doc_to_target(doc))
                    examples.append(
                        Example(prompt, answer, f"{name}:{number}", content=prompt or answer)
                    )
    return examples


@functools.cache
def _manager(with_own: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=with_own)


def _aggregation(task: Any, metric: str) -> str:
    return str(getattr(task.aggregation().get(metric), "__name__", "unknown"))


@contextmanager
def _few_shot(tasks: Iterable[Any], wanted: int | None) -> Iterator[None]:
    """Give tasks that many solved examples, drawn anew, as lm_eval does: none where a task itself
    says 0, or nothing."""
    own = [(task, task.get_config("num_fewshot")) for task in tasks]
    for task, number in own:
        task.set_fewshot_seed(_SEEDS["fewshot"])
        shots = number or 0
        if number != 0 and wanted is not None:
            shots = wanted
        task.set_config("num_fewshot", shots)
    try:
        yield
    finally:
        for task, number in own:
            task.set_config("num_fewshot", number)


@contextmanager
def _surroundings() -> Iterator[None]:
    """Run lm_eval with its own seeds and without bars, then put everything back."""
    import torch

    python = random.getstate()
    numpy = np.random.get_state()
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()), torch.random.fork_rng(devices=[]):
            random.seed(_SEEDS["python"])
            np.random.seed(_SEEDS["numpy"])
            torch.manual_seed(_SEEDS["torch"])
            yield
    finally:
        logger.setLevel(level)
        random.setstate(python)
        np.random.set_state(numpy)
