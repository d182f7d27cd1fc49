"""The table of endpoints, and the way from a request to its answer."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from . import commits, files, pages, people, pulls, repos, spaces, uploads
from .call import Call, Hub
from .limits import limit_of, refuse
from .wire import Refusal, Request, Response

logger = logging.getLogger(__name__)
Endpoint = Callable[..., Response]
Route = tuple[set[str], re.Pattern[str], dict[str, Any], Endpoint]

# What the names in a path match, in the path as it is sent, still quoted.
NAMES = {
    "kind": "models|datasets|spaces",
    "repo_id": "[^/]+(?:/[^/]+)?",
    "revision": r"refs/pr/\d+|[^/]+",
    "name": ".+",
    "path": ".+",
    "number": r"\d+",
    "comment": "[0-9a-f]+",
    "what": "edit|hide",
    "oid": "[0-9a-f]{64}",
    "sha256": "[0-9a-f]{64}",
    "status": "accepted|rejected|pending",
    "write": "write",
}
API = "/api/{kind}/{repo_id}"
SPACE = "/api/spaces/{repo_id}"
PATTERNS: list[tuple[str, str, Endpoint]] = [
    ("GET", "/api/whoami-v2", repos.whoami),
    ("POST", "/api/validate-yaml", repos.validate_yaml),
    ("POST", "/api/repos/create", repos.create),
    ("DELETE", "/api/repos/delete", repos.delete),
    ("GET", "/api/agent-harnesses", lambda call: Response(200, {"standardEnvVars": [], "harnesses": {}})),
    ("GET", "/", pages.home),
    ("GET HEAD", "/content/{kind}/{repo_id}/{sha256}", files.content),
    ("PUT", "/lfs/{oid}", uploads.put),
    ("PUT", "/lfs/{oid}/{number}", uploads.put_part),
    ("POST", "/lfs/{oid}/complete", uploads.complete),
    ("POST", "/lfs/{oid}/verify", uploads.verify),
    ("GET HEAD", "/api/resolve-cache/{kind}/{repo_id}/{revision}/{path}", files.cached),
    ("GET", "/api/{kind}-tags-by-type", repos.tags_by_type),
    ("GET", "/api/users/{name}/overview", people.user_overview),
    ("GET", "/api/users/{name}/(?:followers|following|likes)", people.nobody),
    ("GET", "/api/organizations/{name}/overview", people.org_overview),
    ("GET", "/api/organizations/{name}/members", people.members),
    ("GET", "/api/organizations/{name}/followers", people.nobody),
    ("GET", "/api/organizations/{name}/settings/repositories", people.repositories),
    ("GET", "/api/settings/repositories", people.repositories),
    ("GET", "/api/{kind}", repos.listing),
    ("GET", API + "/revision/{revision}", repos.describe),
    ("GET", API + "/tree/{revision}", files.tree),
    ("GET", API + "/tree/{revision}/{path}", files.tree),
    ("POST", API + "/paths-info/{revision}", files.paths_info),
    ("POST", API + "/preupload/{revision}", commits.preupload),
    ("POST", API + "/commit/{revision}", commits.commit),
    ("GET", API + "/commits/{revision}", commits.history),
    ("GET", API + "/refs", commits.refs),
    ("POST", API + "/super-squash/{revision}", commits.squash),
    ("GET", API + "/lfs-files", files.lfs_files),
    ("POST DELETE", API + "/branch/{name}", commits.branch),
    ("POST DELETE", API + "/tag/{revision}", commits.tag),
    ("PUT", API + "/settings", repos.settings),
    ("GET", API + "/auth-check", repos.auth_check),
    ("GET", API + "/auth-check/{write}", repos.auth_check),
    ("GET", API + "/xet-write-token/{revision}", uploads.xet_write),
    ("GET", API + "/xet-read-token/{revision}", uploads.xet_read),
    ("POST", API + "/user-access-request/grant", repos.grant_access),
    ("POST", API + "/user-access-request/handle", repos.handle_access),
    ("GET", API + "/user-access-request/{status}", repos.access_requests),
    ("GET POST", API + "/discussions", pulls.discussions),
    ("GET", API + "/discussions/{number}", pulls.discussion),
    ("POST", API + "/discussions/{number}/comment", pulls.comment),
    ("POST", API + "/discussions/{number}/comment/{comment}/{what}", pulls.change_comment),
    ("POST", API + "/discussions/{number}/title", pulls.rename),
    ("POST", API + "/discussions/{number}/status", pulls.set_status),
    ("POST", API + "/discussions/{number}/merge", pulls.merge),
    ("GET", SPACE + "/runtime", spaces.show_runtime),
    ("GET POST DELETE", SPACE + "/secrets", spaces.secrets),
    ("GET POST DELETE", SPACE + "/variables", spaces.variables),
    ("POST", SPACE + "/hardware", spaces.hardware),
    ("POST", SPACE + "/sleeptime", spaces.sleep_time),
    ("POST", SPACE + "/restart", spaces.restart),
    ("POST", SPACE + "/pause", spaces.pause),
    ("GET", API, repos.describe),
]
# Below the address of a repository's page, which for models has no `models/`.
PAGES: list[tuple[str, str, Endpoint]] = [
    ("POST", "/{repo_id}.git/info/lfs/objects/batch", uploads.batch),
    ("GET HEAD", "/{repo_id}/(?:resolve|raw)/{revision}/{path}", files.resolve),
    ("POST", "/{repo_id}/ask-access", repos.ask_access),
    ("GET", "/{repo_id}/(?:tree|commit)/{revision}", pages.repository),
    ("GET", "/{repo_id}/discussions/{number}", pages.discussion),
    ("GET", "/{repo_id}", pages.repository),
]


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", lambda name: f"(?P<{name[1]}>{NAMES[name[1]]})", pattern) + "/?")


def _routes() -> list[Route]:
    routes: list[Route] = [(set(methods.split()), _compile(path), {}, endpoint) for methods, path, endpoint in PATTERNS]
    for prefix, kind in (("/datasets", "datasets"), ("/spaces", "spaces"), ("", "models")):
        routes += [
            (set(methods.split()), _compile(prefix + path), {"kind": kind}, endpoint) for methods, path, endpoint in PAGES
        ]
    return routes


ROUTES = _routes()


def answer(hub: Hub, request: Request) -> Response:
    """The answer to a request. A fault of this program is logged and answered with 500."""
    try:
        return _dispatch(Call(hub, request))
    except Refusal as refusal:
        return refusal.to_response()
    except ConnectionError:
        raise
    except Exception:
        logger.exception("%s %s", request.method, request.path)
        return Refusal(500, "the hub failed on this request; see its log").to_response()


def _dispatch(call: Call) -> Response:
    if limit_of(call.request) is not None:
        raise refuse(call.request)
    allowed: set[str] = set()
    for methods, pattern, fixed, endpoint in ROUTES:
        found = pattern.fullmatch(call.request.path)
        if found is None:
            continue
        if call.request.method in methods:
            return endpoint(call, **fixed, **{name: unquote(value) for name, value in found.groupdict().items()})
        allowed |= methods
    if allowed:
        raise Refusal(405, "Method Not Allowed", headers={"Allow": ", ".join(sorted(allowed))})
    raise refuse(call.request)
