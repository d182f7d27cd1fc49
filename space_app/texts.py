"""Words and small pieces of HTML: what the visitor reads. What comes from a model or a repository
is escaped here."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hf_evomerge.errors import EvoMergeError
from hf_evomerge.pictures.scene import counted, number

MAX_PROMPT = 8_000
# control characters but tab and newline, lone surrogates, and marks that turn the direction of the
# text round
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


class SpaceError(EvoMergeError):
    """Error that the visitor or the owner should know; its text is shown as it is, so it is one
    friendly line."""


@dataclass(frozen=True)
class Card:
    """Answer of one model, as it is shown.

    Attributes:
        name, role: The model's name, and what it is, such as ``evolved`` or ``parent``.
        state: ``waiting``, ``loading``, ``writing``, ``done``, ``stopped`` or ``error``; ``known``
            is an answer from before, ``unasked`` none.
        text: The answer so far, or what went wrong.
        tokens, seconds: Tokens that were generated, and the time from the first to the last.
        right: Whether the answer is right; None where that is not known.
        note: A line below the answer.
        wanted: The right answer where this one is wrong.
        solved: How many problems it solved when it was tested, of how many, and which these were.
    """

    name: str
    role: str = ""
    state: str = "waiting"
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    right: bool | None = None
    note: str = ""
    wanted: str = ""
    solved: tuple[int, int, str] | None = None

    def stopped(self) -> Card:
        """The card as the visitor's stop leaves it."""
        return (
            replace(self, state="stopped")
            if self.state in ("waiting", "loading", "writing")
            else self
        )


_STATES = {
    "waiting": "waiting",
    "loading": "loading the weights …",
    "writing": "writing …",
    "stopped": "stopped",
    "error": "no answer",
    "unasked": "not asked",
}
_EMPTY = '<span class="ev-faint">(an empty answer)</span>'


def escape(text: object) -> str:
    """Text as it may stand in HTML, in an attribute or between tags."""
    return html.escape(str(text), quote=True)


def clean_prompt(prompt: object) -> str:
    """A visitor's prompt without control characters.

    Raises:
        SpaceError: It is no text, or there is nothing in it, or it is too long.
    """
    if not isinstance(prompt, str):
        raise SpaceError(f"The prompt must be text, not {type(prompt).__name__}.")
    if len(prompt) > MAX_PROMPT:
        raise SpaceError(
            f"The prompt has {len(prompt):,} characters; please keep it below {MAX_PROMPT:,}."
        )
    text = prompt.replace("\r\n", "\n").replace("\r", "\n")
    kept = _CONTROLS.sub("", text).strip()
    if not kept:
        raise SpaceError("The prompt is empty. Write something first.")
    return kept


def message(text: str, kind: str = "info") -> str:
    """A line in a box; an empty one where there is no text."""
    role = 'alert"' if kind == "error" else 'status"' + ' aria-busy="true"' * (kind == "busy")
    return (
        f'<div class="ev-message ev-{escape(kind)}" role="{role}>{escape(text)}</div>'
        if text
        else ""
    )


def cards(answers: Iterable[Card]) -> str:
    """The answers side by side."""
    shown = [_card(answer) for answer in answers]
    return f'<div class="ev-cards" data-count="{len(shown)}">{"".join(shown)}</div>'


def _card(card: Card) -> str:
    verdict = ""
    if card.right is not None:
        kind, mark, word = ("right", "✓", "right") if card.right else ("wrong", "✗", "wrong")
        verdict = (
            f'<span class="ev-verdict ev-{kind}"><span aria-hidden="true">{mark}</span> '
            f"{word}</span>"
        )
    more = [f"right would be “{card.wanted}”"] if card.wanted else []
    if card.tokens:
        rate = f", {number(card.tokens / card.seconds)} a second" if card.seconds > 0 else ""
        more.append(f"{counted(card.tokens, 'token')} in {card.seconds:.2f} s{rate}")
    if card.state == "known":
        more.append("answered in advance")
    busy = ' aria-busy="true"' if card.state in ("waiting", "loading", "writing") else ""
    text = escape(card.text) or (_EMPTY if card.state in ("done", "known") else "&nbsp;")
    state = _STATES.get(card.state, "")
    foot = "".join(f"<span>{escape(part)}</span>" for part in (state, card.note) if part)
    return (
        f'<section class="ev-card ev-{escape(card.state)}"{busy} '
        f'aria-label="Answer of {escape(card.name)}">'
        f"<header><b>{escape(card.name)}</b>"
        f'<span class="ev-role">{escape(card.role)}</span>{verdict}</header>'
        f'<div class="ev-answer">{text}{info("; ".join(more))}</div>'
        f"<footer>{foot}</footer>{_solved(card.solved)}</section>"
    )


def _solved(solved: tuple[int, int, str] | None) -> str:
    """A bar with how many problems a model solves; empty where that is not known."""
    if solved is None:
        return ""
    count, total, problems = solved
    return (
        f'<div class="ev-solved">{bar(count / max(total, 1))}<b>{count:,}</b> of {total:,} '
        f"{escape(problems)}</div>"
    )


def bar(share: float) -> str:
    """A share of 1 as a bar."""
    return f'<div class="ev-bar" aria-hidden="true"><i style="width:{100 * share:.1f}%"></i></div>'


def info(words: str) -> str:
    """A small sign that says more on hover, tap or focus; empty where there is no more."""
    sign = (
        f'<span class="ev-more" role="img" tabindex="0" aria-label="{escape(words)}" '
        f'data-tip="{escape(words)}"></span>'
    )
    return sign if words else ""


def table(
    heads: Iterable[str], rows: Iterable[Iterable[object]], *, caption: str, mark: int | None = None
) -> str:
    """A plain table, in which each row has a name; the row with the number `mark` stands out."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = ""
    for index, (first, *cells) in enumerate(rows):
        body += f"<tr{' class=ev-mark' if index == mark else ''}>"
        body += f'<th scope="row">{escape(first)}</th>'
        body += "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    return (
        '<div class="ev-scroll" tabindex="0" role="region" '
        f'aria-label="{escape(caption)}"><table class="ev-table">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, content: str) -> str:
    """Content that opens on demand; both are HTML already, or escaped by the caller."""
    return f'<details class="ev-details"><summary>{escape(summary)}</summary>{content}</details>'
