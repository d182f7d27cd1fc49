"""A page for people who open the link of a repository: its files and its card as text, and nothing else."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from .access import check_gate
from .call import Call
from .wire import Response

LONGEST_CARD = 200_000  # bytes that are shown
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
}
STYLE = "body{font:16px/1.5 system-ui;max-width:56rem;margin:2rem auto}pre{white-space:pre-wrap}td{padding-right:2rem}"


def home(call: Call) -> Response:
    """The repositories that the caller can see, with links."""
    user, items = call.user(), []
    for kind in ("models", "datasets", "spaces"):
        for found in call.store.all(kind):
            if not found.state.private or (user and user.can_write(found.owner)):
                address = escape(call.web_url(kind, quote(found.id)))
                items.append(f'<li>{kind[:-1]} <a href="{address}">{escape(found.id)}</a></li>')
    return _page("A Hub on loopback", f"<ul>{''.join(items) or '<li>nothing here yet</li>'}</ul>")


def repository(call: Call, kind: str, repo_id: str, revision: str = "main") -> Response:
    """The files of a repository at a revision, and its card."""
    found = call.repository(kind, repo_id)
    commit = found.at(revision)
    rows = []
    for path, entry in commit.tree.items():
        address = escape(call.web_url(kind, repo_id, f"/resolve/{commit.id}/{quote(path)}"))
        rows.append(f'<tr><td><a href="{address}">{escape(path)}</a></td><td>{entry.size:,} bytes</td></tr>')
    state = ", ".join(word for word, true in (("private", found.state.private), ("gated", found.state.gated)) if true)
    about = f"<p>{escape(kind[:-1])}{', ' + state if state else ''}, commit {commit.id[:12]}: {escape(commit.title)}</p>"
    readme = commit.tree.get("README.md")
    card = ""
    if readme and not readme.lfs:
        card = call.store.read(readme)[:LONGEST_CARD].decode("utf-8", "replace")
    return _page(repo_id, f"{about}<table>{''.join(rows)}</table><h2>README.md</h2><pre>{escape(card)}</pre>")


def discussion(call: Call, kind: str, repo_id: str, number: str) -> Response:
    """A pull request: its title and what happened in it, as text."""
    found = call.repository(kind, repo_id)
    check_gate(found, call.user())
    count = len(found.state.discussions)
    if not number.isdecimal() or not 0 < int(number) <= count:
        return _page(repo_id, f"<p>no discussion {escape(number)} among {count}</p>", status=404)
    one = found.state.discussions[int(number) - 1]
    lines = [f"{event['createdAt']} {event['author']['name']}: {event['type']}" for event in one["events"]]
    text = "\n".join([f"#{number} {one['title']} ({one['status']})", *lines])
    return _page(repo_id, f"<pre>{escape(text)}</pre>")


def _page(title: str, body: str, *, status: int = 200) -> Response:
    head = f'<!doctype html><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>'
    return Response(status, (head + body).encode("utf-8", "replace"), dict(HEADERS))
