"""Holds the model and, when asked, its parents; generates one answer at a time, in pieces, within
bounds of tokens and time."""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import loading
import seeing
from loading import MAX_SECONDS, Loaded
from published import Published, PublishedParent
from texts import SpaceError

from hf_evomerge.checkpoints.component import Component
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import told
from hf_evomerge.fitness import Example
from hf_evomerge.fitness.pictures import SeeingTokenizer, placed, seen_inputs
from hf_evomerge.fitness.tasks.writing import greedy
from hf_evomerge.fitness.text.encoding import encode_prompt, room, scoring
from hf_evomerge.merging.live import write_part
from hf_evomerge.recipes.recipe import SourceRef
from hf_evomerge.record import EVOLVED, Data

if TYPE_CHECKING:
    from transformers import GenerationConfig

MAX_TOKENS = 256
MAX_PROMPT_TOKENS = 2048
_HEARTBEAT = 0.25
_NO_ANSWER = "The model could not answer"
_MOST_QUICK = 200e6  # bytes of a model that answers, as its parents do, without being asked


@dataclass(frozen=True)
class AnswerJob:
    """Answer to be written. Plain data, so that it can cross to another process on ZeroGPU.

    Attributes:
        key: ``evolved``, or the label of a parent.
        prompt, pictures: What the visitor has sent, checked.
        max_tokens: At most so many new tokens.
        hops, scales: Another path through the layers of the evolved model.
    """

    key: str
    prompt: str
    max_tokens: int = 64
    hops: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    pictures: seeing.Pictures = ()


@dataclass(frozen=True)
class Piece:
    """An answer so far."""

    state: str
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0


