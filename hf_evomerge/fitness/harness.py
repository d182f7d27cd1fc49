"""Fitness by lm-evaluation-harness: any of its tasks, on the live model, with its own prompts, requests, filters and metrics.

Its documents are examples like all others (``lm_eval`` under ``data``), so splits, batches and retained data work as usual.
Here is what reads them and what scores them. lm_eval is imported where it is used.
"""

from __future__ import annotations

import copy
import functools
import io
import logging
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import yaml
from pydantic import ConfigDict, Field

from ..errors import FitnessError, nearest, shown
from ..recipes.limited_yaml import load_limited, read_limited
from ..recipes.strict_yaml import Count, Index, StrictModel, validate
from .chat_process import ChatError, limited, render_chat
from .encoding import scoring
from .example import Example
from .prepared import PreparedTask
from .registry import TaskSpec, register_task
from .scores import Scores

_SEEDS = {"python": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}  # those of lm_eval's command line
_OF_EXAMPLES = ("mean", "nanmean", "perplexity", "weighted_perplexity", "bits_per_byte")  # what a metric may be aggregated by
_LOG_PROBABILITIES = _OF_EXAMPLES[2:]  # whose parts are log-probabilities: of a text, or with the units to divide it by
_CODE = {"class", "custom_dataset", "group", "include", "task_list", "unsafe_code", "use_prompt"}  # keys of a task's file
_RIGHT = ("acc", "exact_match")  # begin the names of metrics that say what is right


class LmEvalSpec(TaskSpec):
    """Score a model by tasks of lm-evaluation-harness; which, and on which documents, stands under ``data`` (``lm_eval``)."""

    task: Literal["lm_eval"] = "lm_eval"
    metric: str | dict[str, str] | None = None
    """What counts, such as ``acc_norm``, or ``exact_match,strict-match`` for that of a filter; for each task by its name where
    they differ. The first of each task by default, after its first filter."""
    num_fewshot: Annotated[Index, Field(le=1000)] | None = None
    """Solved examples before each question; the task's own number by default."""
    chat: bool = False
    """Wrap the prompts in the tokenizer's chat template."""
    system: str | None = None
    """The system message of the chat."""
    batch_size: Count = 16
    """Requests that run together. It changes the memory and the time; scores in their last bits."""


class GenerationKeys(StrictModel):
    """``generation_kwargs`` of a task of lm_eval: the only ones that reach `generate`, some of whose arguments load code."""

    until: str | list[str] | None = None
    """Strings that end a response."""
    do_sample: bool | None = None
    """Draw tokens rather than take the likeliest."""
    temperature: float | None = Field(default=None, ge=0, le=100)
    """Divisor of the logits when tokens are drawn."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Draw among the likeliest tokens with this total probability."""
    top_k: int | None = Field(default=None, ge=0, le=131072)
    """Draw among so many of the likeliest tokens."""
    num_beams: int | None = Field(default=None, ge=1, le=64)
    """Beams of a beam search; each takes the memory of one more row."""
    max_gen_toks: Count | None = None
    """Tokens after which a response is cut."""
    max_new_tokens: Count | None = None
    """The same."""
    max_tokens: Count | None = None
    """The same."""
    max_completion_tokens: Count | None = None
    """The same."""


class MetricKeys(StrictModel):
    """A metric that a task of lm_eval names; keys beside these are the metric's own."""

    model_config = ConfigDict(extra="ignore")

    metric: str
    """Its name."""
    hf_evaluate: Literal[False] = False
    """Whether it is fetched from the Hub, as code: never."""


class TaskKeys(StrictModel):
    """Keys of a lm_eval task, or of its file, that are checked."""

    model_config = ConfigDict(extra="ignore")

    task: str
    """Its name."""
    num_fewshot: Annotated[Index, Field(le=1000)] | None = None
    """Solved examples before each question."""
    repeats: Annotated[Count, Field(le=1000)] = 1
    """How often each request is made."""
    metric_list: list[MetricKeys] | None = None
    """Its metrics."""
    generation_kwargs: GenerationKeys | None = None
    """How a response is generated."""


