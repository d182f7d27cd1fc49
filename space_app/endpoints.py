"""The named API: what `gradio_client` can call, and what an MCP client sees as tools. One pass at a
time, as on the page."""

import base64
from collections.abc import Callable
from functools import wraps
from typing import Any

import edits
import gradio as gr
import seeing
from models import AnswerJob, choices
from showcase import Showcase, chosen, token_bound

from hf_evomerge.errors import EvoMergeError
from hf_evomerge.fitness import Example
from hf_evomerge.record import EVOLVED


def endpoints(show: Showcase) -> list[tuple[Callable[..., Any], bool]]:
    """The functions of the API, each with whether it runs the model."""

    def answer(
        prompt: str,
        model: str = EVOLVED,
        max_tokens: int = 64,
        pictures: list[str] | None = None,
        path: list[str] | None = None,
        scales: list[float] | None = None,
    ) -> dict[str, Any]:
        """Let one model answer a prompt, greedily; the evolved one also along another path. Nothing
        is copied or kept.

        Args:
            prompt: The prompt, at most 8,000 characters.
            model: "evolved", or the name of a parent as `about` lists it.
            max_tokens: The longest answer, in tokens, from 1 to 256.
            pictures: What the files of pictures hold, in base64, for a model that sees.
            path: One text per hop, such as "0:3", or a range such as "0:0-7"; only layers that the
                model has.
            scales: One number per hop of `path`; all 1 where there are none.

        Returns:
            A mapping with `text`, `tokens`, `seconds`, and `right` (null where the prompt is none
            of the examples).
        """
        published, host = show.need()
        chosen([model], [EVOLVED, *choices(published.parents)])
        way = edits.route(path, scales, holds=published.path) if path is not None else edits.Route()
        words = show.question(prompt)
        job = AnswerJob(
            model,
            words,
            token_bound(max_tokens),
            way.hops,
            way.scales,
            pictures=seeing.of_texts(pictures),
        )
        piece = host.whole_answer(job)
        right = show.verdict((words, job.pictures), piece.text)
        seconds = round(piece.seconds, 4)
        return {"text": piece.text, "tokens": piece.tokens, "seconds": seconds, "right": right}

    def about() -> dict[str, Any]:
        """Say what the model is: its sources, path, scales, results, examples and the state of this
        Space.

        Returns:
            A mapping with `model`, `revision`, `state`, `path`, `scales`, `parents`, `results`,
            `examples` and `recipe`.
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

    return [(answer, True), (about, False)]


def friendly(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its errors as Gradio shows them: one line, without a trace."""

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except EvoMergeError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return call


def _example(example: Example) -> dict[str, Any]:
    seen = [base64.b64encode(picture.data).decode() for picture in example.pictures]
    return {
        "prompt": example.prompt,
        "answer": example.answer,
        **({"pictures": seen} if seen else {}),
    }
