"""Holds the model and, when asked, its parents; generates one answer at a time, in pieces, within bounds of tokens and time."""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import loading
import mixing
import seeing
from loading import MAX_SECONDS, Loaded
from published import Parent, Published, mapping
from texts import SpaceError

try:
    from hf_evomerge.fitness import chat_process
except ImportError:  # a Space has the file beside this one
    import chat_process  # type: ignore[no-redef]

EVOLVED = "evolved"
MAX_TOKENS = 256
MAX_PROMPT_TOKENS = 2048
_HEARTBEAT = 0.25
_LAST_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f", "embedding_norm")  # before the head


@dataclass(frozen=True)
class Job:
    """One answer to be written. Plain data, so that it can cross to another process on ZeroGPU.

    Attributes:
        key: ``evolved``, or the label of a parent.
        prompt: The visitor's text, checked.
        max_tokens: At most so many new tokens.
        hops: Another path through the layers of the evolved model.
        scales: Its scales.
        factors: What the parents' weights in a merge are multiplied by.
        pictures: What the files of the pictures hold that go with the prompt, checked.
    """

    key: str
    prompt: str
    max_tokens: int = 64
    hops: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    factors: mixing.Factors = ()
    pictures: seeing.Pictures = ()


@dataclass(frozen=True)
class Piece:
    """An answer so far."""

    state: str
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0


