"""The named API: what `gradio_client` can call, and what an MCP client sees as tools. One pass at a time, as on the page."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from typing import Any

import edits
import gradio as gr
import seeing
from models import Job, Piece, choices
from showcase import Showcase, token_bound
from texts import SpaceError

from hf_evomerge.errors import EvoMergeError
from hf_evomerge.fitness import Example
from hf_evomerge.record import EVOLVED


def endpoints(show: Showcase) -> list[tuple[Callable[..., Any], bool]]:
    """The functions of the API, each with whether it runs the model."""

    def answer(prompt: str, model: str = EVOLVED, max_tokens: int = 64, pictures: list[str] | None = None) -> dict[str, Any]:
        """Let one model answer a prompt, greedily.

        Args:
            prompt: The prompt, at most 8,000 characters.
            model: "evolved", or the name of a parent as `about` lists it.
            max_tokens: The longest answer, in tokens, from 1 to 256.
            pictures: What the files of pictures hold, in base64, for a model that sees.

        Returns:
            A mapping with `text`, `tokens`, `seconds`, `right` (null where the prompt is none of the examples) and `note`.
        """
        published, _ = show.need()
        if model != EVOLVED and model not in choices(published.parents):
            there = ", ".join([EVOLVED, *choices(published.parents)])
            raise SpaceError(f"There is no model {model!r:.60} here; there are {there}.")
        seen = seeing.of_texts(pictures)
        return _answered(show, prompt, max_tokens, lambda words, bound: Job(model, words, bound, pictures=seen))

    def answer_with_path(
        prompt: str, path: list[str], scales: list[float] | None = None, max_tokens: int = 64, pictures: list[str] | None = None
    ) -> dict[str, Any]:
        """Let the evolved model answer along another path through its layers. Nothing is copied and nothing is kept.

        Args:
            prompt: The prompt, at most 8,000 characters.
            path: One text per hop, such as "0:3", or a range such as "0:0-7"; only layers that the model has.
            scales: One number per hop; all 1 where there are none.
            max_tokens: The longest answer, in tokens, from 1 to 256.
            pictures: As for `answer`.

        Returns:
            A mapping as that of `answer`.
        """
        way, seen = edits.route(path, scales, holds=_own_path(show)), seeing.of_texts(pictures)
        job = partial(Job, hops=way.hops, scales=way.scales, pictures=seen)
        return _answered(show, prompt, max_tokens, lambda words, bound: job(EVOLVED, words, bound))

    def about() -> dict[str, Any]:
        """Say what the model is: its sources, path, scales, results, examples and the state of this Space.

        Returns:
            A mapping with `model`, `revision`, `state`, `path`, `scales`, `parents`, `results`, `examples` and `recipe`.
        """
        published, _ = show.need()
        state, words = show.status()
        return {
            "model": published.name,
            "revision": published.revision,
            "state": state,
            "status": words,
            "path": list(published.path),
            "scales": list(published.scales),
            "parents": choices(published.parents),
            "results": [row.to_json() for row in published.record.rows],
            "examples": [_example(example) for example in published.examples],
            "recipe": published.recipe_text,
        }

    return [(answer, True), (answer_with_path, True), (about, False)]


def friendly(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its errors as Gradio shows them: one line, without a trace."""
    from functools import wraps

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except EvoMergeError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return call


def _example(example: Example) -> dict[str, Any]:
    seen = [base64.b64encode(picture.data).decode() for picture in example.pictures]
    return {"prompt": example.prompt, "answer": example.answer, **({"pictures": seen} if seen else {})}


def _own_path(show: Showcase) -> tuple[str, ...]:
    published, _ = show.need()
    if not published.path:
        raise SpaceError("This model has no path to change: its weights are merged, its layers are in their usual order.")
    return published.path


def _answered(show: Showcase, prompt: object, max_tokens: object, job: Callable[[str, int], Job]) -> dict[str, Any]:
    _, host = show.need()
    words, note = show.question(prompt)
    asked = job(words, token_bound(max_tokens))
    piece: Piece = host.whole_answer(asked)
    return {
        "text": piece.text,
        "tokens": piece.tokens,
        "seconds": round(piece.seconds, 4),
        "right": show.verdict((words, asked.pictures), piece.text),
        "note": note,
    }
