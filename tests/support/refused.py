"""What the package refuses: an error of one line."""

from contextlib import contextmanager

import pytest

from hf_evomerge.errors import SourceError


@contextmanager
def refused(message, kind=SourceError):
    """A block that ends in an error of one line, in which this pattern is found."""
    with pytest.raises(kind, match=message) as caught:
        yield
    assert "\n" not in str(caught.value)
