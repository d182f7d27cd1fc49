"""Showcase of one model: reads it and loads it behind the page, and answers visitors while others
wait."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import edits
import seeing
from edits import Route
from loading import LoadedInBackground, zero_gpu
from models import MAX_TOKENS, AnswerJob, Host, Piece, choices
from published import TO_TRY, Published, as_float
from reading import read
from texts import Card, SpaceError, clean_prompt, counted

from hf_evomerge.errors import EvoMergeError
from hf_evomerge.fitness.example import Example, Picture
from hf_evomerge.record import EVOLVED

_MOST_TRIED = 16  # edits, for one that changes an answer
_AT_ONCE = 25  # examples that are scored in one pass
_REDRAW = 0.1  # seconds between two pictures of a growing answer
_MAX_SESSIONS = 10_000
Asked = tuple[str, seeing.Pictures]
UNCHANGED = "Change something to see another answer beside this one."


class Showcase(LoadedInBackground):
    """The model that the owner has set, its parents and who is waiting for what."""

    def __init__(self, model: str, revision: str | None = None) -> None:
        super().__init__(model)
        self.model = model
        self.revision = revision
        self.published: Published | None = None
        self.host: Host | None = None
        self.small: list[str] = []  # parents that are asked with the model
        self.started = time.monotonic()
        self.rehearsed: dict[
            Asked, dict[str, Piece]
        ] = {}  # the answers to examples, by what is asked and by model
        self._right: list[bool] = []  # whether the published model answers each example right
        self.telling: Route | None = None  # one that changes the answer to the first example
        self.ready_for = threading.Event()  # set when there will be no more of them
        # how often a visitor has asked or stopped, and which
        self._marks: OrderedDict[str, tuple[int, bool]] = OrderedDict()
        self._marking = threading.Lock()
        self._files: dict[Picture, str] = {}  # where the pictures of examples are, for the page
        self._folder = tempfile.TemporaryDirectory(prefix="evomerge-pictures-")

    def load(self) -> None:
        """Read what the model says about itself; then load it, and let it rehearse."""
        super().load()
        if self.host is not None:
            self.host.start()
            self.rehearse()
            self._find_telling()
        self.ready_for.set()

    def _load(self) -> None:
        self.published = read(self.model, self.revision)
        self.host = Host(self.published)
        self.small = choices(self.published.parents) if self.host.quick else []

    def rehearse(self) -> None:
        """Let every small model answer the first examples, so that visitors see answers at once;
        those on record are taken."""
        published, host = self.need()
        first = [(example.prompt, example.pictures) for example in published.examples[:TO_TRY]]
        for asked, texts in zip(first, published.recorded, strict=False):
            self.rehearsed[asked] = {name: Piece("known", text) for name, text in texts.items()}
        if zero_gpu():  # a GPU is lent for the time of a visitor's call only
            return
        for key in (EVOLVED, *self.small):
            with suppress(EvoMergeError):  # a visitor who asks is told
                for prompt, pictures in first:
                    if key not in self.rehearsed.get((prompt, pictures), {}):
                        piece = host.whole_answer(AnswerJob(key, prompt, pictures=pictures))
                        self.rehearsed.setdefault((prompt, pictures), {})[key] = replace(
                            piece, state="known"
                        )

    def _find_telling(self) -> None:
        """Find an edit after which a small model no longer solves the first example."""
        published, host = self.need()
        if zero_gpu() or not host.quick or published.judge is None or not published.examples:
            return
        asked = (published.examples[0].prompt, published.examples[0].pictures)
        own = self.rehearsed.get(asked, {}).get(EVOLVED)
        if own is None or not self.verdict(asked, own.text):
            return
        with suppress(EvoMergeError):  # a visitor who tries it is told
            for way in edits.by_share(published)[:_MOST_TRIED]:
                edit = way.drop()
                job = AnswerJob(EVOLVED, asked[0], MAX_TOKENS, edit.hops, edit.scales, asked[1])
                if self.verdict(asked, host.whole_answer(job).text) is False:
                    self.telling = edit
                    return

    def cards(self) -> dict[str, Card]:
        """A card for each model, the evolved one first, with what it solved when it was tested;
        nobody is asked yet."""
        published, _ = self.need()
        cards = {EVOLVED: Card(published.title, "evolved")}
        for parent in published.parents:  # a base called base is so once
            role = "" if parent.label == parent.role else parent.role
            note = f"cannot be asked: {parent.missing}" if parent.missing else ""
            cards[parent.label] = Card(parent.label, role, note=note)
        return {
            key: replace(card, state="unasked", solved=published.solved(key))
            for key, card in cards.items()
        }

    def in_advance(self, prompt: object, pictures: seeing.Pictures = ()) -> list[Card]:
        """The models' cards, with the answers to an example that are known."""
        pieces = self.rehearsed.get((prompt, pictures), {}) if isinstance(prompt, str) else {}
        asked = (str(prompt), pictures)
        return [
            self._card(card, pieces[key], asked) if key in pieces else card
            for key, card in self.cards().items()
        ]

    def files(self, pictures: seeing.Pictures) -> list[str]:
        """The pictures of an example as files that the page can show."""
        for picture in pictures:
            if picture not in self._files:
                file = Path(self._folder.name) / f"picture-{len(self._files)}.png"
                file.write_bytes(picture.data)
                self._files[picture] = str(file)
        return [self._files[picture] for picture in pictures]

    def has_asked(self, session: str) -> bool:
        """Tell whether a visitor has asked or stopped anything."""
        return session in self._marks

    def status(self) -> tuple[str, str]:
        """The state (``busy``, ``ready`` or ``error``) and a line that says more."""
        seconds = time.monotonic() - self.started
        if not self.ready.is_set():
            return "busy", f"Reading {self.model} … {seconds:.0f} s"
        if self.error:
            return "error", self.error
        host = self.host
        if host is None or not host.ready.is_set():
            return (
                "busy",
                (
                    f"Loading the weights … {seconds:.0f} s. Everything but the answers is there "
                    "already."
                ),
            )
        if host.error or host.evolved is None:
            return "error", host.error
        model = host.evolved.model
        count = sum(parameter.numel() for parameter in model.parameters())
        size = f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
        where = "a CPU" if model.device.type == "cpu" else "a GPU"
        return "ready", f"Ready: {size} parameters, on {where}"

    def need(self) -> tuple[Published, Host]:
        """The model, once it is known; raises `SpaceError` where there is none."""
        self.ready.wait(120)
        if self.published is None or self.host is None:
            raise SpaceError(
                self.error or "The model is still being read. Please try again in a moment."
            )
        return self.published, self.host

    # The showcase keeps one mark of a visit: (number of the last request, whether it was a stop).
    # An answer keeps the mark of its beginning and ends once the mark is another one: the visitor
    # has asked again, or stopped. An answer that begins under a stop ends at once: the visitor
    # stopped while it waited in the queue. The oldest marks are forgotten beyond `_MAX_SESSIONS`;
    # without a mark an answer runs to its end. Edits and undo are in Gradio's state of the session.
    def begin(self, session: str, *, stopped: bool = False) -> None:
        """A visitor asks, or stops: what is still written for them ends, and after a stop what is
        about to be written."""
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

    def ask(
        self,
        prompt: object,
        others: object,
        tokens: object,
        session: str,
        pictures: seeing.Pictures = (),
    ) -> Iterator[list[Card]]:
        """Let the evolved model answer, then the parents that were chosen, beside the others'
        cards; raises `SpaceError`."""
        published, _ = self.need()
        words = self.question(prompt)
        bound = token_bound(tokens)
        keys = [EVOLVED, *chosen(others, choices(published.parents))]
        cards = self.cards()
        cards |= {key: replace(cards[key], state="waiting") for key in keys}
        jobs = {
            at: AnswerJob(key, words, bound, pictures=pictures)
            for at, key in enumerate(cards)
            if key in keys
        }
        yield from self._answers(list(cards.values()), jobs, session)

    def ask_changed(
        self,
        prompt: object,
        way: Route,
        tokens: object,
        session: str,
        pictures: seeing.Pictures = (),
    ) -> Iterator[list[Card]]:
        """Let the published path, unless it has answered this, and the changed one answer; raises
        `SpaceError`."""
        published, _ = self.need()
        words = self.question(prompt)
        bound = token_bound(tokens)
        first = Card("as published", counted(len(published.path), "hop"))
        jobs = {0: AnswerJob(EVOLVED, words, bound, pictures=pictures)}
        answered = self.rehearsed.get((words, pictures), {})
        if EVOLVED in answered:
            first = self._card(first, answered[EVOLVED], (words, pictures))
            jobs = {}
        answers = [replace(first, note=UNCHANGED)]
        if way.changes(published):
            answers = [first, Card("changed", counted(len(way), "hop"))]
            jobs[1] = AnswerJob(EVOLVED, words, bound, way.hops, way.scales, pictures)
        yield from self._answers(answers, jobs, session)

    def score(self, way: Route, session: str) -> Iterator[tuple[int, int, int]]:
        """Let the changed path answer all examples, and the published one where that is not known;
        raises `SpaceError`.

        Yields how many were answered, how many of these the changed path gets right, and how many
        the published one does.
        """
        published, host = self.need()
        stopped = self.stopper(session)
        right = []
        plain = AnswerJob(EVOLVED, "")
        changed = replace(plain, hops=way.hops, scales=way.scales)
        for at in range(0, len(published.examples), _AT_ONCE):
            if stopped():
                return
            part = published.examples[at : at + _AT_ONCE]
            if len(self._right) <= at:
                self._right[at:] = host.score(plain, part)
            right += host.score(changed, part)
            yield len(right), sum(right), sum(self._right[: len(right)])

    # Models answer one after the other; each yield is the whole list of cards. A new state is shown
    # at once, a longer text at most every `_REDRAW` seconds: the page is drawn anew each time.
    def _answers(
        self, answers: list[Card], jobs: dict[int, AnswerJob], session: str
    ) -> Iterator[list[Card]]:
        _, host = self.need()
        stopped = self.stopper(session)
        yield list(answers)
        for at, job in jobs.items():
            drawn = 0.0
            try:
                for piece in host.answer(job, stopped):
                    changed = piece.state != answers[at].state
                    answers[at] = self._card(answers[at], piece, (job.prompt, job.pictures))
                    if changed or time.monotonic() - drawn > _REDRAW:
                        drawn = time.monotonic()
                        yield list(answers)
            except EvoMergeError as error:
                answers[at] = replace(answers[at], state="error", text=str(error))
            if stopped():
                yield [card.stopped() for card in answers]
                return
            yield list(answers)

    def _card(self, card: Card, piece: Piece, asked: Asked) -> Card:
        right = self.verdict(asked, piece.text) if piece.state in ("done", "known") else None
        example = self._example(asked) if right is False else None
        wanted = example.answer if example is not None else card.wanted
        return replace(card, **vars(piece), right=right, wanted=wanted)

    def question(self, prompt: object) -> str:
        """The prompt, checked; an example to the letter as the search asked it. Raises
        `SpaceError`."""
        words = clean_prompt(prompt)
        return next(
            (each.prompt for each in self.need()[0].examples if each.prompt.strip() == words), words
        )

    def _example(self, asked: Asked) -> Example | None:
        """The example that was asked, where it is one."""
        return next(
            (each for each in self.need()[0].examples if (each.prompt, each.pictures) == asked),
            None,
        )

    def verdict(self, asked: Asked, text: str) -> bool | None:
        """Tell whether an answer is right by the search's own rule; None where it has none, or was
        asked something else."""
        judge = self.need()[0].judge
        example = self._example(asked)
        return None if judge is None or example is None else judge(text, example)


def token_bound(tokens: object) -> int:
    """The number of new tokens that was asked for; raises `SpaceError` where it is none."""
    value = as_float(tokens)
    if value is None or value != int(value) or not 1 <= value <= MAX_TOKENS:
        raise SpaceError(f"The number of tokens must be a whole number from 1 to {MAX_TOKENS}.")
    return int(value)


def chosen(others: object, there: list[str]) -> list[str]:
    """The names of models that were chosen, each once; raises `SpaceError` where they are none of
    those that are there."""
    names: Any = others or []
    if not isinstance(names, list):
        raise SpaceError("The other models must be a list of names.")
    if bad := [name for name in names if name not in there]:
        raise SpaceError(
            f"There is no model {bad[0]!r:.60} here; there are "
            f"{', '.join(there) or 'none but the evolved one'}."
        )
    return list(dict.fromkeys(names))
