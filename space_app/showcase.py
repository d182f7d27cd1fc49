"""One model on show: reads it and loads it behind the page, and answers visitors while others wait."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import edits
import judge
from loading import zero_gpu
from models import EVOLVED, MAX_TOKENS, Host, Job, Piece, choices
from published import Published, as_float, mapping, read, with_licenses
from texts import Card, SpaceError, clean_prompt

_REDRAW = 0.1  # seconds between two pictures of a growing answer
_MAX_SESSIONS = 10_000


class Showcase:
    """The model, its parents and who is waiting for what.

    Args:
        model: Repository id or folder, as the owner has set it.
        revision: Branch, tag or commit.
    """

    def __init__(self, model: str, revision: str | None = None) -> None:
        self.model, self.revision = model, revision
        self.published: Published | None = None
        self.host: Host | None = None
        self.problem = ""
        self.started = time.monotonic()
        self.known = threading.Event()
        self._marks: OrderedDict[str, tuple[int, bool]] = OrderedDict()  # how often a visitor has asked or stopped, and which
        self._marking = threading.Lock()

    def start(self) -> None:
        """Read and load behind the page."""
        if zero_gpu():
            self.open()
        else:
            threading.Thread(target=self.open, daemon=True, name="open").start()

    def open(self) -> None:
        """Read what the model says about itself, then load it; what goes wrong is in `problem`."""
        try:
            self.published = read(self.model, self.revision)
            self.host = Host(self.published)
        except SpaceError as error:
            self.problem = str(error)
        except Exception as error:  # the page says it and stays
            self.problem = f"{self.model} could not be opened ({type(error).__name__})."
        finally:
            self.known.set()
        if self.host is not None and self.published is not None:
            self.host.start()
            self.published = with_licenses(self.published)

    def status(self) -> tuple[str, str]:
        """The state (``busy``, ``ready`` or ``error``) and a line that says more."""
        seconds = time.monotonic() - self.started
        if not self.known.is_set():
            return "busy", f"Reading {self.model} … {seconds:.0f} s"
        if self.problem:
            return "error", self.problem
        host = self.host
        if host is None or not host.ready:
            return "busy", f"Loading the weights … {seconds:.0f} s. Everything but the answers is there already."
        if host.error or host.evolved is None:
            return "error", host.error
        model = host.evolved.model
        count = sum(parameter.numel() for parameter in model.parameters())
        return "ready", f"Ready: {count:,} parameters on {model.device.type}, loaded in {host.evolved.seconds:.1f} s"

    def need(self) -> tuple[Published, Host]:
        """The model, once it is known; raises `SpaceError` where there is none."""
        self.known.wait(120)
        if self.published is None or self.host is None:
            raise SpaceError(self.problem or "The model is still being read. Please try again in a moment.")
        return self.published, self.host

    def begin(self, session: str) -> None:
        """A visitor asks: what is still written for them ends, earlier stops no longer count."""
        self._mark(session, stopped=False)

    def stop(self, session: str) -> None:
        """A visitor stops what is being written for them, or is about to be."""
        self._mark(session, stopped=True)

    def _mark(self, session: str, *, stopped: bool) -> None:
        with self._marking:
            self._marks[session] = (self._marks.get(session, (0, False))[0] + 1, stopped)
            self._marks.move_to_end(session)
            while len(self._marks) > _MAX_SESSIONS:
                self._marks.popitem(last=False)

    def stopper(self, session: str) -> Callable[[], bool]:
        """Says whether the visitor has stopped, or asked something else, since now."""
        since = self._marks.get(session, (0, False))

        def stopped() -> bool:
            return since[1] or self._marks.get(session, since) != since

        return stopped

    def ask(self, prompt: object, others: object, tokens: object, session: str) -> Iterator[list[Card]]:
        """Let the evolved model answer, and after it the parents that were chosen.

        Raises:
            SpaceError: The prompt or the choice is not as it must be.
        """
        published, _ = self.need()
        words, note = self.question(prompt)
        bound = token_bound(tokens)
        chosen = _chosen(others, choices(published.parents))
        roles = {parent.label: parent.role for parent in published.parents}
        answers = [Card(short_name(published), "evolved", note=note)]
        answers += [Card(name, roles[name]) for name in chosen]
        jobs = [Job(key, words, bound) for key in (EVOLVED, *chosen)]
        yield from self._answers(answers, jobs, session)

    def ask_changed(
        self, prompt: object, way: edits.Route, tokens: object, session: str, known: Piece | None
    ) -> Iterator[list[Card]]:
        """Let the published path and the changed one answer.

        Args:
            prompt: The visitor's text.
            way: The path as the visitor has made it.
            tokens: The bound.
            session: Who asks.
            known: The published model's answer, where it has answered this already.

        Raises:
            SpaceError: The prompt is not as it must be, or the model has no path.
        """
        published, _ = self.need()
        words, note = self.question(prompt)
        original = edits.Route(published.path, published.scales)
        if not original.hops:
            raise SpaceError("This model has no path to change: its weights are merged, its layers are in their usual order.")
        bound = token_bound(tokens)
        first = Card("as published", f"{len(original)} hops", note=note)
        second = Card("changed", f"{len(way)} hops", note=edits.difference(original, way))
        if known is not None:
            first = self._card(first, known, words)
        if (way.hops, way.scales) == (original.hops, original.scales):
            answers, jobs = (
                [replace(first, note="Change the path to see another answer beside this one.")],
                [Job(EVOLVED, words, bound)],
            )
        else:
            answers, jobs = [first, second], [Job(EVOLVED, words, bound), Job(EVOLVED, words, bound, way.hops, way.scales)]
        yield from self._answers(answers, jobs, session, skip=known is not None)

    def _answers(self, answers: list[Card], jobs: list[Job], session: str, skip: bool = False) -> Iterator[list[Card]]:
        _, host = self.need()
        stopped = self.stopper(session)
        yield list(answers)
        for at, job in enumerate(jobs):
            if skip and at == 0:
                continue
            drawn = 0.0
            try:
                for piece in host.answer(job, stopped):
                    changed = piece.state != answers[at].state
                    answers[at] = self._card(answers[at], piece, job.prompt)
                    if changed or time.monotonic() - drawn > _REDRAW:
                        drawn = time.monotonic()
                        yield list(answers)
            except SpaceError as error:
                answers[at] = replace(answers[at], state="error", text=str(error))
            if stopped():
                yield [card.stopped() for card in answers]
                return
            yield list(answers)

    def _card(self, card: Card, piece: Piece, prompt: str) -> Card:
        right = self.verdict(prompt, piece.text) if piece.state == "done" else None
        grown = replace(card, state=piece.state, text=piece.text, tokens=piece.tokens, seconds=piece.seconds, right=right)
        return replace(grown, wanted=dict(self.need()[0].examples)[prompt]) if right is False else grown

    def question(self, prompt: object) -> tuple[str, str]:
        """The prompt, checked, and a note; an example to the letter as the search asked it. Raises `SpaceError`."""
        words, note = clean_prompt(prompt)
        return next((known for known, _ in self.need()[0].examples if known.strip() == words), words), note

    def verdict(self, prompt: str, text: str) -> bool | None:
        """Whether an answer is right; None where the prompt is none of the examples."""
        published, _ = self.need()
        answer = dict(published.examples).get(prompt)
        if answer is None:
            return None
        return judge.is_right(text, answer, mapping(mapping(published.study.get("settings")).get("fitness")))


def short_name(published: Published) -> str:
    """The model's name without its owner."""
    return published.name.rsplit("/", 1)[-1]


def token_bound(tokens: object) -> int:
    """The number of new tokens that was asked for; raises `SpaceError` where it is none."""
    value = as_float(tokens)
    if value is None or value != int(value) or not 1 <= value <= MAX_TOKENS:
        raise SpaceError(f"The number of tokens must be a whole number from 1 to {MAX_TOKENS}.")
    return int(value)


def _chosen(others: object, there: list[str]) -> list[str]:
    chosen: Any = others or []
    if not isinstance(chosen, list) or not all(isinstance(name, str) for name in chosen):
        raise SpaceError("The other models must be a list of names.")
    if bad := [name for name in chosen if name not in there]:
        raise SpaceError(f"There is no model {bad[0]!r:.60} here; there are {', '.join(there) or 'none but the evolved one'}.")
    return list(dict.fromkeys(chosen))
