"""One model on show: reads it and loads it behind the page, and answers visitors while others wait."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import edits
import mixing
import seeing
from loading import failure, in_background, zero_gpu
from models import EVOLVED, MAX_TOKENS, Host, Job, Piece, choices
from published import Parent, Published, as_float
from reading import read
from texts import Card, SpaceError, clean_prompt, counted, why_wrong

from hf_evomerge.errors import EvoMergeError
from hf_evomerge.fitness.example import Example, Picture

REHEARSED = 3  # examples that every model answers before anybody asks
_MOST_REHEARSED = 2e9  # bytes of a parent that is fetched for that
_REDRAW = 0.1  # seconds between two pictures of a growing answer
_MAX_SESSIONS = 10_000
_MOST_LINK = 30_000  # characters of an edit in a link
Asked = tuple[str, seeing.Pictures]
UNCHANGED = "Change something to see another answer beside this one."


@dataclass(frozen=True)
class Edit:
    """What a visitor has changed: the path, or how much of each parent is in a merge."""

    way: edits.Route | None = None
    factors: mixing.Factors = ()

    def changes(self, published: Published) -> bool:
        """Whether it is another model than the published one."""
        return bool(self.factors) or (
            self.way is not None and (self.way.hops, self.way.scales) != (published.path, published.scales)
        )

    def said(self, published: Published) -> str:
        """What was changed, in one line."""
        if self.way is None:
            return mixing.describe(self.factors, published.labels)
        return edits.difference(edits.Route(published.path, published.scales), self.way)

    def job(self, prompt: str, tokens: int, pictures: seeing.Pictures = ()) -> Job:
        """The same question to the changed model."""
        hops, scales = (self.way.hops, self.way.scales) if self.way is not None else ((), ())
        return Job(EVOLVED, prompt, tokens, hops, scales, self.factors, pictures)

    @property
    def link(self) -> str:
        """It as a part of the page's address."""
        plain = [list(self.way.hops), list(self.way.scales)] if self.way is not None else [list(self.factors)]
        return "?" + urlencode({"edit": json.dumps(plain, separators=(",", ":"))})

    @classmethod
    def of_link(cls, text: object, published: Published) -> Edit:
        """Read what `link` wrote; raises `SpaceError` where that is not of this model."""
        if not isinstance(text, str) or len(text) > _MOST_LINK:
            raise SpaceError("The link's edit cannot be read.")
        try:
            plain = json.loads(text)
        except (ValueError, RecursionError) as cause:
            raise SpaceError("The link's edit cannot be read.") from cause
        if published.path and isinstance(plain, list) and len(plain) == 2:
            return cls(edits.route(plain[0], plain[1], holds=published.path))
        if published.mixes and isinstance(plain, list) and len(plain) == 1:
            return cls(factors=mixing.checked(plain[0], published.mixes, len(published.sources)))
        raise SpaceError("The link's edit is not one of this model.")


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
        self.rehearsed: dict[Asked, dict[str, Piece]] = {}  # the answers to examples, by what is asked and by model
        self._right: dict[Asked, bool] = {}  # whether the published model answers an example right
        self.ready_for = threading.Event()  # set when there will be no more of them
        self._marks: OrderedDict[str, tuple[int, bool]] = OrderedDict()  # how often a visitor has asked or stopped, and which
        self._marking = threading.Lock()
        self._files: dict[Picture, str] = {}  # where the pictures of examples are, for the page
        self._folder = tempfile.TemporaryDirectory(prefix="evomerge-pictures-")

    def start(self) -> None:
        """Read and load behind the page."""
        in_background(self.open)

    def open(self) -> None:
        """Read what the model says about itself, then load it; what goes wrong is in `problem`."""
        self.problem = failure(self.model, self._read)
        self.known.set()
        if self.host is not None and self.published is not None:
            self.host.start()
            self.rehearse()
        self.ready_for.set()

    def _read(self) -> None:
        self.published = read(self.model, self.revision)
        self.host = Host(self.published)

    def rehearse(self) -> None:
        """Let every model answer the first examples, so that visitors see answers at once; those on record are taken."""
        published, host = self.need()
        first = [(example.prompt, example.pictures) for example in published.examples[:REHEARSED]]
        for asked, texts in zip(first, published.recorded, strict=False):
            self.rehearsed[asked] = {name: Piece("known", text) for name, text in texts.items()}
        if zero_gpu():  # a GPU is lent for the time of a visitor's call only
            return
        for key in (EVOLVED, *choices(published.parents)):
            missing = [asked for asked in first if key not in self.rehearsed.get(asked, {})]
            try:
                for prompt, pictures in missing if key == EVOLVED or host.is_small(key, _MOST_REHEARSED) else ():
                    piece = host.whole_answer(Job(key, prompt, pictures=pictures))
                    self.rehearsed.setdefault((prompt, pictures), {})[key] = replace(piece, state="known")
            except EvoMergeError:
                continue  # a visitor who asks is told

    def in_advance(self, prompt: object, pictures: seeing.Pictures = ()) -> list[Card]:
        """What is known of the models' answers to an example, the evolved model's first; none for another prompt."""
        published, _ = self.need()
        pieces = self.rehearsed.get((prompt, pictures), {}) if isinstance(prompt, str) else {}
        if EVOLVED not in pieces:
            return []
        cards = [(EVOLVED, Card(short_name(published), "evolved"))]
        cards += [(parent.label, _parents_card(parent)) for parent in published.parents]
        return [self._card(card, pieces[key], (str(prompt), pictures)) for key, card in cards if key in pieces]

    def files(self, pictures: seeing.Pictures) -> list[str]:
        """The pictures of an example as files that the page can show."""
        for picture in pictures:
            if picture not in self._files:
                file = Path(self._folder.name) / f"picture-{len(self._files)}.png"
                file.write_bytes(picture.data)
                self._files[picture] = str(file)
        return [self._files[picture] for picture in pictures]

    def has_asked(self, session: str) -> bool:
        """Whether a visitor has asked or stopped anything."""
        return session in self._marks

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

    def ask(
        self, prompt: object, others: object, tokens: object, session: str, pictures: seeing.Pictures = ()
    ) -> Iterator[list[Card]]:
        """Let the evolved model answer, and after it the parents that were chosen.

        Raises:
            SpaceError: The prompt or the choice is not as it must be.
        """
        published, _ = self.need()
        words, note = self.question(prompt)
        bound = token_bound(tokens)
        chosen = _chosen(others, choices(published.parents))
        answers = [Card(short_name(published), "evolved", note=note)]
        parents = {parent.label: parent for parent in published.parents}
        answers += [_parents_card(parents[name]) for name in chosen]
        jobs = [Job(key, words, bound, pictures=pictures) for key in (EVOLVED, *chosen)]
        yield from self._answers(answers, jobs, session)

    def ask_changed(
        self, prompt: object, edit: Edit, tokens: object, session: str, known: Piece | None, pictures: seeing.Pictures = ()
    ) -> Iterator[list[Card]]:
        """Let the published model and the changed one answer.

        Args:
            prompt: The visitor's text.
            edit: What the visitor has changed.
            tokens: The bound.
            session: Who asks.
            known: The published model's answer, where it has answered this already.
            pictures: Those that go with the prompt.

        Raises:
            SpaceError: The prompt is not as it must be, or the model has no path.
        """
        published, _ = self.need()
        words, note = self.question(prompt)
        bound = token_bound(tokens)
        size = counted(len(published.path), "hop") if published.path else ""
        first = Card("as published", size, note=note)
        if known is not None:
            first = self._card(first, known, (words, pictures))
        if not edit.changes(published):
            answers, jobs = [replace(first, note=UNCHANGED)], [Job(EVOLVED, words, bound, pictures=pictures)]
        else:
            size = counted(len(edit.way), "hop") if edit.way is not None else ""
            answers = [first, Card("changed", size, note=edit.said(published) if edit.way is None else "")]
            jobs = [Job(EVOLVED, words, bound, pictures=pictures), edit.job(words, bound, pictures)]
        yield from self._answers(answers, jobs, session, skip=known is not None)

    def score(self, edit: Edit, session: str) -> Iterator[tuple[int, int, int]]:
        """Let the changed model answer all examples, and the published one where that is not known.

        Yields:
            How many were answered by the changed model, how many of these are right, and how many the published one gets right.
        """
        published, host = self.need()
        stopped = self.stopper(session)
        right = before = 0
        for at, example in enumerate(published.examples, 1):
            asked, pictures = (example.prompt, example.pictures), example.pictures
            if asked not in self._right:
                piece = host.whole_answer(Job(EVOLVED, example.prompt, pictures=pictures), stopped)
                self._right[asked] = self.verdict(asked, piece.text) is True
            changed = host.whole_answer(edit.job(example.prompt, 64, pictures), stopped)
            if stopped():
                return
            before += self._right[asked]
            right += self.verdict(asked, changed.text) is True
            yield at, right, before

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
        grown = replace(card, state=piece.state, text=piece.text, tokens=piece.tokens, seconds=piece.seconds, right=right)
        if right is not False:
            return grown
        example = self._example(asked)
        wanted = example.answer if example is not None else ""
        return replace(grown, wanted=wanted, reason=why_wrong(piece.text, wanted, self.need()[0].decimal))

    def question(self, prompt: object) -> tuple[str, str]:
        """The prompt, checked, and a note; an example to the letter as the search asked it. Raises `SpaceError`."""
        words, note = clean_prompt(prompt)
        return next((each.prompt for each in self.need()[0].examples if each.prompt.strip() == words), words), note

    def _example(self, asked: Asked) -> Example | None:
        """The example that was asked, where it is one."""
        return next((each for each in self.need()[0].examples if (each.prompt, each.pictures) == asked), None)

    def verdict(self, asked: Asked, text: str) -> bool | None:
        """Whether an answer is right by the search's own rule; None where it has none, or was asked something else."""
        judge, example = self.need()[0].judge, self._example(asked)
        return None if judge is None or example is None else judge(text, example)


def _parents_card(parent: Parent) -> Card:
    """A card for a parent's answer; a base called base is so once."""
    return Card(parent.label, "" if parent.label == parent.role else parent.role)


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
