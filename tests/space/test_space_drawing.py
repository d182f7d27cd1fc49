"""The Space of a diffusion pipeline: a picture for a class and a seed, and a line for what cannot be drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from pipelines import save_dit


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of the page of a tiny DiT."""
    import app

    folder = tmp_path_factory.mktemp("drawing") / "dit"
    save_dit(folder, 0)
    blocks, _ = app.serve(str(folder), prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        yield Client(blocks.local_url, verbose=False)
    finally:
        blocks.close()


def test_the_same_seed_gives_the_same_picture(client: Any) -> None:
    """And another seed another one."""
    first, again, other = (Path(client.predict("3", seed, 2, api_name="/draw")).read_bytes() for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("asked", "said"),
    [(("a cat", 0, 2), "the number of one"), (("3", -1, 2), "Seeds go from 0"), (("3", 0, 1000), "steps from 1 to 100")],
)
def test_what_cannot_be_drawn_is_said(asked: tuple[Any, ...], said: str, client: Any) -> None:
    """Each in one line."""
    with pytest.raises((AppError, ValueError), match=said):
        client.predict(*asked, api_name="/draw")
