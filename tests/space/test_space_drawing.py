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
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """A client of the page of a tiny DiT, and what draws."""
    import app

    folder = tmp_path_factory.mktemp("drawing") / "dit"
    save_dit(folder, 0)
    blocks, painter = app.serve(str(folder), prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        yield Client(blocks.local_url, verbose=False), painter
    finally:
        blocks.close()


def test_the_same_seed_gives_the_same_picture(served: tuple[Any, Any]) -> None:
    """And another seed another one."""
    first, again, other = (Path(served[0].predict("3", seed, 2, api_name="/draw")).read_bytes() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_what_cannot_be_drawn_is_said(served: tuple[Any, Any]) -> None:
    """Each in one line."""
    from texts import SpaceError

    with pytest.raises(AppError, match="the number of one"):
        served[0].predict("a cat", 0, 2, api_name="/draw")
    for asked, said in ((("3", -1, 2), "Seeds go from 0"), (("3", 0, 1000), "steps from 1 to 100"), (("", 0, 1), "number")):
        with pytest.raises(SpaceError, match=said):
            served[1].draw(*asked)
