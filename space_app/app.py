"""The Space: its tabs, and what happens when something is pressed. Everything else is in the modules beside this file.

The owner sets the model: `EVOMERGE_MODEL=user/model python app.py`, or `space.json` beside this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # its modules are found wherever it is started from

with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  # before torch: on ZeroGPU it decides when CUDA begins

import drawing  # noqa: E402
import edits  # noqa: E402
import gradio as gr  # noqa: E402
import mixing  # noqa: E402
import seeing  # noqa: E402
import views  # noqa: E402
from actions import MIXED, Actions  # noqa: E402
from endpoints import endpoints, friendly  # noqa: E402
from models import MAX_TOKENS, choices  # noqa: E402
from published import Published  # noqa: E402
from reading import settings  # noqa: E402
from showcase import Edit, Showcase  # noqa: E402
from texts import cards, message  # noqa: E402

from hf_evomerge.errors import EvoMergeError  # noqa: E402

gr.Slider.preprocess = lambda self, payload: payload  # type: ignore[method-assign]  # what takes a number says what is wrong
QUEUE = 64
PRIVATE: dict[str, Any] = {"api_visibility": "private"}  # what the page calls is no part of the API
MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # one pass at a time, of page and API together
FREE: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", **PRIVATE}
# past the queue, which has one limit for all that is in it: where it is full, the page still opens
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
LATEST: dict[str, Any] = {"trigger_mode": "always_last"}
LIVE = "element.setAttribute('aria-live', 'polite');"  # screen readers say what changes in it
SELECT_HOP = """
const choose = (target) => {
  const hop = target.closest('[data-hop]');
  if (hop) trigger('select', {index: Number(hop.dataset.hop), value: hop.dataset.tip});
  return hop;
};
let refocus = false;
element.addEventListener('click', (event) => choose(event.target));
element.addEventListener('keydown', (event) => {
  if ((event.key === 'Enter' || event.key === ' ') && choose(event.target)) { refocus = true; event.preventDefault(); }
});
watch('value', () => {
  const shown = [...element.querySelectorAll('.ev-selected')].find((hop) => hop.getClientRects().length);
  if (refocus && shown) shown.focus();
  refocus = false;
});
"""


class Page:
    """The page of one showcase: builds the components, and holds what their events do."""

    def __init__(self, show: Showcase) -> None:
        self.show = show
        self.do = Actions(show)

    def build(self) -> gr.Blocks:
        """The whole page with its events and API."""
        name = Path(self.show.model).name or "no model is set"
        with gr.Blocks(title=f"{name}: an evolved merge", analytics_enabled=False, delete_cache=seeing.KEPT) as blocks:
            self.heading = gr.HTML('<div class="ev-heading"><h1>An evolved merge</h1></div>', elem_id="ev-heading")
            self.status = gr.HTML(message("Starting …"), elem_id="ev-status", js_on_load=LIVE)
            with gr.Tabs(elem_id="ev-tabs") as self.tabs:
                with gr.Tab("Try", id="try"):
                    self._try_tab()
                with gr.Tab("Path", id="path") as self.path_tab:
                    self.path = gr.HTML(message("Reading …"), elem_id="ev-path")
                    with gr.Column(visible=False) as self.through:
                        self.look = gr.Button("What would it answer after each hop?", elem_id="ev-look")
                        self.lens = gr.HTML("", elem_id="ev-lens", js_on_load=LIVE)
                with gr.Tab("Change it", id="change"):
                    self._change_tab()
                with gr.Tab("Evolution", id="evolution"):
                    self._evolution_tab()
                with gr.Tab("Recipe", id="recipe"):
                    self._recipe_tab()
            for function, runs_model in endpoints(self.show):
                gr.api(friendly(function), api_name=function.__name__, **(MODEL if runs_model else {"concurrency_limit": None}))
            self._events(blocks)
        return blocks

    def _gallery(self, label: str, name: str, *, interactive: bool) -> gr.Gallery:
        """A gallery that takes files and follows no address. Only its value is ever updated: any more would make another."""
        look: dict[str, Any] = {"height": 160, "object_fit": "contain", "allow_preview": False, "buttons": []}
        gallery = gr.Gallery(label=label, elem_id=name, file_types=seeing.TYPES, interactive=interactive, **look)
        take = gallery.async_move_resource_to_block_cache

        async def take_file(given: str | Path | None) -> str | None:
            if "://" in str(given):
                raise gr.Error("Addresses are not followed: give the picture itself.", print_exception=False)
            return await take(given)

        gallery.async_move_resource_to_block_cache = take_file  # type: ignore[assignment, method-assign]
        return gallery

    def _try_tab(self) -> None:
        with gr.Column(visible=False) as self.beside:
            self.pictures = self._gallery("Pictures beside the prompt", "ev-pictures", interactive=True)
        self.prompt = gr.Textbox(
            label="Prompt (Shift+Enter asks)", lines=2, max_lines=12, elem_id="ev-prompt", placeholder="Ask the model something"
        )
        self.gloss = gr.HTML("", elem_id="ev-gloss")
        with gr.Row():
            self.ask = gr.Button("Ask", variant="primary", elem_id="ev-ask", scale=4, min_width=120)
            self.stop = gr.Button("Stop", elem_id="ev-stop", scale=1, min_width=80)
        self.answers = gr.HTML(cards([views.UNASKED]), elem_id="ev-answers", min_height=120, js_on_load=LIVE)
        self.absent = gr.HTML("", visible=False)
        samples: dict[str, Any] = {
            "samples": [],
            "label": "Problems of the model's own task",
            "visible": False,
            "type": "index",
        }
        self.samples = gr.Dataset(components=[self.prompt], samples_per_page=3, elem_id="ev-samples", **samples)
        both = [self.pictures, self.prompt]
        samples["headers"] = ["Pictures", "Prompt"]
        self.seen_samples = gr.Dataset(components=both, samples_per_page=3, elem_id="ev-seen-samples", **samples)
        with gr.Row():
            self.others = gr.CheckboxGroup(
                [], label="Ask these too (loaded when asked)", visible=False, elem_id="ev-others", min_width=300
            )
            self.tokens = gr.Slider(
                1, MAX_TOKENS, value=64, step=1, label="Longest answer, in tokens", elem_id="ev-tokens", min_width=300
            )

    def _change_tab(self) -> None:
        self.no_path = gr.HTML(message("Reading …"))
        self.way = gr.State(None)  # each visitor has their own
        self.undo = gr.State(())
        self.known = gr.State(None)
        self.count = gr.State(0)
        self.factors = gr.State(())
        self.linked = gr.State(0)
        with gr.Column(visible=False) as self.editor:
            with gr.Row(elem_id="ev-sides"):
                with gr.Column(scale=3, min_width=340):
                    self.picture = gr.HTML("", js_on_load=SELECT_HOP, elem_id="ev-edit")
                    with gr.Column(visible=False) as self.beside2:
                        self.pictures2 = self._gallery("Pictures, as under Try", "ev-pictures2", interactive=False)
                    self.prompt2 = gr.Textbox(label="Prompt (Shift+Enter asks)", lines=2, max_lines=8, elem_id="ev-prompt2")
                    with gr.Row():
                        self.answer2 = gr.Button("Answer", variant="primary", elem_id="ev-answer2", scale=4, min_width=120)
                        self.stop2 = gr.Button("Stop", elem_id="ev-stop2", scale=1, min_width=80)
                with gr.Column(scale=2, min_width=320):
                    with gr.Column(visible=False) as self.of_path:
                        self._path_controls()
                    with gr.Column(visible=False) as self.of_weights:
                        self._weight_controls()
                    self.said = gr.HTML("", elem_id="ev-said", js_on_load=LIVE)
                    self.answers2 = gr.HTML("", elem_id="ev-answers2", min_height=120, js_on_load=LIVE)
                    self.scoring = gr.Button("Score it on the examples", elem_id="ev-scoring", visible=False, size="md")
                    self.scored = gr.HTML("", elem_id="ev-scored", js_on_load=LIVE)
                    self.share = gr.HTML("", elem_id="ev-share")
            with gr.Column(visible=False) as self.rewritten:
                self.changed = self._code("yaml", "The changed recipe", "ev-changed", max_lines=18)

    def _path_controls(self) -> None:
        self.hop = gr.Dropdown([], label="Hop (or choose it in the picture)", elem_id="ev-hop", filterable=False)
        self.scale = gr.Slider(-2, 2, value=1, step=0.01, label="Scale on the way into this hop", elem_id="ev-scale")
        with gr.Row(elem_classes="ev-buttons"):
            self.drop = gr.Button("Drop", elem_id="ev-drop", size="sm")
            self.repeat = gr.Button("Repeat", elem_id="ev-repeat", size="sm")
            self.earlier = gr.Button("← Earlier", elem_id="ev-earlier", size="sm")
            self.later = gr.Button("Later →", elem_id="ev-later", size="sm")
            self.back = gr.Button("Undo", elem_id="ev-undo", size="sm")
            self.reset = gr.Button("Reset", elem_id="ev-reset", size="sm")

    def _weight_controls(self) -> None:
        self.group = gr.Dropdown([mixing.ALL], value=mixing.ALL, label="Where", elem_id="ev-group", filterable=False)
        self.parts = [
            gr.Slider(
                0, mixing.MAX_FACTOR, value=1, step=0.05, visible=False, label=f"Parent {at + 1}", elem_id=f"ev-part-{at}"
            )
            for at in range(MIXED)
        ]
        self.unmixing = gr.Button("Reset", elem_id="ev-unmix", size="md")

    def _evolution_tab(self) -> None:
        self.fitness = gr.HTML(message("Reading …"), elem_id="ev-fitness")
        with gr.Column(visible=False) as self.replayer:
            gr.HTML("<h2>Step by step</h2>")
            with gr.Row(equal_height=True):
                self.stage = gr.Radio([], label="Stage", elem_id="ev-stage", scale=1)
                self.generation = gr.Slider(
                    0, 1, value=0, step=1, label="Generation", elem_id="ev-generation", scale=3, min_width=300
                )
            with gr.Row():
                self.play = gr.Button("Replay", variant="primary", elem_id="ev-play", scale=4, min_width=120)
                self.pause = gr.Button("Stop", elem_id="ev-pause", scale=1, min_width=80)
            self.spread = gr.HTML("", elem_id="ev-spread")
            self.best = gr.HTML("", elem_id="ev-best")

    def _recipe_tab(self) -> None:
        self.recipe = self._code("yaml", "recipe.yaml", "ev-recipe", max_lines=30)
        self.commands = self._code("shell", "Load, rebuild, fold", "ev-commands")
        self.licenses = gr.HTML("", elem_id="ev-licenses")
        self._code("latex", "Citation", "ev-citation", value=views.CITATION)

    def _code(self, language: Any, label: str, name: str, *, max_lines: int | None = None, value: str = "") -> gr.Code:
        """Text to copy or to keep."""
        buttons: Any = ["copy", "download"]
        look: dict[str, Any] = {"max_lines": max_lines, "show_line_numbers": False, "buttons": buttons, "interactive": False}
        return gr.Code(value, language=language, label=label, elem_id=name, **look)

    def _events(self, blocks: gr.Blocks) -> None:
        watched = blocks.load(self.do.watch, outputs=self.status, **FREE)
        watched.failure(self.do.state, outputs=self.status, **AT_ONCE)
        filled = [part for part in (*vars(self).values(), *self.parts) if isinstance(part, gr.blocks.Block)]
        edited = [self.way, self.picture, self.hop, self.scale, self.said, self.share, self.changed]
        opened = blocks.load(self.fill, outputs=filled, **AT_ONCE)
        known = [self.answers, self.answers2]
        opened.then(self.do.rehearsed, [self.prompt, self.pictures, self.way, self.factors], known, **AT_ONCE)
        opened.then(self.do.follow_link, [self.way, self.factors], self.linked, **FREE)  # as `count`

        asked = [self.prompt, self.pictures, self.others, self.tokens]
        taken = [self.prompt, self.prompt2, self.gloss, self.answers, self.answers2, self.pictures, self.pictures2]
        for samples in (self.samples, self.seen_samples):
            samples.click(self.do.take_sample, samples, taken, **AT_ONCE)
        self.pictures.change(None, self.pictures, self.pictures2, js="shown => [shown]", **PRIVATE)
        self.prompt.change(self.do.gloss, self.prompt, self.gloss, **LATEST, **AT_ONCE)
        self.look.click(self.do.look_through, [self.prompt, self.pictures], self.lens, **MODEL, **PRIVATE)
        pressed = gr.on([self.ask.click, self.prompt.submit], self.do.begin, outputs=self.answers, **AT_ONCE)
        answered = pressed.then(self.do.answer, asked, self.answers, scroll_to_output=True, **LATEST, **MODEL, **PRIVATE)
        answered.failure(self.do.turned_away, outputs=self.answers, **AT_ONCE)
        self.stop.click(self.do.halt, **AT_ONCE)

        for button, action in ((self.drop, "drop"), (self.repeat, "repeat"), (self.earlier, "earlier"), (self.later, "later")):
            self._edits(button.click, action, edited)
        self._edits(self.back.click, "undo", edited)
        self._edits(self.reset.click, "reset", edited)
        self._edits(self.scale.input, "scale", edited)
        self.picture.select(self.do.choose, self.way, edited, **AT_ONCE)
        self.hop.input(self.do.choose_listed, [self.way, self.hop], edited, **AT_ONCE)
        inputs, outputs = (
            [self.prompt2, self.pictures, self.way, self.factors, self.tokens, self.known],
            [self.answers2, self.known],
        )
        pressed = gr.on([self.answer2.click, self.prompt2.submit], self.do.begin_again, **AT_ONCE)
        changes = [self.count, self.linked]
        # through the queue, where a refusal is no HTTP error
        edits_made = gr.on([one.change for one in changes], self.do.begin_edit, changes, self.scored, **FREE)
        for follow in (pressed.then, edits_made.success):
            followed = follow(self.do.answer_changed, inputs, outputs, **LATEST, **MODEL, **PRIVATE)
            followed.failure(self.do.turned_away, outputs=self.answers2, **AT_ONCE)
        self.stop2.click(self.do.halt, **AT_ONCE)

        score = self.scoring.click(self.do.score, [self.way, self.factors], self.scored, **MODEL, **PRIVATE)
        score.failure(self.do.turned_away, outputs=self.scored, **AT_ONCE)
        turned = [self.factors, self.said, self.share, self.picture, self.count]
        for part in self.parts:
            mixed = part.input(self.do.mix, [self.group, self.factors, self.count, *self.parts], turned, **LATEST, **FREE)
            mixed.failure(self.do.turned_away, outputs=self.said, **AT_ONCE)
        self.unmixing.click(self.do.unmix, self.count, [*turned, *self.parts], **FREE)
        self.group.input(self.do.choose_group, [self.group, self.factors], self.parts, **AT_ONCE)

        replayed = [self.spread, self.best]
        self.generation.input(self.do.turn, [self.stage, self.generation], replayed, **LATEST, **AT_ONCE)
        self.stage.input(self.do.turn_to, self.stage, [self.generation, *replayed], **LATEST, **AT_ONCE)
        running = self.play.click(self.do.run, [self.stage, self.generation], [self.generation, *replayed], **FREE)
        self.pause.click(None, cancels=running, **PRIVATE)

    def _edits(self, event: Any, action: str, outputs: list[Any]) -> None:
        def changed(way: edits.Route | None, undo: tuple[edits.Route, ...], count: int, scale: float) -> list[Any]:
            return self.do.edit(action, way, undo, count, scale)

        inputs = [self.way, self.undo, self.count, self.scale]
        edited = event(changed, inputs, [*outputs, self.undo, self.count], **LATEST, **FREE)  # `count.change` needs the queue
        edited.failure(self.do.turned_away, outputs=self.said, **AT_ONCE)

    async def fill(self, request: gr.Request) -> dict[Any, Any]:
        """The page as soon as the model's files are read; the weights may still be on their way."""
        while not self.show.known.is_set():
            await asyncio.sleep(0.1)
        published = self.show.published
        if published is None:
            said = message("There is nothing to show until a model is set; see above.")
            return {self.path: said, self.no_path: said, self.fitness: said}
        return {**self._filled(published), **self._editing(published, request), **self._replayed(published)}

    def _filled(self, published: Published) -> dict[Any, Any]:
        examples, sees, context = published.examples, published.sees, published.context
        most = min(MAX_TOKENS, context - 1) if context else MAX_TOKENS
        within = f" (the model reads {context:,}, prompt and answer together)" if context else ""
        shown = [self.show.files(example.pictures) for example in examples]
        samples = [[example.prompt] for example in examples]
        with_pictures = [[files, example.prompt] for files, example in zip(shown, examples, strict=True)]
        others = choices(published.parents)
        missing = [f"{parent.label} ({parent.missing})" for parent in published.parents if parent.missing]
        first = samples[0][0] if samples else ""
        return {
            self.heading: views.heading(published),
            self.prompt: first,
            self.samples: gr.Dataset(samples=samples, visible=bool(samples) and not sees),
            self.seen_samples: gr.Dataset(samples=with_pictures, visible=bool(samples) and sees),
            self.beside: gr.Column(visible=sees),
            self.beside2: gr.Column(visible=sees),
            self.pictures: shown[0] if shown else None,
            self.pictures2: shown[0] if shown else None,
            self.tokens: gr.Slider(maximum=most, value=min(64, most), label=f"Longest answer, in tokens{within}"),
            self.others: gr.CheckboxGroup(choices=others, visible=bool(others)),
            self.absent: gr.HTML(message(f"Cannot be asked: {'; '.join(missing)}."), visible=bool(missing)),
            self.path_tab: gr.Tab(label="Path" if published.path else "Weights"),
            self.path: views.path_view(published),
            self.gloss: views.gloss(published.glosses.get(first, "")),
            self.prompt2: first,
            self.through: gr.Column(visible=True),
            self.look: f"What would it answer after each {'hop' if published.path else 'layer'}?",
            self.scoring: gr.Button(visible=bool(samples)),
            self.fitness: views.fitness_view(published),
            self.recipe: published.recipe_text or "# the repository has no recipe.yaml",
            self.commands: views.commands(published),
            self.licenses: "<h2>Licenses</h2>" + views.licenses(published),
        }

    def _editing(self, published: Published, request: gr.Request) -> dict[Any, Any]:
        """The tab for changes, with the edit that the page's address carries."""
        editable, text, problem = bool(published.path or published.mixes), request.query_params.get("edit"), ""
        edit = Edit(edits.Route(published.path, published.scales) if published.path else None)
        if text is not None:
            try:
                edit = Edit.of_link(text, published)
            except EvoMergeError as error:
                problem = str(error)
        shown: dict[Any, Any] = {
            self.no_path: gr.HTML(message(views.NO_PATH), visible=not editable),
            self.editor: gr.Column(visible=editable),
            self.of_path: gr.Column(visible=bool(published.path)),
            self.rewritten: gr.Column(visible=bool(published.path)),
            self.of_weights: gr.Column(visible=bool(published.mixes)),
            self.way: edit.way,
            self.factors: edit.factors,
        }
        if text is not None and editable:
            shown |= {self.tabs: gr.Tabs(selected="change")}
        if published.path:
            names = [self.picture, self.hop, self.scale, self.said, self.share, self.changed]
            return shown | dict(zip(names, self.do.shown(edit.way, problem), strict=True))
        if published.mixes:
            shown |= {self.group: gr.Dropdown(choices=mixing.groups(published.mixes))}
            labels = published.sources[:MIXED]
            values = self.do.choose_group(mixing.ALL, edit.factors)
            shown |= {
                part: gr.Slider(label=f"Weight of {label} \N{MULTIPLICATION SIGN}", value=value, visible=True)
                for part, label, value in zip(self.parts, labels, values, strict=False)
            }
            shown |= dict(zip([self.said, self.share, self.picture], self.do.mixed(edit.factors), strict=True))
        return shown

    def _replayed(self, published: Published) -> dict[Any, Any]:
        replayed = views.evolution_stages(published)
        if not replayed:
            return {}
        chosen = published.winner
        known = [stage for _, stage in replayed]
        stage = chosen.stage if chosen and chosen.stage in known else known[-1]
        turned = zip((self.generation, self.spread, self.best), self.do.turn_to(stage), strict=True)
        choice = gr.Radio(choices=replayed, value=stage, visible=len(replayed) > 1)
        return {self.replayer: gr.Column(visible=True), self.stage: choice, **dict(turned)}


