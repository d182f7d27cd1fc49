"""What this hub does not imitate: the words for people, and the addresses that are answered with 501 and these words."""

from __future__ import annotations

import re

from .wire import Refusal, Request

_REPO = r"\w+/[^/]+/[^/]+"
# What is not imitated, with the addresses below /api that belong to it.
_LIMITS: dict[str, str | None] = {
    "git clone and git push": None,
    "LFS locks": None,
    "scans for malware and secrets": None,
    "quotas and rate limits": "spaces/zero-gpu/quota",
    "running a Space, its logs, volumes and dev mode": rf"{_REPO}/(logs|volumes|dev-mode).*|spaces/(hardware|templates)",
    "inference": rf"{_REPO}/inference.*|(inference-)?providers.*",
    "semantic search, search ranking, likes and downloads": rf"spaces/semantic-search|{_REPO}/(like|likers)|trending",
    "webhooks": "settings/webhooks.*",
    "jobs": "(scheduled-)?jobs.*",
    "buckets": "buckets.*",
    "kernels": "kernels.*",
    "collections": "collections.*",
    "papers": "papers.*|daily_papers",
    "leaderboards": rf"{_REPO}/leaderboard",
    "renaming and duplicating repositories": rf"repos/move|{_REPO}/duplicate",
    "deleting the contents of LFS files": rf"{_REPO}/lfs-files/.+",
    "the headers of all shards in one answer": rf"{_REPO}/safetensors-metadata/.+",
}
NOT_IMITATED = tuple(_LIMITS)


def limit_of(request: Request) -> str | None:
    """What a request asks for, where that is known and not imitated."""
    below = request.path.removeprefix("/api/").rstrip("/")
    if below == request.path:
        return None
    return next((name for name, pattern in _LIMITS.items() if pattern and re.fullmatch(pattern, below)), None)


def refuse(request: Request) -> Refusal:
    """The answer to a request that no endpoint takes: 501 below /api, with what is missing; 404 elsewhere."""
    if not request.path.startswith("/api/"):
        return Refusal(404, "Sorry, we can't find the page you are looking for.")
    what = limit_of(request)
    named = f" ({what})" if what else ""
    return Refusal(
        501, f"the hub on loopback does not imitate {request.method} {request.path[:200]}{named}; see docs/local-hub.md"
    )
