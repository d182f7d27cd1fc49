"""A device that is not the processor, its second one, for whatever may forget where tensors lie."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from other_device import standing_in

from hf_evomerge.search.file.config import SearchConfig


@pytest.fixture(autouse=True)
def device() -> Iterator[str]:
    """The name of the device, which is there while a test runs."""
    with standing_in():
        yield "standin:1"


@pytest.fixture
def search_there(search_config: Callable[..., SearchConfig]) -> Callable[..., SearchConfig]:
    """Makes a small search on a device, whose attention has the processor's bits."""

    def make(device: Any, **settings: Any) -> SearchConfig:
        return search_config(compute={"device": device, "attn_implementation": "eager"}, **settings)

    return make