def serve(model: str, revision: str | None = None, **options: Any) -> tuple[gr.Blocks, Showcase | drawing.Painter]:
    """Start the page of a model, and the model behind it.

    Args:
        model: Repository id or folder; empty where the owner has set none, which the page then explains.
        revision: Branch, tag or commit.
        options: More options of Gradio's `launch`.
    """
    show: Any = drawing.Painter(model, revision) if drawing.is_pipeline(model, revision) else Showcase(model, revision)
    blocks = drawing.page(show) if isinstance(show, drawing.Painter) else Page(show).build()
    blocks.queue(max_size=QUEUE, default_concurrency_limit=4)
    show.start()
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    blocks.launch(
        head=f"<style>{style}</style><script>{script}</script>",  # not css=, which would change the selectors
        theme=gr.themes.Default(
            primary_hue="blue", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ).set(  # white on these, and these on white, have a contrast of 5 to 1
            button_primary_background_fill="*primary_600",
            button_primary_background_fill_hover="*primary_700",
            color_accent="*primary_600",
        ),
        footer_links=["api", "gradio", "settings"],
        mcp_server=importlib.util.find_spec("mcp") is not None,
        ssr_mode=False,
        max_file_size=seeing.MAX_BYTES,
        state_session_capacity=1000,  # a visitor's path and undo steps: some 100 kB at most
        **options,
    )
    return blocks, show


if __name__ == "__main__":
    serve(*settings(HERE))
