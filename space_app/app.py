"""The Space: its tabs, and what happens when something is pressed. Everything else is in the
modules beside this file.

The owner sets the model: `EVOMERGE_MODEL=user/model python app.py`, or `space.json` beside this
file.
"""

import asyncio
import contextlib
import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # its modules are found wherever it is started from

with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  # before torch: on ZeroGPU it decides when CUDA begins

import drawing  # noqa: E402
import edits  # noqa: E402
import gradio as gr  # noqa: E402
import seeing  # noqa: E402
import views  # noqa: E402
from actions import Actions  # noqa: E402
from edits import Route  # noqa: E402
from endpoints import endpoints, friendly  # noqa: E402
from gradio.state_holder import SessionState  # noqa: E402
from models import MAX_TOKENS, choices  # noqa: E402
from published import TO_TRY, Published  # noqa: E402
from reading import settings  # noqa: E402
from showcase import Showcase  # noqa: E402
from texts import cards, message  # noqa: E402

from hf_evomerge.errors import EvoMergeError  # noqa: E402
from hf_evomerge.pictures.style import style_sheet  # noqa: E402
from hf_evomerge.record import MADE_WITH  # noqa: E402

SessionState._update_value_in_config = lambda *_: None  # type: ignore[method-assign]  # else all that visitors sent is kept
# Two bounds keep one small machine answering: at most `QUEUE` calls wait, and one pass through the
# model runs at a time (`MODEL`, shared by page and API). What needs no model goes past the queue
# (`AT_ONCE`) or beside it (`FREE`).
QUEUE = 64
SESSIONS = 500  # visitors whose state is kept: 130 KB each, mostly Gradio's copy of the page
# What the page calls is no part of the API. Gradio does not check what it is given: the state that
# it would compare with may be forgotten, and the functions say themselves what is wrong.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "preprocess": False}
MODEL: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "model",
}  # one pass at a time, of page and API together
ASKING: dict[str, Any] = {**MODEL, **PRIVATE}
FREE: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", **PRIVATE}
# past the queue, which has one limit for all that is in it: where it is full, the page still opens
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
LATEST: dict[str, Any] = {"trigger_mode": "always_last"}
# white on these, and these on white, have a contrast of 5 to 1
CONTRAST = {"button_primary_background_fill": "*primary_600", "color_accent": "*primary_600"}
CONTRAST["button_primary_background_fill_hover"] = "*primary_700"
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
  const isKey = event.key === 'Enter' || event.key === ' ';
  if (isKey && choose(event.target)) { refocus = true; event.preventDefault(); }
});
watch('value', () => {
  const selected = [...element.querySelectorAll('.ev-selected')];
  const shown = selected.find((hop) => hop.getClientRects().length);
  if (refocus && shown) shown.focus();
  refocus = false;
});
"""


PLAY_ONCE = """() => {
  const moves = !window.evPlayed && !matchMedia('(prefers-reduced-motion: reduce)').matches;
  if (moves) document.querySelector('#ev-play')?.click();
  window.evPlayed = true; }"""


class Page:
    """The page of one showcase: builds the components, and holds what their events do."""

    def __init__(self, show: Showcase) -> None:
        self.show = show
        self.do = Actions(show)

    def build(self) -> gr.Blocks:
        """The whole page with its events and API."""
        name = Path(self.show.model).name or "no model is set"
        with gr.Blocks(
            title=f"{name}: an evolved merge", analytics_enabled=False, delete_cache=seeing.KEPT
        ) as blocks:
            self.heading = gr.HTML('<div class="ev-heading"><h1>An evolved merge</h1></div>')
            self.status = gr.HTML(message("Starting …"), js_on_load=LIVE)
            with gr.Tabs() as self.tabs:
                with gr.Tab("Try", id="try"):
                    self._try_tab()
                with gr.Tab("Path", id="path") as self.path_tab:
                    self.path = gr.HTML(message("Reading …"))
                with gr.Tab("Change it", id="change", visible=False) as self.change_tab:
                    self._change_tab()
                with gr.Tab("Evolution", id="evolution") as self.evolution:
                    self._evolution_tab()
                with gr.Tab("Recipe", id="recipe"):
                    self._recipe_tab()
            gr.Markdown(MADE_WITH, elem_id="ev-made")
            for function, runs_model in endpoints(self.show):
                gr.api(
                    friendly(function),
                    api_name=function.__name__,
                    **(MODEL if runs_model else {"concurrency_limit": None}),
                )
            self._events(blocks)
        # Styles and tests find a part by its name here.
        for name, part in vars(self).items():
            if isinstance(part, gr.blocks.Block) and part.elem_id is None:
                part.elem_id = f"ev-{name.replace('_', '-')}"
        return blocks

    def _gallery(self) -> gr.Gallery:
        """A gallery that takes files and follows no address. Only its value is ever updated: any
        more would make another."""
        gallery = gr.Gallery(
            label="Pictures beside the prompt",
            file_types=seeing.TYPES,
            interactive=True,
            height=160,
            object_fit="contain",
            allow_preview=False,
            buttons=[],
        )
        take = gallery.async_move_resource_to_block_cache

        async def take_file(given: str | Path | None) -> str | None:
            if "://" in str(given):
                raise gr.Error(
                    "Addresses are not followed: give the picture itself.", print_exception=False
                )
            return await take(given)

        gallery.async_move_resource_to_block_cache = take_file  # type: ignore[assignment, method-assign]
        return gallery

    def _try_tab(self) -> None:
        with gr.Column(visible=False) as self.beside:
            self.pictures = self._gallery()
        self.prompt = gr.Textbox(
            label="Prompt", lines=2, max_lines=12, placeholder="Ask the model something"
        )
        self.gloss = gr.HTML("")
        with gr.Row():
            self.ask = gr.Button("Ask", variant="primary", scale=4, min_width=120)
            self.another = gr.Button("Next problem", scale=1, min_width=150, visible=False)
            self.stop = gr.Button("Stop", scale=1, min_width=80)
        self.answers = gr.HTML("", min_height=120, js_on_load=LIVE)
        self.samples = gr.Dataset(
            components=[self.prompt],
            samples=[],
            samples_per_page=TO_TRY,
            type="index",
            label="Problems of the model's own task",
            visible=False,
        )
        with (
            gr.Accordion("Which models, and how long an answer", open=False) as self.options,
            gr.Row(),
        ):
            self.others = gr.CheckboxGroup([], label="Ask these too", visible=False, min_width=300)
            self.tokens = gr.Slider(
                1, MAX_TOKENS, value=64, step=1, label="Longest answer, in tokens", min_width=300
            )

    def _change_tab(self) -> None:
        self.edit = gr.State(Route())  # each visitor has their own
        self.undo = gr.State(())
        self.count = gr.State(0)
        self.dare = gr.HTML("")
        with gr.Row(elem_id="ev-sides"):
            with gr.Column(scale=3, min_width=340):
                self.picture = gr.HTML("", js_on_load=SELECT_HOP, elem_id="ev-edit")
                self.problem = gr.HTML("")
            with gr.Column(scale=2, min_width=320):
                with gr.Column() as self.of_hop:
                    self.hop = gr.Dropdown(
                        [], label="Hop (or choose it in the picture)", filterable=False
                    )
                    self.scale = gr.Slider(
                        -2, 2, value=1, step=0.01, label="Scale on the way into this hop"
                    )
                self._edit_buttons()
                self.said = gr.HTML("", js_on_load=LIVE)
                self.scored = gr.HTML("", js_on_load=LIVE)
                self.answers2 = gr.HTML("", min_height=120, js_on_load=LIVE)
                self.scoring = gr.Button("Score it", visible=False, size="md")
                self.stop2 = gr.Button("Stop", size="md")
                self.share = gr.HTML("")
        self.shows = [self.edit, self.picture, self.hop, self.scale, self.said, self.share]

    def _edit_buttons(self) -> None:
        names = {
            key: key.capitalize() for key in ("drop", "repeat", "earlier", "later", "undo", "reset")
        }
        names |= {"earlier": "← Earlier", "later": "Later →"}
        with gr.Row(elem_classes="ev-buttons"):
            self.buttons = {
                key: gr.Button(name, elem_id=f"ev-{key}", size="sm") for key, name in names.items()
            }

    def _evolution_tab(self) -> None:
        with gr.Column(visible=False) as self.replayer:
            with gr.Row(equal_height=True):
                self.moment = gr.Slider(
                    1, 2, value=1, step=1, label="Moment", scale=3, min_width=240
                )
                self.play = gr.Button("Replay", variant="primary", scale=1, min_width=110)
                self.pause = gr.Button("Stop", scale=1, min_width=80)
            self.film = gr.HTML("")
            self.best = gr.HTML("")
        self.fitness = gr.HTML(message("Reading …"))

    def _recipe_tab(self) -> None:
        self.recipe = self._code("yaml", "recipe.yaml", max_lines=30)
        self.kept = gr.HTML("")
        self.commands = self._code("shell", "Load, rebuild, fold")
        self.licenses = gr.HTML("")
        self.citation = self._code("latex", "Citation", value=views.CITATION)

    def _code(
        self, language: Any, label: str, *, max_lines: int | None = None, value: str = ""
    ) -> gr.Code:
        """Text to copy."""
        return gr.Code(
            value,
            language=language,
            label=label,
            max_lines=max_lines,
            show_line_numbers=False,
            buttons=["copy"],
            interactive=False,
        )

    def _events(self, blocks: gr.Blocks) -> None:
        watched = blocks.load(self.do.watch, outputs=self.status, **FREE)
        watched.failure(self.do.state, outputs=self.status, **AT_ONCE)
        filled = [part for part in vars(self).values() if isinstance(part, gr.blocks.Block)]
        opened = blocks.load(self.fill, outputs=filled, **AT_ONCE)
        known = [self.answers, self.answers2]
        opened.then(
            self.do.rehearsed,
            [self.prompt, self.pictures, self.edit],
            [*known, self.dare],
            **AT_ONCE,
        )
        opened.then(self.do.follow_link, self.edit, self.count, **FREE)  # as an edit

        asked = [self.prompt, self.pictures, self.others, self.tokens]
        taken = [self.prompt, self.gloss, self.problem, *known, self.pictures]
        chosen = [self.samples.click(self.do.take_sample, self.samples, taken, **AT_ONCE)]
        chosen.append(self.another.click(self.do.take_next, self.prompt, taken, **AT_ONCE))
        self.prompt.change(
            self.do.gloss, self.prompt, [self.gloss, self.problem], **LATEST, **AT_ONCE
        )
        self.others.change(
            lambda others: views.ask_label(len(others)), self.others, self.ask, **AT_ONCE
        )
        pressed = gr.on(
            [self.ask.click, self.prompt.submit], self.do.begin, self.prompt, known, **AT_ONCE
        )
        answered = [
            pressed.then(
                self.do.answer, asked, self.answers, scroll_to_output=True, **LATEST, **ASKING
            )
        ]
        answered += [one.then(self.do.answer_new, asked, self.answers, **ASKING) for one in chosen]
        for one in answered:
            one.failure(self.do.turned_away, outputs=self.answers, **AT_ONCE)
        self.stop.click(self.do.halt, **AT_ONCE)

        events = [
            *((button.click, action) for action, button in self.buttons.items()),
            (self.scale.input, "scale"),
        ]
        for event, action in events:
            # `count.change` needs the queue, where a refusal is no HTTP error
            made = event(
                partial(self.do.edit, action),
                [self.edit, self.undo, self.count, self.scale],
                [*self.shows, self.undo, self.count],
                **LATEST,
                **FREE,
            )
            made.failure(self.do.turned_away, outputs=self.said, **AT_ONCE)
        self.picture.select(self.do.choose, self.edit, self.shows, **AT_ONCE)
        self.hop.input(self.do.choose_listed, [self.edit, self.hop], self.shows, **AT_ONCE)
        asked = [self.prompt, self.pictures, self.edit, self.tokens]
        # "multiple": a change that waits for another is lost where that one is refused, as the
        # first is
        made = self.count.change(
            self.do.begin_edit, self.count, self.scored, trigger_mode="multiple", **FREE
        )
        made = made.success(self.do.answer_changed, asked, self.answers2, **LATEST, **ASKING)
        made.failure(self.do.turned_away, outputs=self.answers2, **AT_ONCE)
        made.then(self.do.score_new, self.edit, self.scored, show_progress="hidden", **ASKING)
        score = self.scoring.click(self.do.score, self.edit, self.scored, **ASKING)
        score.failure(self.do.turned_away, outputs=self.scored, **AT_ONCE)
        self.stop2.click(self.do.halt, **AT_ONCE)

        replayed = [self.film, self.best]
        self.moment.input(self.do.turn, self.moment, replayed, **LATEST, **AT_ONCE)
        running = self.play.click(self.do.run, self.moment, [self.moment, *replayed], **FREE)
        self.pause.click(self.do.turn, self.moment, replayed, cancels=running, **AT_ONCE)
        self.evolution.select(None, js=PLAY_ONCE, **PRIVATE)

    async def fill(self, request: gr.Request) -> dict[Any, Any]:
        """The page as soon as the model's files are read; the weights may still be on their way."""
        while not self.show.ready.is_set():
            await asyncio.sleep(0.1)
        published = self.show.published
        if published is None:
            said = message("There is nothing to show until a model is set; see above.")
            return {self.path: said, self.fitness: said}
        return {
            **self._filled(published),
            **self._editing(published, request),
            **self._replayed(published),
        }

    def _filled(self, published: Published) -> dict[Any, Any]:
        examples = published.examples
        sees = published.sees
        context = published.context
        most = min(MAX_TOKENS, context - 1) if context else MAX_TOKENS
        within = f" (the model reads {context:,}, prompt and answer together)" if context else ""
        others = choices(published.parents)
        first = examples[0].prompt if examples else ""
        small = self.show.small
        to_try = examples[:TO_TRY]
        labels = [views.button_of(each) for each in to_try]
        prompts = [[each.prompt] for each in to_try]
        return {
            self.heading: views.heading(published),
            self.prompt: first,
            self.samples: gr.Dataset(samples=prompts, sample_labels=labels, visible=bool(examples)),
            self.another: gr.Button(visible=len(examples) > 1),
            self.answers: cards(self.show.cards().values()),
            self.ask: views.ask_label(len(small)),
            self.options: gr.Accordion(open=len(small) < len(others)),
            self.beside: gr.Column(visible=sees),
            self.pictures: self.show.files(examples[0].pictures) if sees and examples else None,
            self.tokens: gr.Slider(
                maximum=most, value=min(64, most), label=f"Longest answer, in tokens{within}"
            ),
            self.others: gr.CheckboxGroup(choices=others, value=small, visible=bool(others)),
            self.path_tab: gr.Tab(label="Path" if published.path else "Weights"),
            self.path: views.path_view(published),
            self.gloss: views.gloss(published, first),
            self.problem: views.asked(published, first),
            self.fitness: views.fitness_view(published),
            self.kept: views.share("", published.recipe_text),
            self.recipe: published.recipe_text or "# the repository has no recipe.yaml",
            self.commands: views.commands(published),
            self.licenses: "<h2>Licenses</h2>" + views.licenses(published),
        }

    def _editing(self, published: Published, request: gr.Request) -> dict[Any, Any]:
        """The tab for changes of a path, with the edit that the page's address carries."""
        if not published.path:
            return {}
        examples = published.examples
        judged = bool(published.judge and examples)
        text = request.query_params.get("edit")
        problem = ""
        way = Route.of(published)
        self.edit.value = way  # a visitor who was forgotten begins with it
        if text is not None:
            try:
                way = edits.of_link(text, published)
            except EvoMergeError as error:
                problem = str(error)
        shown: dict[Any, Any] = {
            self.change_tab: gr.Tab(
                label="Beat evolution" if judged else "Change it", visible=True
            ),
            self.dare: views.dare(published),
            self.scoring: gr.Button(f"Score it on {len(examples)} problems", visible=judged),
            **dict(zip(self.shows, self.do.shown(way, problem), strict=True)),
        }
        if text is not None:
            shown[self.tabs] = gr.Tabs(selected="change")
        return shown

    def _replayed(self, published: Published) -> dict[Any, Any]:
        if not (count := len(published.film[1])):
            return {}
        turned = dict(
            zip((self.film, self.best), views.film_view(published, count - 1), strict=True)
        )
        return {
            self.replayer: gr.Column(visible=True),
            self.moment: gr.Slider(maximum=max(count, 2), value=count),
            **turned,
        }


