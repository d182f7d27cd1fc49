"""Actions when something on the page is pressed: each method takes the values of components and
gives new ones."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import edits
import gradio as gr
import seeing
import views
from edits import Route
from model_pictures import path_picture
from published import as_float
from showcase import UNCHANGED, Showcase
from texts import SpaceError, cards, counted, message, number

from hf_evomerge.errors import EvoMergeError
from hf_evomerge.pictures.path import hop_words

FRAME_SECONDS = 0.35
Shown = list[dict[str, Any]] | None  # what a gallery holds: files, each with its caption
Undo = tuple[
    tuple[int | None, Route], ...
]  # what was shown before each edit, and the hop whose slider made the edit


class Actions:
    """The actions of one showcase's page. What a visitor has edited comes in and goes out; nothing
    of it is kept here."""

    def __init__(self, show: Showcase) -> None:
        self.show = show

    async def watch(self) -> AsyncIterator[str]:
        """The state of the model until it is ready."""
        while self.show.status()[0] == "busy":
            yield self.state()
            await asyncio.sleep(0.5)
        yield self.state()

    def state(self) -> str:
        """The state of the model now."""
        state, words = self.show.status()
        return message(words, {"ready": "ready", "error": "error"}.get(state, "info"))

    def begin(self, prompt: str, request: gr.Request) -> list[str]:
        """Earlier stops no longer count, and what was answered to the prompt before is gone."""
        self.show.begin(str(request.session_hash))
        return [message("Waiting for the model …", "busy"), self._known(prompt)]

    def begin_edit(self, count: int, request: gr.Request) -> Any:
        """The same for an edit, which has no score yet; the page also says that a state changes
        when it is first set."""
        if not count:
            raise gr.Error("nothing is changed yet", visible=False, print_exception=False)
        self.show.begin(str(request.session_hash))
        return gr.skip() if self.show.host is not None and self.show.host.quick else ""

    def turned_away(self) -> str:
        """Return the message in place of an answer or an edit, where the queue was full or the call
        failed."""
        return message(
            (
                "Too many are waiting for the model, or this page is old. Try again in a moment, "
                "or reload it."
            ),
            "error",
        )

    def halt(self, request: gr.Request) -> None:
        """Stop what is written for this visitor."""
        self.show.begin(str(request.session_hash), stopped=True)

    def answer(
        self, prompt: str, shown: Shown, others: list[str], tokens: float, request: gr.Request
    ) -> Iterator[str]:
        """The answers, as they grow."""
        try:
            for answers in self.show.ask(
                prompt, others, tokens, str(request.session_hash), seeing.of_gallery(shown)
            ):
                yield cards(answers)
        except EvoMergeError as error:
            yield message(str(error), "error")

    def answer_new(
        self, prompt: str, shown: Shown, others: list[str], tokens: float, request: gr.Request
    ) -> Iterator[Any]:
        """The same to an example that was not answered in advance, where the model is quick."""
        if (
            not self.show.need()[1].quick
            or self.show.in_advance(prompt, seeing.of_gallery(shown))[0].state == "known"
        ):
            yield gr.skip()
            return
        self.show.begin(str(request.session_hash))
        yield from self.answer(prompt, shown, others, tokens, request)

    async def rehearsed(
        self, prompt: str, shown: Shown, way: Route, request: gr.Request
    ) -> list[Any]:
        """The answers that are known before anybody asks, once they are, for both tabs; what was
        asked meanwhile stays."""
        while not self.show.ready_for.is_set():
            await asyncio.sleep(0.2)
        if self.show.published is None or self.show.has_asked(str(request.session_hash)):
            return [gr.skip()] * 3
        first = "" if way.changes(self.show.published) else self._known(prompt, UNCHANGED)
        return [
            cards(self.show.in_advance(prompt, seeing.of_gallery(shown))),
            first or gr.skip(),
            views.dare(self.show.published, self.show.telling),
        ]

    def _known(self, prompt: object, note: str = "") -> str:
        """The published model's answer to the problem for edits, where it is known in advance."""
        published = self.show.published
        example = published.problem(prompt) if published is not None else None
        if example is None:
            return ""
        card = self.show.in_advance(example.prompt, example.pictures)[0]
        if card.state != "known":
            return ""
        return cards([replace(card, name="as published", role="", note=note, solved=None)])

    def follow_link(self, way: Route) -> Any:
        """1 where the page was opened with an edit, which then is answered."""
        return (
            1 if self.show.published is not None and way.changes(self.show.published) else gr.skip()
        )

    def gloss(self, prompt: str) -> list[str]:
        """Gloss the prompt where it is an example's, and say which problem an edit answers."""
        published = self.show.published
        if published is None or not isinstance(prompt, str):
            return ["", ""]
        return [views.gloss(published, prompt), views.asked(published, prompt)]

    def take_sample(self, number: int) -> list[Any]:
        """An example was chosen: its prompt and pictures, and the answers that are known, for both
        tabs."""
        published, _ = self.show.need()
        if type(number) is not int or not 0 <= number < len(published.examples):
            raise gr.Error("There is no such problem here.", print_exception=False)
        example = published.examples[number]
        return [
            example.prompt,
            *self.gloss(example.prompt),
            cards(self.show.in_advance(example.prompt, example.pictures)),
            self._known(example.prompt),
            self.show.files(example.pictures),
        ]

    def take_next(self, prompt: str) -> list[Any]:
        """Another problem: the one after this."""
        prompts = [example.prompt for example in self.show.need()[0].examples]
        return self.take_sample(
            (prompts.index(prompt) + 1) % len(prompts) if prompt in prompts else 0
        )

    def answer_changed(
        self, prompt: str, shown: Shown, way: Route, tokens: float, request: gr.Request
    ) -> Iterator[str]:
        """The published answer and the changed one, to a problem where answers are judged, else to
        the prompt."""
        example = self.show.need()[0].problem(prompt)
        if example is None and isinstance(prompt, str) and not prompt.strip():
            yield message("Write a prompt under Try: its answer then follows every edit.")
            return
        try:
            asked = (
                (prompt, seeing.of_gallery(shown))
                if example is None
                else (example.prompt, example.pictures)
            )
            for answers in self.show.ask_changed(
                asked[0], way, tokens, str(request.session_hash), asked[1]
            ):
                yield cards(answers)
        except EvoMergeError as error:
            yield message(str(error), "error")

    def score(self, way: Route, request: gr.Request) -> Iterator[Any]:
        """Count how many of the examples the changed path answers right, beside the published
        one."""
        self.show.begin(str(request.session_hash))
        yield from self.score_new(way, request, pressed=True)

    def score_new(self, way: Route, request: gr.Request, *, pressed: bool = False) -> Iterator[Any]:
        """The same after an edit, where the model is quick."""
        published, host = self.show.need()
        if published.judge is None or not published.examples or not way.changes(published):
            yield message(UNCHANGED if pressed else "")
        elif pressed or host.quick:
            if pressed:
                yield message(f"Answering {counted(len(published.examples), 'problem')} …", "busy")
            try:
                for counts in self.show.score(way, str(request.session_hash)):
                    yield views.scores(published, *counts)
            except EvoMergeError as error:
                yield message(str(error), "error")

    def edit(self, action: str, way: Route, undo: Undo, count: int, scale: float) -> list[Any]:
        """Make one edit: the new path and everything that shows it. A refused edit says why and
        changes nothing."""
        slider = way.selected if action == "scale" else None
        try:
            if action == "undo":
                now, undo = (undo[-1][1], undo[:-1]) if undo else (way, ())
            else:
                now = self._after(action, way, scale)
                # A slider sends many values on its way. Those of one slider, one after the other,
                # are one edit for undo: what was shown before the first of them is kept.
                slides = slider is not None and bool(undo) and undo[-1][0] == slider
                undo = (*undo[-19:], (slider, way)) if now != way and not slides else undo
        except EvoMergeError as error:
            return [*self.shown(way, str(error)), undo, count]
        return [*self.shown(now), undo, count + 1]

    def _after(self, action: str, way: Route, scale: float) -> Route:
        published, _ = self.show.need()
        if action == "reset":
            return Route.of(published)
        if not way.hops:
            raise SpaceError("This model has no path to change.")
        steps: dict[str, Callable[[], Route]] = {
            "drop": way.drop,
            "repeat": way.repeat,
            "scale": partial(way.scale, scale),
            "earlier": partial(way.move, -1),
            "later": partial(way.move, 1),
        }
        return steps[action]()

    def shown(self, way: Route, problem: str = "") -> list[Any]:
        """The path and what shows it: picture, list and scale of hops, a line about what was
        changed, link and recipe.

        `problem` says what is wrong, where something is.
        """
        published = self.show.published
        if published is None or not way.hops:
            return [way, "", gr.skip(), gr.skip(), "", ""]
        difference = edits.difference(Route.of(published), way, published.labels)
        said = message(problem or difference, "error" if problem else "info")
        recipe = ""
        with suppress(EvoMergeError):
            recipe = edits.changed_recipe(published, way).to_yaml()
        kept = views.share(way.link, recipe) if way.changes(published) else ""
        words = (
            f"{hop_words(hop, published.labels)}, scale {number(hop.scale)}"
            for hop in way.path.hops
        )
        names = [(f"{at + 1}: {said_of}", at) for at, said_of in enumerate(words)]
        scale = way.scales[way.selected]
        low = min(-2.0, *way.scales)
        high = max(2.0, *way.scales)
        picture = path_picture(
            way, published.labels, published.layers, gated=published.gated, select=True
        )
        slider = gr.Slider(
            minimum=math.floor(10 * low) / 10,
            maximum=math.ceil(10 * high) / 10,
            value=round(scale, 3),
        )
        return [way, picture, gr.Dropdown(choices=names, value=way.selected), slider, said, kept]

    def choose(self, way: Route, event: gr.SelectData) -> list[Any]:
        """A hop was pressed in the picture."""
        return self.choose_listed(way, event.index)

    def choose_listed(self, way: Route, index: Any) -> list[Any]:
        """A hop was chosen in the list."""
        try:
            return self.shown(way.select(index))
        except EvoMergeError as error:
            return self.shown(way, str(error))

    def turn(self, at: float) -> tuple[str, str]:
        """Show one moment of the film, from 1."""
        published, _ = self.show.need()
        if as_float(at) is None:
            return message("Give the number of a moment.", "error"), ""
        return views.film_view(published, int(at) - 1)

    async def run(self, at: float) -> AsyncIterator[list[Any]]:
        """Show all moments from the one shown, or from the first where it is the last."""
        published, _ = self.show.need()
        last = len(published.film[1])
        shown = as_float(at)
        start = int(shown) if shown is not None and 1 <= shown < last else 1
        for moment in range(start, last + 1):
            yield [moment, *views.film_view(published, moment - 1, runs=moment < last)]
            await asyncio.sleep(FRAME_SECONDS)
