"""A Hub on loopback that remembers requests and has bad days: which request goes wrong, how, and
how often, is ordered."""

import os
import re
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from local_hub import LocalHub
from local_hub.server import Handler, Server
from local_hub.wire import CHUNK, Response

Action = Literal["status", "reset", "hang_up", "truncate", "corrupt", "delay"]


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
    `corrupt` inverts the byte at `at` of the body, by default the middle one; `delay` waits for
    `seconds`. `skip` requests pass first, then `times` are hit; None for all.
    """

    match: str
    action: Action
    times: int | None = field(default=1, kw_only=True)
    skip: int = field(default=0, kw_only=True)
    carried_out: bool = field(default=False, kw_only=True)
    status: int = field(default=500, kw_only=True)
    headers: dict[str, str] = field(default_factory=dict, kw_only=True)
    body: str = field(default="an injected fault", kw_only=True)
    after_bytes: int = field(default=0, kw_only=True)
    rst: bool = field(default=False, kw_only=True)
    at: int | None = field(default=None, kw_only=True)
    seconds: float = field(default=0.0, kw_only=True)
    hits: int = field(default=0, init=False)

    def damage(self, body):
        at = len(body) // 2 if self.at is None else min(self.at, len(body) - 1)
        return body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]


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

    server: "_Server"
    fault: Fault | None = None

    def finish(self):
        with suppress(ValueError):
            super().finish()

    def answer(self, request):
        headers = {
            name: value for name, value in self.headers.items() if name.lower() != "authorization"
        }
        self.server.requests.append(Seen(request.method, request.target, headers))
        fault = self.fault = self.server.faults.take(f"{request.method} {request.target}")
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
        data = payload if isinstance(payload, bytes) else _read(payload)
        if fault.action == "corrupt":
            super().send_body(fault.damage(data))
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


def _read(part):
    with part.path.open("rb") as file:
        file.seek(part.start)
        return file.read(part.length)


class _Server(Server):
    """A server whose handlers know what was ordered."""

    def __init__(self, port, respond, hub):
        self.faults = hub.faults
        self.requests = hub.requests
        super().__init__(port, respond, _Handler)


class FaultyHub(LocalHub):
    """A Hub on loopback whose requests, without their tokens, can be looked at and made to fail."""

    def __init__(self, root, port=0, **options):
        super().__init__(root, port, **options)
        self.faults = Faults()
        self.requests = []

    def _listen(self, port, respond):
        return _Server(port, respond, self)
