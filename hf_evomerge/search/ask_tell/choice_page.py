"""The page on which a person chooses: the candidates of a generation, and one click for the
best."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...errors import EvoMergeError
from .choosing import Chooser

_STYLE = """
.gradio-container {max-width: 1100px !important; margin: 0 auto !important}
#candidates .thumbnail-item, #chosen .thumbnail-item {aspect-ratio: auto; height: auto}
#candidates .grid-wrap {max-height: none; overflow: visible}
#candidates .grid-wrap, #chosen .grid-wrap {min-height: 0 !important; height: auto !important}
#candidates .grid-wrap, #chosen .grid-wrap {padding-top: 2rem}
#candidates, #chosen {min-height: 0 !important}
#candidates .caption-label, #chosen .caption-label {position: static !important}
@media (max-width: 600px) {
  .gradio-container {overflow-x: hidden}
  #candidates .grid-container {grid-template-columns: repeat(2, 1fr) !important}
}
#candidates img {image-rendering: pixelated}
"""


def choice_page(chooser: Chooser) -> Any:
    """The page, as Gradio Blocks; extra ``space``. Raises `EvoMergeError` where Gradio is not
    there.

    Its functions are there for programs too: ``/look`` gives generation, number of candidates and
    text, ``/choose`` takes generation and candidate, ``/build`` writes the model.
    """
    try:
        import gradio as gr
    except ImportError as cause:
        raise EvoMergeError('the page needs Gradio: pip install "hf-evomerge[space]"') from cause

    def shown() -> tuple[Any, ...]:
        candidates = [(picture, f"{number + 1}") for number, picture in enumerate(chooser.pictures)]
        before = [(str(file), f"{number + 1}") for number, file in enumerate(chooser.chosen)][::-1]
        galleries = (
            gr.Gallery(pictures, visible=bool(pictures)) for pictures in (candidates, before)
        )
        return chooser.generation, _text(chooser), *galleries, gr.Button(interactive=bool(before))

    def clicked(generation: int, event: gr.SelectData) -> tuple[Any, ...]:
        choose(generation, event.index)
        return shown()

    clicked.__annotations__["event"] = (
        gr.SelectData
    )  # Gradio cannot read the name of what is imported in a function

    def look() -> dict[str, Any]:
        return {
            "generation": chooser.generation,
            "candidates": len(chooser.pictures),
            "text": _text(chooser),
        }

    @contextmanager
    def told() -> Iterator[None]:
        try:
            yield
        except EvoMergeError as error:
            raise gr.Error(str(error)) from error

    def choose(generation: int, candidate: int) -> dict[str, Any]:
        with told():
            return {"taken": chooser.choose(generation, candidate), **look()}

    def build() -> str:
        with told():
            return f"Built: `{chooser.build()}`"

    with gr.Blocks(title="Choose") as page:
        gr.Markdown("# Which one is best?")
        text = gr.Markdown()
        generation = gr.State()
        plain: dict[str, Any] = {"allow_preview": False, "height": "auto"}
        candidates = gr.Gallery(
            label="candidates", elem_id="candidates", columns=3, object_fit="contain", **plain
        )
        with gr.Row():
            button = gr.Button("Build the one I chose last", interactive=False)
            built = gr.Markdown()
        chosen = gr.Gallery(
            label="chosen so far, the last first",
            elem_id="chosen",
            columns=6,
            visible=False,
            **plain,
        )
        everything = [generation, text, candidates, chosen, button]
        page.load(shown, outputs=everything, api_visibility="private")
        candidates.select(
            clicked, generation, everything, concurrency_limit=1, api_visibility="private"
        )
        button.click(build, outputs=built, api_name="build")
        gr.api(look, api_name="look")
        gr.api(choose, api_name="choose", concurrency_limit=1)
    page.css = _STYLE
    return page


def _text(chooser: Chooser) -> str:
    if not chooser.pictures:
        return f"All {chooser.generation} generations are over. Build the one that you chose last."
    place = f"Generation {chooser.generation + 1} of {chooser.generations}."
    return (
        f"{place} Click the picture that you like best: the next ones are made near it. Close "
        "the page whenever you like."
    )
