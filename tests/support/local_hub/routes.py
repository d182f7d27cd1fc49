"""The table of endpoints, and the way from a request to its answer."""

import logging
import re
from urllib.parse import unquote

from . import commits, files, repos
from .wire import Refusal

logger = logging.getLogger(__name__)

# What the names in a path match, in the path as it is sent, still quoted.
NAMES = {
    "kind": "models|datasets|spaces",
    "repo_id": "[^/]+(?:/[^/]+)?",
    "revision": "[^/]+",
    "name": ".+",
    "path": ".+",
    "sha256": "[0-9a-f]{64}",
}
API = "/api/{kind}/{repo_id}"
ENDPOINTS = [
    ("GET", "/api/whoami-v2", repos.whoami),
    ("POST", "/api/validate-yaml", repos.validate_yaml),
    ("POST", "/api/repos/create", repos.create),
    ("DELETE", "/api/repos/delete", repos.delete),
    ("PUT", "/lfs/{sha256}", files.upload),
    ("GET HEAD", "/content/{kind}/{repo_id}/{sha256}", files.content),
    ("GET", API + "/revision/{revision}", repos.describe),
    ("GET", API + "/refs", repos.refs),
    ("POST DELETE", API + "/branch/{name}", repos.branch),
    ("POST DELETE", API + "/tag/{revision}", repos.tag),
    ("GET", API + "/tree/{revision}", files.tree),
    ("GET", API + "/tree/{revision}/{path}", files.tree),
    ("POST", API + "/paths-info/{revision}", files.paths_info),
    ("GET", API + "/commits/{revision}", commits.history),
    ("POST", API + "/preupload/{revision}", commits.preupload),
    ("POST", API + "/commit/{revision}", commits.commit),
    ("GET", API, repos.describe),
]
# Below the address of a repository, which for models has no `models/`.
PAGES = [
    ("POST", "/{repo_id}.git/info/lfs/objects/batch", files.batch),
    ("GET HEAD", "/{repo_id}/resolve/{revision}/{path}", files.resolve),
]


def _route(methods, path, endpoint, **fixed):
    pattern = re.sub(r"\{(\w+)\}", lambda name: f"(?P<{name[1]}>{NAMES[name[1]]})", path)
    return set(methods.split()), re.compile(pattern + "/?"), fixed, endpoint


KINDS = (("/datasets", "datasets"), ("/spaces", "spaces"), ("", "models"))
ROUTES = [_route(*endpoint) for endpoint in ENDPOINTS]
ROUTES += [
    _route(methods, prefix + path, page, kind=kind)
    for prefix, kind in KINDS
    for methods, path, page in PAGES
]


def answer(call):
    """Answer a request. One that cannot be read, and a fault of this program, is logged and
    answered with 500."""
    try:
        return _dispatch(call)
    except Refusal as refusal:
        return refusal.to_response()
    except ConnectionError:
        raise
    except Exception:
        logger.exception("%s %s", call.request.method, call.request.path)
        return Refusal(500, "the hub failed on this request; see its log").to_response()


def _dispatch(call):
    request = call.request
    for methods, pattern, fixed, endpoint in ROUTES:
        match = pattern.fullmatch(request.path)
        if match is not None and request.method in methods:
            names = {name: unquote(value) for name, value in match.groupdict().items()}
            return endpoint(call, **fixed, **names)
    if request.path.startswith("/api/"):
        what = f"{request.method} {request.path[:200]}"
        raise Refusal(501, f"the hub on loopback does not imitate {what}")
    raise Refusal(404, "Sorry, we can't find the page you are looking for.")