@register_task("lm_eval")
class LmEvalTask(PreparedTask):
    """Scores documents of lm_eval's tasks by lm_eval's own metrics, negated where less is better.

    ``correct`` says what is right where the metrics are accuracies or exact matches; ``outputs`` are the generated responses of
    tasks that have any. A perplexity counts as the mean log-probability of a document's words or bytes, whose mean it is.
    """

    spec_type: ClassVar[type[TaskSpec]] = LmEvalSpec

    def __init__(self, spec: LmEvalSpec) -> None:
        super().__init__(spec)
        self._places: list[tuple[str, int]] = []  # the task and the document of each example
        self._tasks: dict[str, Any] = {}
        self._metrics: dict[str, tuple[str, str | None]] = {}
        self._own = False  # whether a task is a file's

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Load the tasks of the examples; raises `FitnessError` where one cannot score examples, or these are not lm_eval's."""
        super().prepare(examples, tokenizer)
        found: dict[str, Any] = {}
        self._places = []
        for example in examples:
            name, _, number = example.id.rpartition(":")
            if not name or not number.isdecimal():
                raise FitnessError(f"{example.id}: is no document of lm_eval; write data: {{search: {{lm_eval: TASK}}}}")
            if name not in found:
                tasks = load_tasks(name)
                if len(tasks) != 1:
                    raise FitnessError(f"lm_eval: {name}: is a group of {len(tasks)} tasks")
                found[name] = next(iter(tasks.values()))
            self._places.append((str(found[name].config.task), int(number)))
        self._tasks = {str(task.config.task): task for task in found.values()}
        if len(self._tasks) < len(found):
            raise FitnessError(f"data.lm_eval: two tasks have one name; there are {', '.join(found)}")
        self._own = any(map(_is_file, found))
        self._metrics = {name: self._metric(name) for name in self._tasks}
        self._tokenizer = copy.deepcopy(tokenizer)  # lm_eval gives it a token for padding
        if self.spec.chat:
            self._check_chat(examples[0])

    def evaluate(self, model: Any) -> Scores:
        """Score one model; raises `FitnessError` where a score is not finite."""
        import lm_eval

        asked: dict[str, list[int]] = {}
        for name, number in sorted(self._places):
            asked.setdefault(name, []).append(number)
        with scoring(model), _surroundings(own=self._own), _few_shot(self._tasks.values(), self.spec.num_fewshot):
            found = lm_eval.evaluate(
                lm=_live(model, self._tokenizer, self.spec.batch_size),
                task_dict={"tasks": self._tasks},
                samples={name: sorted(set(numbers)) for name, numbers in asked.items()},
                bootstrap_iters=0,
                log_samples=True,
                system_instruction=self.spec.system,
                apply_chat_template=self.spec.chat,
                fewshot_as_multiturn=True,
            )
        return self._scores({name: self._of_task(name, samples) for name, samples in found["samples"].items()})

    def _of_task(self, name: str, samples: list[dict[str, Any]]) -> dict[int, tuple[float, str]]:
        metric, chosen = self._metrics[name]
        filters = list(dict.fromkeys(sample["filter"] for sample in samples))
        chosen = filters[0] if chosen is None else chosen
        if chosen not in filters:
            raise FitnessError(f"metric: {name} has no filter {chosen!r}; {nearest(chosen, filters)}")
        found = {}
        for sample in samples:
            if sample["filter"] == chosen:
                if metric not in sample:
                    raise FitnessError(f"metric: {name} has no {metric!r}; {nearest(metric, sample['metrics'])}")
                wrote = sample["resps"][0][0]
                found[sample["doc_id"]] = (self._value(name, metric, sample[metric]), wrote if isinstance(wrote, str) else "")
        return found

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
        right = all(metric.startswith(_RIGHT) for metric, _ in self._metrics.values()) and bool(np.isin(values, (0, 1)).all())
        correct = values.astype(bool) if right else None
        outputs = [text for _, text in pairs]
        return Scores(values, correct=correct, outputs=outputs if any(outputs) else None)

    def _metric(self, name: str) -> tuple[str, str | None]:
        task, given = self._tasks[name], self.spec.metric
        metrics = list(task.aggregation())
        if isinstance(given, dict):
            if unknown := set(given) - set(self._tasks):
                raise FitnessError(f"metric: {min(unknown)!r} is no task here; {nearest(min(unknown), self._tasks)}")
            given = given.get(name)
        metric, _, chosen = (given or metrics[0]).partition(",")
        if metric not in metrics:
            raise FitnessError(f"metric: {name} has no {metric!r}; {nearest(metric, metrics)}")
        if (by := _aggregation(task, metric)) not in _OF_EXAMPLES:
            raise FitnessError(
                f"metric: {metric} of {name} is of all documents together ({by}), and none has a score of its own"
            )
        return metric, chosen or None

    def _check_chat(self, example: Example) -> None:
        if not getattr(self._tokenizer, "chat_template", None):
            raise FitnessError("fitness.chat: the tokenizer has no chat template; leave out chat")
        _render(self._tokenizer, [{"role": "user", "content": example.prompt}])


