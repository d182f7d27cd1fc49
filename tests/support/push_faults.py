"""Pushes of one small merge to a Hub on loopback, each with one call that goes wrong; for the tests
and the benchmark."""

import re

from hub_fixtures import commit_titles, upload_models
from recipes import merge_of

from hf_evomerge import PushOptions, build_model, push_model
from hf_evomerge.errors import HubError

FAULTS = {
    "reset": {"action": "reset"},
    "500": {"action": "status", "status": 500},
    "503 with Retry-After": {"action": "status", "status": 503, "headers": {"Retry-After": "3"}},
    "hang up": {"action": "hang_up"},
    "cut off": {"action": "truncate", "after_bytes": 1},
    "garbled": {"action": "corrupt", "at": 0},
    "504 though done": {"action": "status", "status": 504, "carried_out": True},
    "reset though done": {"action": "reset", "after_bytes": 1 << 30, "carried_out": True},
}
OPTIONS = {"revision": "try", "space": True, "private": True}


class Bench:
    """A merge of some checkpoints of a family, which are on a running hub, to be pushed under ever
    new names."""

    def __init__(self, hub, api, family, scratch, *, parents=("a", "b")):
        self.hub = hub
        self.api = api
        self._count = 0
        self._seen = []
        self._calls = []
        folders = [family / name for name in parents]
        self.model = build_model(merge_of(*folders), scratch / "model")
        self.published = upload_models(api, *folders)

    def calls(self):
        """The calls of a push in which nothing goes wrong, in their order, as patterns of
        `Fault`."""
        if not self._calls:
            assert self.push() is None
            self._calls = [_pattern(seen.method, seen.target) for seen in self._seen]
        return self._calls

    def push(self, fault=None):
        """Push under a new name, ``NAME`` in the fault's pattern, and again where that fails; gives
        what is not as it should be then."""
        self._count += 1
        name = f"m{self._count}"
        # the Hub asks only for what it lacks
        (self.model / "vocab.bin").write_bytes(b"\0" + name.encode())
        if fault is not None:
            fault.match = fault.match.replace("NAME", name)
            self.hub.faults.add(fault)
        before = len(self.hub.requests)
        error = self._push(name)
        self._seen = self.hub.requests[before:]
        self.hub.faults.clear()
        if error is not None:
            if "\n" in error or len(error) > 2000 or self.hub.token in error:
                return f"not one clean line: {error[:200]!r}"
            if (again := self._push(name)) is not None:
                return f"pushed again: {again}"
        return self._complaint(f"local/{name}")

    def _push(self, name):
        """Push, and give the line where it fails."""
        options = PushOptions(published=self.published, **OPTIONS)
        try:
            push_model(self.model, f"local/{name}", options, api=self.api)
        except HubError as cause:
            return str(cause)
        return None

    def _complaint(self, repo_id):
        """What is not as it should be; None where all is."""
        titles = commit_titles(self.api, repo_id, revision="try")
        ours = sum("hf_evomerge" in title for title in titles)
        if ours != 1:
            return f"not one commit: {titles}"
        if not self.api.file_exists(repo_id, "model.safetensors", revision="try"):
            return "success, but the weights are not there"
        if not self.api.file_exists(repo_id, "app.py", repo_type="space"):
            return "success, but the Space is not there"
        return None


def _pattern(method, target):
    """A request as a regular expression that finds the same request of another push."""
    path = re.sub(r"/local/m\d+", "/local/NAME", target.partition("?")[0])
    path = re.sub(r"[0-9a-f]{40,64}", "SHA", path)
    return f"^{method} " + re.escape(path).replace("SHA", "[0-9a-f]+") + r"(\?|$)"
