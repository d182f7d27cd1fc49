"""Tables of cases of which only some run in every `make test`; the others are behind the marker
`slow`."""

import pytest


def slow_beyond(often, cases):
    """Mark every case as slow that is not among these, nor its first value."""
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [
        pytest.param(*row, marks=[] if row in often or row[0] in often else pytest.mark.slow)
        for row in rows
    ]