class Host:
    """Holds the models of one Space and lets one pass at a time run on them.

    Args:
        published: The model as it was read.
        max_seconds: The longest time that one answer may take.
    """

    def __init__(self, published: Published, *, max_seconds: float = MAX_SECONDS) -> None:
        self.published = published
        self.max_seconds = max_seconds
        self.error = ""
        self._ready = threading.Event()
        self._pass = threading.Lock()
        self._evolved: Loaded | None = None
        self._parents: dict[str, Loaded] = {}
        self._run = loading.on_gpu(self._generate)

    @property
    def ready(self) -> bool:
        """Whether the model is in memory, or has failed to get there."""
        return self._ready.is_set()

    @property
    def evolved(self) -> Loaded | None:
        """The model itself, once it is loaded."""
        return self._evolved

    def start(self) -> None:
        """Load in the background; on ZeroGPU now, because models must be placed before the first call."""
        loading.in_background(self.load)

    def load(self) -> None:
        """Load the evolved model; what goes wrong is in `error`."""
        try:
            loading.check_memory(loading.weights_bytes(self.published.model, self.published.revision), self.published.name)
            of = (self.published.model, self.published.revision)
            self._evolved = loading.load(*of, own=True, sees=self.published.sees)
        except SpaceError as error:
            self.error = str(error)
        except Exception as error:  # whatever a model's files provoke, the page must say it and stay
            self.error = f"{self.published.name} cannot be loaded: {loading.first_line(error)}"
        finally:
            self._ready.set()

    def answer(self, job: Job, stopped: Callable[[], bool] = lambda: False) -> Iterator[Piece]:
        """Write one answer.

        Args:
            job: What is asked of which model.
            stopped: Asked between pieces; the answer ends where it says True.

        Yields:
            The answer so far; the last piece is ``done`` or ``stopped``.

        Raises:
            SpaceError: The model cannot be loaded, or the prompt does not fit.
        """
        while not self._ready.wait(_HEARTBEAT):
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

    def is_small(self, key: str, bound: float) -> bool:
        """Whether a parent's weights have at most so many bytes, and fit beside what is loaded."""
        parent = next((parent for parent in self.published.parents if parent.label == key), None)
        size = loading.weights_bytes(parent.model, parent.revision) if parent is not None else 0
        return 0 < size <= bound and loading.fits(size)

    def whole_answer(self, job: Job, stopped: Callable[[], bool] = lambda: False) -> Piece:
        """The answer when it is finished, or was stopped; raises `SpaceError`."""
        return deque(self.answer(job, stopped), maxlen=1).pop()

    def _generate(self, job: Job) -> Generator[Piece, None, None]:
        """The pieces of one answer. The thread that runs the model holds the lock, so nothing depends on who still listens."""
        news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stop = threading.Event()
        worker = threading.Thread(target=self._work, args=(job, news, stop), daemon=True, name="generate")
        worker.start()
        ids: list[int] = []
        tokenizer, begin, state = None, time.monotonic(), "waiting"
        try:
            while True:
                try:
                    kind, value = news.get(timeout=_HEARTBEAT)
                except queue.Empty:
                    yield Piece(state, _decode(tokenizer, ids), len(ids), time.monotonic() - begin if ids else 0.0)
                    continue
                if kind == "error":  # as a piece: an exception would lose its words on the way out of ZeroGPU's process
                    yield Piece("error", value)
                    return
                if kind == "start":
                    tokenizer, begin, state = value, time.monotonic(), "writing"
                elif kind == "tokens":
                    ids += value
                    yield Piece("writing", _decode(tokenizer, ids), len(ids), time.monotonic() - begin)
                else:
                    yield Piece("done", _decode(tokenizer, ids), len(ids), value)
                    return
        finally:
            stop.set()

    def _work(self, job: Job, news: queue.SimpleQueue[Any], stop: threading.Event) -> None:
        """Run the model in this thread, alone."""
        import torch

        try:
            with self._pass, torch.inference_mode():
                if stop.is_set():
                    return
                loaded = self._loaded(job.key)
                model = self._rerouted(loaded.model, job)
                inputs, room, seen = encode(job.prompt, loaded, self._prompt_settings(), job.pictures)
                with self._mixed(model, job):
                    news.put(("start", loaded.tokenizer))
                    begin = time.monotonic()
                    _decode_greedily(
                        model,
                        inputs.to(model.device),
                        seeing.on(model, seen),
                        max_new_tokens=max(1, min(job.max_tokens, MAX_TOKENS, room)),
                        max_seconds=self.max_seconds,
                        news=news,
                        stop=stop,
                        tokenizer=loaded.tokenizer,
                    )
                    seconds = time.monotonic() - begin
                news.put(("end", seconds))
        except SpaceError as error:
            news.put(("error", str(error)))
        except Exception as error:  # shown to the visitor, in one line
            news.put(("error", f"The model could not answer: {loading.first_line(error)}"))

    def _rerouted(self, model: Any, job: Job) -> Any:
        if not job.hops:
            return model
        if not hasattr(model, "with_path"):
            raise SpaceError("This model has no path to change: its weights are merged, its layers are in their usual order.")
        try:
            return model.with_path(list(job.hops), list(job.scales) or None).eval()
        except ValueError as error:
            raise SpaceError(f"This path does not work: {loading.first_line(error)}") from error

    def _mixed(self, model: Any, job: Job) -> AbstractContextManager[None]:
        """The model with other weights of its parents, if the job says so."""
        if not job.factors:
            return nullcontext()
        parents = [self._loaded(parent.label).model for parent in self.published.parents if parent.role == "parent"]
        bases = [self._loaded(parent.label).model for parent in self.published.parents if parent.role == "base"]
        return mixing.mixed(model, parents, bases[0] if bases else None, job.factors)

    def lens(self, prompt: str, pictures: seeing.Pictures = ()) -> tuple[list[str], list[list[str]]]:
        """What the model would write after each layer, were it the last: the head reads the hidden state on the way.

        Args:
            prompt: The visitor's text, checked.
            pictures: Those that go with it, checked.

        Returns:
            The tokens of the answer, at most eight; and for each layer the token that the head likes best in place of each.

        Raises:
            SpaceError: The model is not loaded, or the prompt does not fit, or its class has no norm that is known here.
        """
        import torch

        if not self._ready.is_set():
            raise SpaceError("The model is still being loaded.")
        with self._pass, torch.inference_mode():
            loaded = self._loaded(EVOLVED)
            model, tokenizer = loaded.model, loaded.tokenizer
            inputs, room, seen = encode(prompt, loaded, self._prompt_settings(), pictures)
            inputs, seen = inputs.to(model.device), seeing.on(model, seen)
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
            options: dict[str, Any] = {"attention_mask": torch.ones_like(inputs), "do_sample": False, "num_beams": 1}
            written = model.generate(
                inputs, max_new_tokens=min(8, room), pad_token_id=pad, trust_remote_code=False, **options, **seen
            )
            start = inputs.shape[1]
            seen = seeing.longer(seen, start, written.shape[1] - 1)
            states = model(written[:, :-1], output_hidden_states=True, use_cache=False, **seen).hidden_states
            norms = [part for name, part in model.get_decoder().named_modules() if name.rpartition(".")[2] in _LAST_NORMS]
            head = model.get_output_embeddings()
            if not norms or head is None:
                raise SpaceError("How this model's head reads the hidden state is not known here.")
            read = [norms[-1](state[:, start - 1 :]) for state in states[1:-1]] + [states[-1][:, start - 1 :]]
            liked = [head(state)[0].argmax(-1).tolist() for state in read]

        def said(ids: list[int]) -> list[str]:
            return ["(end)" if each == tokenizer.eos_token_id else tokenizer.decode([each]) for each in ids]

        return said(written[0, start:].tolist()), [said(ids) for ids in liked]

    def _prompt_settings(self) -> dict[str, Any]:
        """How the search prompted the models: the `data` part of its settings, for the test split."""
        return mapping(mapping(mapping(self.published.study.get("settings")).get("data")).get("test"))

    def _loaded(self, key: str) -> Loaded:
        if key == EVOLVED:
            if self._evolved is None:
                raise SpaceError(self.error or "The model is not loaded yet.")
            return self._evolved
        if key not in self._parents:
            self._parents[key] = self._load_parent(key)
        return self._parents[key]

    def _load_parent(self, key: str) -> Loaded:
        parent = next((parent for parent in self.published.parents if parent.label == key), None)
        if parent is None:
            raise SpaceError(f"There is no model {key!r:.60} here.")
        if parent.missing:
            raise SpaceError(f"{parent.label} is {parent.missing}.")
        needed = loading.weights_bytes(parent.model, parent.revision)
        while self._parents and not loading.fits(needed):
            self._parents.pop(next(iter(self._parents)))
            gc.collect()
        loading.check_memory(needed, parent.label)
        try:
            if not self.published.sees:
                return loading.load(parent.model, parent.revision, own=False)
            if loading.sees(parent.model, parent.revision):
                return loading.load(parent.model, parent.revision, own=False, sees=True)
            return self._given_eyes(parent)
        except SpaceError:
            raise
        except Exception as error:
            raise SpaceError(f"{parent.label} cannot be loaded: {loading.first_line(error)}") from error

    def _given_eyes(self, blind: Parent) -> Loaded:
        """A parent that is a plain language model, put into the first that sees, as the search scored it."""
        there = (one for one in self.published.parents if not one.missing and loading.sees(one.model, one.revision))
        if (host := next(there, None)) is None:
            raise SpaceError(f"{blind.label} sees no pictures, and no parent is here that does.")
        loading.check_memory(
            sum(loading.weights_bytes(one.model, one.revision) for one in (host, blind)), f"{blind.label} with {host.label}"
        )
        found = loading.load(host.model, host.revision, own=False, sees=True)
        seeing.give_text(found.model, loading.load(blind.model, blind.revision, own=False).model)
        return found


