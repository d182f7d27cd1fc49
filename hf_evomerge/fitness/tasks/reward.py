"""Fitness as rewards of what a model writes: functions as trl's trainers take them, and a reward
model.

A function is code from a file beside the search: it runs only with the user's consent, and never
from a published record.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from ...errors import FitnessError, nearest, one_line, told
from ...recipes.names import looked_in
from ...recipes.recipe import SourceRef
from ...recipes.strict_yaml import Number, StrictModel
from ..example import Example
from ..registry import register_task
from ..scores import Scores
from ..text.encoding import device_of, messages_of, render_chat
from .function import numbers
from .writing import WritingSpec, WritingTask

Reward = Callable[..., Iterable[float | None]]


class RewardFunction(StrictModel):
    """A function in a file of Python."""

    code: str
    """The file. A relative name starts at the folder of the search file, or else at the current
    directory."""
    name: str
    """The function."""


def _split(value: Any) -> Any:
    """Read ``rewards.py:accuracy`` as a file and a name."""
    if not isinstance(value, str):
        return value
    code, _, name = value.rpartition(":")
    if not code.endswith(".py") or not name.isidentifier():
        raise ValueError(f"write a function as FILE.py:NAME (found {value!r:.80})")
    return {"code": code, "name": name}


class RewardSpec(WritingSpec):
    """Score a model by rewards of what it writes, greedily decoded: the sum of functions with trl's
    signature and of a reward model."""

    task: Literal["reward"] = "reward"
    functions: list[
        Annotated[
            RewardFunction, BeforeValidator(_split, json_schema_input_type=RewardFunction | str)
        ]
    ] = Field(default_factory=list)
    """Reward functions, each as ``rewards.py:accuracy``. They run with ``--trust-remote-code``
    alone."""
    model: str | None = None
    """A reward model, in a folder or on the Hub: a sequence classifier with one label, in
    safetensors."""
    revision: str | None = None
    """The reward model's branch, tag or commit."""
    weights: list[Number] | None = None
    """Factors of the rewards, the functions' first and then the model's; 1 each where absent."""
    unit: ClassVar[str] = "reward"

    @property
    def reward_model(self) -> SourceRef:
        """The reward model as a reference."""
        return SourceRef(model=str(self.model), revision=self.revision)

    @model_validator(mode="after")
    def _check_rewards(self) -> RewardSpec:
        count = len(self.functions) + (self.model is not None)
        if not count:
            raise ValueError("name reward functions (FILE.py:NAME), or a reward model")
        if self.weights is not None and len(self.weights) != count:
            raise ValueError(f"weights: {len(self.weights)} for {count} rewards")
        if self.language is not None:
            raise ValueError("language: a reward function judges it; leave it out")
        if self.revision is not None and self.model is None:
            raise ValueError("revision: belongs to the reward model; leave it out")
        return self