@functools.lru_cache(maxsize=64)
def load_tasks(name: str) -> dict[str, Any]:
    """Load the lm_eval tasks that a name stands for, by the names that lead to each: a task, group, tag or YAML file.

    Raises:
        FitnessError: lm_eval is not installed, knows no such task, or cannot read its data; or the file would run code.
    """
    if find_spec("lm_eval") is None:
        raise FitnessError("lm_eval: is not installed: pip install 'hf-evomerge[eval]'")
    if is_file := _is_file(name):
        _check_file(Path(name))
    elif name not in (known := _manager(True).all_tasks):
        close = nearest(name, known)
        raise FitnessError(f"lm_eval: there is no task {name!r}; {close if len(close) < 100 else 'run `lm_eval ls tasks`'}")
    with _surroundings(own=is_file):
        try:
            tasks: dict[str, Any] = _manager(not is_file).load([name])["tasks"]
        except Exception as cause:  # anything: reading a task reads a data set, by network or not
            raise FitnessError(
                f"lm_eval: {name}: cannot be loaded: {type(cause).__name__}: {cause}; without a network only "
                "tasks work whose data is here already"
            ) from cause
    for task in tasks.values():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            runs = getattr(task, "UNSAFE_CODE", False)
            what = "runs what the model writes as a program" if runs else "shows pictures or sounds"
            raise FitnessError(f"lm_eval: {name}: {what}, which is not done here")
        given = {key: getattr(task.config, key, None) for key in ("repeats", "generation_kwargs")}
        _check_keys(name, {"task": name, **{key: value for key, value in given.items() if value is not None}})
    return {name: next(iter(tasks.values()))} if is_file and len(tasks) == 1 else tasks


def read_documents(names: Sequence[str]) -> list[Example]:
    """Read all documents of some tasks, in their order, as examples whose ids lead back to them."""
    examples = []
    for given in names:
        for name, task in load_tasks(given).items():
            with _surroundings(own=_is_file(given)):
                for number, doc in enumerate(task.eval_docs):
                    try:
                        prompt, answer = str(task.doc_to_text(doc)), str(task.doc_to_target(doc))
                    except (ChatError, ValueError, TypeError, SyntaxError) as cause:
                        raise FitnessError(f"lm_eval: {name}: document {number}: {cause}") from cause
                    examples.append(Example(prompt, answer, f"{name}:{number}", content=prompt or answer))
    return examples


def _is_file(name: str) -> bool:
    """Tell whether a YAML file defines the task, and not lm_eval."""
    return Path(name).suffix in (".yaml", ".yml")


@functools.cache
def _manager(with_own: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=with_own)


def _check_file(file: Path) -> None:
    """Refuse a task's file that would run code: lm_eval imports functions that one names, and fetches metrics that it lacks.

    What its templates and patterns may do is limited by a process of their own; see `_surroundings`.
    """
    from lm_eval.api import metrics  # noqa: F401 - which registers them
    from lm_eval.api.registry import metric_registry

    try:
        content = load_limited(read_limited(file))
    except (OSError, ValueError, yaml.YAMLError) as cause:  # a tag such as !function is none of YAML's
        raise FitnessError(f"lm_eval: {file}: cannot be read, or names code: {cause}") from cause
    if not isinstance(content, dict):
        raise FitnessError(f"lm_eval: {file}: is no task: it has no 'task' with a name")
    checked = _check_keys(str(file), content)
    if unread := sorted(_CODE & content.keys()):
        raise FitnessError(f"lm_eval: {file}: {unread[0]} may lead to code, and is not read from a file")
    for each in checked.metric_list or ():
        if each.metric not in metric_registry:
            raise FitnessError(f"lm_eval: {file}: the metric {shown(each.metric)} would be fetched as code; use one of lm_eval")
    options = content.get("dataset_kwargs")
    if content.get("dataset_path") == "pandas" or (isinstance(options, dict) and options.get("trust_remote_code")):
        raise FitnessError(f"lm_eval: {file}: its data would be read by code (pickle, or a script); use JSON, CSV or Parquet")


