"""Pushes of one small merge to a Hub on loopback, each with one call that goes wrong; for the tests
and the benchmark."""

import re
from contextlib import suppress
from dataclasses import dataclass

from hub_fixtures import commit_titles, upload_models
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
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


@dataclass(frozen=True)
class Outcome:
    """How a push ended: its line if it failed, what is wrong with that end if anything is, and how
    many calls went wrong."""

    error: str | None
    complaint: str | None
    hits: int


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
            assert self.push([]).complaint is None
            self._calls = [_pattern(seen.method, seen.target) for seen in self._seen]
        return self._calls

    def push(self, faults):
        """Push under a new name, ``NAME`` in the faults' patterns, and look at what is there
        afterwards."""
        self._count += 1
        name = f"m{self._count}"
        # the Hub asks only for what it lacks
        (self.model / "vocab.bin").write_bytes(b"\0" + name.encode())
        for fault in faults:
            fault.match = fault.match.replace("NAME", name)
            self.hub.faults.add(fault)
        error = None
        before = len(self.hub.requests)
        options = PushOptions(published=self.published, **OPTIONS)
        try:
            push_model(self.model, f"local/{name}", options, api=self.api)
        except HubError as cause:
            error = str(cause)
        self._seen = self.hub.requests[before:]
        self.hub.faults.clear()
        hits = sum(fault.hits for fault in faults)
        return Outcome(error, next(self._complaints(f"local/{name}", error), None), hits)

    def _complaints(self, repo_id, error):
        """What is not as it should be."""
        if error is not None and ("\n" in error or len(error) > 2000 or self.hub.token in error):
            yield f"not one clean line: {error[:200]!r}"
        titles = []
        with suppress(RepositoryNotFoundError, RevisionNotFoundError):
            titles = commit_titles(self.api, repo_id, revision="try")
        ours = sum("hf_evomerge" in title for title in titles)
        if ours > 1:
            yield f"the same commit twice: {titles}"
        if error is not None:
            said = "published, " in error or "holds the model" in error
            if ours != said and "not known" not in error:
                yield f"{ours} commits of ours are there, but it says: {error}"
            return
        if ours != 1 or not self.api.file_exists(repo_id, "model.safetensors", revision="try"):
            yield "success, but the weights are not there"
        if not self.api.file_exists(repo_id, "app.py", repo_type="space"):
            yield "success, but the Space is not there"


def _pattern(method, target):
    """A request as a regular expression that finds the same request of another push."""
    path = re.sub(r"/local/m\d+", "/local/NAME", target.partition("?")[0])
    path = re.sub(r"[0-9a-f]{40,64}", "SHA", path)
    return f"^{method} " + re.escape(path).replace("SHA", "[0-9a-f]+") + r"(\?|$)"
