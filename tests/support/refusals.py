"""Errors of the user, which are one line each (`tests/test_errors.py`)."""

import pytest


def refused(kind, message):
    """Expects an error of a kind in which the message, a regular expression, is found."""
    return pytest.raises(kind, match=message)