def serve(
    model: str, revision: str | None = None, **options: Any
) -> tuple[gr.Blocks, Showcase | drawing.Painter]:
    """Start the page of a model (empty where the owner has set none, which the page then explains),
    and the model behind it.

    `options` are more options of Gradio's `launch`.
    """
    show: Any = (
        drawing.Painter(model, revision)
        if drawing.draws(model, revision)
        else Showcase(model, revision)
    )
    blocks = drawing.page(show) if isinstance(show, drawing.Painter) else Page(show).build()
    blocks.queue(max_size=QUEUE, default_concurrency_limit=4)
    show.start()
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    blocks.launch(
        # not css=, which would change the selectors
        head=f"<style>{style_sheet()}\n{style}</style><script>{script}</script>",
        theme=gr.themes.Default(
            primary_hue="blue",
            neutral_hue="slate",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ).set(**CONTRAST),
        footer_links=["api", "gradio", "settings"],
        mcp_server=importlib.util.find_spec("mcp") is not None,
        ssr_mode=False,
        max_file_size=seeing.MAX_BYTES,
        state_session_capacity=SESSIONS,
        **options,
    )
    return blocks, show


if __name__ == "__main__":
    page, _ = serve(*settings(HERE), quiet=True, prevent_thread_lock=True)
    print(f"Open {page.local_url} in a browser; Ctrl-C stops.", flush=True)
    page.block_thread()