def _check_keys(name: str, keys: dict[str, Any]) -> TaskKeys:
    try:
        return validate(TaskKeys, keys, FitnessError)
    except FitnessError as cause:
        raise FitnessError(f"lm_eval: {name}: {cause}") from cause


def _aggregation(task: Any, metric: str) -> str:
    return str(getattr(task.aggregation().get(metric), "__name__", "unknown"))


def _render(tokenizer: Any, messages: Sequence[dict[str, str]], answer: bool = True) -> str:
    try:
        return render_chat(tokenizer, messages, answer=answer)
    except ChatError as cause:
        raise FitnessError(f"data.chat: the tokenizer's chat template refuses the prompts: {cause}") from cause


def _live(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """A model in memory as lm_eval's own kind of model."""
    from lm_eval.models.huggingface import HFLM

    class Live(HFLM):
        """Renders chats within limits, and generates without remote code."""

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return _render(self.tokenizer, chat_history, add_generation_prompt)

        def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
            return super()._model_generate(*args, **kwargs, trust_remote_code=False)

    return Live(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)


@contextmanager
def _few_shot(tasks: Iterable[Any], wanted: int | None) -> Iterator[None]:
    """Give tasks that many solved examples, drawn anew, as lm_eval does: none where a task itself says 0, or nothing."""
    own = [(task, task.get_config("num_fewshot")) for task in tasks]
    for task, number in own:
        task.set_fewshot_seed(_SEEDS["fewshot"])
        task.set_config("num_fewshot", 0 if number == 0 else wanted if wanted is not None else number or 0)
    try:
        yield
    finally:
        for task, number in own:
            task.set_config("num_fewshot", number)


@contextmanager
def _surroundings(*, own: bool) -> Iterator[None]:
    """Run lm_eval with its own seeds, without bars, and a file's templates and patterns within limits; then put all back."""
    import lm_eval.utils
    import torch
    from lm_eval.api import metrics
    from lm_eval.filters import extraction

    python, numpy = random.getstate(), np.random.get_state()
    logger, environment = logging.getLogger("lm_eval"), lm_eval.utils.env
    level = logger.level
    logger.setLevel(logging.ERROR)
    if own:
        lm_eval.utils.env = SimpleNamespace(from_string=_template)
        metrics.re = extraction.re = SimpleNamespace(compile=_pattern, escape=re.escape, findall=re.findall, sub=_sub)
    try:
        with redirect_stderr(io.StringIO()), torch.random.fork_rng(devices=[]):
            random.seed(_SEEDS["python"])
            np.random.seed(_SEEDS["numpy"])
            torch.manual_seed(_SEEDS["torch"])
            yield
    finally:
        lm_eval.utils.env, metrics.re, extraction.re = environment, re, re
        logger.setLevel(level)
        random.setstate(python)
        np.random.set_state(numpy)


def _template(text: str) -> Any:
    """A template of jinja, as far as lm_eval uses one."""
    return SimpleNamespace(render=lambda **document: limited("template", template=text, variables=document))


def _pattern(text: str) -> Any:
    """A regular expression, as far as lm_eval's filters use one."""
    re.compile(text)

    def findall(string: str) -> list[Any]:
        found = limited("findall", pattern=text, string=string)
        return [tuple(each) if isinstance(each, list) else each for each in found]

    return SimpleNamespace(findall=findall)


def _sub(pattern: str, by: str, text: str) -> str:
    return str(limited("sub", pattern=pattern, repl=by, string=text))
