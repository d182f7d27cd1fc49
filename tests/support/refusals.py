"""Errors of the user, which are one line each (`tests/test_errors.py`)."""

import pytest


def refused(kind, message):
    """Expects an error of a kind in which the message, a regular expression, is found."""
    return pytest.raises(kind, match=message)


def told(table):
    """Cases of a table that has, below each text, what is said of it."""
    lines = [line.strip() for line in table.strip().splitlines()]
    return list(zip(lines[::2], lines[1::2], strict=True))