def encode(
    prompt: str, loaded: Loaded, settings: dict[str, Any], pictures: seeing.Pictures = ()
) -> tuple[Any, int, dict[str, Any]]:
    """A prompt as token ids, the number of tokens for which the model has room after it, and what it is given of pictures.

    The chat template is used where the tokenizer has one, unless the search prompted the models without.

    Raises:
        SpaceError: The prompt does not fit, or has no tokens, or a picture cannot be read.
    """
    import torch

    tokenizer = loaded.tokenizer
    chat = bool(getattr(tokenizer, "chat_template", None)) and settings.get("chat", True)
    if chat:
        system = settings.get("system")
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if isinstance(system, str) else []
        messages.append({"role": "user", "content": prompt})
        if loaded.processor is not None:  # as chat templates for pictures want it
            messages = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
            messages[-1]["content"] = [*[{"type": "image"}] * len(pictures), *messages[-1]["content"]]
        try:
            prompt = chat_process.render_chat(tokenizer, messages)
        except chat_process.ChatError as error:
            raise SpaceError(f"The model's chat template cannot be used: {loading.first_line(error)}") from error
    elif loaded.processor is not None:
        prompt = seeing.placed(loaded.processor, prompt, pictures)
    if pictures and loaded.processor is None:
        raise SpaceError("This model sees no pictures.")
    seen = seeing.encode(loaded.processor, prompt, pictures, special=not chat) if pictures else {}
    ids = seen.pop("input_ids")[0].tolist() if seen else list(tokenizer(prompt, add_special_tokens=not chat)["input_ids"])
    if ids and tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id:
        seen = seeing.longer(seen, len(ids), len(ids) - 1)
        ids.pop()  # the text goes on
    if not ids:
        raise SpaceError("The model's tokenizer makes nothing of this prompt.")
    positions = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    positions = positions if isinstance(positions, int) and positions > 0 else 4096
    if len(ids) > MAX_PROMPT_TOKENS:
        raise SpaceError(f"The prompt has {len(ids):,} tokens; here it may have {MAX_PROMPT_TOKENS:,}. Shorten it.")
    if len(ids) >= positions:
        raise SpaceError(f"The prompt has {len(ids):,} tokens; this model reads {positions:,}, answer included. Shorten it.")
    return torch.tensor([ids]), positions - len(ids), seen


