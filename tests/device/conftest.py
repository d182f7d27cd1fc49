"""A device that is not the processor, its second one, for whatever may forget where tensors lie."""

import pytest
from other_device import standing_in


@pytest.fixture(autouse=True)
def device():
    """The name of the device, which is there while a test runs."""
    with standing_in():
        yield "standin:1"


@pytest.fixture
def search_there(search_config):
    """Makes a small search on a device, whose attention has the processor's bits."""

    def make(device, **settings):
        return search_config(compute={"device": device, "attn_implementation": "eager"}, **settings)

    return make
