"""A Hub on loopback that remembers requests and has bad days: which request goes wrong, how, and
how often, is ordered."""

import os
import re
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice

from local_hub import LocalHub
from local_hub.server import Handler
from local_hub.wire import CHUNK, Response


@dataclass(frozen=True)
class Seen:
    """A request as it was noted: method, path and query, and all headers but `Authorization`."""

    method: str
    target: str
    headers: dict[str, str]


@dataclass
class Fault:
    """What goes wrong with requests in whose `METHOD /path?query` a regular expression is found.

    The actions: `status` answers with `status`, `headers` and `body`; `reset` reads `after_bytes`
    of the request and cuts the connection with a TCP reset; `hang_up` ends it without an answer.
    After these three the request is not carried out, unless `carried_out` is set. `truncate` sends
    `after_bytes` of the answer's body and ends the connection, with a reset where `rst` is set;
    `corrupt` inverts the byte at `at` of the body; `delay` waits for `seconds`. `skip` requests
    pass first, then `times` are hit; None for all.
    """

    match: str
    action: str
    _: KW_ONLY
    times: int | None = 1
    skip: int = 0
    carried_out: bool = False
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: str = "an injected fault"
    after_bytes: int = 0
    rst: bool = False
    at: int = 0
    seconds: float = 0.0
    hits: int = 0


class Faults:
    """The faults of one hub. Safe to use while it serves."""

    def __init__(self):
        self._faults = []
        self._lock = threading.Lock()

    def add(self, fault):
        """Order a fault, and return it. Where several match a request, the one that was added first
        has it."""
        re.compile(fault.match)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self):
        with self._lock:
            self._faults.clear()

    def take(self, line):
        """The fault that this request has, counted."""
        with self._lock:
            for fault in self._faults:
                if fault.times == 0 or not re.search(fault.match, line):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times = None if fault.times is None else fault.times - 1
                fault.hits += 1
                return fault
        return None


class _CutOffError(OSError):
    """The connection is over, as it was ordered."""


class _Handler(Handler):
    """A connection on which requests are noted and go wrong."""

    fault = None

    def finish(self):
        with suppress(ValueError):
            super().finish()

    def answer(self, request):
        headers = {
            name: value for name, value in self.headers.items() if name.lower() != "authorization"
        }
        hub = self.server.hub
        hub.requests.append(Seen(request.method, request.target, headers))
        fault = self.fault = hub.faults.take(f"{request.method} {request.target}")
        if fault is None or fault.action in ("truncate", "corrupt"):
            return super().answer(request)
        if fault.carried_out:
            super().answer(request)
        if fault.action == "status":
            return Response(fault.status, {"error": fault.body}, dict(fault.headers))
        if fault.action == "delay":
            time.sleep(fault.seconds)
            return super().answer(request)
        limit = None if fault.action == "hang_up" else -(-fault.after_bytes // CHUNK)
        for _ in islice(request.pieces(), limit):
            pass
        raise self._reset() if fault.action == "reset" else _CutOffError

    def send_body(self, payload):
        fault = self.fault
        self.fault = None
        if fault is None or fault.action not in ("truncate", "corrupt"):
            super().send_body(payload)
            return
        data = payload if isinstance(payload, bytes) else payload.read()
        if fault.action == "corrupt":
            super().send_body(
                data[: fault.at] + bytes([data[fault.at] ^ 0xFF]) + data[fault.at + 1 :]
            )
            return
        self.wfile.write(data[: fault.after_bytes])
        self.wfile.flush()
        time.sleep(0.05)  # so that the client has what was sent before the end reaches it
        if fault.rst:
            raise self._reset()
        self.connection.shutdown(socket.SHUT_WR)
        raise _CutOffError

    def _reset(self):
        """End the connection with a TCP reset: the error that a client sees where a machine on the
        way gives up."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
        return _CutOffError()


class FaultyHub(LocalHub):
    """A Hub on loopback whose requests, without their tokens, can be looked at and made to fail."""

    handler = _Handler

    def __init__(self, root, **options):
        super().__init__(root, **options)
        self.faults = Faults()
        self.requests = []