class Host(loading.LoadedInBackground):
    """Holds the models of one Space and lets one pass at a time run on them, of `max_seconds` at
    most."""

    def __init__(self, published: Published) -> None:
        super().__init__(published.name)
        self.published = published
        self.max_seconds = MAX_SECONDS
        self._pass = threading.Lock()
        self.evolved: Loaded | None = None
        whole = published.base or published
        self._weights = (whole.model, whole.revision)
        self._parents: dict[str, Loaded] = {}
        self._run = loading.on_gpu(self._generate)
        self._once = loading.on_gpu(self._work_once)

    @cached_property
    def quick(self) -> bool:
        """True where the model is so small that it answers, as its parents do, without being
        asked."""
        return 0 < loading.weights_bytes(*self._weights) <= _MOST_QUICK and not loading.zero_gpu()

    def _load(self) -> None:
        published = self.published
        loading.check_memory(loading.weights_bytes(*self._weights), published.name)
        adapter = (published.model, published.revision) if published.base is not None else None
        self.evolved = loading.load(*self._weights, sees=published.sees, adapter=adapter)

    def answer(
        self, job: AnswerJob, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Piece]:
        """Write one answer, piece by piece; the last is ``done``, or ``stopped`` where `stopped`
        says so between two.

        Raises:
            SpaceError: The model cannot be loaded, or the prompt does not fit.
        """
        while not self.ready.wait(_HEARTBEAT):
            yield Piece("loading")
            if stopped():
                yield Piece("stopped")
                return
        if self.error:
            raise SpaceError(self.error)
        if job.key != EVOLVED and job.key not in self._parents:
            yield Piece("loading")
        last = Piece("waiting")
        pieces = self._run(job)
        try:
            for last in pieces:
                if last.state == "error":
                    raise SpaceError(last.text)
                if stopped():
                    yield Piece("stopped", last.text, last.tokens, last.seconds)
                    return
                yield last
        finally:
            pieces.close()

    def whole_answer(self, job: AnswerJob) -> Piece:
        """The answer when it is finished; raises `SpaceError`."""
        return deque(self.answer(job), maxlen=1).pop()

    # Two threads. One runs the model and holds the lock; this one listens to it through a queue and
    # yields what is new, or a sign of life. A visitor who leaves closes this generator; the event
    # `stop` then ends the other thread between two layers, and the lock is free for the next
    # visitor. Text is decoded here, from all tokens so far: a single token may hold half a
    # character.
    def _generate(self, job: AnswerJob) -> Generator[Piece, None, None]:
        """The pieces of one answer. The thread that runs the model holds the lock, so nothing
        depends on who still listens."""
        news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stop = threading.Event()
        worker = threading.Thread(
            target=self._work, args=(job, news, stop), daemon=True, name="generate"
        )
        worker.start()
        ids = []
        tokenizer = None
        begin = time.monotonic()
        state = "waiting"
        value: Any
        try:
            while state != "done":
                kind = ""
                value = None
                with suppress(queue.Empty):
                    kind, value = news.get(timeout=_HEARTBEAT)
                # as a piece: an exception would lose its words on the way out of ZeroGPU's process
                if kind == "error":
                    yield Piece("error", value)
                    return
                if kind == "start":
                    tokenizer = value
                    begin = time.monotonic()
                    state = "writing"
                elif kind == "tokens":
                    ids = value
                state = "done" if kind == "end" else state
                seconds = value if kind == "end" else time.monotonic() - begin
                text = tokenizer.decode(ids, skip_special_tokens=True) if tokenizer and ids else ""
                # without a character of which only some bytes are there
                text = text.rstrip("\ufffd").strip()
                yield Piece(state, text, len(ids), seconds if ids else 0.0)
        finally:
            stop.set()

    def _work(self, job: AnswerJob, news: queue.SimpleQueue[Any], stop: threading.Event) -> None:
        """Run the model in this thread, alone."""
        import torch

        try:
            with self._pass, torch.inference_mode():
                if stop.is_set():
                    return
                loaded = self._loaded(job.key)
                prompt = encode(job.prompt, loaded, self.published.prompts, job.pictures)
                model = _along(loaded.model, job)
                news.put(("start", loaded.tokenizer))
                begin = time.monotonic()
                config = greedy(
                    model, loaded.tokenizer, min(job.max_tokens, MAX_TOKENS, prompt.room)
                )
                end = begin + self.max_seconds
                begun = _write(
                    model, prompt, config, news, lambda: stop.is_set() or time.monotonic() > end
                )
                seconds = time.monotonic() - begin
                if not begun and not stop.is_set():
                    raise SpaceError(
                        f"Reading the prompt took longer than {self.max_seconds:.0f} s here. "
                        "Shorten it."
                    )
                news.put(("end", seconds))
        except Exception as error:  # shown to the visitor, in one line
            news.put(("error", loading.error_line(error, _NO_ANSWER)))

    def score(self, job: AnswerJob, examples: Sequence[Example]) -> list[bool]:
        """Judge a model's answer to each of some examples by the search's own task.

        Raises:
            SpaceError: The model or its path does not work, or the search's task cannot score here,
                or it takes too long.
        """
        found = self._once(job, examples)
        if isinstance(found, str):
            raise SpaceError(found)
        return found

    def _work_once(self, job: AnswerJob, examples: Sequence[Example]) -> list[bool] | str:
        """Judgements, or words: an exception would lose them on the way out of ZeroGPU's
        process."""
        import torch

        try:
            with self._pass, torch.inference_mode():
                loaded = self._loaded(job.key)
                end = time.monotonic() + self.max_seconds
                model = _along(loaded.model, job)
                with scoring(model), _ended_by(model, lambda: time.monotonic() > end):
                    return self._judge(loaded, model, examples)
        except _EndedError:
            return f"This takes longer than {self.max_seconds:.0f} s here."
        except Exception as error:  # shown to the visitor, in one line
            return loading.error_line(error, _NO_ANSWER)

    def _judge(self, loaded: Loaded, model: Any, examples: Sequence[Example]) -> list[bool]:
        if (task := self.published.task) is None:
            raise SpaceError("The search's own task cannot score here.")
        data = self.published.prompts
        tokenizer = (
            loaded.tokenizer if loaded.processor is None else SeeingTokenizer(loaded.processor)
        )
        task.prepare(
            [_asked(each.prompt, loaded, data, each.pictures, each.answer) for each in examples],
            tokenizer,
        )
        correct = task.evaluate(model).correct
        return [] if correct is None else correct.tolist()

    def _loaded(self, key: str) -> Loaded:
        if key == EVOLVED or self.published.base is not None:
            if self.evolved is None:
                raise SpaceError(self.error or "The model is not loaded yet.")
            if self.published.base is not None:
                parent = None if key == EVOLVED else self._parent(key)
                own = self.published.model, self.published.revision
                loading.use_adapter(self.evolved, own if parent is None else parent.adapter)
            return self.evolved
        if key not in self._parents:
            self._parents[key] = self._load_parent(key)
        return self._parents[key]

    def _parent(self, key: str) -> PublishedParent:
        parent = next((parent for parent in self.published.parents if parent.label == key), None)
        if parent is None:
            raise SpaceError(f"There is no model {key!r:.60} here.")
        if parent.missing:
            raise SpaceError(f"{parent.label} is {parent.missing}.")
        return parent

    def _load_parent(self, key: str) -> Loaded:
        parent = self._parent(key)
        needed = loading.weights_bytes(parent.model, parent.revision)
        while self._parents and not loading.fits(needed):
            self._parents.pop(next(iter(self._parents)))
            gc.collect()
        loading.check_memory(needed, parent.label)
        try:
            if not self.published.sees:
                return loading.load(parent.model, parent.revision)
            if loading.parent_sees(parent.model, parent.revision):
                return loading.load(parent.model, parent.revision, sees=True)
            return self._given_eyes(parent)
        except Exception as error:
            raise SpaceError(
                loading.error_line(error, f"{parent.label} cannot be loaded")
            ) from error

    def _given_eyes(self, blind: PublishedParent) -> Loaded:
        """A parent that is a plain language model, put into the first that sees, as the search
        scored it."""
        there = (
            one
            for one in self.published.parents
            if not one.missing and loading.parent_sees(one.model, one.revision)
        )
        if (host := next(there, None)) is None:
            raise SpaceError(f"{blind.label} sees no pictures, and no parent is here that does.")
        loading.check_memory(loading.weights_bytes(host.model, host.revision), host.label)
        found = loading.load(host.model, host.revision, sees=True)
        refs = (SourceRef(model=one.model, revision=one.revision) for one in (blind, host))
        part, replaced = (Component(open_source(ref), "text") for ref in refs)
        write_part(part, replaced, found.model)
        return found


