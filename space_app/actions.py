"""What happens when something on the page is pressed: each method takes the values of components and gives new ones."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import edits
import gradio as gr
import mixing
import seeing
import views
from models import Piece
from pictures import path_picture
from published import Published, as_float
from showcase import UNCHANGED, Edit, Showcase
from texts import cards, counted, message

from hf_evomerge.errors import EvoMergeError

FRAMES = 60
MIXED = 4  # parents that have a slider
FRAME_SECONDS = 0.35
Shown = list[tuple[str, Any]] | None  # what a gallery holds: files, each with its caption


class Actions:
    """The actions of one showcase's page. What a visitor has edited comes in and goes out; nothing of it is kept here."""

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
        return message(words, {"busy": "info", "ready": "ready", "error": "error"}[state])

    def begin(self, request: gr.Request) -> str:
        """Earlier stops no longer count."""
        self.show.begin(str(request.session_hash))
        return message("Waiting for the model …")

    def begin_again(self, request: gr.Request) -> None:
        """The same where the last answer may stay until the next one comes."""
        self.show.begin(str(request.session_hash))

    def begin_edit(self, count: int, linked: int, request: gr.Request) -> str:
        """The same for an edit, which has no score yet; the page also says that a state changes when it is first set."""
        if not count and not linked:
            raise gr.Error("nothing is changed yet", visible=False, print_exception=False)
        self.show.begin(str(request.session_hash))
        return ""

    def turned_away(self) -> str:
        """What stands where an answer or an edit would be, where the queue was full or the call failed."""
        return message("Too many are waiting for the model. Please try again in a moment.", "error")

    def halt(self, request: gr.Request) -> None:
        """Stop what is written for this visitor."""
        self.show.stop(str(request.session_hash))

    def answer(self, prompt: str, shown: Shown, others: list[str], tokens: float, request: gr.Request) -> Iterator[str]:
        """The answers, as they grow."""
        try:
            for answers in self.show.ask(prompt, others, tokens, str(request.session_hash), seeing.of_gallery(shown)):
                yield cards(answers)
        except EvoMergeError as error:
            yield message(str(error), "error")

    async def rehearsed(
        self, prompt: str, shown: Shown, way: edits.Route | None, factors: mixing.Factors, request: gr.Request
    ) -> list[Any]:
        """The answers that are known before anybody asks, once they are, for both tabs; what was asked meanwhile stays."""
        while not self.show.ready_for.is_set():
            await asyncio.sleep(0.2)
        if self.show.published is None or self.show.has_asked(str(request.session_hash)):
            return [gr.skip(), gr.skip()]
        known = self.show.in_advance(prompt, seeing.of_gallery(shown))
        unchanged = known and not Edit(way, factors).changes(self.show.published)
        first = replace(known[0], name="as published", role="", note=UNCHANGED) if known else None
        return [cards(known) if known else gr.skip(), cards([first]) if first is not None and unchanged else gr.skip()]

    def follow_link(self, way: edits.Route | None, factors: mixing.Factors) -> Any:
        """1 where the page was opened with an edit, which then is answered."""
        return 1 if self.show.published is not None and Edit(way, factors).changes(self.show.published) else gr.skip()

    def gloss(self, prompt: str) -> str:
        """What the prompt says where it is an example's; empty where it is the visitor's own."""
        return views.gloss(self.show.published.glosses.get(prompt, "")) if self.show.published else ""

    def take_sample(self, number: int) -> list[Any]:
        """An example was chosen: its prompt and pictures for both tabs, what it says, and the answers that are known."""
        published, _ = self.show.need()
        example = published.examples[number]
        prompt, known = example.prompt, self.show.in_advance(example.prompt, example.pictures)
        first = cards([replace(known[0], name="as published", role="")]) if known else ""
        said, shown = views.gloss(published.glosses.get(prompt, "")), self.show.files(example.pictures)
        return [prompt, prompt, said, cards(known or [views.UNASKED]), first, shown, shown]

    def answer_changed(
        self,
        prompt: str,
        shown: Shown,
        way: edits.Route | None,
        factors: mixing.Factors,
        tokens: float,
        known: Any,
        request: gr.Request,
    ) -> Iterator[tuple[str, Any]]:
        """The published answer and the changed one; the first is kept while the prompt is the same."""
        if isinstance(prompt, str) and not prompt.strip():
            yield message("Write a prompt below: its answer then follows every edit."), known
            return
        session = str(request.session_hash)
        try:
            pictures = seeing.of_gallery(shown)
            asked = (prompt, pictures, tokens)
            piece = known[1] if known and known[0] == asked else None
            for answers in self.show.ask_changed(prompt, Edit(way, factors), tokens, session, piece, pictures):
                first = answers[0]
                if first.state == "done":
                    piece = Piece("done", first.text, first.tokens, first.seconds)
                yield cards(answers), (asked, piece) if piece else None
        except EvoMergeError as error:
            yield message(str(error), "error"), known

    def score(self, way: edits.Route | None, factors: mixing.Factors, request: gr.Request) -> Iterator[str]:
        """How many of the examples the changed model answers right, beside the published one."""
        published, _ = self.show.need()
        total = len(published.examples)
        self.show.begin(str(request.session_hash))
        yield message(f"Answering {counted(total, 'example')} …")
        try:
            for done, right, before in self.show.score(Edit(way, factors), str(request.session_hash)):
                said = f"{right} of {done} right; as published {before} of {done}"
                if done < total:
                    yield message(f"{said} …")
                elif right > before:
                    yield message(f"{said}. Better than evolution, on so few examples.", "ready")
                else:
                    yield message(f"{said}.")
        except EvoMergeError as error:
            yield message(str(error), "error")

    def mix(self, group: str, factors: mixing.Factors, count: int, *values: float | None) -> list[Any]:
        """A weight of a merge was turned up or down."""
        published, _ = self.show.need()
        given = [as_float(value) for value in values[: len(published.sources)]]
        found = [round(value, 3) for value in given if value is not None and 0 <= value <= mixing.MAX_FACTOR]
        if len(found) < len(given):
            wrong = f"A weight is multiplied by a number from 0 to {mixing.MAX_FACTOR:g}."
            return [factors, message(wrong, "error"), *self.mixed(factors)[1:], count]
        now = mixing.with_factors(factors, group, found)
        return [now, *self.mixed(now), count + 1]

    def unmix(self, count: int) -> list[Any]:
        """All weights as published."""
        return [(), *self.mixed(()), count + 1, *[1.0] * MIXED]

    def mixed(self, factors: mixing.Factors) -> list[Any]:
        """What shows changed weights: a line, the link, and the picture."""
        published, _ = self.show.need()
        edit = Edit(factors=factors)
        link = views.share(edit.link if factors else "")
        return [message(edit.said(published)), link, views.merge_view(published, factors)]

    def choose_group(self, group: str, factors: mixing.Factors) -> list[float]:
        """The values of the sliders for another group of layers."""
        return [*dict(factors).get(group, ()), *[1.0] * MIXED][:MIXED]

    def look_through(self, prompt: str, shown: Shown) -> str:
        """What the model would answer after each hop."""
        published, host = self.show.need()
        try:
            words, _ = self.show.question(prompt)
            return views.lens_view(published, words, *host.lens(words, seeing.of_gallery(shown)))
        except EvoMergeError as error:
            return message(str(error), "error")

    def edit(self, action: str, way: edits.Route | None, undo: tuple[edits.Route, ...], count: int, scale: float) -> list[Any]:
        """One edit: the new path and everything that shows it. A refused edit says why and changes nothing."""
        if way is None:
            return [None, "", gr.Dropdown(), gr.Slider(), message(views.NO_PATH), "", "", (), count]
        published = self.show.published
        original = edits.Route(published.path, published.scales) if published else way
        try:
            if action == "undo":
                now, undo = (undo[-1], undo[:-1]) if undo else (way, ())
            else:
                steps = {
                    "drop": way.drop,
                    "repeat": way.repeat,
                    "earlier": lambda: way.move(-1),
                    "later": lambda: way.move(1),
                    "scale": lambda: way.scale(scale),
                    "reset": lambda: original,
                }
                now = steps[action]()
                on_its_way = action == "scale" and bool(undo) and way.only_scales_hop(undo[-1])  # a slider: one edit in all
                undo = (*undo[-19:], way) if now != way and not on_its_way else undo
        except EvoMergeError as error:
            return [way, *self.shown(way, str(error)), undo, count]
        return [now, *self.shown(now), undo, count + 1]

    def shown(self, way: edits.Route | None, problem: str = "") -> list[Any]:
        """What shows a path: picture, list, slider, a line that says what was changed, link, recipe."""
        published = self.show.published
        if way is None or published is None:
            return ["", gr.Dropdown(), gr.Slider(), "", "", ""]
        names = [
            (f"{at + 1}: {edits.describe(hop, scale, published.labels)}", at)
            for at, (hop, scale) in enumerate(zip(way.hops, way.scales, strict=True))
        ]
        scale = way.scales[way.selected]
        low, high = min(-2.0, *way.scales), max(2.0, *way.scales)
        changed = Edit(way)
        said = problem or changed.said(published)
        return [
            path_picture(way, published.labels, published.layers, gated=published.gated, select=True),
            gr.Dropdown(choices=names, value=way.selected),
            gr.Slider(minimum=math.floor(10 * low) / 10, maximum=math.ceil(10 * high) / 10, value=round(scale, 3)),
            message(said, "error" if problem else "info"),
            views.share(changed.link if changed.changes(published) else ""),
            self._recipe(published, way),
        ]

    @staticmethod
    def _recipe(published: Published, way: edits.Route) -> str:
        try:
            return edits.changed_recipe(published, way)
        except EvoMergeError as error:
            return f"# {error}"

    def choose(self, way: edits.Route | None, event: gr.SelectData) -> list[Any]:
        """A hop was pressed in the picture."""
        return self.choose_listed(way, event.index)

    def choose_listed(self, way: edits.Route | None, index: Any) -> list[Any]:
        """A hop was chosen in the list."""
        if way is None:
            return [None, *self.shown(None)]
        try:
            way = way.select(index)
        except EvoMergeError as error:
            return [way, *self.shown(way, str(error))]
        return [way, *self.shown(way)]

    def turn(self, stage: str, generation: float) -> tuple[str, str]:
        """One generation of a stage."""
        published, _ = self.show.need()
        if as_float(generation) is None:
            return message("Give the number of a generation.", "error"), ""
        return views.generation_view(published, stage, int(generation))

    def turn_to(self, stage: str) -> list[Any]:
        """Another stage, at the published model's generation or the last."""
        published, _ = self.show.need()
        at, count = published.opening(stage), len(published.generations(stage))
        return [gr.Slider(maximum=max(count - 1, 1), value=at), *self.turn(stage, at)]

    async def run(self, stage: str, generation: float) -> AsyncIterator[list[Any]]:
        """All generations from the one shown, or from the first where it is the last or the one that is shown first."""
        published, _ = self.show.need()
        last = len(published.generations(stage)) - 1
        whole = as_float(generation)
        first = whole is None or not 0 <= whole < last or whole == published.opening(stage)
        start = 0 if first else int(generation)
        step = max(1, (last - start) // FRAMES)
        for at in [*range(start, last, step), last]:
            yield [at, *self.turn(stage, at)]
            await asyncio.sleep(FRAME_SECONDS)