@register_task("reward")
class RewardTask(WritingTask):
    """Weighted sum of rewards of each response; a function that returns None for one adds nothing
    there, as in trl. The results show each of several by its name, without its weight."""

    spec_type = RewardSpec
    spec: RewardSpec

    trust_remote_code = False
    """Consent to run the files of the functions."""

    def prepare(self, examples: Sequence[Example], tokenizer: Any) -> None:
        """Load the functions, and tokenise the prompts; raises `FitnessError` where a file is not
        trusted or has no such function."""
        for each in self.spec.functions:
            if not Path(each.code).is_file():
                raise FitnessError(
                    f"fitness.functions: {each.code}: there is no such file{looked_in(each.code)}"
                )
            if not self.trust_remote_code:
                raise FitnessError(
                    f"fitness.functions: {each.code}: a reward function is code; read it, and "
                    "pass --trust-remote-code"
                )
        self._functions = [_function(each.code, each.name) for each in self.spec.functions]
        super().prepare(examples, tokenizer)

    def _run(self, model: Any, *, gradient: bool) -> Scores:
        written = self.respond(model)
        texts = [each.text for each in written]
        given = self._given(texts, [list(each.tokens) for each in written])
        rewards = [
            numbers(
                f"reward function {each.name}",
                _called(function, each, given),
                len(texts),
                nothing=0.0,
            )
            for each, function in zip(self.spec.functions, self._functions, strict=True)
        ]
        if self.spec.model is not None:
            rewards.append(self._read_by_model(texts, device_of(model)))
        weights = self.spec.weights or [1.0] * len(rewards)
        values = [0.0] * len(texts)
        for weight, column in zip(weights, rewards, strict=True):
            for place, reward in enumerate(column):
                values[place] += weight * reward
        cut = [not each.ended for each in written]
        names = [each.name for each in self.spec.functions]
        if self.spec.model is not None:
            names.append("reward model")
        several = 1 < len(rewards) == len(set(names))
        others = dict(zip(names, map(Scores, rewards), strict=True)) if several else {}
        return Scores(values, outputs=texts, truncated=cut, others=others)

    # trl gives a function, by keyword: the prompts and completions, as texts or as messages; the
    # completions' tokens; each other column of the data; and its trainer's state and loggers.
    def _given(self, texts: Sequence[str], tokens: list[list[int]]) -> dict[str, Any]:
        """Arguments of a reward function."""
        columns: dict[str, list[Any]] = {"answer": [example.answer for example in self._examples]}
        for name in self._examples[0].columns:
            columns[name] = [example.columns[name] for example in self._examples]
        prompts: list[Any] = [
            messages_of(each) if each.chat else each.prompt for each in self._examples
        ]
        completions: list[Any] = [
            [{"role": "assistant", "content": text}] if each.chat else text
            for each, text in zip(self._examples, texts, strict=True)
        ]
        return {
            **columns,
            "prompts": prompts,
            "completions": completions,
            "completion_ids": tokens,
            "trainer_state": None,
            "log_extra": _unlogged,
            "log_metric": _unlogged,
        }

    def _read_by_model(self, texts: Sequence[str], device: Any) -> list[float]:
        """The rewards of a reward model, which reads each prompt with its response."""
        import torch

        judge, tokenizer = _reward_model(str(self.spec.model), self.spec.revision)
        judge.to(device)
        whole = [
            _whole(example, text, tokenizer)
            for example, text in zip(self._examples, texts, strict=True)
        ]
        rewards: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(whole), self.spec.batch_size):
                inputs = tokenizer(
                    whole[start : start + self.spec.batch_size],
                    return_tensors="pt",
                    padding=True,
                    padding_side="right",
                    add_special_tokens=False,
                )
                rewards += judge(**inputs.to(device)).logits[:, 0].float().tolist()
        return rewards


def _whole(example: Example, text: str, tokenizer: Any) -> str:
    """Join a prompt and its response; in a chat, by the reward model's chat template."""
    if not example.chat:
        return example.prompt + text
    answer = {"role": "assistant", "content": text}
    with told(FitnessError, Exception, "fitness.model: its chat template: "):
        return render_chat(tokenizer, [*messages_of(example), answer], open_ended=False)


def _called(function: Reward, named: RewardFunction, given: Mapping[str, Any]) -> Any:
    """Call a function as trl does; raises `FitnessError` where it cannot take its arguments."""
    write = f"; write it as `def {named.name}(prompts, completions, **kwargs)`"
    with told(FitnessError, TypeError, f"{named.code}: {named.name}: ", write):
        inspect.signature(function).bind(**given)
    return function(**given)


def _unlogged(*_: Any) -> None:
    """Take what a function would log to trl's trainer."""


@functools.lru_cache(maxsize=64)
def _function(file: str, name: str) -> Reward:
    """Run a file, and return a function of it; raises `FitnessError`."""
    spec = importlib.util.spec_from_file_location(f"rewards_{Path(file).stem}", file)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as cause:  # anything: it is the user's program that runs
        raise FitnessError(
            f"fitness.functions: {file}: cannot be run: {type(cause).__name__}: {one_line(cause)}"
        ) from cause
    functions = {key: value for key, value in vars(module).items() if callable(value)}
    if name not in functions:
        raise FitnessError(
            f"fitness.functions: {file}: has no {name!r}; {nearest(name, functions)}"
        )
    found: Reward = functions[name]
    return found


@functools.lru_cache(maxsize=1)
def _reward_model(name: str, revision: str | None) -> tuple[Any, Any]:
    """Load a reward model and its tokenizer, once for all candidates; raises `FitnessError`."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    where = f"fitness.model: {name}"
    with told(FitnessError, (OSError, ValueError), f"{where}: cannot be loaded: "):
        model, found = AutoModelForSequenceClassification.from_pretrained(
            name,
            revision=revision,
            use_safetensors=True,
            use_kernels=False,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    if found["missing_keys"]:
        raise FitnessError(
            f"{where}: lacks {min(found['missing_keys'])}: no reward model but another kind"
        )
    if model.config.num_labels != 1:
        raise FitnessError(f"{where}: {model.config.num_labels} labels; a reward model has one")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer
