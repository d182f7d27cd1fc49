"""Errors of others in our messages: one line, short, and without secrets."""

import pytest

from hf_evomerge.errors import MAX_MESSAGE, HubError, one_line

TOKEN = "hf_" + "aBcDeFgHiJ" * 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "for url 'https://cdn.x/a?X-Amz-Signature=abc&e=1' (id)",
            "for url 'https://cdn.x/a' (id)",
        ),
        ("PUT /lfs/12?expires=1&signature=ab-c failed", "PUT /lfs/12 failed"),
        ("https://me:secret@x.org/a is down", "https://x.org/a is down"),
        (f"token {TOKEN}, not known", "token hf_..., not known"),
        ("{'authorization': 'Bearer abc'}", "{'authorization': 'Bearer ..."),
        ("is hf_evomerge there? yes", "is hf_evomerge there? yes"),
        ("a\n\tb\x1b[2J", "a b?[2J"),
        ("", "ValueError"),
    ],
)
def test_secrets_and_control_characters_are_left_out(text, shown):
    """What signs an address, passwords and tokens never reach a message; names of packages do."""
    assert one_line(ValueError(text)) == shown


def test_megabytes_are_cut():
    """A page of a proxy in place of an answer does not fill the terminal, nor does a token hide at
    its end."""
    assert len(one_line(ValueError("x" * 2_000_000))) <= 300
    assert "aBcD" not in one_line(ValueError("x" * 2_000 + " " + TOKEN))
    assert len(str(HubError("x" * 2_000_000))) <= MAX_MESSAGE