def _along(model: Any, job: AnswerJob) -> Any:
    """The model along another path, if the job says so: another list of the same layers, no
    copy."""
    if not job.hops:
        return model
    if not hasattr(model, "with_path"):
        raise SpaceError(
            "This model has no path to change: its weights are merged, its layers are in "
            "their usual order."
        )
    with told(SpaceError, ValueError, "This path does not work: "):
        return model.with_path(list(job.hops), list(job.scales) or None).eval()


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as a model is given it: its token ids, the number of tokens for which the model has
    positions after it, and the model's inputs of pictures."""

    ids: list[int]
    room: int
    seen: dict[str, Any]

    def given(self, model: Any) -> dict[str, Any]:
        """Return the inputs of `generate`, on the model's device."""
        import torch

        inputs = torch.tensor([self.ids], device=model.device)
        return {
            "inputs": inputs,
            "attention_mask": torch.ones_like(inputs),
            **placed(self.seen, model),
        }


def encode(
    prompt: str, loaded: Loaded, data: Data | None, pictures: seeing.Pictures = ()
) -> EncodedPrompt:
    """Encode a prompt as the search does: with the tokenizer's chat template, unless the search
    prompted the models without.

    Raises:
        EvoMergeError: The prompt does not fit, or has no tokens, or a picture cannot be read.
    """
    tokenizer = (
        SeeingTokenizer(loaded.processor)
        if pictures and loaded.processor is not None
        else loaded.tokenizer
    )
    example = _asked(prompt, loaded, data, pictures)
    ids = encode_prompt(example, tokenizer)
    left = room(loaded.model, ids)
    if len(ids) > MAX_PROMPT_TOKENS:
        raise SpaceError(
            f"The prompt has {len(ids):,} tokens; here it may have {MAX_PROMPT_TOKENS:,}. "
            "Shorten it."
        )
    if left < 1:
        most = f"this model reads {len(ids) + left:,}, answer included"
        raise SpaceError(f"The prompt has {len(ids):,} tokens; {most}. Shorten it.")
    seen = seen_inputs(tokenizer, [example], [len(ids)], len(ids), left=False)
    return EncodedPrompt(ids, left, seen)


def _asked(
    prompt: str, loaded: Loaded, data: Data | None, pictures: seeing.Pictures, answer: str = ""
) -> Example:
    """A prompt as the search would give it to the model."""
    chat = bool(getattr(loaded.tokenizer, "chat_template", None)) and (data is None or data.chat)
    system = data.system if chat and data is not None else None
    if loaded.processor is not None and not chat:
        prompt = seeing.marked(loaded.processor, prompt, pictures)
    return Example(prompt, answer, "your prompt", chat, system, pictures=pictures)


class _EndedError(Exception):
    """The answer was stopped, or its time was over, between two layers."""


def _write(
    model: Any,
    prompt: EncodedPrompt,
    config: GenerationConfig,
    news: queue.SimpleQueue[Any],
    over: Callable[[], bool],
) -> bool:
    """Write an answer greedily, so that two models or two paths differ by what they are and not by
    chance.

    After each token `news` gets the ids so far. `over` says whether to end, between two layers too:
    reading a long prompt is one step of `generate`. Gives whether there is a first token.
    """
    import torch
    from transformers import StoppingCriteriaList

    begun = False

    def ended(written: Any, scores: Any, **_: Any) -> Any:
        nonlocal begun
        begun = True
        news.put(("tokens", written[0, len(prompt.ids) :].tolist()))
        return torch.full((1,), over(), dtype=torch.bool, device=written.device)

    with suppress(_EndedError), scoring(model), _ended_by(model, over):
        model.generate(
            **prompt.given(model),
            stopping_criteria=StoppingCriteriaList([ended]),
            generation_config=config,
            trust_remote_code=False,
        )
    return begun


# `generate` asks its stopping criteria between tokens only. Hooks before every layer also end the
# reading of a long prompt, and passes of the task.
@contextmanager
def _ended_by(model: Any, over: Callable[[], bool]) -> Iterator[None]:
    """Raise `_EndedError` between two layers where `over` says so."""
    import torch

    def between(*_: Any) -> None:
        if over():
            raise _EndedError

    layers = [
        layer for part in model.modules() if isinstance(part, torch.nn.ModuleList) for layer in part
    ]
    hooks = [layer.register_forward_pre_hook(between) for layer in dict.fromkeys(layers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def choices(parents: tuple[PublishedParent, ...]) -> list[str]:
    """The parents that can be asked."""
    return [parent.label for parent in parents if not parent.missing]