class _EndedError(Exception):
    """The answer was stopped, or its time was over, between two layers."""


class _Streamer:
    """Hands every new token on; the first call of `generate` brings the prompt, which is not new."""

    def __init__(self, news: queue.SimpleQueue[Any]) -> None:
        self._news, self._prompt = news, True
        self.tokens = 0

    def put(self, ids: Any) -> None:
        if self._prompt:
            self._prompt = False
        else:
            self.tokens += 1
            self._news.put(("tokens", ids.reshape(-1).tolist()))

    def end(self) -> None:
        pass


def _decode_greedily(
    model: Any,
    inputs: Any,
    seen: dict[str, Any],
    *,
    max_new_tokens: int,
    max_seconds: float,
    news: queue.SimpleQueue[Any],
    stop: threading.Event,
    tokenizer: Any,
) -> None:
    """Greedy, so that two models or two paths differ by what they are and not by chance.

    A stop and the end of the time count between two layers too: reading a long prompt is one step of `generate`.
    """
    import torch
    from transformers import StoppingCriteriaList

    deadline = time.monotonic() + max_seconds
    streamer = _Streamer(news)

    def over() -> bool:
        return stop.is_set() or time.monotonic() > deadline

    def ended(ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((ids.shape[0],), over(), dtype=torch.bool, device=ids.device)

    def between(*_: Any) -> None:
        if over():
            raise _EndedError

    layers = [layer for part in model.modules() if isinstance(part, torch.nn.ModuleList) for layer in part]
    hooks = [layer.register_forward_pre_hook(between) for layer in dict.fromkeys(layers)]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    try:
        model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([ended]),
            trust_remote_code=False,
            **seen,
        )
    except _EndedError as error:
        if not streamer.tokens and not stop.is_set():
            raise SpaceError(f"Reading the prompt took longer than {max_seconds:.0f} s here. Shorten it.") from error
    finally:
        for hook in hooks:
            hook.remove()


def _decode(tokenizer: Any, ids: list[int]) -> str:
    """The text so far, without a character of which only some bytes are there."""
    return str(tokenizer.decode(ids, skip_special_tokens=True)).rstrip("\ufffd").strip() if ids else ""


def choices(parents: tuple[Parent, ...]) -> list[str]:
    """The parents that can be asked."""
    return [parent.label for parent in parents if not parent.missing]
